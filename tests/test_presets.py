"""Presets apply to the defaults, validate, and say what they promise."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from sapo_jax import presets
from sapo_jax.config import ConfigError, SapoConfig, default_config_dict, from_config_dict, to_dict


def flatten(tree, prefix=""):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


@pytest.mark.parametrize("name", sorted(presets.PRESETS))
def test_a_preset_sets_its_keys_and_no_others(name):
    config: Any = default_config_dict()
    # Start from values that no preset has, so that a key that is not written shows.
    config.learner.inner_epochs, config.learner.kl_coef, config.sharing.max_age_rounds = 7, 0.5, 9
    config.learner.loss_normalizer, config.sharing.selection, config.sampling.top_k = "constant", "first", 33
    before = dict(flatten(config.to_dict()))
    presets.apply(config, name)
    after = dict(flatten(to_dict(from_config_dict(config))))
    for path, value in after.items():
        expected = presets.PRESETS[name].get(path, before[path])
        assert value == expected and type(value) is type(expected), path
    assert set(presets.PRESETS[name]) <= set(after)


@pytest.mark.parametrize("name", sorted(presets.PRESETS))
def test_every_learner_choice_of_the_algorithm_is_written_down(name):
    """A field added to the learner must be decided here: part of a published algorithm or not."""
    free = {"learning_rate", "micro_batch_groups", "micro_batch_tokens", "remat", "logit_chunk_tokens"}
    fields = {field.name for field in dataclasses.fields(SapoConfig().learner)}
    written = {path.removeprefix("learner.") for path in presets.PRESETS[name] if path.startswith("learner.")}
    assert written == fields - free


def test_what_paper_means():
    config: Any = default_config_dict()
    presets.apply(config, "paper")
    result = from_config_dict(config)
    assert result.sharing.selection == "zero_adv_uniform"
    assert result.sharing.max_age_rounds == 0
    assert result.sampling.group_size == 8
    learner = result.learner
    assert (learner.advantage_std, learner.advantage_std_floor, learner.inner_epochs) == (True, 0.0, 1)
    assert (learner.clip_low, learner.clip_high, learner.kl_coef) == (0.2, 0.28, 0.0)
    assert (learner.optimizer, learner.max_grad_norm, learner.loss_normalizer) == ("adam", 0.0, "tokens")
    assert (learner.local_encoding, learner.allow_truncated_positive) == ("text", False)


def test_genrl_differs_from_paper_in_three_keys():
    assert dict(set(presets.GENRL.items()) - set(presets.PAPER.items())) == {
        "tasks.stream": "shared",
        "tasks.pool_size": 500,
        "sharing.selection": "top_reward",
    }
    assert presets.GENRL.keys() == presets.PAPER.keys()


def test_an_unknown_preset_is_refused():
    with pytest.raises(ConfigError, match="'papr'.*paper, genrl"):
        presets.apply(default_config_dict(), "papr")


def test_presets_cannot_be_changed_by_accident():
    with pytest.raises(TypeError):
        presets.PAPER["learner.kl_coef"] = 1.0  # pyright: ignore[reportIndexIssue]


@pytest.mark.parametrize(
    ("arg", "preset", "sharing"),
    [
        ("", "paper", None),
        ("8_0", "paper", (8, 0)),
        ("6_2", "paper", (6, 2)),
        ("4_4", "paper", (4, 4)),
        ("2_6", "paper", (2, 6)),
        ("genrl", "genrl", None),
        ("genrl_4_4", "genrl", (4, 4)),
        ("paper_2_6", "paper", (2, 6)),
    ],
)
def test_variants(arg, preset, sharing):
    variant = presets.parse_variant(arg)
    assert (variant.preset, variant.sharing) == (preset, sharing)
    config: Any = default_config_dict()
    config.sharing.local, config.sharing.external = 3, 1
    presets.apply_sharing(config, variant)
    result = from_config_dict(config)
    assert (result.sharing.local, result.sharing.external) == (sharing or (3, 1))
    assert result.train_groups == sum(sharing or (3, 1))


@pytest.mark.parametrize(
    "arg",
    [
        "44",
        "4-4",
        "4_",
        "_4",
        "-1_4",
        "4_4_4",
        " 4_4",
        "4_4\n",
        "a_b",
        "٤_٤",
        "99999_0",
        "genrl_",
        "genrl4_4",
        "genrl_4",
    ]
    + ["_4_4", "4_4_genrl", "best", "_"],
)
def test_a_malformed_variant_is_refused(arg):
    with pytest.raises(ConfigError, match="must be I_J"):
        presets.parse_variant(arg)


def test_a_variant_of_nothing_is_refused():
    for arg in ("0_0", "genrl_0_0"):
        with pytest.raises(ConfigError, match=f"'{arg}'.*at least 1"):
            presets.parse_variant(arg)
