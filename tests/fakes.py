"""A host without devices: it writes what a rule tells it and remembers what it was given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sapo_jax import wiring
from sapo_jax.config import SamplingConfig, SapoConfig, SharingConfig, TasksConfig, TextConfig
from sapo_jax.host import SampledRow
from sapo_jax.learner.step import Batch
from sapo_jax.models.architecture import DecoderConfig
from sapo_jax.models.sources import LoadedModel
from sapo_jax.prompting import Prompter
from sapo_jax.tasks.catalog import resolve
from sapo_jax.tasks.reasoning_gym_source import ReasoningGymSource
from sapo_jax.tasks.verifier import InProcessVerifier
from sapo_jax.text.byte_tokenizer import byte_tokenizer
from sapo_jax.text.encode import EncodedPrompts
from sapo_jax.types import Task

# (node, question, index within the group) -> text and whether the end token follows.
Rule = Callable[[int, str, int], tuple[str, bool]]


def small_config(**changes: Any) -> SapoConfig:
    """Returns a configuration for two nodes, bare prompts and short answers."""
    base = SapoConfig(
        nodes=2,
        text=TextConfig(system_prompt=""),
        tasks=TasksConfig(catalog="easy", specialties=("chain_sum", "leap_year"), shots=0),
        sampling=SamplingConfig(group_size=4, max_new_tokens=12, prompt_buckets=(64, 160)),
        sharing=SharingConfig(local=2, external=3, max_uses=1),
    )
    return replace(base, **changes)


def build_tasks(config: SapoConfig) -> wiring.TaskSide:
    """Returns the task side of a run that scores in this process: tests write no completion that needs a kill."""
    specialties = resolve(config.tasks.catalog, config.tasks.specialties)
    source = ReasoningGymSource(specialties)
    return wiring.TaskSide(specialties=specialties, source=source, verifier=InProcessVerifier(source))


def build_prompter(config: SapoConfig, tasks: wiring.TaskSide) -> Prompter:
    """Returns the prompter of the byte tokenizer."""
    dimensions = DecoderConfig(
        family="qwen2",
        vocab_size=260,
        width=8,
        mlp_width=8,
        layers=1,
        heads=1,
        kv_heads=1,
        head_size=8,
        rope_base=1e4,
        norm_epsilon=1e-6,
        tie_embeddings=True,
        qkv_bias=True,
        qk_norm=False,
        max_positions=512,
    )
    model = LoadedModel(config=dimensions, params=None, tokenizer=byte_tokenizer(), origin="test")
    return wiring.build_prompter(config, model, tasks)


class RuleHost:
    """Has the interface of `Host` that rounds, evaluation and cold start use."""

    def __init__(self, config: SapoConfig, prompter: Prompter, rule: Rule) -> None:
        self.config = config
        self.nodes = config.nodes
        self.sampled: list[dict[str, Any]] = []  # arguments of every call of `sample`
        self.batches: list[Sequence[Batch]] = []  # of every update
        self.targets: list[Sequence[Batch]] = []  # of every supervised step
        self.events: list[str] = []
        self._tokenizer = prompter.tokenizer
        self._rule = rule

    def sample(
        self, prompts: Sequence[EncodedPrompts], seeds: Sequence[int], temperature: float, *, group_size: int
    ) -> list[list[list[SampledRow]]]:
        self.events.append("sample")
        questions = [[self._question(batch, q) for q in range(len(batch.tokens))] for batch in prompts]
        self.sampled.append(
            {"questions": questions, "seeds": list(seeds), "temperature": temperature, "group_size": group_size}
        )
        return [
            [[self._row(node, question, g) for g in range(group_size)] for question in row]
            for node, row in enumerate(questions)
        ]

    def start_sample(self, *args: Any, **kwargs: Any) -> Iterator[list[list[list[SampledRow]]]]:
        return iter([self.sample(*args, **kwargs)])  # one program holds all nodes

    def update(self, batches: Sequence[Batch]) -> list[dict[str, float]]:
        self.events.append("update")
        self.batches.append(batches)
        return [{} for _ in batches]

    def start_update(self, batches: Sequence[Batch]) -> Iterator[dict[str, float]]:
        return iter(self.update(batches))

    def busy_s(self) -> float:
        return 0.0

    def supervise(self, batches: Sequence[Batch]) -> None:
        self.events.append("supervise")
        self.targets.append(batches)

    def begin(self) -> None:
        self.events.append("begin")

    def _question(self, batch: EncodedPrompts, q: int) -> str:
        text = self._tokenizer.decode(batch.tokens[q][batch.prompt_mask[q]])
        return text.removeprefix("user\n").removesuffix("\nassistant\n")

    def _row(self, node: int, question: str, g: int) -> SampledRow:
        text, stopped = self._rule(node, question, g)
        ids = self._tokenizer.encode_text(text) + [self._tokenizer.end_id] * stopped
        return SampledRow(tuple(ids), (-0.5,) * len(ids), stopped)


def truths_of(tasks: Sequence[Task]) -> Mapping[str, str]:
    """Returns the right answer of every question."""
    return {task.question: task.ground_truth or "" for task in tasks}
