"""Published algorithms as data: dotted config keys and the values that make a run follow them.

A preset says how completions are drawn from the policy, which rollouts are trained on and how.
It leaves alone what belongs to a single study and is set by config files: the model, tasks, prompt,
lengths, rounds, nodes, the mix of own and external rollouts, and the learning rate (the sources
disagree by three orders of magnitude; choose it on runs without sharing and keep it for the rest).

`paper`: Swarm sAmpling Policy Optimization, arXiv 2509.08721, where it is explicit, and its public
code where it is silent. `genrl`: that code as first published, where it differs: the external
rollouts of highest total reward, and one pool of 500 questions per specialty that all nodes walk
through together. The reward that code logs, over everything trained on, is logged by every run.

Both depart from the sources where those are plainly wrong: end tokens are trained, text cut by
the limit is never reinforced, padding never sits inside a sequence, no text is run as code.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from ml_collections import ConfigDict

from sapo_jax.config import ConfigError

PAPER: MappingProxyType[str, Any] = MappingProxyType(
    {
        "tasks.draw": "composite",
        "tasks.stream": "independent",
        "tasks.pool_size": 0,
        "sampling.group_size": 8,
        "sampling.temperature": 1.0,
        "sampling.top_k": 0,
        "sampling.top_p": 1.0,
        "sampling.min_p": 0.0,
        "sharing.selection": "zero_adv_uniform",
        "sharing.max_age_rounds": 0,  # synchronous: only what arrived in this round
        "sharing.max_uses": 1,
        "learner.optimizer": "adam",
        "learner.beta1": 0.9,
        "learner.beta2": 0.999,
        "learner.epsilon": 1e-8,
        "learner.weight_decay": 0.0,
        "learner.schedule": "constant",
        "learner.warmup_rounds": 0,
        "learner.max_grad_norm": 0.0,
        "learner.advantage_std": True,
        "learner.advantage_std_floor": 0.0,
        "learner.clip_low": 0.2,
        "learner.clip_high": 0.28,
        "learner.kl_coef": 0.0,
        "learner.inner_epochs": 1,  # so the ratio is 1 and the clip never acts
        "learner.loss_normalizer": "tokens",
        "learner.allow_truncated_positive": False,
        "learner.local_encoding": "text",
    }
)

GENRL: MappingProxyType[str, Any] = MappingProxyType(
    {
        **PAPER,
        "tasks.stream": "shared",
        "tasks.pool_size": 500,
        "sharing.selection": "top_reward",
    }
)

PRESETS: MappingProxyType[str, MappingProxyType[str, Any]] = MappingProxyType({"paper": PAPER, "genrl": GENRL})


def apply(config: ConfigDict, name: str) -> None:
    """Sets every key of the preset `name` in `config`, in place; later edits win over it.

    Raises:
        ConfigError: no preset of that name.
    """
    if name not in PRESETS:
        raise ConfigError(f"preset {name!r}: must be one of {', '.join(PRESETS)}")
    config.update_from_flattened_dict(dict(PRESETS[name]))


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """What the part after the colon of `--config=FILE.py:VARIANT` asks for.

    Attributes:
        preset: a key of `PRESETS`.
        sharing: (I, J), own and external rollouts per update; None leaves the file's own mix.
    """

    preset: str = "paper"
    sharing: tuple[int, int] | None = None


def parse_variant(arg: str) -> Variant:
    """Returns the variant that `arg` spells: empty, `4_4` (I_J), `genrl` (a preset), or `genrl_4_4`.

    Raises:
        ConfigError: anything else, or I and J both zero.
    """
    names = "|".join(PRESETS)
    match = re.fullmatch(
        rf"(?:(?P<preset>{names})(?:_(?=.)|$))?(?:(?P<local>[0-9]{{1,4}})_(?P<external>[0-9]{{1,4}}))?", arg
    )
    if match is None:
        raise ConfigError(
            f"config variant {arg!r}: must be I_J, own and external rollouts per update, such as 8_0, 6_2, 4_4 or 2_6; "
            f"a preset ({', '.join(PRESETS)}); or both, such as genrl_4_4"
        )
    sharing = (int(match["local"]), int(match["external"])) if match["local"] else None
    if sharing == (0, 0):
        raise ConfigError(f"config variant {arg!r}: I + J must be at least 1, else there is nothing to train on")
    return Variant(preset=match["preset"] or "paper", sharing=sharing)


def apply_sharing(config: ConfigDict, variant: Variant) -> None:
    """Sets `sharing.local` and `sharing.external` if the variant names them."""
    if variant.sharing is not None:
        local, external = variant.sharing
        config.update_from_flattened_dict({"sharing.local": local, "sharing.external": external})
