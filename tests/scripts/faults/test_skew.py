"""The skew part notices groups and hosts that skewed clocks keep out; a short run with real hosts."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.faults import skew
from scripts.faults.durable import History
from scripts.faults.figures import Figure, Setting
from scripts.faults.light_host import skewed_clock

HOSTS, ROUNDS = len(skew.OFFSETS_S), 10
GROUPS = (HOSTS - 1) * ROUNDS * skew.OWN


def outcome(arrived: int = GROUPS, failures: int = 0, **end) -> skew.Outcome:
    names = [f"publisher {number}" for number in range(arrived)]
    history = History(rounds=[{"own": 20, "arrived": names, "drawn": names}])
    history.end = {"connected": HOSTS - 1, "troubles": [], "refused": {}, "counts": {}, **end}
    return skew.Outcome(history=history, failures=failures)


def missed(skewed: list[skew.Outcome]) -> set[str]:
    figures = skew.judge({False: [outcome()] * HOSTS, True: skewed}, ROUNDS)
    return {figure.name for figure in figures if not figure.is_met}


def test_a_swarm_that_does_not_notice_its_clocks_meets_every_target():
    assert not missed([outcome()] * HOSTS)


def test_groups_that_one_half_refuses_show():
    names = missed([outcome(), outcome(GROUPS // 2, refused={"expired": 100})] * (HOSTS // 2))
    assert "groups refused with skewed clocks" in names
    assert "least share of the others' groups that a host with skewed peers got" in names
    assert "external groups drawn per host, skewed over right clocks" in names


def test_a_host_that_does_not_join_shows():
    absent = skew.Outcome(history=History(), failures=1)
    assert "hosts that did not join, or ended badly, with skewed clocks" in missed([outcome()] * (HOSTS - 1) + [absent])
    alone = outcome(connected=0, troubles=["the certificate begins on 2026-01-01"])
    figures: list[Figure] = skew.judge({False: [outcome()], True: [outcome()] * (HOSTS - 1) + [alone]}, ROUNDS)
    (pairs,) = [figure for figure in figures if figure.name.startswith("pairs of hosts")]
    assert pairs.value == HOSTS - 1 and "begins on" in pairs.detail


def test_only_the_wall_clock_is_skewed():
    right, ahead = skewed_clock(0.0), skewed_clock(skew.DAY_S)
    assert ahead.wall() - right.wall() == pytest.approx(skew.DAY_S, abs=5.0)
    assert ahead.monotonic() - right.monotonic() == pytest.approx(0.0, abs=5.0) and ahead.boot == right.boot


def test_a_handshake_holds_two_days_off_and_not_a_week(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert skew.handshake(tmp_path / "ahead", 48.0)
    assert not skew.handshake(tmp_path / "far", 24.0 * 7)
    # Without the margin the certificate of a host ahead is refused before anybody is dialed.
    monkeypatch.setattr("sapo_jax.swarm.calls.certificate.BACKDATED", skew.datetime.timedelta(0))
    assert not skew.handshake(tmp_path / "bare", 24.0)


@pytest.mark.slow
def test_hosts_with_skewed_clocks_share_like_others(tmp_path: Path):
    figures = skew.measure(Setting(scale=0.1, seed=0, workdir=tmp_path, say=print))
    assert all(figure.is_met for figure in figures), figures
