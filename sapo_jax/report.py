"""The report of a run: PNG curves and one self-contained HTML page, made from its workdir alone.

Reads `metrics.jsonl` and `config.json`; what a run did not log is left out. The three rewards stand
side by side on one scale, because the reward of the training set rises with the selection of
foreign groups even where nothing is learned; the held-out numbers decide.
"""

from __future__ import annotations

import base64
import gc
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sapo_jax.config import SapoConfig
from sapo_jax.figures import FIGURES, PASS_AT_1, History, build_history, specialty_of_metric
from sapo_jax.metrics import FROM, stream_metrics
from sapo_jax.workdir import (
    METRICS_FILE,
    REPORT,
    RunRecord,
    WorkdirError,
    config_differences,
    read_record,
    replace_file,
)

PAGE_FILE = "index.html"

# Held-out numbers of the summary: metric and label.
_HELD_OUT = (
    (PASS_AT_1, "Strict pass@1"),
    ("eval/strict_pass_at_8", "Strict pass@8"),
    ("eval/greedy_strict_pass_at_1", "Strict pass@1, greedy"),
    ("eval/core6_strict_pass_at_1", "Strict pass@1, core-6"),
    ("eval/score_mean", "Mean score"),
    ("eval/format_rate", "Format rate"),
)

_CAPTIONS: Mapping[str, str] = {
    "evaluation": "Fixed questions that no node trains on. A question counts as solved if the answer is fully right.",
    "rewards": "Only the panel on the right shows what was learned. The training set holds groups selected from other "
    "nodes, so its reward can rise without any learning.",
    "specialties": "Held-out strict pass@1 per specialty, mean over nodes.",
    "groups": "A group is informative if its completions were not all scored alike; the others give no gradient.",
    "policy": "An entropy near zero means that the completions of a group are all the same. External text far below "
    "the policy's own log-probability is text that the policy would hardly write itself.",
    "cost": "Wall-clock time and tokens.",
}


def write_report(workdir: str | Path) -> list[Path]:
    """Writes `report/*.png` and `report/index.html` of the run at `workdir` and returns their paths.

    The page comes last. It embeds the pictures, so it can be sent as one file.

    Raises:
        WorkdirError: no run there, or nothing logged yet.
        MetricsError: damaged metrics.
        OSError: the report cannot be written.
    """
    root = Path(workdir).expanduser()
    record = read_record(root)
    if not (root / METRICS_FILE).is_file():
        raise WorkdirError(f"workdir {root}: no {METRICS_FILE}, so nothing to report yet")
    history = build_history(stream_metrics(root / METRICS_FILE))
    directory = root / REPORT
    directory.mkdir(exist_ok=True)
    pictures = []
    for name, draw in FIGURES.items():
        path = directory / f"{name}.png"
        picture = _png(draw(history))
        if picture is None:
            path.unlink(missing_ok=True)  # of an earlier report
            continue
        replace_file(path, picture)
        pictures.append(path)
    page = directory / PAGE_FILE
    replace_file(page, _page(root.resolve().name, record, history, pictures))
    # Figures refer to themselves in circles. Left to chance, a training process holds several reports' of them.
    gc.collect()
    return [*pictures, page]


def _png(figure: Figure | None) -> bytes | None:
    if figure is None:
        return None
    picture = io.BytesIO()
    FigureCanvasAgg(figure).print_png(picture)
    return picture.getvalue()


def _page(name: str, record: RunRecord, history: History, pictures: Sequence[Path]) -> str:
    config = record.config
    rounds = max((int(c.rounds[-1]) for per_node in history.curves.values() for c in per_node.values()), default=0)
    lead = (
        f"{config.nodes} {'node' if config.nodes == 1 else 'nodes'} of {config.model.source}, "
        f"{config.sharing.local} local and {config.sharing.external} external rollouts per update, "
        f"round {rounds} of {config.rounds}, seed {config.seed}"
    )
    sections = [
        f"<h1>SAPO run {_text(name)}</h1><p class=lead>{_text(lead)}</p>",
        _headline(history),
        _section("Held-out results", _held_out_table(history)),
        *(_picture(path) for path in pictures),
        _section("Nodes", _nodes_table(history)),
        _section("External rollouts trained on, by who made them", _publishers_table(history)),
        _section("Specialties, strict pass@1", _specialties_table(history)),
        _section("Configuration where it differs from the defaults", _config_table(config)),
        _section("Fixed at the start", _pairs_table(record.resolved.items())),
        _section("Started with", _environment_table(record.environment)),
    ]
    body = "\n".join(section for section in sections if section)
    return _TEMPLATE.replace("{title}", _text(f"SAPO run {name}")).replace("{body}", body)


def _headline(history: History) -> str:
    """Returns the one sentence that a reader came for."""
    curve = history.curve(PASS_AT_1)
    if curve is None:
        return "<p class=verdict>No held-out evaluation was logged yet.</p>"
    first, last = curve.values[0], curve.values[-1]
    if curve.rounds.size == 1:
        return f"<p class=verdict>Held-out strict pass@1 is <b>{first:.1%}</b> at round {curve.rounds[0]}.</p>"
    sentence = (
        f"Held-out strict pass@1 went from <b>{first:.1%}</b> (round {curve.rounds[0]}) to <b>{last:.1%}</b> "
        f"(round {curve.rounds[-1]})"
    )
    gain = _gain(history, None)
    if gain is None:
        return f"<p class=verdict>{sentence}.</p>"
    mean, stderr = gain
    if abs(mean) <= 2 * stderr:
        meaning = "within two standard errors of no change"
    else:
        meaning = f"{'a gain' if mean > 0 else 'a loss'} of more than two standard errors"
    return (
        f"<p class=verdict>{sentence}: {100 * mean:+.1f} &plusmn; {100 * stderr:.1f} points, {meaning}.</p>"
        "<p class=note>Same questions before and after; the error is a bootstrap over questions and does not cover "
        "how much another seed would differ.</p>"
    )


def _gain(history: History, node: int | None) -> tuple[float, float] | None:
    mean, stderr = history.curve(f"{PASS_AT_1}_gain", node), history.curve(f"{PASS_AT_1}_gain_stderr", node)
    return None if mean is None or stderr is None else (float(mean.values[-1]), float(stderr.values[-1]))


def _held_out_table(history: History) -> str:
    rows = [_first_last_row(history, name, label) for name, label in _HELD_OUT]
    return _table(("", "first", "last", "best", "change"), [row for row in rows if row])


def _specialties_table(history: History) -> str:
    rows = [_first_last_row(history, name, specialty) for name, specialty in specialty_of_metric(history).items()]
    return _table(("", "first", "last", "best", "change"), [row for row in rows if row])


def _nodes_table(history: History) -> str:
    rows = []
    for node in history.nodes:
        row = _first_last_row(history, PASS_AT_1, f"node {node}", node)
        if row:
            gain = _gain(history, node)
            rows.append([*row, "" if gain is None else f"{100 * gain[0]:+.1f} ± {100 * gain[1]:.1f}"])
    return _table(("strict pass@1", "first", "last", "best", "change", "paired gain"), rows)


def _publishers_table(history: History) -> str:
    names = sorted(name for name in history.curves if name.startswith(FROM))
    rows = []
    for node in history.nodes:
        curves = [history.curve(name, node) for name in names]
        counts = [0 if curve is None else int(curve.values.sum()) for curve in curves]
        if any(counts):
            rows.append([f"node {node}", *map(str, counts)])
    return _table(("trained by", *(name.removeprefix(FROM) for name in names)), rows)


def _first_last_row(history: History, name: str, label: str, node: int | None = None) -> list[str] | None:
    curve = history.curve(name, node)
    if curve is None:
        return None
    first, last = curve.values[0], curve.values[-1]
    change = f"{100 * (last - first):+.1f} points" if curve.rounds.size > 1 else ""
    best = int(curve.values.argmax())
    return [label, f"{first:.1%}", f"{last:.1%}", f"{curve.values[best]:.1%} (round {curve.rounds[best]})", change]


def _config_table(config: SapoConfig) -> str:
    differences = config_differences(SapoConfig(), config)
    rows = [[f"config.{key}", repr(value), repr(default)] for key, (default, value) in differences.items()]
    return _table(("key", "here", "default"), rows) or "<p>Nothing differs.</p>"


def _environment_table(environment: Mapping[str, object]) -> str:
    pairs: list[tuple[str, object]] = []
    for key, value in environment.items():
        pairs.extend(value.items() if isinstance(value, Mapping) else [(key, value)])
    return _pairs_table(pairs)


def _pairs_table(pairs: Iterable[tuple[str, object]]) -> str:
    return _table((), [[key, "unknown" if value is None else str(value)] for key, value in pairs])


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns an HTML table of escaped texts, empty without rows."""
    if not rows:
        return ""
    head = f"<tr>{''.join(f'<th>{_text(cell)}</th>' for cell in header)}</tr>" if header else ""
    lines = "".join(f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table>{head}{lines}</table>"


def _section(title: str, content: str) -> str:
    return f"<section><h2>{_text(title)}</h2>{content}</section>" if content else ""


def _picture(path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    caption = _text(_CAPTIONS[path.stem])
    image = f'<img alt="{_text(path.stem)}" src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


def _text(value: str) -> str:
    return html.escape(value, quote=True)


_TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #1c1c1c; background: #fafafa; }
body { max-width: 1080px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.05rem; margin: 0 0 .5rem; }
.lead, .note, figcaption { color: #555; margin: .2rem 0 1rem; }
.note, figcaption { font-size: .87rem; }
.verdict { font-size: 1.2rem; margin: 1rem 0 .2rem; }
section, figure { background: #fff; border: 1px solid #e3e3e3; border-radius: 6px; }
section, figure { padding: 1rem; margin: 0 0 1rem; overflow-x: auto; }
figcaption { margin: .5rem 0 0; }
img { max-width: 100%; height: auto; display: block; margin: 0 auto; }
table { border-collapse: collapse; }
th, td { text-align: left; padding: .2rem 1.2rem .2rem 0; border-bottom: 1px solid #eee; }
td { font-variant-numeric: tabular-nums; }
th { color: #555; font-weight: 600; }
</style>
</head>
<body>
{body}
</body>
</html>
"""
