from __future__ import annotations

import io

import pytest
from rich.console import Console

from sapo_jax.progress import Progress, Stage


class _Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def _plain(rounds: int, **options: float) -> tuple[Progress, _Clock, io.StringIO]:
    clock, out = _Clock(), io.StringIO()
    console = Console(file=out, force_terminal=False, width=400)
    return Progress(rounds, console=console, clock=clock, **options), clock, out


def _metrics(round: int) -> dict[str, float]:
    return {
        "reward/own_mean": round / 100,
        "reward/train_mean": round / 50,
        "tokens/generated": 6000.0,
        "time/round_s": 2.0,
    }


def test_a_plain_line_tells_all_numbers() -> None:
    progress, clock, out = _plain(40)
    with progress:
        progress.evaluated(
            0, {"eval/strict_pass_at_1": 0.0625, "eval/format_rate": 0.5, "eval/gcd/strict_pass_at_1": 1.0}
        )
        clock.now += 65
        progress.round_done(1, _metrics(1))
        clock.now += 10
        progress.round_done(2, _metrics(2))
    assert out.getvalue().splitlines() == [
        "held-out after 0 rounds  pass@1 0.062  format 0.500",
        "round  1/40  own reward 0.010  train reward 0.020  tokens/s 3,000  elapsed 1:05",
        "round  2/40  own reward 0.020  train reward 0.040  tokens/s 3,000  elapsed 1:15  left 6:20",
    ]


def test_fast_rounds_print_a_line_every_few_seconds_and_the_last() -> None:
    progress, clock, out = _plain(1000, line_every_s=5.0)
    with progress:
        for round in range(1, 1001):
            clock.now += 0.01
            with progress.stage("sampling", announce=False), progress.stage("scoring", announce=False):
                pass
            progress.round_done(round, _metrics(round))
    lines = out.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == ["1/1000", "501/1000", "1000/1000"]
    assert "left" not in lines[-1]


def test_slow_rounds_print_a_line_each() -> None:
    progress, clock, out = _plain(3)
    with progress:
        for round in (1, 2, 3):
            clock.now += 60
            progress.round_done(round, {})
    assert len(out.getvalue().splitlines()) == 3


def test_stages_are_announced_and_nest() -> None:
    progress, _, out = _plain(3)
    with progress, progress.stage("evaluating", total=12) as outer:
        outer.advance(2)
        outer.advance()
        with progress.stage("compiling"):
            pass
        with progress.stage("sampling", announce=False):
            pass
    assert out.getvalue().splitlines() == ["evaluating 0/12 ...", "evaluating 3/12 > compiling ..."]


def test_a_silent_stage_is_named_again_and_again() -> None:
    progress, clock, out = _plain(9, quiet_s=30.0)
    progress.resume_at(4)
    progress._tick()  # what the watching thread does once a second
    with progress.stage("update", announce=False), progress.stage("micro batch", total=4, announce=False) as stage:
        stage.advance()
        for _ in range(3):
            clock.now += 20
            progress._tick()
        clock.now += 20
        progress._tick()
    clock.now += 100
    progress._tick()  # nothing is waiting
    assert out.getvalue().splitlines() == [
        "round 4/9  still update > micro batch 1/4 (40 s)",
        "round 4/9  still update > micro batch 1/4 (1:20)",
    ]


def test_an_exception_leaves_no_stage_behind() -> None:
    progress, clock, out = _plain(3)
    with pytest.raises(RuntimeError, match="boom"), progress, progress.stage("loading weights", announce=False):
        raise RuntimeError("boom")
    clock.now += 1000
    progress._tick()
    assert out.getvalue() == ""


def test_time_left_leaves_the_compiling_round_out() -> None:
    progress, clock, _ = _plain(20)
    progress.resume_at(10)
    assert progress.time_left_s() is None
    clock.now += 500  # loading, and the first evaluation
    progress.round_done(11, {})
    assert progress.time_left_s() is None
    for round in (12, 13, 14):
        clock.now += 2
        progress.round_done(round, {})
    assert progress.time_left_s() == pytest.approx(6 * 2)


def test_the_live_display_shows_numbers_and_stage() -> None:
    clock, out = _Clock(), io.StringIO()
    console = Console(file=out, force_terminal=True, width=120, height=20, _environ={"TERM": "xterm"})
    with Progress(40, console=console, clock=clock) as progress:
        with progress.stage("evaluating", total=12) as stage:
            stage.advance(3)
            clock.now += 5
            progress.round_done(4, _metrics(4))
            clock.now += 2
            progress.round_done(5, _metrics(5))
            progress.evaluated(5, {"eval/strict_pass_at_1": 0.25})
            shown = Console(file=io.StringIO(), width=120, record=True)
            shown.print(progress._render())
            text = shown.export_text()
        final = out.getvalue
    for expected in (
        "5/40",
        "own reward",
        "0.050",
        "train reward",
        "0.100",
        "held-out pass@1",
        "0.250",
        "tokens/s",
        "3,000",
    ):
        assert expected in text
    assert "elapsed" in text and "left" in text and "evaluating 3/12  7 s" in text
    assert "held-out after 5 rounds  pass@1 0.250" in final()
    assert "evaluating 0/12 ..." not in final()  # the display says it


def test_text_is_not_taken_for_markup() -> None:
    progress, _, out = _plain(1)
    with progress:
        progress.print("saved [red]runs/a[/red] :smile:")
    assert out.getvalue() == "saved [red]runs/a[/red] :smile:\n"


def test_a_stage_labels_its_count() -> None:
    stage = Stage(name="loading", total=None, start_s=0.0)
    assert stage.label == "loading"
    stage.total = 3
    stage.advance(2)
    assert stage.label == "loading 2/3"
