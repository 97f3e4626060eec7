from __future__ import annotations

import dataclasses
import json
import typing

import pytest
from ml_collections import ConfigDict

from sapo_jax import config as config_module
from sapo_jax.config import (
    ConfigError,
    InitModelConfig,
    SapoConfig,
    default_config_dict,
    field_type,
    from_config_dict,
    to_dict,
)


def _raw() -> dict[str, typing.Any]:
    return default_config_dict().to_dict()


def _set(raw: dict[str, typing.Any], path: str, value: typing.Any) -> None:
    *groups, name = path.split(".")
    for group in groups:
        raw = raw[group]
    raw[name] = value


def _fields(cls: type, prefix: str = "") -> dict[str, tuple[type, typing.Any]]:
    """Returns every leaf of the config as dotted path -> (owning class, type)."""
    found: dict[str, tuple[type, typing.Any]] = {}
    for name, hint in typing.get_type_hints(cls).items():
        if dataclasses.is_dataclass(hint):
            found |= _fields(typing.cast(type, hint), f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = (cls, hint)
    return found


_LEAVES = _fields(SapoConfig)

# One line per rule: what is set, and the path that the message must name.
_BAD: list[tuple[dict[str, typing.Any], str]] = [
    ({"rounds": -1}, "rounds"),
    ({"nodes": 0}, "nodes"),
    ({"seed": -1}, "seed"),
    ({"seed": 2**32}, "seed"),
    ({"model.source": ""}, "model.source"),
    ({"model.compute_dtype": "fp8"}, "model.compute_dtype"),
    ({"model.init.width": 0}, "model.init.width"),
    ({"model.init.mlp_width": 0}, "model.init.mlp_width"),
    ({"model.init.layers": 0}, "model.init.layers"),
    ({"model.init.heads": 0}, "model.init.heads"),
    ({"model.init.kv_heads": 0}, "model.init.kv_heads"),
    ({"model.init.kv_heads": 3}, "model.init.kv_heads"),
    ({"model.init.head_size": 0}, "model.init.head_size"),
    ({"model.init.head_size": 15}, "model.init.head_size"),
    ({"model.init.rope_base": 0.0}, "model.init.rope_base"),
    ({"tasks.shots": -1}, "tasks.shots"),
    ({"tasks.draw": "random"}, "tasks.draw"),
    ({"tasks.stream": "both"}, "tasks.stream"),
    ({"tasks.pool_size": -1}, "tasks.pool_size"),
    ({"tasks.completion_budget_s": 0.0}, "tasks.completion_budget_s"),
    ({"tasks.group_budget_s": 0.5}, "tasks.group_budget_s"),
    ({"tasks.scorer_workers": -1}, "tasks.scorer_workers"),
    ({"tasks.specialties": ("gcd", "lcm", "gcd")}, "tasks.specialties"),
    ({"sampling.group_size": 0}, "sampling.group_size"),
    ({"sampling.group_size": 1}, "sampling.group_size"),
    ({"sampling.max_new_tokens": 0}, "sampling.max_new_tokens"),
    ({"sampling.prompt_buckets": ()}, "sampling.prompt_buckets"),
    ({"sampling.prompt_buckets": (0, 8)}, "sampling.prompt_buckets"),
    ({"sampling.prompt_buckets": (128, 128)}, "sampling.prompt_buckets"),
    ({"sampling.prompt_buckets": (256, 128)}, "sampling.prompt_buckets"),
    ({"sampling.prompt_buckets": tuple(range(1, 10))}, "sampling.prompt_buckets"),
    ({"sampling.temperature": 0.0}, "sampling.temperature"),
    ({"sampling.top_k": -1}, "sampling.top_k"),
    ({"sampling.top_p": 0.0}, "sampling.top_p"),
    ({"sampling.top_p": 1.01}, "sampling.top_p"),
    ({"sampling.min_p": -0.1}, "sampling.min_p"),
    ({"sampling.min_p": 1.0}, "sampling.min_p"),
    ({"sharing.local": -1}, "sharing.local"),
    ({"sharing.local": 0}, "sharing.local"),
    ({"sampling.group_size": 65}, "sampling.group_size"),
    ({"sharing.external": -1}, "sharing.external"),
    ({"sharing.local": 0, "sharing.external": 0}, "sharing.local + config.sharing.external"),
    ({"sharing.selection": "best"}, "sharing.selection"),
    ({"sharing.max_age_rounds": -1}, "sharing.max_age_rounds"),
    ({"sharing.max_uses": 0}, "sharing.max_uses"),
    ({"sharing.pool_rollouts": 0}, "sharing.pool_rollouts"),
    ({"learner.learning_rate": -1e-9}, "learner.learning_rate"),
    ({"learner.learning_rate": float("inf")}, "learner.learning_rate"),
    ({"learner.learning_rate": float("nan")}, "learner.learning_rate"),
    ({"learner.schedule": "step"}, "learner.schedule"),
    ({"learner.optimizer": "sgd"}, "learner.optimizer"),
    ({"learner.loss_normalizer": "rows"}, "learner.loss_normalizer"),
    ({"learner.local_encoding": "ids"}, "learner.local_encoding"),
    ({"learner.warmup_rounds": -1}, "learner.warmup_rounds"),
    ({"learner.weight_decay": -0.1}, "learner.weight_decay"),
    ({"learner.weight_decay": 0.1}, "learner.weight_decay"),
    ({"learner.max_grad_norm": -1.0}, "learner.max_grad_norm"),
    ({"learner.advantage_std_floor": -0.1}, "learner.advantage_std_floor"),
    ({"learner.kl_coef": -0.1}, "learner.kl_coef"),
    ({"learner.beta1": 1.0}, "learner.beta1"),
    ({"learner.beta1": -0.1}, "learner.beta1"),
    ({"learner.beta2": 1.0}, "learner.beta2"),
    ({"learner.epsilon": 0.0}, "learner.epsilon"),
    ({"learner.clip_low": 0.0}, "learner.clip_low"),
    ({"learner.clip_low": 1.0}, "learner.clip_low"),
    ({"learner.clip_high": 0.0}, "learner.clip_high"),
    ({"learner.inner_epochs": 0}, "learner.inner_epochs"),
    ({"learner.micro_batch_groups": -1}, "learner.micro_batch_groups"),
    ({"learner.micro_batch_groups": 3}, "learner.micro_batch_groups"),
    ({"learner.micro_batch_tokens": -1}, "learner.micro_batch_tokens"),
    ({"learner.micro_batch_tokens": 511 + 8 * 32 - 1}, "learner.micro_batch_tokens"),
    ({"learner.micro_batch_tokens": 10_000, "host.mesh_data": 2}, "learner.micro_batch_tokens"),
    ({"learner.logit_chunk_tokens": 0}, "learner.logit_chunk_tokens"),
    ({"cold_start.steps": -1}, "cold_start.steps"),
    ({"cold_start.batch_rows": 0}, "cold_start.batch_rows"),
    ({"cold_start.learning_rate": 0.0}, "cold_start.learning_rate"),
    ({"cold_start.true_frac": -0.1}, "cold_start.true_frac"),
    ({"cold_start.true_frac": 1.1}, "cold_start.true_frac"),
    ({"eval.every_rounds": -1}, "eval.every_rounds"),
    ({"eval.questions": 0}, "eval.questions"),
    ({"eval.questions_per_call": -1}, "eval.questions_per_call"),
    ({"eval.samples": 0}, "eval.samples"),
    ({"eval.temperature": 0.0}, "eval.temperature"),
    ({"checkpoint.every_rounds": -1}, "checkpoint.every_rounds"),
    ({"checkpoint.keep_last": 0}, "checkpoint.keep_last"),
    ({"host.platform": "cuda"}, "host.platform"),
    ({"host.nodes_per_program": -1}, "host.nodes_per_program"),
    ({"host.nodes_per_program": 3}, "host.nodes_per_program"),
    ({"host.mesh_node": 0}, "host.mesh_node"),
    ({"host.mesh_data": 0}, "host.mesh_data"),
    ({"host.mesh_fsdp": 0}, "host.mesh_fsdp"),
    ({"host.mesh_node": 4}, "host.mesh_node"),
    ({"host.mesh_node": 2, "host.nodes_per_program": 1}, "host.mesh_node"),
    ({"host.mesh_data": 3}, "host.mesh_data"),
    ({"host.mesh_data": 2, "sharing.external": 3}, "host.mesh_data"),
    ({"host.mesh_data": 2, "eval.questions_per_call": 3}, "host.mesh_data"),
    ({"host.mesh_data": 4, "cold_start.steps": 1, "cold_start.batch_rows": 6}, "host.mesh_data"),
    ({"host.mesh_tensor": 0}, "host.mesh_tensor"),
]


def test_the_defaults_are_valid_and_survive_the_round_trip():
    assert from_config_dict(default_config_dict()) == SapoConfig()


def test_round_trip_through_json_text():
    raw = _raw()
    _set(raw, "tasks.specialties", ("gcd", "lcm"))
    _set(raw, "learner.learning_rate", 3e-6)
    config = from_config_dict(raw)
    assert from_config_dict(json.loads(json.dumps(to_dict(config)))) == config
    assert config.tasks.specialties == ("gcd", "lcm")


@pytest.mark.parametrize(("changes", "path"), _BAD, ids=[f"{path}={list(c.values())[0]}" for c, path in _BAD])
def test_value_out_of_range_names_its_path(changes, path):
    raw = _raw()
    for key, value in changes.items():
        _set(raw, key, value)
    with pytest.raises(ConfigError) as caught:
        from_config_dict(raw)
    assert str(caught.value).startswith(f"config.{path} = ")


@pytest.mark.parametrize("path", [path for path, (_, hint) in _LEAVES.items() if hint is float])
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_no_number_may_be_infinite_or_not_a_number(path, value):
    raw = _raw()
    _set(raw, path, value)
    with pytest.raises(ConfigError) as caught:
        from_config_dict(raw)
    assert str(caught.value) == f"config.{path} = {value!r}: must be finite"


def test_every_field_is_either_free_or_has_a_failing_case():
    free = {path for path, (_, hint) in _LEAVES.items() if hint is bool}
    free |= {"text.system_prompt", "tasks.catalog"}  # any text; checked where the catalogs are known
    assert {key for changes, _ in _BAD for key in changes} == set(_LEAVES) - free


@pytest.mark.parametrize("path", list(_LEAVES))
def test_missing_key_names_its_path(path):
    raw = _raw()
    *groups, name = path.split(".")
    group = raw
    for step in groups:
        group = group[step]
    del group[name]
    with pytest.raises(ConfigError, match=rf"^config\.{path}: missing key$"):
        from_config_dict(raw)


@pytest.mark.parametrize("path", ["surprise", "learner.lr", "model.init.depth"])
def test_unknown_key_names_its_path_and_the_known_ones(path):
    raw = _raw()
    _set(raw, path, 1)
    sibling = {"surprise": "rounds", "learner.lr": "learning_rate", "model.init.depth": "layers"}[path]
    with pytest.raises(ConfigError, match=rf"^config\.{path}: unknown key \(known here: .*{sibling}"):
        from_config_dict(raw)


_WRONG: dict[typing.Any, list[typing.Any]] = {
    int: [1.0, "1", True, None, (1,)],
    float: ["1.0", True, None, (1.0,)],
    str: [1, None, b"x", ("x",)],
    bool: [1, 0, "true", None],
    tuple[int, ...]: [1, "12", None, {"a": 1}, (1, 2.0), (1, "2"), (True,)],
    tuple[str, ...]: ["gcd", None, ("gcd", 2), (1, 2), (("gcd",),)],
}


@pytest.mark.parametrize("path", list(_LEAVES))
def test_mistyped_value_names_its_path(path):
    for value in _WRONG[_LEAVES[path][1]]:
        raw = _raw()
        _set(raw, path, value)
        with pytest.raises(ConfigError) as caught:
            from_config_dict(raw)
        assert str(caught.value).startswith(f"config.{path}")
        assert "must be" in str(caught.value)


def test_a_wrong_element_is_named_by_its_index():
    raw = _raw()
    _set(raw, "tasks.specialties", ("gcd", 2))
    with pytest.raises(ConfigError, match=r"^config\.tasks\.specialties\[1\] = 2: must be of type str, is int$"):
        from_config_dict(raw)


@pytest.mark.parametrize("path", ["surprise", "learner.lr", "rounds.more", "model.init.depth.x"])
def test_the_type_of_an_unknown_field_names_the_first_unknown_key(path):
    known = path.removesuffix(".x")
    with pytest.raises(ConfigError, match=rf"^config\.{known}: unknown key \(known here: "):
        field_type(path)


def test_the_type_of_a_field():
    assert field_type("learner.learning_rate") is float
    assert field_type("tasks.specialties") == tuple[str, ...]
    assert field_type("model.init") is InitModelConfig


@pytest.mark.parametrize("value", [None, 3, "x"])
def test_a_config_must_be_a_group(value):
    with pytest.raises(ConfigError, match=r"^config = .*: must be a group of keys$"):
        from_config_dict(value)


@pytest.mark.parametrize("value", [None, 3, "x", [1]])
def test_a_group_must_be_a_group(value):
    raw = _raw()
    _set(raw, "model.init", value)
    with pytest.raises(ConfigError, match=r"^config\.model\.init = .*: must be a group of keys$"):
        from_config_dict(raw)


def test_whole_numbers_are_taken_for_floats_but_become_floats():
    raw = _raw()
    _set(raw, "sampling.temperature", 1)
    value = from_config_dict(raw).sampling.temperature
    assert (value, type(value)) == (1.0, float)


def test_lists_become_tuples():
    raw = _raw()
    _set(raw, "sampling.prompt_buckets", [64, 96])
    config = from_config_dict(raw)
    assert config.sampling.prompt_buckets == (64, 96)
    assert config.sampling.max_prompt_tokens == 96


def test_the_default_dict_is_locked_and_independent():
    first: typing.Any = default_config_dict()
    second: typing.Any = default_config_dict()
    with pytest.raises(AttributeError):
        first.surprise = 1
    first.learner.learning_rate = 0.5
    assert second.learner.learning_rate == SapoConfig().learner.learning_rate
    assert isinstance(first, ConfigDict)


def test_converting_changes_nothing_in_its_input():
    raw = _raw()
    before = json.dumps(raw)
    from_config_dict(raw)
    assert json.dumps(raw) == before


def test_cross_field_rules_at_their_edge():
    raw = _raw()
    for path, value in {
        "sharing.local": 2,
        "sharing.external": 4,
        "learner.micro_batch_groups": 3,
        "nodes": 6,
        "host.nodes_per_program": 3,
        "learner.optimizer": "adamw",
        "learner.weight_decay": 0.1,
    }.items():
        _set(raw, path, value)
    config = from_config_dict(raw)
    assert config.train_groups == 6


@pytest.mark.parametrize(("local", "external"), [(1, 0), (8, 0), (2, 6)])
def test_sharing_mixes(local, external):
    raw = _raw()
    _set(raw, "sharing.local", local)
    _set(raw, "sharing.external", external)
    assert from_config_dict(raw).train_groups == local + external


def test_configs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SapoConfig().rounds = 3  # pyright: ignore[reportAttributeAccessIssue]
    classes = [value for value in vars(config_module).values() if dataclasses.is_dataclass(value)]
    assert SapoConfig in classes
    assert all(typing.cast(typing.Any, cls).__dataclass_params__.frozen for cls in classes)
