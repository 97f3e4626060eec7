"""Writes a model folder that transformers (4 and 5) loads: weights, configuration, tokenizer, model card."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from sapo_jax.models.architecture import DecoderConfig
from sapo_jax.models.hf_config import config_json
from sapo_jax.models.hf_import import INDEX_FILE, SINGLE_FILE
from sapo_jax.models.weight_table import ModelFilesError, Params, disassemble
from sapo_jax.text.tokenizer import Tokenizer

MAX_SHARD_BYTES = 5_000_000_000


def export(
    directory: Path,
    config: DecoderConfig,
    params: Params,
    tokenizer: Tokenizer,
    *,
    description: str,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Writes the model folder `directory`, complete or not at all.

    Everything goes to a temporary folder beside it, which is renamed at the end.

    Args:
        directory: must not exist, or be an empty folder.
        config: dimensions of the model.
        params: one node's tree of float32 arrays (no node axis).
        tokenizer: saved beside the weights, with its chat template.
        description: a line of Markdown for the model card: which run, which round, which source.
        max_shard_bytes: weights beyond this are split into several files with an index.

    Raises:
        ModelFilesError: `directory` exists and is not an empty folder, or `params` do not fit `config`.
        OSError: the disk is full or not writable; nothing is left behind.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ModelFilesError(f"{directory}: exists already and is not an empty folder; export elsewhere")
    if config.vocab_size < tokenizer.vocab_size:
        raise ModelFilesError(
            f"{directory}: the tokenizer has {tokenizer.vocab_size} ids, the model embeds {config.vocab_size}"
        )
    directory.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        _write_weights(partial, config, params, max_shard_bytes)
        ids = {"bos_id": tokenizer.bos_id, "eos_id": tokenizer.end_id, "pad_id": tokenizer.pad_id}
        _write_json(partial / "config.json", config_json(config, **ids))
        generation = {
            "bos_token_id": tokenizer.bos_id,
            "eos_token_id": tokenizer.end_id,
            "pad_token_id": tokenizer.pad_id,
        }
        _write_json(partial / "generation_config.json", {k: v for k, v in generation.items() if v is not None})
        tokenizer.save(partial)
        (partial / "README.md").write_text(
            _model_card(directory.name, config, tokenizer, description), encoding="utf-8"
        )
        os.chmod(partial, 0o755)  # mkdtemp makes it private to this user
        os.replace(partial, directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_weights(folder: Path, config: DecoderConfig, params: Params, max_shard_bytes: int) -> None:
    # Sizes are known from the shapes, so shards are named before any is written and held one at a time.
    sizes = [(name, tensor.nbytes) for name, tensor in disassemble(config, params)]
    shards = _plan_shards(sizes, max_shard_bytes)
    tensors = disassemble(config, params)
    if len(shards) == 1:
        _write_shard(folder / SINGLE_FILE, tensors, shards[0])
        return
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_shard(folder / file, tensors, names)
        weight_map |= dict.fromkeys(names, file)
    total = sum(size for _, size in sizes)
    _write_json(folder / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _plan_shards(sizes: list[tuple[str, int]], max_shard_bytes: int) -> list[list[str]]:
    """Returns tensor names cut into runs of at most `max_shard_bytes`; a larger tensor is alone."""
    shards: list[list[str]] = [[]]
    used = 0
    for name, size in sizes:
        if shards[-1] and used + size > max_shard_bytes:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += size
    return shards


def _write_shard(path: Path, tensors: Iterator[tuple[str, np.ndarray]], names: list[str]) -> None:
    """Writes the next `len(names)` of `tensors`, which are exactly `names`, as float32."""
    shard = {name: np.asarray(tensor, np.float32) for name, tensor in (next(tensors) for _ in names)}
    if list(shard) != names:
        raise AssertionError("tensors and shard plan are not in the same order")
    save_file(shard, path, metadata={"format": "pt"})  # transformers insists on this key
    path.chmod(0o644)  # it makes a file that is private to this user


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _model_card(name: str, config: DecoderConfig, tokenizer: Tokenizer, description: str) -> str:
    notes = "".join(f"- {line}\n" for line in tokenizer.assumptions)
    return (
        f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [reinforcement-learning, sapo_jax]
---

# {name}

Trained with sapo_jax (Swarm sAmpling Policy Optimization, arXiv 2509.08721).

{description}

A {config.family} decoder with {config.layers} layers of width {config.width}, weights in float32.

    from transformers import AutoModelForCausalLM, AutoTokenizer
    model = AutoModelForCausalLM.from_pretrained("PATH")
    tokenizer = AutoTokenizer.from_pretrained("PATH")

The licence of the model it was trained from applies.
{"Assumed about its tokenizer:" if notes else ""}
{notes}""".rstrip()
        + "\n"
    )
