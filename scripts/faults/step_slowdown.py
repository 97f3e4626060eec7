"""How much trouble on the network slows training down: the same rounds without peers and with troubled ones, in turn.

One process trains one tiny model. Its nodes are joined by a network hub made as `sapo_jax.main` makes
it, which is replaced before each block of rounds by one without peers or one whose peers are all in
trouble. Both kinds of block play the same tasks, so two blocks next to each other differ in the peers
alone, and whatever else this machine does falls on both.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import itertools
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from configs.tiny import get_config
from sapo_jax import wiring
from sapo_jax.cold_start import cold_start
from sapo_jax.config import SapoConfig, from_config_dict
from sapo_jax.member import Member
from sapo_jax.node import play_round
from sapo_jax.swarm.mesh.host_status import PeerState
from sapo_jax.swarm.mesh.joining import plan_joining
from sapo_jax.swarm_flags import SwarmRequest
from sapo_jax.tasks.verifier import EXTERNAL_LANE, OWN_LANE

_LEAST_WARM_ROUNDS = 2
_RESAMPLES = 4000


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """Rounds in a row under one condition: seconds of each, and the peers' states when they were over."""

    round_s: tuple[float, ...]
    peers: tuple[PeerState, ...]


def tiny_config(seed: int) -> SapoConfig:
    """Returns `configs/tiny.py` with a model that stays as it is, so that every round does the same work."""
    config = from_config_dict(get_config("4_4"))
    return dataclasses.replace(
        config,
        seed=seed,
        rounds=10**6,
        learner=dataclasses.replace(config.learner, learning_rate=1e-12),
    )


class Trainee:
    """Owns everything of a training process but its hub; `play` joins one for a block of rounds."""

    def __init__(self, config: SapoConfig, directory: Path) -> None:
        """Starts the scorers, makes the model and teaches it to answer; `directory` is for the files of the hubs."""
        self._config = config
        self._directory = directory
        self._round = itertools.count(1)
        with contextlib.ExitStack() as opened:
            self.tasks = opened.enter_context(wiring.build_tasks(config, lanes=(OWN_LANE, EXTERNAL_LANE)))
            model = wiring.load_model(config)
            self.prompter = wiring.build_prompter(config, model, self.tasks)
            self._host = wiring.build_host(config, model, wiring.compute_dtype(config, model))
            self.tasks.verifier.warm_up()
            streams = [
                wiring.build_stream(config, self.tasks, f"cold start of {name}") for name in wiring.node_ids(config)
            ]
            cold_start(self._host, self.prompter, streams, config, advance=lambda count: None)
            self._opened = opened.pop_all()

    def play(self, condition: str, peers: Sequence[str], *, rounds: int, warm_s: float) -> Block:
        """Plays `warm_s` seconds of rounds, then `rounds` that count, in a swarm with these addresses to dial.

        Each condition has a directory of its own, so that its store goes on from block to block. A round is
        what the training thread does from one to the next: it plays, and looks at the state of the swarm.
        """
        with contextlib.closing(self._join(self._directory / condition, peers)) as member:
            nodes = wiring.build_nodes(self._config, self.prompter, self.tasks, member.hub)
            member.hub.start_verifying()
            taken: list[float] = []
            warm = 0
            end_s = time.perf_counter() + warm_s
            while len(taken) < rounds:
                began_s = time.perf_counter()
                play_round(nodes, self._host, next(self._round))
                member.hub.counts()
                member.news()
                now_s = time.perf_counter()
                if now_s < end_s or warm < _LEAST_WARM_ROUNDS:
                    warm += 1
                else:
                    taken.append(now_s - began_s)
            states = tuple(peer.state for peer in member.hub.status().peers)
            member.hub.close(flush_s=0.0)  # no farewell: what is left over is for a later block
        return Block(round_s=tuple(taken), peers=states)

    def close(self) -> None:
        """Ends the scorers."""
        self._opened.close()

    def _join(self, directory: Path, peers: Sequence[str]) -> Member:
        joining = plan_joining(
            directory,
            join=peers,
            swarm_id="loopback",
            insecure_loopback=True,
            now=datetime.datetime.now(datetime.UTC),
        )
        return Member(
            SwarmRequest(joining=joining, listen="127.0.0.1:0", advertise=(), metrics=None),
            self._config,
            node_ids=wiring.node_ids(self._config),
            verify=partial(self.tasks.verifier.verify, lane=EXTERNAL_LANE),
            busy_s=partial(self.tasks.verifier.busy_s, EXTERNAL_LANE),
            catalog_digests=[specialty.digest for specialty in self.tasks.specialties],
            drain=lambda: None,
        )


def play_pairs(
    trainee: Trainee, trouble: str, peers: Sequence[str], *, pairs: int, rounds: int, warm_s: float
) -> list[tuple[Block, Block]]:
    """Plays pairs of blocks, (without peers, with `peers`); which of the two comes first alternates.

    Raises:
        RuntimeError: a block without peers had one, or one with peers has lost some.
    """
    played: list[tuple[Block, Block]] = []
    for pair in range(pairs):
        blocks: dict[bool, Block] = {}
        for troubled in (False, True) if pair % 2 == 0 else (True, False):
            condition, chosen = (f"with {trouble} peers", peers) if troubled else (f"beside {trouble} peers", ())
            blocks[troubled] = trainee.play(condition, chosen, rounds=rounds, warm_s=warm_s)
        found = len(blocks[False].peers), len(blocks[True].peers)
        if found[0] or found[1] < len(peers):  # a restored record and a given address may be one peer
            raise RuntimeError(f"blocks had {found[0]} and {found[1]} peers instead of 0 and {len(peers)}")
        played.append((blocks[False], blocks[True]))
    return played


def slowdown(
    pairs: Sequence[tuple[Block, Block]], seed: int, of_block: Callable[[Sequence[float]], np.floating]
) -> tuple[float, float, float]:
    """Returns by how many percent the second block's rounds are longer: the median over pairs and its 95 % interval.

    `of_block` makes one number of a block's rounds: the median, which a hiccup of the machine does not move, or
    the mean, which sees rare long rounds. The interval is that of a bootstrap over pairs.
    """
    ratios = np.array([of_block(after.round_s) / of_block(before.round_s) for before, after in pairs])
    rng = np.random.default_rng(seed)
    medians = np.median(rng.choice(ratios, size=(_RESAMPLES, len(ratios))), axis=1)
    low, high = np.quantile(medians, (0.025, 0.975))
    return _percent(np.median(ratios)), _percent(low), _percent(high)


def _percent(ratio: np.floating) -> float:
    return 100.0 * (float(ratio) - 1.0)
