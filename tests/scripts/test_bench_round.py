"""The benchmark counts the arithmetic that the programs contain, and times rounds that learn."""

from __future__ import annotations

import json
import sys
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import jaxprs_in_params

from sapo_jax.command import run_command
from sapo_jax.learner.step import Batch, batch_logprobs
from sapo_jax.models.architecture import DecoderConfig
from sapo_jax.models.decoder import abstract_params
from sapo_jax.sampling.decode import Prompts, sample
from scripts import bench_round

# ml_collections 1.1 loads config files through a deprecated call of importlib.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

MODEL = DecoderConfig(
    family="llama",
    vocab_size=300,
    width=32,
    mlp_width=80,
    layers=3,
    heads=4,
    kv_heads=2,
    head_size=8,
    rope_base=1e4,
    norm_epsilon=1e-6,
    tie_embeddings=True,
    qkv_bias=False,
    qk_norm=False,
    max_positions=512,
)
Q, G, P, C = 3, 4, 17, 6
EXPECTED = bench_round.pass_flops(MODEL, questions=Q, group_size=G, prompt=P, completion=C)


def product_flops(jaxpr, while_trips=1):
    """Returns the FLOPs of all matrix products in `jaxpr`, loops multiplied out; RoPE's outer product is none."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            contracted = equation.params["dimension_numbers"][0][0]
            inner = 1
            for axis in contracted:
                inner *= equation.invars[0].aval.shape[axis]
            total += 2 * inner * equation.outvars[0].aval.size if contracted else 0
        trips = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        trips = while_trips if equation.primitive.name == "while" else trips
        for inside in jaxprs_in_params(equation.params):
            total += trips * product_flops(inside, while_trips)
    return total


def tokens(*shape, dtype: Any = jnp.int32) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype)


def batch():
    prompt, rows = (Q, P), (Q, G)
    return Batch(
        prompt_tokens=tokens(*prompt),
        prompt_positions=tokens(*prompt),
        prompt_mask=tokens(*prompt, dtype=bool),
        completion_tokens=tokens(*rows, C),
        completion_mask=tokens(*rows, C, dtype=bool),
        rewards=tokens(*rows, dtype=jnp.float32),
        valid=tokens(*rows, dtype=bool),
        truncated=tokens(*rows, dtype=bool),
        external=tokens(Q, dtype=bool),
    )


def score(params, batch):
    return batch_logprobs(MODEL, params, batch, temperature=1.0, logit_chunk_tokens=1000)[0].sum()


def test_counts_the_products_of_a_forward_pass():
    assert product_flops(jax.make_jaxpr(score)(abstract_params(MODEL), batch()).jaxpr) == EXPECTED


def test_an_update_is_three_forward_passes():
    gradient = jax.make_jaxpr(jax.grad(score))(abstract_params(MODEL), batch())
    assert product_flops(gradient.jaxpr) == 3 * EXPECTED


def test_counts_the_products_of_sampling():
    nodes = 2
    params = jax.tree.map(lambda leaf: tokens(nodes, *leaf.shape, dtype=leaf.dtype), abstract_params(MODEL))
    shape = (nodes, Q, P)
    prompts = Prompts(tokens(*shape), tokens(*shape, dtype=bool), tokens(*shape))
    draw = partial(sample, MODEL, end_id=1, group_size=G, max_new_tokens=C)
    traced = jax.make_jaxpr(draw)(params, prompts, tokens(nodes, dtype=jnp.uint32), tokens(dtype=jnp.float32))
    assert product_flops(traced.jaxpr, while_trips=C) == nodes * EXPECTED


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["bench_round.py", *arguments])
    bench_round._OPTIONS.unparse_flags()
    with pytest.raises(SystemExit) as caught:
        run_command(bench_round.main, bench_round._OPTIONS)
    return caught.value.code


def test_times_the_rounds_of_a_config(monkeypatch, tmp_path, capsys):
    out = tmp_path / "bench.json"
    sizes = ("--config.sampling.max_new_tokens=4", "--config.sharing.local=2", "--config.sharing.external=1")
    sizes += ("--config.sampling.prompt_buckets=(20,128,500)",)
    assert run(monkeypatch, "--config=configs/tiny.py", *sizes, "--rounds=2", "--device=cpu", f"--json={out}") == 0
    record = json.loads(out.read_text())
    assert record["config"]["sampling"]["max_new_tokens"] == 4
    assert record["config"]["host"]["platform"] == "cpu"
    result = record["result"]
    parts = result["parts"]
    assert set(parts) == {"sampling", "host", "update", "round"}
    for part in parts.values():
        assert 0 < part["least_s"] <= part["median_s"] <= part["most_s"]
    assert parts["sampling"]["median_s"] + parts["update"]["median_s"] <= 1.01 * parts["round"]["most_s"]
    # Two nodes: two own questions sampled, three groups trained on at three times the price.
    assert parts["update"]["flops"] == 3 * 3 / 2 * parts["sampling"]["flops"]
    assert parts["round"]["flops"] == parts["update"]["flops"] + parts["sampling"]["flops"]
    # The update ran: sampled tokens became trained tokens, own ones alone at least 2 * 2 * 8 rows.
    assert parts["update"]["tokens_per_s"] * parts["update"]["median_s"] > 32
    assert result["peak_memory_bytes"] > 1e8
    assert result["prompt_tokens"] == 128  # 20 would hold none, 500 is not needed
    printed = capsys.readouterr().out
    assert "2 own + 1 external groups of 8" in printed and "x floor" in printed


@pytest.mark.parametrize(("flag", "code", "message"), [("--rounds=0", 2, "rounds"), ("--device=abacus", 2, "device")])
def test_bad_flags_are_one_clear_error(monkeypatch, capsys, flag, code, message):
    assert run(monkeypatch, "--config=configs/tiny.py", flag) == code
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and message in printed
