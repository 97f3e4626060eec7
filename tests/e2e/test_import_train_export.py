"""A model folder as users have it goes in, is trained, and comes out as a folder that transformers loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sapo_jax.metrics import read_metrics
from sapo_jax.models.forward import forward
from sapo_jax.models.hf_import import load_folder
from sapo_jax.text.tokenizer import load_tokenizer
from sapo_jax.trained import load_trained
from sapo_jax.workdir import METRICS_FILE
from tests.e2e.runs import call, tiny, train
from tests.models.hf_folders import write_hf_folder

SETTINGS = (
    "--config.model.compute_dtype=float32",
    # Enough to say "yes" and "no" in tags: then a group of eight is rarely all right or all wrong.
    "--config.cold_start.steps=40",
    "--config.cold_start.learning_rate=0.015",
    "--config.sampling.group_size=8",
    "--config.sampling.max_new_tokens=16",
    "--config.sampling.prompt_buckets=(96,192)",
    "--config.text.system_prompt=Answer shortly.",
    "--config.tasks.shots=1",
)


def test_a_sharded_qwen_folder_is_imported_trained_and_exported(tmp_path: Path) -> None:
    source, workdir, out = tmp_path / "source", tmp_path / "run", tmp_path / "out"
    write_hf_folder(source, "qwen2", tie=False, seed=5)
    assert len(list(source.glob("*.safetensors"))) > 2  # sharded
    train(tiny(workdir, f"--config.model.source={source}", *SETTINGS))
    rounds = [record for record in read_metrics(workdir / METRICS_FILE) if "reward/own_mean" in record.metrics]
    assert [(record.round, record.node) for record in rounds] == [(r, n) for r in (1, 2) for n in (0, 1, None)]
    for record in rounds:
        assert record.metrics["groups/informative_frac"] > 0 and record.metrics["learner/grad_norm"] > 0
    begun, ended = _params(workdir, "0"), _params(workdir, "latest")  # after the cold start, after two rounds
    for before, after in zip(begun, ended, strict=True):  # the rounds have moved every tensor of both nodes
        moved = jax.tree.map(lambda old, new: np.abs(new - old).max(), before, after)
        assert min(jax.tree.leaves(moved)) > 1e-4

    outcome = call("export", f"--workdir={workdir}", f"--out={out}", "--node=1")
    assert outcome.code == 0, outcome.err
    assert outcome.out == f"wrote {out} (node 1 after 2 rounds)\n"
    again = call("export", f"--workdir={workdir}", f"--out={out}", "--node=1")
    assert again.code == 2 and "exists already" in again.err

    trained = load_trained(str(workdir), "latest", node=1)
    params = trained.host.params_of(0)
    tokenizer = load_tokenizer(source)
    ids = tokenizer.encode_template("<|im_start|>user\nIs 1900 a leap year?<|im_end|>\n<|im_start|>assistant\n")
    tokens = np.array([ids], np.int32)
    ours = _logits(trained.model.config, params, tokens)
    theirs: Any = AutoModelForCausalLM.from_pretrained(out).eval()
    with torch.no_grad():
        expected = theirs(torch.from_numpy(tokens).long()).logits.numpy()
    np.testing.assert_allclose(ours, expected, atol=1e-4 * np.abs(expected).max(), rtol=0)
    # It is the node of after the rounds that went out: not the model that came in, not what the rounds
    # began with, and not the other node.
    for other in (load_folder(source)[1], begun[1], ended[0]):
        assert np.abs(_logits(trained.model.config, other, tokens) - expected).max() > 1e-3 * np.abs(expected).max()

    fast = AutoTokenizer.from_pretrained(out)
    assert fast.chat_template == AutoTokenizer.from_pretrained(source).chat_template
    assert fast(tokenizer.decode(ids))["input_ids"] == tokenizer.encode_text(tokenizer.decode(ids))
    assert "node 1 after 2 rounds" in (out / "README.md").read_text()

    # What came out goes in again.
    config, loaded = load_folder(out)
    assert config == trained.model.config
    jax.tree.map(np.testing.assert_array_equal, loaded, jax.device_get(params))


def _params(workdir: Path, round: str) -> list[Any]:
    """Returns the parameters of both nodes."""
    host = load_trained(str(workdir), round).host
    return [jax.device_get(host.params_of(node)) for node in range(2)]


def _logits(config: Any, params: Any, tokens: np.ndarray) -> np.ndarray:
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    mask = np.ones(tokens.shape, bool)
    return np.asarray(forward(config, params, jnp.asarray(tokens), jnp.asarray(positions), jnp.asarray(mask)))
