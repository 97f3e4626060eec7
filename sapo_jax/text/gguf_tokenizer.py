"""Builds the tokenizer that a GGUF file describes in its metadata.

GGUF names the pre-tokenizer (how text is cut before merges apply) instead of storing it. The table
holds those of the decoder family; an unknown name is an error, since a wrong cut changes ids silently.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from sapo_jax.text.tokenizer import Tokenizer, TokenizerError

_GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_TIKTOKEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Token types of the GGUF specification.
_UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 2, 3, 4, 5


@dataclass(frozen=True, kw_only=True, slots=True)
class _PreTokenizer:
    """What a `tokenizer.ggml.pre` name stands for.

    Attributes:
        cut: makes the pre-tokenizer.
        normalize_nfc: the vocabulary was made from NFC text.
        ignore_merges: a piece that is a token as a whole is taken without merging.
        adds_bos: default of `tokenizer.ggml.add_bos_token`.
    """

    cut: Callable[[], Any]
    normalize_nfc: bool = False
    ignore_merges: bool = False
    adds_bos: bool = False


def _byte_level(*, use_regex: bool) -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


def _by_regexes(*patterns: str) -> Callable[[], Any]:
    def cut() -> Any:
        splits = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in patterns]
        return pre_tokenizers.Sequence([*splits, _byte_level(use_regex=False)])

    return cut


def _gpt2_with_single_digits() -> Any:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _byte_level(use_regex=True)])


_LLAMA3 = _PreTokenizer(cut=_by_regexes(_TIKTOKEN_WORDS % "{1,3}"), ignore_merges=True, adds_bos=True)
_PRE_TOKENIZERS = {
    "smollm": _PreTokenizer(cut=_gpt2_with_single_digits),
    "qwen2": _PreTokenizer(cut=_by_regexes(_TIKTOKEN_WORDS % ""), normalize_nfc=True),
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "gpt-2": _PreTokenizer(cut=lambda: _byte_level(use_regex=True)),
    "default": _PreTokenizer(
        cut=_by_regexes(r"[\p{P}\$\+<=>\^~\|]+", _GPT2_WORDS, r"\p{N}+", r"[0-9][0-9][0-9]"),
    ),
}


def gguf_tokenizer(metadata: Mapping[str, Any], origin: str) -> Tokenizer:
    """Returns the tokenizer that GGUF `metadata` (plain Python values) describes.

    Raises:
        TokenizerError: a missing or inconsistent key, a tokenizer model other than byte-level BPE, or
            an unknown pre-tokenizer name.
    """
    model = metadata.get("tokenizer.ggml.model")
    if model != "gpt2":
        raise TokenizerError(f"{origin}: tokenizer.ggml.model = {model!r}: only gpt2 (byte-level BPE) is implemented")
    name = metadata.get("tokenizer.ggml.pre")
    if name not in _PRE_TOKENIZERS:
        raise TokenizerError(
            f"{origin}: tokenizer.ggml.pre = {name!r}: unknown pre-tokenizer (known: {', '.join(_PRE_TOKENIZERS)})"
        )
    pre = _PRE_TOKENIZERS[name]
    tokens, types, merges = _vocabulary(metadata, origin)
    special = {role: _role_token(metadata, key, tokens, origin) for role, key in _ROLES.items()}

    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab={token: id for id, token in enumerate(tokens) if types[id] != _UNUSED},
            merges=merges,
            ignore_merges=pre.ignore_merges,
        )
    )
    if pre.normalize_nfc:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre.cut()
    backend.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, types, strict=True) if kind in (_UNKNOWN, _CONTROL)]
    control += [token for token in special.values() if token is not None and token not in control]
    ordinary = [
        token for token, kind in zip(tokens, types, strict=True) if kind == _USER_DEFINED and token not in control
    ]
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in ordinary])
    bos = special["bos_token"]
    if bos is not None and metadata.get("tokenizer.ggml.add_bos_token", pre.adds_bos):
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokens.index(bos))]
        )
    else:
        backend.post_processor = processors.ByteLevel(trim_offsets=True)
    roles = {role: token for role, token in special.items() if token is not None}
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **roles)
    fast.chat_template = metadata.get("tokenizer.chat_template")
    return Tokenizer(fast, origin=origin)


_ROLES = {
    "bos_token": "tokenizer.ggml.bos_token_id",
    "eos_token": "tokenizer.ggml.eos_token_id",
    "unk_token": "tokenizer.ggml.unknown_token_id",
    "pad_token": "tokenizer.ggml.padding_token_id",
}


def _vocabulary(metadata: Mapping[str, Any], origin: str) -> tuple[list[str], list[int], list[tuple[str, str]]]:
    """Returns tokens, their types and the merges, checked against each other."""
    lists: dict[str, list[Any]] = {}
    for key in ("tokens", "token_type", "merges"):
        value = metadata.get(f"tokenizer.ggml.{key}")
        if not isinstance(value, list):
            raise TokenizerError(f"{origin}: tokenizer.ggml.{key} is missing or not a list")
        lists[key] = value
    tokens, types = lists["tokens"], lists["token_type"]
    if len(types) != len(tokens):
        raise TokenizerError(f"{origin}: {len(tokens)} tokens but {len(types)} tokenizer.ggml.token_type")
    known = {token for token, kind in zip(tokens, types, strict=True) if kind != _UNUSED}
    if len(set(tokens)) != len(tokens):
        raise TokenizerError(f"{origin}: tokenizer.ggml.tokens repeats {len(tokens) - len(set(tokens))} tokens")
    merges: list[tuple[str, str]] = []
    for line in lists["merges"]:
        left, _, right = line.partition(" ")
        if left not in known or right not in known or left + right not in known:
            raise TokenizerError(f"{origin}: tokenizer.ggml.merges holds {line!r}, which joins no known tokens")
        merges.append((left, right))
    return tokens, types, merges


def _role_token(metadata: Mapping[str, Any], key: str, tokens: list[str], origin: str) -> str | None:
    id = metadata.get(key)
    if id is None:
        return None
    if type(id) is not int or not 0 <= id < len(tokens):
        raise TokenizerError(f"{origin}: {key} = {id!r}: must be a token id in [0, {len(tokens)})")
    return tokens[id]
