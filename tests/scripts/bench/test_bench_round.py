"""The command: its numbers, its files, its errors."""

from __future__ import annotations

import json
import signal
import sys

import jax
import pytest

from scripts import bench_round


def run(seconds, checked):
    return {"seconds": seconds, "before_first_s": 1.0, "peak_bytes": 2**30, "checked": checked}


def test_ratios_are_of_medians_per_node():
    runs = {
        "W4": {
            "float32": {"ours": [run([4.0, 2.0, 3.0], {})], "reference": [run([30.0], {}), run([33.0], {})]},
            # The second process had more runs, and counts as much as the first.
            "bfloat16": {"ours": [run([5.0], {}), run([7.0, 7.0, 7.0], {})], "reference": [run([21.0], {})]},
        }
    }
    found = bench_round.ratios(runs, nodes=2)["W4"]
    assert found["float32"]["reference"] == 31.5 / 1.5
    assert found["bfloat16"]["reference"] == 7.0
    assert found["reference"] == 21.0 / 1.5  # each in its faster precision


@pytest.mark.parametrize(
    ("name", "right", "also_right", "wrong"),
    [
        ("grad_norm", 1.0, 1.0005, [1.01, float("nan")]),
        ("moved", 5e-4, 5.2e-4, [0.0, 6e-4]),
        ("logprobs", [-10.5, -11.0, -11.5], [-10.5, -11.0003, -11.5], [[-10.5, -11.001, -11.5], [-11.0, -10.5, -11.5]]),
    ],
)
def test_contenders_that_disagree_are_an_error(name, right, also_right, wrong):
    both = {contender: [run([1.0], {name: right}), run([1.0], {name: right})] for contender in ("ours", "reference")}
    both["ours"][-1]["checked"][name] = also_right
    bench_round.require_agreement("W2", "float32", both)
    for value in wrong:
        both["reference"][-1]["checked"][name] = value
        with pytest.raises(bench_round.BenchError, match=f"W2 float32: {name} differs"):
            bench_round.require_agreement("W2", "float32", both)
        bench_round.require_agreement("W4", "float32", both)  # what was sampled differs


def test_a_disagreement_ends_the_run_when_it_shows(monkeypatch):
    asked = []

    def contend(options, workload, dtype, contender):
        asked.append(contender)
        return run([1.0], {"tokens": 8.0 if contender == "ours" else 7.0})

    monkeypatch.setattr(bench_round, "_contend", contend)
    monkeypatch.setattr(sys, "argv", ["bench_round.py", "--model=tiny", "--workloads=W1", "--dtypes=float32"])
    with pytest.raises(SystemExit, match="^error: W1 float32: tokens differs"):
        bench_round.main()
    assert asked == ["ours", "reference"]


def test_measures_and_writes_table_picture_and_numbers(monkeypatch, tmp_path, capsys):
    names = {name: tmp_path / name for name in ("out.json", "table.md", "roofline.png")}
    arguments = ["--model=tiny", "--workloads=W2,W4", "--dtypes=float32", "--contenders=ours,best_torch"]
    arguments += ["--repeats=1", "--seconds=0.5"]
    files = [f"--json={names['out.json']}", f"--write={names['table.md']}", f"--picture={names['roofline.png']}"]
    monkeypatch.setattr(sys, "argv", ["bench_round.py", *arguments, *files])
    bench_round.main()
    result = json.loads(names["out.json"].read_text())
    runs = [
        run for by_contender in result["runs"].values() for each in by_contender["float32"].values() for run in each
    ]
    assert len(runs) == 4 and all(sum(run["seconds"]) >= 0.5 for run in runs)
    assert set(result["ratios"]) == {"W2", "W4"} and result["ratios"]["W4"]["best_torch"] > 0
    assert result["floors"]["float32"]["workloads"]["W2"]["flops"] > 1e8
    table = names["table.md"].read_text()
    assert table in capsys.readouterr().out
    assert "| W4 round 256 + 32 | float32 | ours |" in table and "| W2 | best_torch |" in table
    assert "W2 9,208 and 16,384; W4 4,088 and 18,432." in table and "\nbest_torch: one `generate`" in table
    assert names["roofline.png"].read_bytes()[:4] == b"\x89PNG"
    assert result["processes_done"] == result["processes_asked"] == 4 and "Stopped" not in table


@pytest.mark.parametrize("stop_at", [0, 3])
def test_a_stop_reports_what_was_measured(monkeypatch, capsys, stop_at):
    done = []

    def contend(options, workload, dtype, contender):
        if len(done) == stop_at:
            signal.raise_signal(signal.SIGTERM)
        done.append(contender)
        return run([2.0 if contender == "ours" else 6.0], {})

    monkeypatch.setattr(bench_round, "_contend", contend)
    arguments = ["--model=tiny", "--workloads=W1,W4", "--dtypes=float32", "--contenders=ours,reference", "--repeats=2"]
    monkeypatch.setattr(sys, "argv", ["bench_round.py", *arguments])
    if stop_at == 0:
        with pytest.raises(SystemExit, match="^error: stopped before anything was measured"):
            bench_round.main()
        return
    bench_round.main()
    table = capsys.readouterr().out
    assert "Stopped after 3 of 8 processes." in table
    assert "| W1 | reference | 3.00 |" in table and "| W4 | reference |  |  |" in table


def test_ratios_of_several_turns_show_their_spread(monkeypatch, capsys):
    seconds = iter([2.0, 6.0, 3.0, 6.0, 2.0, 8.0])
    monkeypatch.setattr(bench_round, "_contend", lambda *_: run([next(seconds)], {}))
    arguments = ["--model=tiny", "--workloads=W1", "--dtypes=float32", "--contenders=ours,reference", "--repeats=3"]
    monkeypatch.setattr(sys, "argv", ["bench_round.py", *arguments])
    bench_round.main()
    assert "| W1 | reference | 3.00 (2.00 to 4.00) |" in capsys.readouterr().out


@pytest.fixture(autouse=True)
def same_signals():
    """The command takes over signals that the test runner needs."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("flag", "message"), [("--workloads=W9", "'W9' is none of W1"), ("--device=abacus", "abacus"), ("--runs=x", "int")]
)
def test_bad_flags_are_one_clear_error(monkeypatch, capsys, flag, message):
    monkeypatch.setattr(sys, "argv", ["bench_round.py", flag])
    with pytest.raises(SystemExit) as caught:
        bench_round.main()
    assert caught.value.code == 2 and message in capsys.readouterr().err


def test_a_contender_that_fails_is_named(monkeypatch):
    arguments = ["--model=tiny", "--workloads=W2", "--dtypes=float32", "--contenders=ours", "--repeats=1"]
    monkeypatch.setattr(sys, "argv", ["bench_round.py", *arguments, "--ours=--micro_batch_groups=3"])
    with pytest.raises(SystemExit, match=r"contender=ours .* ended with 1: .*micro_batch_groups = 3"):
        bench_round.main()


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="there may be a GPU")
def test_a_device_that_is_not_there_is_one_line(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["bench_round.py", "--device=gpu", "--contenders=ours"])
    with pytest.raises(SystemExit, match="--device=gpu: no such device here, found cpu"):
        bench_round.main()


def test_missing_torch_is_one_line(monkeypatch):
    monkeypatch.setattr(bench_round, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["bench_round.py"])
    with pytest.raises(SystemExit, match=r"no torch here.*\[baseline\]"):
        bench_round.main()
