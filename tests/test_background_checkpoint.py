from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sapo_jax import memory_copy
from sapo_jax.checkpoint import Checkpointer, CheckpointError
from sapo_jax.memory_copy import copy_to_memory
from tests.test_checkpoint import noise, restored_after_a_kill


class _Gate:
    """Holds every write up until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._opened = threading.Event()
        write = Checkpointer._write

        def held(*args: Any) -> None:
            assert self._opened.wait(60)
            write(*args)

        monkeypatch.setattr(Checkpointer, "_write", held)

    def open(self) -> None:
        self._opened.set()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> _Gate:
    return _Gate(monkeypatch)


def test_what_is_written_is_what_was_handed_over(tmp_path: Path, gate: _Gate) -> None:
    """Arrays are donated and host state goes on while the write has not even begun."""
    arrays = {"w": jnp.arange(1000.0), "b": [jnp.ones((2, 3), jnp.bfloat16), jnp.int32(7)]}
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arrays)
    expected = jax.tree.map(lambda x: np.array(x), arrays)
    state = {"pool": [1, 2], "position": 3}
    with Checkpointer(tmp_path, background=True) as checkpoints:
        checkpoints.save(1, arrays, state)
        assert checkpoints.rounds() == ()
        for _ in range(3):
            arrays = jax.jit(lambda s: jax.tree.map(lambda x: x * 0 - 1, s), donate_argnums=0)(arrays)
        jax.block_until_ready(arrays)
        state["pool"].append(4)
        gate.open()
        restored = checkpoints.restore(None, target)  # waits
    assert restored.host_state == {"pool": [1, 2], "position": 3}
    assert jax.tree.map(lambda x: x.dtype, restored.arrays) == jax.tree.map(lambda x: x.dtype, target)
    jax.tree.map(np.testing.assert_array_equal, restored.arrays, expected)


def test_arrays_come_back_with_their_targets_sharding(tmp_path: Path) -> None:
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("node",))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("node"))
    whole = jax.device_put(jnp.arange(len(jax.devices()) * 6.0).reshape(-1, 6), spread)
    with Checkpointer(tmp_path, background=True) as checkpoints:
        checkpoints.save(1, {"w": whole}, {})
        back = checkpoints.restore(1, {"w": whole}).arrays["w"]
    assert back.sharding == spread
    np.testing.assert_array_equal(np.asarray(back), np.asarray(whole))


def test_the_last_and_the_best_are_kept(tmp_path: Path) -> None:
    with Checkpointer(tmp_path, keep_last=2, background=True) as checkpoints:
        for round, metric in enumerate((0.2, 0.9, None, 0.5, float("nan")), start=1):
            checkpoints.save(round, {"w": jnp.full((4,), round)}, {}, metric)
        checkpoints.save(5, {"w": jnp.zeros((4,), jnp.int32)}, {})  # a saved round is left as it is
        checkpoints.wait()
        assert checkpoints.rounds() == (2, 4, 5) and checkpoints.best_round() == 2
        assert int(checkpoints.restore(5, {"w": jnp.zeros((4,), jnp.int32)}).arrays["w"][0]) == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "4", "5"]


@pytest.mark.parametrize("then", ["save", "restore", "wait", "close"])
def test_a_failed_write_is_one_error_of_what_comes_next(tmp_path: Path, small_files: None, then: str) -> None:
    del small_files
    checkpoints = Checkpointer(tmp_path, background=True)
    checkpoints.save(1, noise(100), {"round": 1})
    checkpoints.save(2, noise(100_000), {"round": 2})
    calls = {
        "save": lambda: checkpoints.save(3, noise(100), {}),
        "restore": lambda: checkpoints.restore(None, noise(100)),
        "wait": checkpoints.wait,
        "close": checkpoints.close,
    }
    with pytest.raises(CheckpointError, match=r"saving round 2 failed.*intact checkpoints: 1") as caught:
        calls[then]()
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1"]  # what was written of it is gone
    if then != "close":  # it is told once, and harms nothing
        checkpoints.save(2, noise(200), {"round": 2})
        assert checkpoints.restore(None, noise(200)).host_state == {"round": 2}
        checkpoints.close()


def test_where_memory_is_short_the_write_is_done_when_save_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = noise(1000)
    for free, is_copied in ((2 * arrays["w"].nbytes, True), (2 * arrays["w"].nbytes - 1, False), (0, False)):
        monkeypatch.setattr(memory_copy, "free_bytes", lambda free=free: free)
        assert (copy_to_memory(arrays) is not None) == is_copied
    with Checkpointer(tmp_path, background=True) as checkpoints:
        checkpoints.save(1, arrays, {})
        assert checkpoints.rounds() == (1,)


def test_a_killed_process_leaves_whole_checkpoints(tmp_path: Path) -> None:
    begun, round = restored_after_a_kill(tmp_path, rounds=5, background=True)
    assert round >= begun - 1  # the last one may not have been finished
