from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from sapo_jax.models import decoder
from sapo_jax.models.hf_config import config_json, decoder_config, read_json
from sapo_jax.models.hf_import import INDEX_FILE, SINGLE_FILE, load_folder
from sapo_jax.models.weight_table import ModelFilesError, disassemble
from tests.models.hf_folders import write_hf_folder

CASES = [(family, tie) for family in ("llama", "qwen2", "qwen3") for tie in (True, False)]
BIG = "1GB"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A single-file, tied Llama folder that tests copy and damage."""
    folder = tmp_path_factory.mktemp("whole") / "model"
    write_hf_folder(folder, "llama", tie=True, max_shard_size=BIG)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "model")
    return tmp_path / "model"


def tensors_of(folder: Path) -> dict[str, np.ndarray]:
    return dict(load_file(folder / SINGLE_FILE))


def rewrite(folder: Path, tensors: dict[str, np.ndarray]) -> None:
    save_file(tensors, folder / SINGLE_FILE, metadata={"format": "pt"})


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(("family", "tie"), CASES)
def test_every_tensor_lands_where_the_forward_pass_looks_for_it(tmp_path: Path, family: str, tie: bool) -> None:
    model = write_hf_folder(tmp_path, family, tie=tie, seed=1)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2, "the folder must be sharded for this test to mean much"
    config, params = load_folder(tmp_path)
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    written = dict(disassemble(config, params))
    assert set(state) - set(written) == ({"lm_head.weight"} if tie else set())
    for name, tensor in written.items():
        np.testing.assert_array_equal(tensor, state[name], err_msg=name)

    shapes = jax.tree.map(lambda leaf: leaf.shape, params, is_leaf=lambda leaf: isinstance(leaf, np.ndarray))
    assert shapes == jax.tree.map(lambda leaf: leaf.shape, decoder.abstract_params(config))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}

    # The round trip above would also pass with heads and head size exchanged in both directions.
    hidden = np.random.default_rng(0).normal(size=(5, config.width)).astype(np.float32)
    attention = model.model.layers[2].self_attn
    expected = attention.k_proj(torch.from_numpy(hidden)).detach().numpy().reshape(5, config.kv_heads, -1)
    ours = params["blocks"]["attn"]["k"]
    found = np.einsum("td,dkh->tkh", hidden, ours["kernel"][2])
    found = found + ours["bias"][2] if family == "qwen2" else found
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    mixed = np.random.default_rng(1).normal(size=(5, config.heads, config.head_size)).astype(np.float32)
    expected = attention.o_proj(torch.from_numpy(mixed.reshape(5, -1))).detach().numpy()
    found = np.einsum("tnh,nhd->td", mixed, params["blocks"]["attn"]["o"]["kernel"][2])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    expected = model.model.layers[1].mlp.down_proj(torch.ones(1, config.mlp_width)).detach().numpy()[0]
    np.testing.assert_allclose(params["blocks"]["mlp"]["down"]["kernel"][1].sum(0), expected, rtol=1e-4, atol=1e-5)
    if not tie:
        np.testing.assert_array_equal(params["head"]["kernel"], state["lm_head.weight"].T)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_files_become_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    model = write_hf_folder(tmp_path, "qwen2", dtype=dtype)
    config, params = load_folder(tmp_path)
    for name, tensor in disassemble(config, params):
        assert tensor.dtype == np.float32
        np.testing.assert_array_equal(tensor, model.state_dict()[name].float().numpy())


def test_all_problems_are_in_one_error(folder: Path) -> None:
    tensors = tensors_of(folder)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    tensors["model.norm.weight"] = tensors["model.norm.weight"][:-1].copy()
    tensors["model.layers.0.self_attn.q_proj.bias"] = np.zeros(48, np.float32)
    tensors["model.layers.2.input_layernorm.weight"] = np.zeros(48, np.int32)
    rewrite(folder, tensors)
    with pytest.raises(ModelFilesError) as caught:
        load_folder(folder)
    text = str(caught.value)
    assert str(folder) in text and "4 problems" in text
    assert "unknown tensor model.layers.0.self_attn.q_proj.bias [48]" in text
    assert "missing tensor model.layers.1.mlp.up_proj.weight [80, 48]" in text
    assert "tensor model.norm.weight has shape [47], expected [48]" in text
    assert "tensor model.layers.2.input_layernorm.weight has type I32" in text


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    write_hf_folder(tmp_path, "llama")
    index = read_json(tmp_path / INDEX_FILE)["weight_map"]
    first, last = (sorted(set(index.values()))[i] for i in (0, -1))
    name = next(name for name, file in index.items() if file == first)
    save_file(load_file(tmp_path / last) | {name: load_file(tmp_path / first)[name]}, tmp_path / last)
    with pytest.raises(ModelFilesError, match=f"duplicate tensor {name} in {first} and {last}"):
        load_folder(tmp_path)


def test_an_index_that_disagrees_with_its_shards_is_refused(tmp_path: Path) -> None:
    write_hf_folder(tmp_path, "llama")
    path = tmp_path / INDEX_FILE
    index = read_json(path)
    files = sorted(set(index["weight_map"].values()))
    index["weight_map"]["model.norm.weight"] = files[0]
    index["weight_map"]["model.ghost.weight"] = files[0]
    path.write_text(json.dumps(index))
    with pytest.raises(ModelFilesError) as caught:
        load_folder(tmp_path)
    assert f"says {files[0]}" in str(caught.value) and "puts tensor model.ghost.weight in" in str(caught.value)


def test_a_tied_model_may_repeat_its_embedding_as_head_and_nothing_else(folder: Path) -> None:
    config, params = load_folder(folder)
    tensors = tensors_of(folder)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)
    rewrite(folder, tensors)
    again = load_folder(folder)
    assert again[0] == config and "head" not in again[1]
    jax.tree.map(np.testing.assert_array_equal, again[1], params)
    tensors["lm_head.weight"][3, 3] += 1
    rewrite(folder, tensors)
    with pytest.raises(ModelFilesError, match="lm_head.weight differs from model.embed_tokens.weight"):
        load_folder(folder)


def test_an_untied_model_needs_its_head(folder: Path) -> None:
    edit_config(folder, tie_word_embeddings=False)
    with pytest.raises(ModelFilesError, match="missing tensor lm_head.weight"):
        load_folder(folder)


@pytest.mark.parametrize("fraction", [0.0, 0.00001, 0.001, 0.5, 0.9999])
def test_a_truncated_file_is_named(folder: Path, fraction: float) -> None:
    path = folder / SINGLE_FILE
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * fraction)])
    with pytest.raises(ModelFilesError, match="model.safetensors: damaged or truncated"):
        load_folder(folder)


def test_a_garbled_header_is_named(folder: Path) -> None:
    path = folder / SINGLE_FILE
    content = bytearray(path.read_bytes())
    content[100:110] = b"\xff" * 10
    path.write_bytes(content)
    with pytest.raises(ModelFilesError, match="model.safetensors: damaged or truncated"):
        load_folder(folder)


def test_values_that_are_not_finite_are_listed(folder: Path) -> None:
    tensors = tensors_of(folder)
    tensors["model.layers.1.mlp.down_proj.weight"][0, 5] = np.nan
    tensors["model.norm.weight"][7] = np.inf
    rewrite(folder, tensors)
    with pytest.raises(ModelFilesError) as caught:
        load_folder(folder)
    assert "model.layers.1.mlp.down_proj.weight" in str(caught.value) and "model.norm.weight" in str(caught.value)


def test_missing_files_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelFilesError, match="config.json: no such file"):
        load_folder(tmp_path / "nowhere")
    (folder / SINGLE_FILE).unlink()
    with pytest.raises(ModelFilesError, match="holds neither model.safetensors nor"):
        load_folder(folder)
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(ModelFilesError, match=r"only pickled weights \(pytorch_model.bin\)"):
        load_folder(folder)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    write_hf_folder(tmp_path, "llama")
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(ModelFilesError, match=f"missing weight files {shard.name}"):
        load_folder(tmp_path)


@pytest.mark.parametrize("file", ["../elsewhere.safetensors", "/etc/model.safetensors", "sub/model.safetensors"])
def test_an_index_cannot_reach_outside_its_folder(folder: Path, file: str) -> None:
    (folder / SINGLE_FILE).unlink()
    (folder / INDEX_FILE).write_text(json.dumps({"weight_map": {"model.norm.weight": file}}))
    with pytest.raises(ModelFilesError, match="outside the folder"):
        load_folder(folder)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"model_type": "mistral"}, "model_type = 'mistral'"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"attention_bias": True}, "attention_bias = True"),
        ({"mlp_bias": True}, "mlp_bias = True"),
        (
            {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}},
            "rope_scaling.rope_type = 'linear'",
        ),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5}}, "rope_parameters.rope_type = 'llama3'"),
        ({"rope_theta": 7.0}, "RoPE bases disagree"),
        ({"use_sliding_window": True}, "use_sliding_window = True"),
        ({"sliding_window": 4096}, "sliding_window = 4096"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
        ({"hidden_size": "48"}, "hidden_size = '48'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers = 0"),
        ({"num_attention_heads": None}, "num_attention_heads = None"),
        ({"num_key_value_heads": 5}, "must divide heads"),
        ({"rms_norm_eps": -1.0}, "rms_norm_eps = -1.0"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings = 'yes'"),
    ],
)
def test_what_is_not_implemented_is_refused_by_key_and_file(folder: Path, changes: dict[str, object], key: str) -> None:
    edit_config(folder, **changes)
    with pytest.raises(ModelFilesError) as caught:
        load_folder(folder)
    assert key in str(caught.value) and str(folder / "config.json") in str(caught.value)


def test_both_spellings_of_transformers_give_one_config() -> None:
    newer = {
        "model_type": "qwen2",
        "vocab_size": 151936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "layer_types": ["full_attention"] * 24,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-06,
        "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"},
        "sliding_window": None,
        "use_sliding_window": False,
        "tie_word_embeddings": True,
        "dtype": "bfloat16",
    }
    older = {key: value for key, value in newer.items() if key not in ("rope_parameters", "layer_types", "dtype")}
    # Qwen2.5-0.5B-Instruct's own file states a window that it does not use.
    older |= {"rope_theta": 1000000.0, "sliding_window": 32768, "max_window_layers": 21, "torch_dtype": "bfloat16"}
    config = decoder_config(older, "config.json")
    assert config == decoder_config(newer, "config.json")
    assert (config.rope_base, config.head_size, config.qkv_bias, config.qk_norm) == (1e6, 64, True, False)
    assert decoder_config(config_json(config, bos_id=None, eos_id=1, pad_id=1), "config.json") == config


def test_qwen3_must_state_its_head_size(tmp_path: Path) -> None:
    write_hf_folder(tmp_path, "qwen3")
    assert load_folder(tmp_path)[0].head_size == 16
    edit_config(tmp_path, head_dim=None)
    with pytest.raises(ModelFilesError, match="head_dim = None"):
        load_folder(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("[]", "must hold a JSON object, holds a list"),
        ('{"model_type": "llama", "model_type": "qwen2"}', r"repeats the keys \['model_type'\]"),
        ("\xff", "not valid JSON"),
    ],
)
def test_damaged_json_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ModelFilesError, match=f"config.json: {message}"):
        load_folder(tmp_path)
