from __future__ import annotations

import shutil
import time as system_time

import pytest

from sapo_jax.swarm.store.clock import StoreClock, system_clock
from tests.swarm.store.store_cases import FakeTime, held_ids, make_group, open_store

DAY_S = 86_400.0


@pytest.mark.parametrize("jump_s", [-DAY_S, 0.0, DAY_S])
@pytest.mark.parametrize("restart", [False, True])
def test_t14_wall_clock_jumps_change_nothing(tmp_path, jump_s, restart):
    """T14: a day forth or back, inside a process or while it is down, neither shortens nor lengthens a lifetime."""
    time = FakeTime()
    store = open_store(tmp_path / "store.sqlite", time)
    store.put([make_group(number=0, ttl_s=100, age_s=10.0)])
    time.advance(20)
    if restart:
        store.close()
    time.wall_s += jump_s
    time.advance(20)
    if restart:
        store = open_store(tmp_path / "store.sqlite", time)
    store.put([make_group(number=1, ttl_s=100)])
    assert [item.signed.age_s for item in store.after(0, 9)] == pytest.approx([50.0, 0.0])
    time.advance(49)
    assert len(held_ids(store)) == 2
    time.advance(2)
    assert held_ids(store) == [make_group(number=1).group_id]
    time.advance(50)
    assert held_ids(store) == []
    store.close()


@pytest.mark.parametrize(("wall_s", "aged_s"), [(30.0, 30.0), (-DAY_S, 0.0), (0.0, 0.0)])
def test_across_a_start_of_the_machine_the_wall_clock_adds_but_never_takes_away(tmp_path, wall_s, aged_s):
    time = FakeTime()
    store = open_store(tmp_path / "store.sqlite", time)
    store.put([make_group(ttl_s=100, age_s=10.0)])
    store.close()
    time.restart_machine()
    time.wall_s += wall_s
    store = open_store(tmp_path / "store.sqlite", time)
    (stored,) = store.after(0, 9)
    assert stored.signed.age_s == pytest.approx(10.0 + aged_s)
    time.advance(90 - aged_s - 1)
    assert len(held_ids(store)) == 1
    time.advance(1.5)
    assert held_ids(store) == []
    store.close()


def test_the_last_write_before_a_kill_is_where_the_next_machine_goes_on(tmp_path):
    time = FakeTime()
    store = open_store(tmp_path / "store.sqlite", time)
    time.wall_s += DAY_S  # noticed while running, so it is no time passed
    store.put([make_group(ttl_s=100)])
    (tmp_path / "killed").mkdir()
    for file in tmp_path.glob("store.sqlite*"):
        shutil.copy(file, tmp_path / "killed")  # what a kill leaves
    time.restart_machine()
    time.wall_s += 5
    resumed = open_store(tmp_path / "killed" / "store.sqlite", time)
    assert [item.signed.age_s for item in resumed.after(0, 9)] == pytest.approx([5.0])
    resumed.close()
    store.close()


def test_time_goes_on_over_any_number_of_restarts():
    time = FakeTime()
    clock, last = StoreClock(time.clock, None), 0.0
    for step in range(20):
        time.advance(7.0)
        time.wall_s += DAY_S * (-1) ** step
        clock = StoreClock(time.clock, clock.anchor())
        assert clock.now() == pytest.approx(last + 7.0)
        last = clock.now()


def test_without_a_name_of_the_machine_start_only_the_wall_clock_counts():
    time = FakeTime()
    time.boot = ""
    anchor = StoreClock(time.clock, None).anchor()
    time.wall_s += 40
    time.monotonic_s += 9
    assert StoreClock(time.clock, anchor).now() == pytest.approx(40.0)


def test_the_system_clock_reads_the_system():
    clock = system_clock()
    before = clock.monotonic()
    assert abs(clock.wall() - system_time.time()) < 60
    assert clock.monotonic() >= before
    assert clock.boot == system_clock().boot
