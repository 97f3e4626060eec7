from __future__ import annotations

import math

import pytest

from scripts.faults import __main__ as runner
from scripts.faults.figures import Figure, Setting, read_figures, table, write_figures

FIGURES = [
    Figure(name="lost", value=0, at_least=0, at_most=0),
    Figure(name="rate", value=999.4, unit="groups/s", at_least=1000, detail="of 10 calls"),
    Figure(name="seen", value=3),
]


@pytest.mark.parametrize(
    ("value", "at_least", "at_most", "is_met"),
    [
        (1.0, None, None, True),
        (1.0, 1.0, None, True),
        (0.999, 1.0, None, False),
        (1.0, None, 1.0, True),
        (1.001, None, 1.0, False),
        (math.nan, None, 1.0, False),
        (math.nan, 0.0, None, False),
        (math.inf, 0.0, 1.0, False),
    ],
)
def test_a_figure_is_met_within_its_bounds_only(value, at_least, at_most, is_met):
    assert Figure(name="x", value=value, at_least=at_least, at_most=at_most).is_met is is_met


def test_figures_come_back_from_their_file(tmp_path):
    write_figures(tmp_path / "f.json", FIGURES)
    assert read_figures(tmp_path / "f.json") == FIGURES


def test_the_table_says_what_was_missed():
    lines = table([("kill", figure) for figure in FIGURES]).splitlines()
    assert lines[2] == "| kill | lost | 0 | exactly 0 | met |  |"
    assert lines[3] == "| kill | rate | 999 groups/s | at least 1,000 | MISSED | of 10 calls |"
    assert lines[4] == "| kill | seen | 3 |  |  |  |"


def test_a_scaled_amount_is_never_nothing(tmp_path):
    setting = Setting(scale=0.001, seed=0, workdir=tmp_path, say=print)
    assert (setting.scaled(100), setting.scaled(100, 5), setting.scaled(10_000)) == (1, 5, 10)


def _measures(monkeypatch, figures):
    """Stands in for the measuring process; returns the parts that it was asked for."""
    asked = []

    def measure(part, out, *, scale, seed):
        asked.append(part)
        write_figures(out / part / runner.FIGURES, figures)
        return part != "skew"

    monkeypatch.setattr(runner, "measure_apart", measure)
    monkeypatch.setattr(runner, "revision", lambda: "abc")
    return asked


def test_a_part_is_measured_once_and_kept(tmp_path, monkeypatch, capsys):
    asked = _measures(monkeypatch, FIGURES[:1])
    arguments = ["--parts=kill,churn", f"--out={tmp_path}"]
    runner.main(arguments)
    runner.main(arguments)
    assert asked == ["kill", "churn"]
    runner.main([*arguments, "--seed=1"])
    runner.main([*arguments, "--seed=1", "--again"])
    monkeypatch.setattr(runner, "revision", lambda: "abc+")
    runner.main([*arguments, "--seed=1"])
    runner.main([*arguments, "--seed=1"])
    assert asked == ["kill", "churn"] * 5
    text = (tmp_path / runner.TABLE).read_text()
    assert "| churn | lost | 0 | exactly 0 | met |" in text and "NOT a measurement" not in text
    assert text.partition("\n\n")[2] in capsys.readouterr().out


@pytest.mark.parametrize(("part", "figures"), [("kill", FIGURES), ("skew", FIGURES[:1])], ids=["missed", "failed"])
def test_a_missed_figure_or_a_failed_part_is_an_exit_code(tmp_path, monkeypatch, part, figures):
    _measures(monkeypatch, figures)
    with pytest.raises(SystemExit) as end:
        runner.main([f"--parts={part}", f"--out={tmp_path}"])
    assert end.value.code == 1 and "MISSED" in (tmp_path / runner.TABLE).read_text()


@pytest.mark.parametrize("argument", ["--parts=kill,nothing", "--parts=", "--scale=0", "--scale=2"])
def test_an_unusable_argument_is_named(argument, capsys):
    with pytest.raises(SystemExit) as end:
        runner.main([argument])
    assert end.value.code == 2 and argument.partition("=")[0] in capsys.readouterr().err.splitlines()[-1]
