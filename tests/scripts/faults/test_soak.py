from __future__ import annotations

import csv
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from sapo_jax.tasks.catalog import resolve
from sapo_jax.tasks.held_out import is_held_out
from sapo_jax.tasks.reasoning_gym_source import ReasoningGymSource
from scripts.faults import soak
from scripts.faults.figures import Setting
from scripts.faults.light_publisher import rollouts
from scripts.faults.process_samples import Sample, descendants, drift, look, quantile, write_samples

LENGTH_S, WINDOW_S = float(soak.LENGTH_S), soak.WINDOW_S

# Holds memory, a file, a thread and a child until its input ends, once it was told to.
HOARDER = """
import subprocess, sys, threading
print("ready", flush=True)
sys.stdin.readline()
hoard = bytearray(64 << 20)
hoard[::4096] = b"x" * len(hoard[::4096])
file = open(__file__ if "__file__" in globals() else sys.executable, "rb")
threading.Thread(target=threading.Event().wait, daemon=True).start()
child = subprocess.Popen(["sleep", "60"], stdin=subprocess.DEVNULL)
print("done", flush=True)
sys.stdin.readline()
child.kill()
child.wait()
"""


@pytest.fixture
def hoarder() -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOARDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    yield process
    if process.poll() is None:
        process.communicate("\n\n")


def test_a_look_sees_what_a_process_holds(hoarder):
    assert hoarder.stdin is not None and hoarder.stdout is not None
    hoarder.stdout.readline()
    before = look("it", hoarder.pid, 0.0)
    hoarder.stdin.write("\n")
    hoarder.stdout.readline()
    deadline_s = time.monotonic() + 10
    while (after := look("it", hoarder.pid, 1.0)).children_rss_mib < 0.1 and time.monotonic() < deadline_s:
        time.sleep(0.01)  # a program that was just started has touched none of its memory yet
    assert 60 < after.rss_mib - before.rss_mib < 80
    assert after.descriptors - before.descriptors == 1
    assert after.threads - before.threads == 1
    assert (before.children, after.children) == (0, 1) and after.children_rss_mib > 0.1
    assert len(descendants(hoarder.pid)) == 1


def test_a_process_that_has_ended_is_noticed(hoarder):
    hoarder.communicate("\n\n")
    with pytest.raises(ProcessLookupError, match="it: process"):
        look("it", hoarder.pid, 0.0)


def _series(
    rss_mib=lambda minute: 500.0,
    descriptors=lambda minute: 30,
    threads=lambda minute: 38,
    children=lambda minute: 3,
    children_rss_mib=lambda minute: 300.0,
):
    rng = np.random.default_rng(0)
    return [
        Sample(
            at_s=at_s,
            process="host",
            rss_mib=rss_mib(at_s / 60) + 80 * (rng.random() < 0.5),  # what comes and goes
            descriptors=descriptors(at_s / 60) + 2 * (at_s % 60 < 40),
            threads=threads(at_s / 60) + int(rng.integers(-1, 2)),
            children=children(at_s / 60),
            children_rss_mib=children_rss_mib(at_s / 60),
        )
        for at_s in np.arange(0.0, LENGTH_S + 1, 5.0)
    ]


def _missed(samples):
    return [figure.name for figure in soak.growth("host", samples, LENGTH_S, WINDOW_S) if not figure.is_met]


def test_a_swarm_at_rest_meets_all_targets():
    figures = soak.growth("host", _series(), LENGTH_S, WINDOW_S)
    assert [figure.name for figure in figures] == [
        "host: growth of resident memory",
        "host: growth of resident memory of its child processes",
        "host: rise of open descriptors",
        "host: rise of threads",
        "host: rise of child processes",
    ]
    assert _missed(_series()) == []


def test_what_grows_in_the_first_half_only_is_no_leak():
    assert _missed(_series(rss_mib=lambda minute: 500 + 50 * min(minute, 6))) == []


@pytest.mark.parametrize(
    ("leak", "named"),
    [
        ({"rss_mib": lambda minute: 500 + 2 * minute}, "host: growth of resident memory"),
        ({"descriptors": lambda minute: 30 + int(minute / 4)}, "host: rise of open descriptors"),
        ({"threads": lambda minute: 38 + int(minute / 4)}, "host: rise of threads"),
        ({"children": lambda minute: 3 + (minute > 18)}, "host: rise of child processes"),
        (
            {"children_rss_mib": lambda minute: 300 + 2 * minute},
            "host: growth of resident memory of its child processes",
        ),
    ],
)
def test_a_leak_misses_its_target(leak, named):
    assert named in _missed(_series(**leak))


def test_a_series_without_samples_meets_nothing():
    samples = [sample for sample in _series() if sample.at_s < 60]
    assert not any(figure.is_met for figure in soak.growth("host", samples, LENGTH_S, WINDOW_S))
    assert np.isnan(quantile([], 0.0, 60.0, "rss_mib", 0.5)) and np.isnan(drift([], 0.0, "threads"))


def test_samples_are_written_as_csv(tmp_path):
    write_samples(tmp_path / "samples.csv", _series()[:3])
    rows = list(csv.DictReader((tmp_path / "samples.csv").read_text().splitlines()))
    assert len(rows) == 3 and rows[0]["process"] == "host" and float(rows[2]["at_s"]) == 10.0


def test_published_tasks_are_such_as_nobody_is_banned_for():
    source = ReasoningGymSource(resolve("easy", ("leap_year",)))
    made = list(islice(rollouts("node", np.random.default_rng(0), source), 50))
    assert not any(is_held_out(source.task(rollout.task_ref).question) for rollout in made)
    assert len({rollout.round for rollout in made}) == len(made)
    answers = [completion.text.rpartition("<answer>")[2] for rollout in made for completion in rollout.completions]
    assert set(answers) == {"Yes</answer>", "No</answer>"}


@pytest.mark.slow
def test_a_short_soak(tmp_path: Path):
    figures = soak.measure(Setting(scale=0.05, seed=0, workdir=tmp_path, say=print))
    by_name = {figure.name: figure for figure in figures}
    assert by_name["host: rounds trained"].is_met and by_name["processes that ended by themselves or badly"].is_met
    assert by_name["host: groups of others trained on"].value > 0
    assert (tmp_path / "samples.csv").stat().st_size > 0
