"""The libraries in the benchmark: the same numbers as ours, the same amount of work, one line where one is missing.

They are no test dependencies; what needs one is skipped where it is not installed.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec

import pytest

from scripts import bench_round
from scripts.bench import report
from scripts.bench.processes import run_json
from scripts.peers import packages
from scripts.peers.steps import Steps

SHAPE = ["--questions=3", "--group_size=4", "--prompt=9", "--completion=5"]
installed = pytest.mark.parametrize(
    "peer",
    [
        pytest.param(name, marks=pytest.mark.skipif(find_spec(peer.module) is None, reason=f"no {peer.package} here"))
        for name, peer in packages.PEERS.items()
    ],
)


@pytest.fixture(autouse=True)
def _settings_of_tests_are_not_theirs(monkeypatch):
    for name in ("JAX_NUMPY_RANK_PROMOTION", "XLA_FLAGS"):  # tunix promotes ranks
        monkeypatch.delenv(name, raising=False)


def contend(contender: str, workload: str) -> dict[str, float]:
    """Returns what a process of its own found: these libraries set global options and warn a lot."""
    arguments = [f"--contender={contender}", f"--workload={workload}", "--model=tiny", *SHAPE]
    return run_json("scripts.bench.contender", arguments)["checked"]


@installed
@pytest.mark.parametrize("workload", ["W2", "W3"])
def test_finds_what_ours_finds(peer, workload):
    ours, theirs = (contend(contender, workload) for contender in ("ours", peer))
    assert set(theirs) == ({"logprob_mean", "grad_norm"} if workload == "W2" else {"logprob_mean"})
    assert theirs == pytest.approx({name: ours[name] for name in theirs}, rel=5e-4)


@installed
def test_samples_to_the_limit(peer):
    assert contend(peer, "W1") == {"tokens": 3 * 4 * 5}
    assert contend(peer, "W4")["grad_norm"] > 0


@pytest.mark.parametrize("peer", packages.PEERS)
def test_a_missing_package_is_one_line(monkeypatch, peer):
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["bench_round.py", f"--contenders=ours,{peer}"])
    with pytest.raises(SystemExit) as caught:
        bench_round.main()
    line = str(caught.value.code)
    assert (
        f"--contenders: {peer} needs the package {packages.PEERS[peer].package}; pip install -e '.[baseline]'" in line
    )
    assert "\n" not in line


def test_the_usual_contenders_need_no_library(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["bench_round.py"])
    assert bench_round._options().contenders == ["ours", "reference", "best_torch"]


def test_what_only_some_report_is_compared_among_those():
    def run(**checked):
        return [{"seconds": [1.0], "peak_bytes": 1, "checked": checked}]

    by_contender = {"tunix": run(logprob_mean=2.0), "ours": run(logprob_mean=2.0, grad_norm=1.0)}
    runs = {"W2": {"float32": by_contender}}
    bench_round.require_agreement("W2", "float32", by_contender)
    by_contender["trl"] = run(grad_norm=1.1)
    with pytest.raises(bench_round.BenchError, match="grad_norm differs"):
        bench_round.require_agreement("W2", "float32", by_contender)
    assert bench_round.ratios({"W4": runs["W2"]}, nodes=1)["W4"]["trl"] == 1.0


def test_the_table_says_in_what_a_library_differs():
    measured = [{"seconds": [1.0], "before_first_s": 1.0, "peak_bytes": 1, "checked": {}}]
    floor = {"device": "cpu", "rates": {"flops_per_s": 1.0, "bytes_per_s": 1.0}, "workloads": {"W4": {"seconds": 1.0}}}
    result = {
        "command": "",
        "date": "",
        "revision": "",
        "machine": "",
        "versions": {},
        "seed": 0,
        "model": "tiny",
        "nodes": 1,
        "processes_done": 2,
        "processes_asked": 2,
        "floors": {"float32": floor},
        "runs": {"W4": {"float32": {"ours": measured, "trl": measured}}},
        "ratios": {"W4": {"float32": {"trl": 1.0}, "trl": 1.0}},
    }
    page = report.markdown(result)
    assert f"trl: {packages.PEERS['trl'].note}\n" in page and "tunix" not in page


def test_a_loop_goes_one_step_at_a_time():
    done: list[int] = []

    def loop(pause):
        for step in range(2):
            pause()
            done.append(step)

    steps = Steps(loop)
    assert done == []
    steps.step()
    assert done == [0]
    with pytest.raises(RuntimeError, match="ended by itself"):
        steps.step()
    assert done == [0, 1]


def test_what_a_loop_raises_reaches_the_caller():
    def loop(pause):
        pause()
        raise ValueError("no such token")

    with pytest.raises(ValueError, match="no such token"):
        Steps(loop).step()
