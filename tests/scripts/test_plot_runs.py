"""The overlay of several runs shows each run's own numbers under its own name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sapo_jax.metrics import JsonlTracker
from sapo_jax.workdir import METRICS_FILE
from scripts import plot_runs


@pytest.fixture
def two_runs(tmp_path):
    workdirs = []
    for index in (0, 1):
        workdir = tmp_path / f"seed_{index}"
        workdir.mkdir()
        tracker = JsonlTracker(workdir / METRICS_FILE)
        for round in range(5):
            for node in (0, 1):
                tracker.log(round, node, {"reward/own_mean": index + 0.1 * round + node})
            if round in (0, 4):
                tracker.log(round, None, {plot_runs.PASS_AT_1: 0.2 * index + 0.01 * round})
        tracker.close()
        workdirs.append(workdir)
    return workdirs


def lines_of(figure, title):
    axes = next(axes for axes in figure.axes if axes.get_title(loc="left") == title)
    return {line.get_label(): np.asarray(line.get_xydata()) for line in axes.lines}


def test_draws_every_run_under_its_name(two_runs):
    figure = plot_runs.draw(plot_runs.read_runs(two_runs))
    held_out = lines_of(figure, "Held-out, strict pass@1")
    assert set(held_out) == {"seed_0", "seed_1"}
    np.testing.assert_allclose(held_out["seed_0"], [[0, 0.0], [4, 0.04]])
    np.testing.assert_allclose(held_out["seed_1"], [[0, 0.2], [4, 0.24]])
    own = lines_of(figure, "Own rollouts, mean reward")  # the mean over nodes 0 and 1
    np.testing.assert_allclose(own["seed_1"][:, 1], [1.5, 1.6, 1.7, 1.8, 1.9])
    assert lines_of(figure, "Training set, mean reward") == {}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["seed_0", "seed_1"]


def test_smooths_training_rewards_and_no_evaluation(two_runs):
    figure = plot_runs.draw(plot_runs.read_runs(two_runs[:1], ["one"]), smooth=3)
    own = lines_of(figure, "Own rollouts, mean reward")["one"][:, 1]
    np.testing.assert_allclose(own, [0.55, 0.6, 0.7, 0.8, 0.85])
    np.testing.assert_allclose(lines_of(figure, "Held-out, strict pass@1")["one"][:, 1], [0.0, 0.04])


def test_names_are_as_long_as_they_must_be():
    assert plot_runs.short_names([Path("runs/a"), Path("runs/b")]) == ["a", "b"]
    assert plot_runs.short_names([Path("x/a"), Path("y/a"), Path("y/b")]) == ["x/a", "y/a", "y/b"]
    with pytest.raises(ValueError, match="given twice"):
        plot_runs.short_names([Path("runs/a"), Path("runs/../runs/a")])


def test_the_command_writes_a_picture(two_runs, tmp_path, capsys):
    out = tmp_path / "curves.png"
    plot_runs.main([*map(str, two_runs), f"--out={out}", "--labels=8/0,4/4", "--smooth=2"])
    assert capsys.readouterr().out.strip() == str(out)
    assert out.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["missing"], "metrics.jsonl"),
        (["seed_0", "--labels=a,b"], "must be 1 different"),
        (["seed_0", "seed_1", "--labels=a,a"], "must be 2 different"),
        (["broken"], "line 1: not a line of metrics"),
        (["seed_0"] * 11, "11 runs"),
        (["seed_0", "--out=nowhere/x.png"], "nowhere"),
    ],
)
def test_one_clear_error(two_runs, tmp_path, monkeypatch, change, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / METRICS_FILE).write_text("no json\n")
    with pytest.raises(SystemExit) as caught:
        plot_runs.main(change)
    assert str(caught.value).startswith("error: ") and message in str(caught.value)
