"""Two processes that form one mesh train, save, die and resume as one process with the same mesh does, bit for bit."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
import pytest

from sapo_jax.metrics import read_metrics
from sapo_jax.trained import load_trained
from sapo_jax.workdir import CHECKPOINTS, METRICS_FILE
from tests.e2e.runs import start, tiny, train

ROUNDS, SAVED_EVERY = 6, 2
BRIEF = (f"--config.rounds={ROUNDS}", f"--config.checkpoint.every_rounds={SAVED_EVERY}", "--config.learner.kl_coef=0.1")
MESHES = {
    "nodes": ("--config.host.mesh_node=2",),
    "shards": ("--config.host.mesh_fsdp=2", "--config.host.nodes_per_program=1"),  # two programs, one after the other
}
TIMEOUT_S = 120

Group = Sequence[subprocess.Popen[str]]


def _with_devices(count: int) -> dict[str, str]:
    """Returns the environment of a process that sees as many virtual devices."""
    given = [flag for flag in os.environ["XLA_FLAGS"].split() if "host_platform_device_count" not in flag]
    return {"XLA_FLAGS": " ".join([*given, f"--xla_force_host_platform_device_count={count}"])}


@contextmanager
def _group(*arguments: object) -> Iterator[Group]:
    """Starts leader and follower, each with one virtual device."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with mock.patch.dict(os.environ, _with_devices(1)):
        processes = [start("main", *arguments, f"--distributed=127.0.0.1:{port},2,{index}") for index in range(2)]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def _wait_for(group: Group, is_time: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + TIMEOUT_S
    while not is_time():
        ends = [process.poll() for process in group]
        assert ends == [None] * len(group), ends
        assert time.monotonic() < deadline_s, f"not within {TIMEOUT_S} s"
        time.sleep(0.005)


def _assert_same(workdir: Path, whole: Path) -> None:
    one, two = (
        [
            (record.round, record.node, {k: v for k, v in record.metrics.items() if not k.startswith("time/")})
            for record in read_metrics(path / METRICS_FILE)
        ]
        for path in (workdir, whole)
    )
    assert one == two
    jax.tree.map(np.testing.assert_array_equal, _params(workdir), _params(whole))


def _params(workdir: Path) -> Any:
    """Returns the trained parameters of both nodes, read by this process alone."""
    trained = load_trained(str(workdir), str(ROUNDS))
    return jax.device_get([trained.host.params_of(node) for node in range(trained.config.nodes)])


@pytest.fixture(scope="module", params=["nodes", pytest.param("shards", marks=pytest.mark.slow)])
def mesh(request: pytest.FixtureRequest) -> tuple[str, ...]:
    return MESHES[request.param]


@pytest.fixture(scope="module")
def whole(mesh: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of a run by one process with two devices; with another number of them, sums round otherwise."""
    workdir = tmp_path_factory.mktemp("whole")
    with mock.patch.dict(os.environ, _with_devices(2)):
        process = start("main", *tiny(workdir, *BRIEF, *mesh))
    _, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, err
    return workdir


def test_a_group_whose_process_was_killed_goes_on_from_its_checkpoint(
    tmp_path: Path, mesh: tuple[str, ...], whole: Path
) -> None:
    """The leader is killed in one case and the follower in the other: what is left ends by itself, in one line."""
    killed = 0 if mesh is MESHES["nodes"] else 1
    with _group(*tiny(tmp_path, *BRIEF, *mesh), "--least_round_s=0.5") as group:
        _wait_for(group, (tmp_path / CHECKPOINTS / str(SAVED_EVERY)).is_dir)
        os.kill(group[killed].pid, signal.SIGKILL)
        _, err = group[1 - killed].communicate(timeout=TIMEOUT_S)
    assert group[1 - killed].returncode == 1
    assert f"error: process {killed} of the group is gone; the same command" in err and "Traceback" not in err
    assert not (tmp_path / CHECKPOINTS / str(ROUNDS)).exists(), "killed too late to show anything"

    with _group(*tiny(tmp_path, *BRIEF, *mesh)) as group:
        out, err = group[0].communicate(timeout=TIMEOUT_S)
        assert group[0].returncode == 0, err
        group[1].communicate(timeout=TIMEOUT_S)
        assert group[1].returncode == 0
    assert "resumed after round" in out and f"{ROUNDS} of {ROUNDS} rounds done." in out
    _assert_same(tmp_path, whole)


def test_one_process_goes_on_where_a_group_ended(tmp_path: Path) -> None:
    """A stop of the follower is one of the group, and a checkpoint does not say how many processes wrote it."""
    arguments = tiny(tmp_path, *BRIEF, *MESHES["nodes"])
    with _group(*arguments, "--least_round_s=0.5") as group:
        _wait_for(group, (tmp_path / CHECKPOINTS / str(SAVED_EVERY)).is_dir)
        os.kill(group[1].pid, signal.SIGTERM)
        for process in group:
            _, err = process.communicate(timeout=TIMEOUT_S)
            assert process.returncode == 0, err
    assert not (tmp_path / CHECKPOINTS / str(ROUNDS)).exists(), "nobody stopped: the run went on to its end"
    assert "resumed after round" in train(arguments)
