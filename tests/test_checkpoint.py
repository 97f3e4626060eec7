from __future__ import annotations

import gc
import itertools
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sapo_jax import checkpoint
from sapo_jax.checkpoint import Checkpointer, CheckpointError

_ROOT = Path(checkpoint.__file__).parents[1]


def _state(seed: int = 0) -> list[dict[str, Any]]:
    """Two programs of two nodes each: parameters, optimizer state and keys with a leading node axis."""
    rng = np.random.default_rng(seed)

    def noise(shape: tuple[int, ...], dtype: Any) -> jax.Array:
        return jnp.asarray((100 * rng.standard_normal(shape)).astype(dtype))

    states = []
    for key in range(2):
        params = {
            "embed": {"embedding": noise((2, 7, 4), np.float32)},
            "blocks": {"mlp": {"up": {"kernel": noise((2, 3, 4, 5), jnp.bfloat16)}}},
        }
        optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.cosine_decay_schedule(1e-3, 9)))
        opt_state = jax.tree.map(lambda x: noise(x.shape, x.dtype), optimizer.init(params))
        states.append({"params": params, "opt_state": opt_state, "key": jax.random.key(key), "updates": jnp.int32(3)})
    return states


def _bits(tree: Any) -> list[tuple[str, bytes]]:
    leaves = jax.tree.leaves(tree)
    raw = [jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x for x in leaves]
    return [(str(x.dtype), np.asarray(y).tobytes()) for x, y in zip(leaves, raw, strict=True)]


def _abstract(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def _small(value: float) -> dict[str, jax.Array]:
    return {"w": jnp.full((4,), value)}


def test_a_state_comes_back_bit_by_bit(tmp_path: Path) -> None:
    state = _state()
    state[0]["params"]["odd"] = jnp.asarray(np.array([np.nan, -0.0, np.inf, 1e-42], np.float32))
    host = {"round": 5, "rng": 2**127 + 1, "pool": [{"text": "<answer>é\n</answer>", "score": 0.1}], "cursor": None}
    with Checkpointer(tmp_path) as first:
        first.save(5, state, host)
    with Checkpointer(tmp_path) as second:
        restored = second.restore(None, _abstract(state))
    assert restored.round == 5 and restored.host_state == host
    assert jax.tree.structure(restored.arrays) == jax.tree.structure(state)
    assert _bits(restored.arrays) == _bits(state)
    first_device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    assert all(leaf.sharding == first_device for leaf in jax.tree.leaves(restored.arrays))


def test_arrays_come_back_with_their_targets_sharding(tmp_path: Path) -> None:
    devices = np.array(jax.devices())
    mesh = jax.sharding.Mesh(devices.reshape(-1, 1), ("node", "tensor"))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("node"))
    whole = jnp.arange(devices.size * 6.0).reshape(devices.size, 6)
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.save(1, {"w": whole}, {})
        there = checkpoints.restore(1, {"w": jax.ShapeDtypeStruct(whole.shape, whole.dtype, sharding=spread)}).arrays[
            "w"
        ]
        checkpoints.save(2, {"w": there}, {})
        back = checkpoints.restore(2, {"w": whole}).arrays["w"]
    assert there.sharding == spread and len(there.addressable_shards) == devices.size
    assert back.sharding == whole.sharding
    np.testing.assert_array_equal(np.asarray(back), np.asarray(whole))


def test_the_last_and_the_best_are_kept(tmp_path: Path) -> None:
    metrics = {1: 0.2, 2: 0.9, 3: None, 4: 0.5, 5: float("nan"), 6: float("inf"), 7: None}
    kept = []
    for round, metric in metrics.items():
        with Checkpointer(tmp_path, keep_last=2) as checkpoints:  # retention does not depend on memory
            checkpoints.save(round, _small(round), {}, metric)
            kept.append((checkpoints.rounds(), checkpoints.best_round(), checkpoints.latest_round()))
    assert kept == [
        ((1,), 1, 1),
        ((1, 2), 2, 2),
        ((2, 3), 2, 3),
        ((2, 3, 4), 2, 4),
        ((2, 4, 5), 2, 5),
        ((2, 5, 6), 2, 6),
        ((2, 6, 7), 2, 7),
    ]
    with Checkpointer(tmp_path) as checkpoints:
        assert float(checkpoints.restore(2, _small(0)).arrays["w"][0]) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["2", "6", "7"]


def test_a_better_round_takes_the_place_of_the_best_and_equals_go_to_the_newer(tmp_path: Path) -> None:
    with Checkpointer(tmp_path, keep_last=1) as checkpoints:
        for round, metric in ((1, 0.3), (2, 0.3), (3, 0.1), (4, 0.4), (5, 0.2)):
            checkpoints.save(round, _small(round), {}, metric)
        assert checkpoints.rounds() == (4, 5)
    with Checkpointer(tmp_path / "plain", keep_last=1, keep_best=False) as checkpoints:
        for round, metric in ((1, 0.3), (2, 0.1)):
            checkpoints.save(round, _small(round), {}, metric)
        assert checkpoints.rounds() == (2,)
        assert checkpoints.latest_round() == checkpoints.best_round() == 2


def test_a_saved_round_is_left_as_it_is(tmp_path: Path) -> None:
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.save(1, _small(1), {"a": 1})
        checkpoints.save(1, _small(2), {"a": 2})
        restored = checkpoints.restore(1, _small(0))
    assert restored.host_state == {"a": 1} and float(restored.arrays["w"][0]) == 1


def test_half_written_checkpoints_are_ignored_and_replaced(tmp_path: Path) -> None:
    with Checkpointer(tmp_path, keep_last=9) as checkpoints:
        for round in range(1, 7):
            checkpoints.save(round, _small(round), {"round": round}, 0.1 * round)
    shutil.rmtree(tmp_path / "3" / "arrays")
    (tmp_path / "4" / "_CHECKPOINT_METADATA").unlink()
    (tmp_path / "5" / "_CHECKPOINT_METADATA").write_text('{"item_handlers": {"arr')
    (tmp_path / "6").rename(tmp_path / "6.orbax-checkpoint-tmp")
    (tmp_path / "7").mkdir()
    with Checkpointer(tmp_path, keep_last=9, read_only=True) as checkpoints:
        assert checkpoints.rounds() == (1, 2)
        assert (tmp_path / "6.orbax-checkpoint-tmp").is_dir()  # may belong to a run that is saving
    with Checkpointer(tmp_path, keep_last=9) as checkpoints:
        assert not (tmp_path / "6.orbax-checkpoint-tmp").exists()
        assert checkpoints.latest_round() == checkpoints.best_round() == 2
        assert checkpoints.restore(None, _small(0)).host_state == {"round": 2}
        for round in (3, 4, 5, 6, 7):
            checkpoints.save(round, _small(10 * round), {"round": round})
            assert float(checkpoints.restore(round, _small(0)).arrays["w"][0]) == 10 * round
        assert checkpoints.rounds() == (1, 2, 3, 4, 5, 6, 7)


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    saved = {"params": {"a": jnp.ones((2, 3)), "b": jnp.ones((4,))}}
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.save(1, saved, {})
        for target, message in (
            (
                {"params": {"a": jnp.ones((2, 4)), "b": jnp.ones((4,))}},
                r"\['a'\] is float32\[2,4\] here and float32\[2,3\] in",
            ),
            (
                {"params": {"a": jnp.ones((2, 3)), "b": jnp.ones((4,), jnp.bfloat16)}},
                r"\['b'\] is bfloat16\[4\] here and float32",
            ),
            ({"params": {"a": jnp.ones((2, 3))}}, r"\['b'\] is only in the checkpoint"),
            (
                {"params": {**saved["params"], "c": jnp.ones(())}},
                r"\['c'\] is float32\[\] here and not in the checkpoint",
            ),
        ):
            with pytest.raises(CheckpointError, match=message) as caught:
                checkpoints.restore(1, target)
            assert str(tmp_path / "1") in str(caught.value)


def test_a_part_can_be_restored_alone(tmp_path: Path) -> None:
    state = _state()
    params = [{"params": part["params"]} for part in state]
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
    with Checkpointer(tmp_path, read_only=True) as checkpoints:
        restored = checkpoints.restore(1, _abstract(params), partial=True)
    assert jax.tree.structure(restored.arrays) == jax.tree.structure(params)
    assert _bits(restored.arrays) == _bits(params)


def test_damaged_data_is_reported(tmp_path: Path) -> None:
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.save(1, {"w": jnp.arange(5000.0)}, {})
        (tmp_path / "1" / "host" / "metadata").write_text("{")
        with pytest.raises(CheckpointError, match="unreadable checkpoint"):
            checkpoints.restore(1, {"w": jnp.zeros(5000)})
        checkpoints.save(2, {"w": jnp.arange(5000.0)}, {})
        files = [p for p in (tmp_path / "2" / "arrays").rglob("*") if p.is_file() and p.stat().st_size > 10_000]
        assert files
        for path in files:
            path.write_bytes(path.read_bytes()[:5000])
        with pytest.raises(CheckpointError, match=rf"{tmp_path / '2'}: unreadable checkpoint"):
            checkpoints.restore(2, {"w": jnp.zeros(5000)})


def test_usage_errors_are_clear(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep_last = 0"):
        Checkpointer(tmp_path, keep_last=0)
    with pytest.raises(CheckpointError, match="no such checkpoint directory"):
        Checkpointer(tmp_path / "missing", read_only=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be opened"):
        Checkpointer(tmp_path / "file")
    with Checkpointer(tmp_path / "c") as checkpoints:
        assert checkpoints.latest_round() is None and checkpoints.best_round() is None
        with pytest.raises(CheckpointError, match=r"no checkpoint \(saved rounds: none\)"):
            checkpoints.restore(None, _small(0))
        with pytest.raises(TypeError, match="host_state of round 1 is not JSON-ready"):
            checkpoints.save(1, _small(1), {"a": {1, 2}})
        checkpoints.save(1, _small(1), {})
        with pytest.raises(CheckpointError, match=r"no round 4 checkpoint \(saved rounds: 1\)"):
            checkpoints.restore(4, _small(0))
    with (
        Checkpointer(tmp_path / "c", read_only=True) as checkpoints,
        pytest.raises(CheckpointError, match="opened read-only"),
    ):
        checkpoints.save(2, _small(2), {})


def noise(size: int) -> dict[str, jax.Array]:
    return {"w": jax.random.normal(jax.random.key(0), (size,))}


def test_a_failed_write_is_one_error_and_harms_nothing(
    tmp_path: Path, small_files: None, caplog: pytest.LogCaptureFixture
) -> None:
    del small_files
    with Checkpointer(tmp_path) as checkpoints:
        checkpoints.save(1, noise(100), {"round": 1}, 0.5)
        with pytest.raises(CheckpointError, match=r"saving round 2 failed.*intact checkpoints: 1") as caught:
            checkpoints.save(2, noise(100_000), {"round": 2}, 0.6)
        assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["1"]  # what was written of it is gone
        assert checkpoints.latest_round() == checkpoints.best_round() == 1
        restored = checkpoints.restore(None, noise(100))
        assert _bits(restored.arrays) == _bits(noise(100)) and restored.host_state == {"round": 1}
        checkpoints.save(2, noise(200), {"round": 2})  # the same round, once there is room
        assert checkpoints.rounds() == (1, 2)
    assert caplog.records == []  # no pages of tracebacks beside the error


def test_a_full_disk_is_one_error_and_harms_nothing(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    command = [mount or "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if mount is None or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small file system needs root")
    try:
        with Checkpointer(disk / "checkpoints", keep_last=5) as checkpoints:
            checkpoints.save(1, noise(100_000), {})
            with pytest.raises(
                CheckpointError, match=r"saving round 2 failed.*No space left on device.*intact checkpoints: 1"
            ):
                for round in itertools.count(2):
                    checkpoints.save(round, noise(200_000), {})
            assert _bits(checkpoints.restore(None, noise(100_000)).arrays) == _bits(noise(100_000))
            checkpoints.save(2, noise(1000), {})
            assert checkpoints.rounds() == (1, 2)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def restored_after_a_kill(directory: Path, *, rounds: int, background: bool) -> tuple[int, int]:
    """Returns the last round that a process reported before it was killed while saving, and the round found whole."""
    program = (
        "import itertools, sys\n"
        "import jax.numpy as jnp\n"
        "from sapo_jax.checkpoint import Checkpointer\n"
        f"checkpoints = Checkpointer(sys.argv[1], keep_last=2, background={background})\n"
        "for round in itertools.count(1):\n"
        "    arrays = {'a': jnp.full((300_000,), round), 'b': jnp.full((9,), round)}\n"
        "    checkpoints.save(round, arrays, {'round': round})\n"
        "    print(round, flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(directory)], stdout=subprocess.PIPE, text=True, cwd=_ROOT
    ) as child:
        assert child.stdout is not None
        reported = 0
        while reported < rounds:
            reported = int(child.stdout.readline())
        child.send_signal(signal.SIGKILL)
    target = {"a": jnp.zeros((300_000,), jnp.int32), "b": jnp.zeros((9,), jnp.int32)}
    with Checkpointer(directory) as checkpoints:
        round, arrays, host_state = checkpoints.restore(None, target)
    assert host_state == {"round": round}
    assert set(np.asarray(arrays["a"]).tolist()) == set(np.asarray(arrays["b"]).tolist()) == {round}
    return reported, round


def test_a_killed_process_leaves_whole_checkpoints(tmp_path: Path) -> None:
    reported, round = restored_after_a_kill(tmp_path, rounds=4, background=False)
    assert round >= reported


def test_saving_again_and_again_takes_no_memory_that_stays(tmp_path: Path) -> None:
    arrays = {f"w{i}": jnp.zeros((2,)) for i in range(16)}
    held: list[int] = []
    with Checkpointer(tmp_path, keep_last=2) as checkpointer:
        for round in range(1, 13):
            checkpointer.save(round, arrays, {"round": round}, 0.5)
            if round % 6 == 0:
                gc.collect()
                held.append(sum(type(each) is dict for each in gc.get_objects()))
    # Describing one array of one checkpoint would leave eight behind, and every save looks at all that are kept.
    assert held[1] - held[0] < 50
