"""Reads a folder of safetensors (one file or sharded with an index) into our parameter tree.

Nothing is read before every name, shape and type has been checked, and every problem is in one error.
Only safetensors: pickled weights would run code when opened.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 (registers bfloat16 with numpy before safetensors looks for it)
import numpy as np
from safetensors import SafetensorError, safe_open

from sapo_jax.models.architecture import DecoderConfig
from sapo_jax.models.hf_config import decoder_config, read_json
from sapo_jax.models.weight_table import ModelFilesError, Params, Weight, assemble, check_tensors

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_FLOAT_TYPES = ("F32", "F16", "BF16")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_IGNORED_SUFFIX = "rotary_emb.inv_freq"  # a buffer that old exports saved; RoPE computes it


def load_folder(folder: Path) -> tuple[DecoderConfig, Params]:
    """Returns the configuration and the float32 parameters of a Hugging Face model folder.

    Raises:
        ModelFilesError: a file is missing, damaged, or holds what this decoder does not.
    """
    config_path = folder / "config.json"
    config = decoder_config(read_json(config_path), str(config_path))
    return config, load_weights(folder, config)


def load_weights(folder: Path, config: DecoderConfig) -> Params:
    """Returns the parameters in `folder`'s safetensors, any of float32, float16, bfloat16, as float32.

    A tied model may carry `lm_head.weight` as long as it equals the embedding.

    Raises:
        ModelFilesError: see `load_folder`.
    """
    files, listed = _weight_files(folder)
    with ExitStack() as stack:
        place: dict[str, tuple[str, Any]] = {}  # tensor -> file name, open file
        problems: list[str] = []
        shapes: dict[str, tuple[int, ...]] = {}
        for file in files:
            handle = _open(folder / file, stack)
            for name in handle.keys():  # noqa: SIM118 (not a dict: it has no iterator)
                if name.endswith(_IGNORED_SUFFIX):
                    continue
                if name in place:
                    problems.append(f"duplicate tensor {name} in {place[name][0]} and {file}")
                    continue
                if listed is not None and listed.get(name) != file:
                    problems.append(f"tensor {name} is in {file}, {INDEX_FILE} says {listed.get(name)}")
                view = handle.get_slice(name)
                if view.get_dtype() not in _FLOAT_TYPES:
                    problems.append(
                        f"tensor {name} has type {view.get_dtype()}, must be one of {', '.join(_FLOAT_TYPES)}"
                    )
                place[name] = (file, handle)
                shapes[name] = tuple(view.get_shape())
        for name, file in (listed or {}).items():
            if name not in place and not name.endswith(_IGNORED_SUFFIX):
                problems.append(f"{INDEX_FILE} puts tensor {name} in {file}, which does not hold it")
        shapes = _drop_redundant_head(config, shapes, place, problems)
        check_tensors(config, "hf", shapes, str(folder), problems)

        def read(weight: Weight, name: str) -> np.ndarray:
            file, handle = place[name]
            try:
                return np.asarray(handle.get_tensor(name), np.float32)
            except SafetensorError as error:
                raise ModelFilesError(f"{folder / file}: cannot read tensor {name} ({error})") from error

        return assemble(config, "hf", read, str(folder))


def _drop_redundant_head(
    config: DecoderConfig,
    shapes: dict[str, tuple[int, ...]],
    place: dict[str, tuple[str, Any]],
    problems: list[str],
) -> dict[str, tuple[int, ...]]:
    """Returns `shapes` without a tied model's own `lm_head.weight`, noting a problem when it differs."""
    head, embedding = "lm_head.weight", "model.embed_tokens.weight"
    if not config.tie_embeddings or head not in shapes or embedding not in shapes:
        return shapes
    own, shared = (np.asarray(place[name][1].get_tensor(name)) for name in (head, embedding))
    if not np.array_equal(own, shared):
        problems.append(f"tensor {head} differs from {embedding} although tie_word_embeddings is true")
    return {name: shape for name, shape in shapes.items() if name != head}


def _weight_files(folder: Path) -> tuple[list[str], dict[str, str] | None]:
    """Returns the shard names and, with an index, its map from tensor to shard."""
    if not folder.is_dir():
        raise ModelFilesError(f"{folder}: no such folder")
    single, index = folder / SINGLE_FILE, folder / INDEX_FILE
    if single.is_file() and index.is_file():
        raise ModelFilesError(f"{folder}: holds both {SINGLE_FILE} and {INDEX_FILE}; remove the stale one")
    if single.is_file():
        return [SINGLE_FILE], None
    if not index.is_file():
        pickled = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
        if pickled:
            raise ModelFilesError(
                f"{folder}: holds only pickled weights ({', '.join(pickled)}); they run code when opened, "
                "so only safetensors are read: convert them first"
            )
        raise ModelFilesError(f"{folder}: holds neither {SINGLE_FILE} nor {INDEX_FILE}")
    listed = read_json(index).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(file, str) for file in listed.values()):
        raise ModelFilesError(f"{index}: weight_map must map tensor names to file names")
    files = sorted(set(listed.values()))
    outside = [file for file in files if Path(file).name != file]
    if outside:
        raise ModelFilesError(f"{index}: names files outside the folder: {outside}")
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        raise ModelFilesError(f"{folder}: missing weight files {', '.join(missing)} (named by {INDEX_FILE})")
    return files, listed


def _open(path: Path, stack: ExitStack) -> Any:
    try:
        return stack.enter_context(safe_open(path, framework="numpy"))
    except (SafetensorError, OSError) as error:
        raise ModelFilesError(f"{path}: damaged or truncated safetensors file ({error})") from error
