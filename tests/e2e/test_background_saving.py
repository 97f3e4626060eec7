"""Checkpoints that are written while the run goes on are those of a run that waits for them."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np

from sapo_jax.checkpoint import Checkpointer
from sapo_jax.trained import load_trained
from sapo_jax.workdir import CHECKPOINTS
from tests.e2e.runs import tiny, train

ROUNDS = 4


def test_writing_in_the_background_saves_the_same(tmp_path: Path) -> None:
    saving = (f"--config.rounds={ROUNDS}", "--config.checkpoint.every_rounds=1", "--config.checkpoint.keep_last=9")
    waiting, ahead = tmp_path / "waiting", tmp_path / "ahead"
    train(tiny(waiting, *saving))
    writers: set[str] = set()
    write = Checkpointer._write

    def noted(*args: Any) -> None:
        writers.add(threading.current_thread().name)
        write(*args)

    with (
        mock.patch("sapo_jax.wiring.writes_in_background", lambda: True),
        mock.patch.object(Checkpointer, "_write", noted),
    ):
        train(tiny(ahead, *saving))
    assert writers == {"checkpoint_0"}  # the only thread of its pool
    assert {path.name for path in (ahead / CHECKPOINTS).iterdir()} == {str(round) for round in range(ROUNDS + 1)}
    for round in range(ROUNDS + 1):
        one, two = (load_trained(str(workdir), str(round)) for workdir in (waiting, ahead))
        for node in range(one.config.nodes):
            jax.tree.map(np.testing.assert_array_equal, one.host.params_of(node), two.host.params_of(node))
