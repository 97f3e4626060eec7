from __future__ import annotations

import dataclasses
import random
import socket
from pathlib import Path

import pytest

from sapo_jax.tasks.catalog import resolve
from sapo_jax.tasks.reasoning_gym_source import ReasoningGymSource
from sapo_jax.tasks.source import UnknownTaskError
from scripts.faults import verifier, verifier_bombs
from scripts.faults.exploits import escapes, odd_answers
from scripts.faults.figures import Setting
from scripts.faults.verified_host import VerifiedHost


def setting_of(tmp_path, scale=0.001) -> Setting:
    return Setting(scale=scale, seed=0, workdir=tmp_path, say=lambda text: None)


@pytest.fixture
def one_dataset(monkeypatch):
    """Attacks n_queens alone and leaves the control out, which has a test of its own."""
    monkeypatch.setattr(verifier, "resolve", lambda catalog, names=(): resolve(catalog, ("n_queens",)) if names else ())
    monkeypatch.setattr(verifier, "_control", lambda workdir: [])


def by_name(figures):
    return {figure.name: figure for figure in figures}


def test_exploits_come_through_without_a_trace(tmp_path, one_dataset):
    figures = by_name(verifier.code_figures(setting_of(tmp_path), random.Random(0)))
    assert figures["code executions"].is_met and figures["exploits that came back from a scorer"].value == 1.0


@pytest.mark.parametrize("trace", ["file", "connection"])
def test_a_program_that_ran_would_be_noticed(tmp_path, one_dataset, monkeypatch, trace):
    def run(count, *, truth, file, port, rng):
        if trace == "file":
            Path(file).write_text("x")
        else:
            socket.create_connection(("127.0.0.1", port)).close()
        return escapes(count, truth=truth, file=file, port=port, rng=rng)

    monkeypatch.setattr(verifier, "escapes", run)
    figures = by_name(verifier.code_figures(setting_of(tmp_path), random.Random(0)))
    assert not figures["code executions"].is_met


def test_rewards_and_references_hold_and_a_reward_beyond_one_would_be_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(
        verifier, "audit", lambda: [each for each in AUDITED if each.name in ("gcd", "calendar_arithmetic")]
    )
    good = by_name(verifier.reward_figures(setting_of(tmp_path / "good", 0.05), random.Random(0)))
    assert all(figure.is_met for figure in good.values()), good
    through = VerifiedHost.through

    def inflated(self, groups, *patience_s):
        pulled = through(self, groups, *patience_s)
        return [dataclasses.replace(item, scores=(148.4,) * len(item.scores)) for item in pulled]

    monkeypatch.setattr(VerifiedHost, "through", inflated)
    bad = by_name(verifier.reward_figures(setting_of(tmp_path / "bad", 0.05), random.Random(0)))
    assert bad["rewards outside [0, 1] at the learner"].value > 0
    assert bad["groups whose lies about score, question or truth were believed"].value > 0


AUDITED = verifier.audit()


def test_wrong_references_are_wrong():
    specialties = resolve("easy", ('gcd:{"size": 500}', 'leg_counting:{"size": 500}'))
    source = ReasoningGymSource(specialties)
    known_of = {each.name: [source.task(source.ref(each, 0, 0))] for each in specialties}
    for ref in verifier.wrong_refs(random.Random(1), known_of, [], 40):
        with pytest.raises(UnknownTaskError):
            source.task(ref)


def test_answers_follow_from_the_seed_and_differ():
    def make():
        rng = random.Random(3)
        return escapes(500, truth="1 0", file=Path("/nowhere"), port=1, rng=rng), odd_answers(200, truth="1 0", rng=rng)

    assert make() == make()
    code, odd = make()
    assert len(set(code)) > 450 and len(set(odd)) > 50


def test_bombs_that_keep_others_waiting_would_be_noticed():
    normal = verifier_bombs.Seen(sent=100, verified=100, longest_wait_s=0.1, busy_s=0.1, kills=0)
    starved = dataclasses.replace(normal, verified=79)
    assert not verifier_bombs._figure("x", starved, normal).is_met
    assert verifier_bombs._figure("x", dataclasses.replace(normal, verified=81), normal).is_met


@pytest.mark.slow
def test_the_library_runs_what_our_scorers_do_not(tmp_path):
    assert all(ran for _, _, ran in verifier._control(tmp_path))


@pytest.mark.slow
def test_a_small_run_gives_every_figure(tmp_path):
    figures = verifier.measure(setting_of(tmp_path, 0.01))
    timed = [figure.name for figure in figures if figure.name.startswith("honest groups")]
    assert len(timed) == 2
    assert all(figure.is_met for figure in figures if figure.name not in timed), figures
