from __future__ import annotations

import json
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast
from transformers.models.gpt2.tokenization_gpt2 import GPT2Tokenizer
from transformers.models.qwen2.tokenization_qwen2 import Qwen2Tokenizer

from sapo_jax.text.gguf_tokenizer import gguf_tokenizer
from sapo_jax.text.tokenizer import TokenizerError
from tests.models.gguf_files import tokenizer_metadata
from tests.models.hf_folders import CORPUS, small_tokenizer

TEXTS = (
    *CORPUS,
    "year 2024, 12345678 and 7 + 3=10; they'll IT'S  we'Ve\n\n \n x",
    "  leading   and trailing   ",
    "tabs\tand\r\nlines\n\n\nend",
    "Äpfel, naïve Ⅷ ½ 数字123 🙂!?...",
    "(a+b)*c==d_e#f; <answer>-3.5</answer>",
)


@pytest.fixture(scope="module")
def fast() -> PreTrainedTokenizerFast:
    return small_tokenizer()


def metadata_for(fast: PreTrainedTokenizerFast, pre: str | None, **changes: Any) -> dict[str, Any]:
    metadata = tokenizer_metadata(fast, "", len(fast) + 3) | {"tokenizer.ggml.pre": pre}
    metadata |= {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    return {key: value for key, value in metadata.items() if value is not None}


def pieces(fast: PreTrainedTokenizerFast, pre: str, text: str) -> list[str]:
    """Returns what the pre-tokenizer cuts `text` into, seen through a vocabulary without merges."""
    metadata = metadata_for(fast, pre)
    metadata["tokenizer.ggml.merges"] = []
    backend = gguf_tokenizer(metadata, "x")._template
    assert backend.pre_tokenizer is not None
    return [text[start:end] for _, (start, end) in backend.pre_tokenizer.pre_tokenize_str(text)]


@pytest.mark.parametrize(("pre", "reference"), [("qwen2", Qwen2Tokenizer), ("gpt-2", GPT2Tokenizer)])
def test_ids_equal_those_of_transformers_own_classes(fast: PreTrainedTokenizerFast, pre: str, reference: Any) -> None:
    model = json.loads(fast.backend_tokenizer.to_str())["model"]
    theirs = reference(vocab=model["vocab"], merges=[tuple(merge) for merge in model["merges"]])
    ours = gguf_tokenizer(metadata_for(fast, pre), "x")
    for text in (*TEXTS, "e\u0301 decomposed"):
        assert ours.encode_text(text) == theirs(text)["input_ids"], text


def test_pre_tokenizers_cut_as_their_models_do(fast: PreTrainedTokenizerFast) -> None:
    text = "It's 12345 x+y!\n\n"
    assert pieces(fast, "smollm", text) == ["It", "'s", " ", "1", "2", "3", "4", "5", " x", "+", "y", "!", "\n\n"]
    assert pieces(fast, "qwen2", text) == ["It", "'s", " ", "1", "2", "3", "4", "5", " x", "+y", "!\n\n"]
    assert pieces(fast, "llama-bpe", text) == ["It", "'s", " ", "123", "45", " x", "+y", "!\n\n"]
    assert pieces(fast, "gpt-2", text) == ["It", "'s", " 12345", " x", "+", "y", "!", "\n\n"]
    assert pieces(fast, "default", "a 12345+b") == ["a", " ", "123", "45", "+", "b"]


def test_control_user_defined_and_unused_tokens(fast: PreTrainedTokenizerFast) -> None:
    tokenizer = gguf_tokenizer(metadata_for(fast, "qwen2"), "x")
    vocabulary = fast.get_vocab()
    assert tokenizer.special_ids == {vocabulary[text] for text in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")}
    assert tokenizer.encode_text("<tool_call>") == [vocabulary["<tool_call>"]]
    assert tokenizer.decode([vocabulary["<tool_call>"]]) == "<tool_call>"
    assert tokenizer.vocab_size == len(fast)
    assert tokenizer.decode([len(fast) + 1]) == "", "padding of the vocabulary prints nothing"
    assert tokenizer.chat_template == fast.chat_template and tokenizer.assumptions == ()


def test_a_merge_is_skipped_for_whole_pieces_only_where_the_model_does(fast: PreTrainedTokenizerFast) -> None:
    metadata = metadata_for(fast, "llama-bpe")
    metadata["tokenizer.ggml.tokens"][-1] = "zqzq"  # a token that no merge makes
    metadata["tokenizer.ggml.token_type"][-1] = 1
    assert gguf_tokenizer(metadata, "x").encode_text("zqzq") == [len(fast) + 2]
    assert len(gguf_tokenizer(metadata | {"tokenizer.ggml.pre": "qwen2"}, "x").encode_text("zqzq")) == 4


def test_what_is_assumed_is_said(fast: PreTrainedTokenizerFast) -> None:
    metadata = metadata_for(fast, "qwen2", eos_token_id=None, padding_token_id=None)
    del metadata["tokenizer.chat_template"]
    tokenizer = gguf_tokenizer(metadata, "my.gguf")
    assert tokenizer.end_id == fast.get_vocab()["<|im_end|>"]
    assert len(tokenizer.assumptions) == 3 and all(line.startswith("my.gguf: ") for line in tokenizer.assumptions)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "llama"}, "tokenizer.ggml.model = 'llama': only gpt2"),
        ({"model": None}, "tokenizer.ggml.model = None"),
        ({"pre": "tomorrow"}, "tokenizer.ggml.pre = 'tomorrow': unknown pre-tokenizer"),
        ({"pre": None}, "tokenizer.ggml.pre = None: unknown pre-tokenizer"),
        ({"tokens": None}, "tokenizer.ggml.tokens is missing"),
        ({"merges": None}, "tokenizer.ggml.merges is missing"),
        ({"token_type": [1, 2]}, "tokens but 2 tokenizer.ggml.token_type"),
        ({"merges": ["a b", "no-such token"]}, "tokenizer.ggml.merges holds"),
        ({"merges": ["ab"]}, "tokenizer.ggml.merges holds 'ab'"),
        ({"eos_token_id": 10_000}, "tokenizer.ggml.eos_token_id = 10000: must be a token id"),
    ],
)
def test_inconsistent_metadata_is_refused_by_key(
    fast: PreTrainedTokenizerFast, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(TokenizerError) as caught:
        gguf_tokenizer(metadata_for(fast, **({"pre": "qwen2"} | changes)), "my.gguf")
    assert message in str(caught.value) and "my.gguf" in str(caught.value)


def test_repeated_tokens_are_refused(fast: PreTrainedTokenizerFast) -> None:
    metadata = metadata_for(fast, "qwen2")
    metadata["tokenizer.ggml.tokens"][7] = metadata["tokenizer.ggml.tokens"][8]
    with pytest.raises(TokenizerError, match="repeats 1 tokens"):
        gguf_tokenizer(metadata, "my.gguf")
