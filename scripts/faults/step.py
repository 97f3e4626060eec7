"""What a troubled network costs the training thread: slower rounds, waits for foreign groups, a later first step."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import numpy as np

from scripts.faults.figures import Figure, Setting
from scripts.faults.step_draws import ROUND_S, Draws, measure_draws, with_large_pool
from scripts.faults.step_peers import dead_peers, silent_peers, slow_peers
from scripts.faults.step_slowdown import Block, Trainee, play_pairs, slowdown, tiny_config
from scripts.faults.step_start import PLAIN, Start, first_step

PEERS = 6
SLOWDOWN_PERCENT, DRAW_MS, FIRST_STEP_S = 5.0, 50.0, 20.0
PAIRS, ROUNDS = 8, 30  # of blocks for each kind of trouble; rounds that count in a block
WARM_S = 4.0  # of each block: peers are dialed, and the slow ones reached, before anything counts
DRAWS, PACED_DRAWS, POOL, GROUPS_PER_S = 10_000, 300, 4096, 300.0
LEAST_FOUND = 20.0  # verified groups in the mailbox at a draw after a round, on average: else it shows little
TROUBLES: dict[str, Callable[[int], AbstractContextManager[list[str]]]] = {
    "dead": dead_peers,
    "slow": slow_peers,
    "silent": silent_peers,
}


def measure(setting: Setting) -> list[Figure]:
    """Measures the start first, then the rounds, then the draws; the trainee's compiled programs serve both."""
    figures = measure_starts(setting)
    with contextlib.closing(Trainee(tiny_config(setting.seed), setting.workdir / "hubs")) as trainee:
        figures = measure_rounds(setting, trainee) + figures
        setting.say("draws from a full pool while groups arrive")
        draws = measure_draws(
            with_large_pool(tiny_config(setting.seed), setting.scaled(POOL, least=64)),
            trainee.prompter,
            trainee.tasks,
            setting.workdir / "draws",
            draws=setting.scaled(DRAWS, least=50),
            paced_draws=setting.scaled(PACED_DRAWS, least=5),
            groups_per_s=GROUPS_PER_S,
        )
    return figures + draw_figures(draws)


def measure_rounds(setting: Setting, trainee: Trainee) -> list[Figure]:
    """Returns the slow-down under each kind of trouble."""
    figures: list[Figure] = []
    for trouble, made in TROUBLES.items():
        setting.say(f"rounds with {PEERS} {trouble} peers and without any, in turn")
        with made(PEERS) as addresses:
            pairs = play_pairs(
                trainee,
                trouble,
                addresses,
                pairs=setting.scaled(PAIRS, least=2),
                rounds=setting.scaled(ROUNDS, least=3),
                warm_s=WARM_S if setting.scale >= 0.5 else 0.5,
            )
        figures += slowdown_figures(trouble, pairs, setting.seed)
        setting.say("; ".join(f"{figure.value:+.1f} % ({figure.detail})" for figure in figures[-2:]))
    return figures


def slowdown_figures(trouble: str, pairs: Sequence[tuple[Block, Block]], seed: int) -> list[Figure]:
    """Returns how much longer rounds take with troubled peers: the usual round, and all of them together."""
    percent, low, high = slowdown(pairs, seed, np.median)
    total, total_low, total_high = slowdown(pairs, seed, np.mean)
    alone = [seconds for block, _ in pairs for seconds in block.round_s]
    troubled = [seconds for _, block in pairs for seconds in block.round_s]
    states = Counter(state.value for _, block in pairs for state in block.peers)
    return [
        Figure(
            name=f"training round slowed by {trouble} peers",
            value=percent,
            unit="%",
            at_most=SLOWDOWN_PERCENT,
            detail=f"medians of blocks, 95 % interval {low:+.1f} to {high:+.1f} (bootstrap over {len(pairs)} "
            f"interleaved pairs); {len(alone)} rounds without peers, median {1e3 * np.median(alone):.0f} ms, "
            f"{len(troubled)} with {PEERS}",
        ),
        Figure(
            name=f"training slowed by {trouble} peers, all rounds together",
            value=total,
            unit="%",
            at_most=SLOWDOWN_PERCENT,
            detail=f"means of blocks, which see single long rounds too; 95 % interval {total_low:+.1f} to "
            f"{total_high:+.1f}; peers at their ends: "
            f"{', '.join(f'{count} {state}' for state, count in states.items())}",
        ),
    ]


def draw_figures(draws: Draws) -> list[Figure]:
    """Returns the percentiles of draws and publications."""
    load = (
        f"pool of {draws.pool}; {draws.arrived / draws.seconds:.0f} groups/s arriving, "
        f"{draws.verified / draws.seconds:.0f} verified, for {draws.seconds:.0f} s"
    )
    return [
        Figure(
            name="draw from the pool, p99",
            value=1e3 * float(np.quantile(draws.draw_s, 0.99)),
            unit="ms",
            at_most=DRAW_MS,
            detail=f"{len(draws.draw_s)} draws, median {1e3 * np.median(draws.draw_s):.1f}, longest "
            f"{1e3 * max(draws.draw_s):.0f} ms; {load}",
        ),
        Figure(
            name="draw from the pool at the pace of rounds, p99",
            value=1e3 * float(np.quantile(draws.paced_draw_s, 0.99)),
            unit="ms",
            at_most=DRAW_MS,
            detail=f"{len(draws.paced_draw_s)} draws {ROUND_S:g} s apart, median "
            f"{1e3 * np.median(draws.paced_draw_s):.1f}, longest {1e3 * max(draws.paced_draw_s):.0f} ms; same load",
        ),
        Figure(
            name="groups that such a draw finds",
            value=draws.paced_verified / len(draws.paced_draw_s),
            at_least=LEAST_FOUND,
            detail="verified since the draw before, mean",
        ),
        Figure(
            name="draw that finds the mailbox full",
            value=1e3 * draws.full_mailbox_s,
            unit="ms",
            detail=f"once, with {draws.pool} groups, as after a long evaluation",
        ),
        Figure(
            name="own groups of a round into the outbox, p99",
            value=1e3 * float(np.quantile(draws.publish_s, 0.99)),
            unit="ms",
            detail=f"{len(draws.publish_s)} rounds under that load, median {1e3 * np.median(draws.publish_s):.1f} ms",
        ),
    ]


def measure_starts(setting: Setting) -> list[Figure]:
    """Returns the seconds to the first round, first with nothing compiled, then again with all of it in the cache."""
    figures: list[Figure] = []
    with silent_peers(1) as (address,):  # drops every packet, as where there is no network
        for what, overrides in (("plain", PLAIN), ("tiny.py as it is", ())):
            cache = setting.workdir / f"cache {what}"
            for state in ("first start ever", "next start"):
                setting.say(f"start to first step: {what}, {state}")
                workdir = setting.workdir / f"{what} {state}"
                start = first_step(workdir, cache=cache, absent_address=address, overrides=overrides)
                figures.append(start_figure(start, state, is_judged=bool(overrides)))
                setting.say(f"{start.first_step_s:.1f} s, libraries loaded after {start.first_word_s:.1f} s")
                if setting.scale < 0.5:
                    break  # a trial needs one start
            if setting.scale < 0.5:
                break
    return figures


def start_figure(start: Start, state: str, *, is_judged: bool) -> Figure:
    """Returns the figure of one start; judged is the one without supervised steps and evaluation."""
    how = (
        "without cold start, with an evaluation of one question"
        if is_judged
        else "configs/tiny.py as it is: 60 supervised steps and the first evaluation come before"
    )
    return Figure(
        name=f"start to first step without network, {state}" + ("" if is_judged else ", with cold start"),
        value=start.first_step_s,
        unit="s",
        at_most=FIRST_STEP_S if is_judged else None,
        detail=f"{how}; libraries loaded after {start.first_word_s:.1f} s, {start.cpu_s:.0f} s of CPU time in all",
    )
