from __future__ import annotations

import base64
import dataclasses
import gc
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib import image
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sapo_jax import figures
from sapo_jax.config import SapoConfig, TasksConfig
from sapo_jax.figures import build_history
from sapo_jax.metrics import JsonlTracker, MetricsError, Record
from sapo_jax.report import write_report
from sapo_jax.workdir import WorkdirError, open_workdir

_CONFIG = dataclasses.replace(SapoConfig(), rounds=40, seed=3, tasks=TasksConfig(specialties=("gcd", "lcm")))


def _run(path: Path, records: list[Record], config: SapoConfig = _CONFIG) -> Path:
    with open_workdir(path, config) as work:
        work.fix_resolved(compute_dtype="float32")
        tracker = JsonlTracker(work.metrics_path)
        for record in records:
            tracker.log(record.round, record.node, record.metrics)
        tracker.close()
    return path


def _full(rounds: int, nodes: int) -> list[Record]:
    records = []
    for round in range(rounds + 1):
        for node in (*range(nodes), None):
            share = round / max(rounds, 1)
            values: dict[str, float] = {}
            if round:
                values |= {"reward/own_mean": 0.2 * share, "reward/train_mean": 0.3 * share}
                values |= {"groups/informative_frac": 0.4, "groups/external": 4, "policy/entropy": 1 - share}
                values |= {"policy/own_logprob_mean": -1.0, "time/round_s": 3.5, "tokens/generated": 900}
                values |= {"policy/external_logprob_mean": math.nan, "time/device_idle_frac": 0.1}
            if round % 10 == 0:
                values |= {
                    "eval/strict_pass_at_1": 0.05 + 0.2 * share,
                    "eval/score_mean": 0.3 * share,
                    "eval/format_rate": 0.9,
                }
                values |= {"eval/strict_pass_at_8": 0.2, "eval/gcd/strict_pass_at_1": 0.5 * share}
            if round and round % 10 == 0:
                values |= {"eval/strict_pass_at_1_gain": 0.2 * share, "eval/strict_pass_at_1_gain_stderr": 0.012}
            records.append(Record(round=round, node=node, metrics=values))
    return records


class _Page(HTMLParser):
    """Collects the text, tags and pictures of a page, and fails on tags that do not match."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.text, self.open, self.pictures, self.links = "", [], [], []
        self.feed(source)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img"):
            self.open.append(tag)
        for name, value in attrs:
            if tag == "img" and name == "src":
                self.pictures.append(value or "")
            elif name in ("href", "src"):
                self.links.append(value)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data + "\n"


def test_a_full_run_gives_every_figure_and_one_page(tmp_path: Path) -> None:
    paths = write_report(_run(tmp_path, _full(40, 2)))
    names = ["evaluation.png", "rewards.png", "specialties.png", "groups.png", "policy.png", "cost.png", "index.html"]
    assert [p.name for p in paths] == names and {p.parent for p in paths} == {tmp_path / "report"}
    page = _Page(paths[-1].read_text())
    assert page.links == []  # nothing is fetched from elsewhere
    assert [base64.b64decode(src.removeprefix("data:image/png;base64,")) for src in page.pictures] == [
        path.read_bytes() for path in paths[:-1]
    ]
    text = re.sub(r"\s+", " ", page.text)
    assert "Held-out strict pass@1 went from 5.0% (round 0) to 25.0% (round 40)" in text
    assert "+20.0 ± 1.2 points, a gain of more than two standard errors" in text
    assert "Strict pass@8 20.0% 20.0% 20.0% (round 0) +0.0 points" in text
    assert "node 1 5.0% 25.0% 25.0% (round 40) +20.0 points +20.0 ± 1.2" in text
    assert "gcd 0.0% 50.0% 50.0% (round 40) +50.0 points" in text
    assert "config.rounds 40 100" in text and "config.tasks.specialties ('gcd', 'lcm') ()" in text
    assert "config.nodes" not in text  # as by default
    assert "compute_dtype float32" in text and "reasoning_gym 0." in text and "git_revision" in text


def test_the_figures_are_drawn(tmp_path: Path) -> None:
    for path in write_report(_run(tmp_path, _full(40, 2)))[:-1]:
        pixels = image.imread(path)  # [height, width, 4]
        assert np.unique((255 * pixels).astype(np.uint8).view(np.uint32)).size > 20, path.name


def test_a_run_of_round_zero_has_a_report(tmp_path: Path) -> None:
    paths = write_report(_run(tmp_path, _full(0, 1)))
    assert [p.name for p in paths] == ["evaluation.png", "rewards.png", "specialties.png", "index.html"]
    text = _Page(paths[-1].read_text()).text
    assert "5.0%" in text and "at round 0" in text and "±" not in text


def test_nothing_logged_yet_still_gives_a_page_and_removes_older_pictures(tmp_path: Path) -> None:
    path = _run(tmp_path, [])
    (path / "report").mkdir()
    (path / "report" / "cost.png").write_bytes(b"of an earlier report")
    paths = write_report(path)
    assert [p.name for p in paths] == ["index.html"] and not (path / "report" / "cost.png").exists()
    assert "No held-out evaluation was logged yet" in paths[0].read_text()


@pytest.mark.parametrize(
    ("metrics", "pictures"),
    [
        ({"reward/own_mean": 0.1}, ["rewards.png"]),
        ({"eval/strict_pass_at_1": 0.1}, ["evaluation.png"]),
        ({"eval/gcd/strict_pass_at_1": 0.0}, ["specialties.png"]),
        ({"policy/entropy": math.nan}, []),
        ({"tokens/trained": 5.0, "something/else": 1.0}, ["cost.png"]),
    ],
)
def test_missing_metrics_are_left_out(tmp_path: Path, metrics: dict[str, float], pictures: list[str]) -> None:
    for nodes in ((None,), (0,), (0, 1, None), tuple(range(12))):
        directory = tmp_path / str(len(nodes)) / str(nodes[0])
        records = [Record(round=round, node=node, metrics=metrics) for round in (1, 2) for node in nodes]
        paths = write_report(_run(directory, records))
        assert [path.name for path in paths] == [*pictures, "index.html"]


def test_a_loss_and_no_change_are_called_so(tmp_path: Path) -> None:
    def verdict(name: str, gain: float) -> str:
        records = [
            Record(round=0, node=None, metrics={"eval/strict_pass_at_1": 0.3}),
            Record(
                round=9,
                node=None,
                metrics={
                    "eval/strict_pass_at_1": 0.3 + gain,
                    "eval/strict_pass_at_1_gain": gain,
                    "eval/strict_pass_at_1_gain_stderr": 0.02,
                },
            ),
        ]
        return write_report(_run(tmp_path / name, records))[-1].read_text()

    assert "a loss of more than two standard errors" in verdict("loss", -0.1)
    assert "within two standard errors of no change" in verdict("level", 0.03)
    assert "a gain of more than two standard errors" in verdict("gain", 0.05)


def test_t16_text_from_the_run_is_escaped(tmp_path: Path) -> None:
    evil = "<script>alert('&')</script>$x^{"
    config = dataclasses.replace(_CONFIG, tasks=TasksConfig(specialties=(evil,)))
    records = [Record(round=0, node=None, metrics={f"eval/{evil.replace('/', '')}/strict_pass_at_1": 0.5})]
    source = write_report(_run(tmp_path / "<b>run", records, config))[-1].read_text()
    assert "<script" not in source and "<b>run" not in source
    assert "<script>alert('&')<script>$x^{" in _Page(source).text


def test_no_run_and_damaged_metrics_are_named(tmp_path: Path) -> None:
    with pytest.raises(WorkdirError, match="no config.json there"):
        write_report(tmp_path)
    open_workdir(tmp_path / "new", _CONFIG).close()
    with pytest.raises(WorkdirError, match="no metrics.jsonl"):
        write_report(tmp_path / "new")
    path = _run(tmp_path / "damaged", _full(1, 1))
    with (path / "metrics.jsonl").open("a") as file:
        file.write("nonsense\n")
    with pytest.raises(MetricsError, match="line 5"):
        write_report(path)


def test_history_averages_nodes_only_where_the_swarm_is_silent() -> None:
    history = build_history(
        [
            Record(round=1, node=0, metrics={"a": 1.0, "b": 1.0}),
            Record(round=1, node=1, metrics={"a": 3.0, "b": math.nan}),
            Record(round=2, node=1, metrics={"a": 5.0}),
            Record(round=2, node=1, metrics={"a": 7.0}),  # logged again
            Record(round=1, node=None, metrics={"b": 9.0}),
        ]
    )
    assert history.nodes == (0, 1)
    mean, swarm = history.curve("a"), history.curve("b")
    assert mean is not None and mean.rounds.tolist() == [1, 2] and mean.values.tolist() == [2.0, 7.0]
    assert swarm is not None and swarm.values.tolist() == [9.0]
    assert history.curve("b", 1) is None and history.curve("c") is None


def test_the_rewards_share_one_scale_that_shows_every_curve() -> None:
    figure = figures.FIGURES["rewards"](build_history(_full(40, 2)))
    assert figure is not None
    FigureCanvasAgg(figure).draw()
    limits = {axes.get_ylim() for axes in figure.axes}
    assert len(figure.axes) == 3 and len(limits) == 1
    bottom, top = limits.pop()
    assert bottom == 0 and top >= 0.3


def test_a_running_mean_is_a_mean_of_neighbors() -> None:
    values = np.random.default_rng(0).random(100)
    smoothed = figures._running_mean(values)  # 2 to each side
    assert smoothed[50] == pytest.approx(values[48:53].mean())
    assert smoothed[0] == pytest.approx(values[:3].mean()) and smoothed[-1] == pytest.approx(values[-3:].mean())


def test_a_long_run_is_drawn_with_few_points_from_its_first_round_to_its_last() -> None:
    records = (Record(round=r, node=None, metrics={"reward/own_mean": r % 2}) for r in range(1, 20_001))
    figure = figures.FIGURES["rewards"](build_history(records))
    assert figure is not None
    raw, smoothed = figure.axes[0].lines
    for line in (raw, smoothed):
        rounds = np.asarray(line.get_xdata())
        assert rounds.size <= 1500 and (rounds[0], rounds[-1]) == (1, 20_000)
    assert set(np.asarray(raw.get_ydata())) == {0.0, 1.0}  # thinned after smoothing, not before
    np.testing.assert_allclose(np.asarray(smoothed.get_ydata()), 0.5, atol=0.01)


def test_a_report_leaves_no_figures_behind(tmp_path: Path) -> None:
    gc.collect()  # those of other tests
    gc.disable()
    try:
        write_report(_run(tmp_path / "run", _full(10, 1)))
        # By type: isinstance would ask every object of the process for its class, and some of them warn when asked.
        assert [each for each in gc.get_objects() if issubclass(type(each), Figure)] == []
    finally:
        gc.enable()
