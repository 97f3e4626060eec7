from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from sapo_jax.config import InitModelConfig
from sapo_jax.models import hf_export, sources
from sapo_jax.models.hf_export import export
from sapo_jax.models.hf_import import INDEX_FILE, load_folder
from sapo_jax.models.weight_table import ModelFilesError
from sapo_jax.text.byte_tokenizer import byte_tokenizer
from sapo_jax.text.tokenizer import load_tokenizer
from tests.models.hf_folders import write_hf_folder

CASES = [(family, tie) for family in ("llama", "qwen2", "qwen3") for tie in (True, False)]
MESSAGES = [{"role": "user", "content": "What is 12 + 30? Größe, 数字 <|im_end|>"}]
TEXT = "It's 3.5 km:\n\n  <answer>42</answer> naïve 数字\r\n"


@pytest.mark.parametrize(("family", "tie"), CASES)
def test_transformers_loads_the_same_model_back(tmp_path: Path, family: str, tie: bool) -> None:
    original = write_hf_folder(tmp_path / "in", family, tie=tie, seed=2)
    config, params = load_folder(tmp_path / "in")
    tokenizer = load_tokenizer(tmp_path / "in")
    shard_bytes = 100_000 if family == "qwen2" else hf_export.MAX_SHARD_BYTES
    export(tmp_path / "out", config, params, tokenizer, description="Round 3.", max_shard_bytes=shard_bytes)
    assert (tmp_path / "out" / INDEX_FILE).exists() == (family == "qwen2")

    both: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    loaded, report = both
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    assert type(loaded) is type(original) and loaded.dtype == torch.float32
    state, expected = loaded.state_dict(), original.state_dict()
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(state[name], tensor), name
    assert (loaded.lm_head.weight.data_ptr() == loaded.model.embed_tokens.weight.data_ptr()) == tie
    tokens = torch.tensor([[5, 9, 300, 17, 2, 250]])
    with torch.no_grad():
        assert torch.equal(loaded.eval()(tokens).logits, original(tokens).logits)

    before, after = original.config.to_dict(), loaded.config.to_dict()
    for key in set(before) - {"_name_or_path", "transformers_version", "dtype", "head_dim", "architectures"}:
        if key in ("bos_token_id", "eos_token_id", "pad_token_id"):
            continue
        assert after[key] == before[key], key
    assert loaded.config.eos_token_id == tokenizer.end_id and loaded.config.pad_token_id == tokenizer.pad_id
    assert GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id == tokenizer.end_id

    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    source = AutoTokenizer.from_pretrained(tmp_path / "in")
    assert theirs(TEXT)["input_ids"] == source(TEXT)["input_ids"] == tokenizer.encode_text(TEXT)
    assert theirs.chat_template == source.chat_template
    rendered = theirs.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    assert theirs(rendered)["input_ids"] == tokenizer.encode_template(rendered)
    assert theirs.eos_token_id == tokenizer.end_id and theirs.pad_token_id == tokenizer.pad_id

    again = load_folder(tmp_path / "out")
    assert again[0] == config
    assert load_tokenizer(tmp_path / "out").assumptions == ()


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_a_model_from_random_weights_exports_with_its_byte_tokenizer(tmp_path: Path, family: str) -> None:
    model = sources.load(f"init:{family}", init=InitModelConfig())
    donor = write_hf_folder(
        tmp_path / "donor", family, vocab_size=model.config.vocab_size, hidden_size=64, intermediate_size=192,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16, rope_theta=10_000.0,
        rms_norm_eps=1e-6,
    )  # fmt: skip
    _, params = load_folder(tmp_path / "donor")
    export(tmp_path / "out", model.config, params, model.tokenizer, description="Random.")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert theirs(TEXT)["input_ids"] == model.tokenizer.encode_text(TEXT)
    assert theirs.apply_chat_template(MESSAGES, tokenize=False) == (
        f"<|im_start|>user\n{MESSAGES[0]['content']}<|im_end|>\n"
    )
    assert theirs("<answer>7</answer><|im_end|>")["input_ids"] == [258, ord("7"), 259, 257]
    assert theirs.decode([258, ord("7"), 259, 257], skip_special_tokens=True) == "<answer>7</answer>"
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    tokens = torch.tensor([[1, 2, 255, 257]])
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, donor(tokens).logits)


def test_shards_keep_to_their_size_and_the_index_names_every_tensor(tmp_path: Path) -> None:
    write_hf_folder(tmp_path / "in", "qwen2")
    config, params = load_folder(tmp_path / "in")
    export(tmp_path / "out", config, params, load_tokenizer(tmp_path / "in"), description="", max_shard_bytes=40_000)
    index = json.loads((tmp_path / "out" / INDEX_FILE).read_text())
    shards = (tmp_path / "out").glob("*.safetensors")
    assert {path.stat().st_mode & 0o777 for path in shards} == {0o644}, "others may read them"
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert files == [f"model-{n:05d}-of-{len(files):05d}.safetensors" for n in range(1, len(files) + 1)]
    assert set(index["weight_map"].values()) == set(files) and len(files) > 3
    assert index["metadata"]["total_size"] == sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    embedding = index["weight_map"]["model.embed_tokens.weight"]  # alone, since it is larger than the limit
    assert [name for name, file in index["weight_map"].items() if file == embedding] == ["model.embed_tokens.weight"]
    again = load_folder(tmp_path / "out")[1]
    np.testing.assert_array_equal(again["blocks"]["attn"]["q"]["bias"], params["blocks"]["attn"]["q"]["bias"])


def test_an_existing_folder_is_left_alone(tmp_path: Path) -> None:
    write_hf_folder(tmp_path / "in", "llama")
    config, params = load_folder(tmp_path / "in")
    tokenizer = load_tokenizer(tmp_path / "in")
    (tmp_path / "out").mkdir()
    export(tmp_path / "out", config, params, tokenizer, description="")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    with pytest.raises(ModelFilesError, match="out: exists already"):
        export(tmp_path / "out", config, params, tokenizer, description="")
    assert before == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_hf_folder(tmp_path / "in", "llama")
    config, params = load_folder(tmp_path / "in")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(hf_export, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        export(tmp_path / "new" / "out", config, params, load_tokenizer(tmp_path / "in"), description="")
    assert list((tmp_path / "new").iterdir()) == []


def test_params_and_tokenizers_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    write_hf_folder(tmp_path / "in", "qwen2", tie=False)
    config, params = load_folder(tmp_path / "in")
    tokenizer = load_tokenizer(tmp_path / "in")
    norm = params["final_norm"]["scale"]
    with pytest.raises(ModelFilesError, match=r"params/final_norm/scale: has shape \[2, 48\], expected \[48\]"):
        broken = params | {"final_norm": {"scale": np.stack([norm, norm])}}
        export(tmp_path / "out", config, broken, tokenizer, description="")
    with pytest.raises(ModelFilesError, match="params/head/kernel: missing"):
        broken = {key: value for key, value in params.items() if key != "head"}
        export(tmp_path / "out", config, broken, tokenizer, description="")
    small = load_folder(write_small(tmp_path / "small"))
    with pytest.raises(ModelFilesError, match="the tokenizer has 260 ids, the model embeds 100"):
        export(tmp_path / "out", small[0], small[1], byte_tokenizer(), description="")
    assert not (tmp_path / "out").exists()


def write_small(folder: Path) -> Path:
    write_hf_folder(folder, "llama", vocab_size=100)
    return folder


def test_the_model_card_says_what_it_is_and_what_was_assumed(tmp_path: Path) -> None:
    write_hf_folder(tmp_path / "in", "llama")
    (tmp_path / "in" / "chat_template.jinja").unlink()
    config, params = load_folder(tmp_path / "in")
    export(tmp_path / "out", config, params, load_tokenizer(tmp_path / "in"), description="From round 12 of a test.")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "From round 12 of a test." in card and "has no chat template" in card and "2509.08721" in card
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {
        "README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json",
    }  # fmt: skip
    assert str(tmp_path) not in (tmp_path / "out" / "tokenizer_config.json").read_text()
