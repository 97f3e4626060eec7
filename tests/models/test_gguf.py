from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type

from sapo_jax.config import InitModelConfig
from sapo_jax.models import sources
from sapo_jax.models.gguf_import import interleaved_to_halves, load_gguf
from sapo_jax.models.hf_config import decoder_config
from sapo_jax.models.weight_table import ModelFilesError, disassemble
from sapo_jax.text.tokenizer import TokenizerError
from tests.models.gguf_files import gguf_name, interleave, model_metadata, tokenizer_metadata, write_gguf
from tests.models.hf_folders import random_model, small_tokenizer

CASES = [(family, tie) for family in ("llama", "qwen2", "qwen3") for tie in (True, False)]
# Rows of 64 and 96 are whole blocks of 32, so every matrix can be stored in the block types.
SIZES: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16,
}  # fmt: skip


def contents(family: str, tie: bool) -> tuple[Any, dict[str, np.ndarray], dict[str, Any]]:
    """Returns (torch model, GGUF tensors, metadata)."""
    fast = small_tokenizer()
    model = random_model(family, tie=tie, seed=4, vocab_size=len(fast) + 5, **SIZES)
    tensors = {}
    for name, tensor in model.state_dict().items():
        if tie and name == "lm_head.weight":
            continue
        array = tensor.numpy()
        for part, heads in (("q_proj", 4), ("k_proj", 2)):
            if family == "llama" and part in name:
                array = interleave(array, heads)
        tensors[gguf_name(name)] = array
    return model, tensors, model_metadata(model.config) | tokenizer_metadata(fast, "qwen2", len(fast) + 5)


@pytest.mark.parametrize(("family", "tie"), CASES)
def test_float32_files_give_the_original_weights(tmp_path: Path, family: str, tie: bool) -> None:
    model, tensors, metadata = contents(family, tie)
    path = tmp_path / "model.gguf"
    write_gguf(path, family, tensors, metadata)
    config, params, found = load_gguf(path)
    assert config == decoder_config(model.config.to_dict(), "config.json")
    for name, tensor in disassemble(config, params):
        np.testing.assert_array_equal(tensor, model.state_dict()[name].numpy(), err_msg=name)
    assert found["tokenizer.ggml.tokens"] == metadata["tokenizer.ggml.tokens"]


@pytest.mark.parametrize("kind", [Type.F16, Type.BF16, Type.Q8_0, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1])
def test_stored_types_are_dequantized(tmp_path: Path, kind: Type) -> None:
    model, tensors, metadata = contents("llama", True)
    types = {name: kind for name, array in tensors.items() if array.ndim == 2}
    path = tmp_path / "model.gguf"
    write_gguf(path, "llama", tensors, metadata, types)
    config, params, _ = load_gguf(path)
    for name, tensor in disassemble(config, params):
        expected = model.state_dict()[name].numpy()
        if expected.ndim == 2:  # rows are stored whole, so undoing their order does not touch the blocks
            expected = gguf.dequantize(gguf.quantize(expected, kind), kind)
        np.testing.assert_array_equal(tensor, expected, err_msg=name)


def test_row_order_is_undone_per_head() -> None:
    rows = np.arange(2 * 6, dtype=np.float32)[:, None] * np.ones(3, np.float32)
    stored = interleave(rows, 2)
    assert stored[:6, 0].tolist() == [0, 3, 1, 4, 2, 5]
    np.testing.assert_array_equal(interleaved_to_halves(stored, 2), rows)


def test_all_problems_are_in_one_error(tmp_path: Path) -> None:
    _, tensors, metadata = contents("qwen2", True)
    del tensors["blk.1.attn_q.bias"]
    tensors["rope_freqs.weight"] = np.ones(8, np.float32)
    tensors["blk.0.ffn_up.weight"] = tensors["blk.0.ffn_up.weight"][:64]
    path = tmp_path / "model.gguf"
    write_gguf(path, "qwen2", tensors, metadata)
    with pytest.raises(ModelFilesError) as caught:
        load_gguf(path)
    text = str(caught.value)
    assert str(path) in text and "3 problems" in text
    assert "unknown tensor rope_freqs.weight [8]" in text
    assert "missing tensor blk.1.attn_q.bias [64]" in text
    assert "tensor blk.0.ffn_up.weight has shape [64, 64], expected [96, 64]" in text


def test_integer_tensors_are_refused(tmp_path: Path) -> None:
    _, tensors, metadata = contents("llama", True)
    path = tmp_path / "model.gguf"
    write_gguf(path, "llama", tensors | {"output_norm.weight": np.ones(64, np.int32)}, metadata)
    with pytest.raises(ModelFilesError, match="output_norm.weight has type I32, which cannot be dequantized"):
        load_gguf(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"llama.rope.scaling.type": "yarn"}, "llama.rope.scaling.type = 'yarn'"),
        ({"llama.rope.dimension_count": 8}, "llama.rope.dimension_count = 8"),
        ({"llama.attention.sliding_window": 512}, "llama.attention.sliding_window = 512"),
        ({"llama.expert_count": 4}, "llama.expert_count = 4"),
        ({"llama.block_count": 0}, "llama.block_count = 0"),
        ({"llama.attention.head_count": "4"}, "llama.attention.head_count = '4'"),
        ({"llama.context_length": None}, "llama.context_length = None"),
    ],
)
def test_metadata_that_is_not_implemented_is_refused_by_key(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    _, tensors, metadata = contents("llama", True)
    path = tmp_path / "model.gguf"
    changed = {key: value for key, value in (metadata | changes).items() if value is not None}
    write_gguf(path, "llama", tensors, changed)
    with pytest.raises(ModelFilesError) as caught:
        load_gguf(path)
    assert message in str(caught.value) and str(path) in str(caught.value)


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf", "gemma", {"a": np.ones(4, np.float32)}, {})
    with pytest.raises(ModelFilesError, match="general.architecture = 'gemma': only llama, qwen2, qwen3"):
        load_gguf(tmp_path / "model.gguf")


@pytest.mark.parametrize("damage", ["empty", "no magic", "in metadata", "in tensor list", "in data", "one byte"])
def test_truncated_and_foreign_files_are_named(tmp_path: Path, damage: str) -> None:
    _, tensors, metadata = contents("llama", True)
    path = tmp_path / "model.gguf"
    write_gguf(path, "llama", tensors, metadata)
    content = path.read_bytes()
    cuts = {
        "empty": b"",
        "no magic": b"PK\x03\x04" + content[4:],
        "in metadata": content[: content.index(b"tokenizer.ggml.merges") + 100],
        "in tensor list": content[: content.index(b"blk.1.ffn_up.weight") + 30],
        "in data": content[: len(content) * 2 // 3],
        "one byte": content[:-1],
    }
    path.write_bytes(cuts[damage])
    with pytest.raises(ModelFilesError, match="model.gguf: damaged, truncated or not a GGUF file"):
        load_gguf(path)
    path.unlink()
    with pytest.raises(ModelFilesError, match="model.gguf: no such file"):
        load_gguf(path)


def test_a_gguf_source_brings_its_tokenizer(tmp_path: Path) -> None:
    _, tensors, metadata = contents("qwen3", False)
    path = tmp_path / "model.gguf"
    write_gguf(path, "qwen3", tensors, metadata)
    model = sources.load(f"gguf:{path}", init=InitModelConfig())
    fast = small_tokenizer()
    assert model.tokenizer.encode_text("It's 42.") == fast.encode("It's 42.")
    assert (model.tokenizer.end_id, model.tokenizer.vocab_size) == (fast.eos_token_id, len(fast))
    assert model.config.vocab_size == len(fast) + 5 and model.origin == f"gguf:{path}"

    write_gguf(path, "qwen3", tensors, metadata | {"tokenizer.ggml.pre": "someday"})
    with pytest.raises(TokenizerError, match="tokenizer.ggml.pre = 'someday': unknown pre-tokenizer"):
        sources.load(f"gguf:{path}", init=InitModelConfig())
