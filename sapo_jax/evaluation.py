"""The held-out evaluation: the same questions for every node at every time, and what it says.

Strict pass@1 decides; everything else explains it. Results per question are kept, so that gains
are paired with round 0 question by question.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sapo_jax import statistics
from sapo_jax.config import EvalConfig, SapoConfig
from sapo_jax.host import Host, SampledRow
from sapo_jax.prompting import Prompter
from sapo_jax.sampling.decode import GREEDY
from sapo_jax.seeding import hash_seed
from sapo_jax.tasks.extract import extract_answer
from sapo_jax.tasks.verifier import STRICT_SUCCESS_SCORE, Verifier
from sapo_jax.types import RejectionReason, Task
from sapo_jax.workdir import replace_file

PASS_K = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Results of one evaluation, per question.

    Attributes:
        specialties: n names, the specialty of each question.
        scores: [M, n, samples] float64 verifier scores.
        formatted: [M, n, samples] bool, the completion holds an answer in tags.
        greedy_scores: [M, n] float64, or [M, 0] when greedy decoding is off.
    """

    specialties: tuple[str, ...]
    scores: np.ndarray
    formatted: np.ndarray
    greedy_scores: np.ndarray

    def save(self, path: Path) -> None:
        """Writes the results to an `.npz` file; raises OSError, naming it, if that fails."""
        path.parent.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        np.savez_compressed(
            content,
            specialties=np.array(self.specialties),
            scores=self.scores,
            formatted=self.formatted,
            greedy_scores=self.greedy_scores,
        )
        replace_file(path, content.getvalue())

    @classmethod
    def load(cls, path: Path) -> Evaluation:
        """Returns what `save` wrote."""
        with np.load(path) as arrays:
            return cls(
                specialties=tuple(str(name) for name in arrays["specialties"]),
                scores=arrays["scores"],
                formatted=arrays["formatted"],
                greedy_scores=arrays["greedy_scores"],
            )


def evaluate(
    host: Host,
    prompter: Prompter,
    verifier: Verifier,
    tasks: Sequence[Task],
    config: EvalConfig,
    *,
    questions_per_call: int,
    group_size: int,
    advance: Callable[[int], None] = lambda count: None,
) -> Evaluation:
    """Returns every node's results on `tasks`.

    The sampling seeds depend on the node and the places of questions and samples alone: all rounds, runs and arms with
    the same `questions_per_call` draw the same random numbers, which makes differences between them tighter.

    Args:
        questions_per_call: Q of a sampler call; the last call repeats questions to fill it.
        group_size: G of a sampler call; `config.samples` are drawn in as many calls as needed.
        advance: told how many calls are done, after each.
    """
    scores = np.zeros((host.nodes, len(tasks), config.samples))
    formatted = np.zeros(scores.shape, bool)
    greedy = np.zeros((host.nodes, len(tasks) if config.greedy else 0))
    for first in range(0, len(tasks), questions_per_call):
        part = tasks[first : first + questions_per_call]
        filled = [*part, *[part[-1]] * (questions_per_call - len(part))]
        prompts = prompter.encode_all([filled] * host.nodes)
        for start in range(0, config.samples, group_size):
            seeds = [hash_seed("eval", node, first, start) for node in range(host.nodes)]
            rows = host.sample(prompts, seeds, config.temperature, group_size=group_size)
            count = min(group_size, config.samples - start)
            where = slice(first, first + len(part)), slice(start, start + count)
            scores[:, *where], formatted[:, *where] = _judge(verifier, prompter, part, rows, count)
            advance(1)
        if config.greedy:
            rows = host.sample(prompts, [0] * host.nodes, GREEDY, group_size=1)
            judged, _ = _judge(verifier, prompter, part, rows, 1)
            greedy[:, first : first + len(part)] = judged[:, :, 0]
            advance(1)
    return Evaluation(
        specialties=tuple(task.specialty for task in tasks), scores=scores, formatted=formatted, greedy_scores=greedy
    )


def questions_per_call(config: SapoConfig) -> int:
    """Returns Q of the evaluation's sampler calls: as configured, else as in training."""
    return config.eval.questions_per_call or config.sharing.local


def calls_needed(tasks: int, config: EvalConfig, *, questions_per_call: int, group_size: int) -> int:
    """Returns how many sampler calls `evaluate` makes."""
    return -(-tasks // questions_per_call) * (-(-config.samples // group_size) + config.greedy)


def evaluation_metrics(result: Evaluation, node: int | None = None) -> dict[str, float]:
    """Returns the metrics of one node, or of the mean over nodes where `node` is None.

    Averages are macro averages over specialties. Strict success stands beside it for core-6 and
    for each specialty by itself.
    """
    metrics: dict[str, float] = {}
    for name, means in _specialty_means(result, node).items():
        metrics[name] = statistics.macro_mean(means) or 0.0
        area, _, measure = name.partition("/")
        if "strict" in measure:
            core = statistics.macro_mean(means, statistics.CORE_6)
            if core is not None:
                metrics[f"{area}/core6_{measure}"] = core
            metrics |= {f"{area}/{specialty}/{measure}": value for specialty, value in means.items()}
    return metrics


def specialty_metrics(result: Evaluation, node: int | None = None) -> dict[str, dict[str, float]]:
    """Returns the metrics of every specialty by its name, of one node or of the mean over nodes."""
    by_metric = _specialty_means(result, node)
    names = dict.fromkeys(result.specialties)
    return {specialty: {name: means[specialty] for name, means in by_metric.items()} for specialty in names}


def gain_metrics(before: Evaluation, after: Evaluation, node: int | None = None) -> dict[str, float]:
    """Returns the gain of strict pass@1 over `before` and its question-paired bootstrap error."""
    rows = slice(None) if node is None else slice(node, node + 1)
    gain = statistics.paired_gain(
        before.scores[rows] >= STRICT_SUCCESS_SCORE, after.scores[rows] >= STRICT_SUCCESS_SCORE, after.specialties
    )
    return {"eval/strict_pass_at_1_gain": gain.mean, "eval/strict_pass_at_1_gain_stderr": gain.stderr}


def _specialty_means(result: Evaluation, node: int | None) -> dict[str, dict[str, float]]:
    """Returns the mean of every metric over the questions of each specialty: metric, then specialty."""
    rows = slice(None) if node is None else slice(node, node + 1)
    strict = result.scores[rows] >= STRICT_SUCCESS_SCORE
    samples = strict.shape[-1]
    per_question = {"eval/strict_pass_at_1": strict}
    if samples >= PASS_K:
        per_question["eval/strict_pass_at_8"] = statistics.pass_at_k(strict.sum(axis=-1), samples, PASS_K)
    if result.greedy_scores.shape[1]:
        per_question["eval/greedy_strict_pass_at_1"] = result.greedy_scores[rows] >= STRICT_SUCCESS_SCORE
    per_question["eval/score_mean"] = result.scores[rows]
    per_question["eval/format_rate"] = result.formatted[rows]
    return {name: statistics.specialty_means(values, result.specialties) for name, values in per_question.items()}


def _judge(
    verifier: Verifier,
    prompter: Prompter,
    tasks: Sequence[Task],
    rows: Sequence[Sequence[Sequence[SampledRow]]],
    count: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns scores [M, Q, count] float64 and whether there is an answer in tags, same shape.

    Args:
        tasks: Q questions.
        rows: at least `count` sampled rows of every node and at least Q questions.
    """
    texts = [[[prompter.completion(row).text for row in group[:count]] for group in own[: len(tasks)]] for own in rows]
    asked = [(task.ref, group) for own in texts for task, group in zip(tasks, own, strict=True)]
    found = verifier.score(asked)
    # A policy whose text cannot be scored has not solved the question.
    scores = [[0.0 if isinstance(score, RejectionReason) else score for score in group] for group in found]
    formatted = [[extract_answer(text) is not None for text in group] for _, group in asked]
    shape = len(rows), len(tasks), count
    return np.array(scores).reshape(shape), np.array(formatted).reshape(shape)
