"""The stream of training tasks: pure in (run seed, stream name, position).

Position p always yields one task of one specialty. If a question is held out, not accepted or
cannot be built, the next attempt at the same position draws from the same specialty, so refusals
change neither the mix of specialties nor later positions, and one number is all that a resumed run
needs.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sapo_jax.seeding import hash_seed
from sapo_jax.tasks.held_out import is_held_out
from sapo_jax.tasks.source import Accept, GenerationError, TaskSource, accept_all
from sapo_jax.tasks.specialty import Specialty
from sapo_jax.types import Task

# Four in five questions are trainable, so this many failures in a row mean a wrong setting.
MAX_ATTEMPTS = 200


class SkipReason(enum.Enum):
    """Why a drawn question was passed over."""

    HELD_OUT = "held_out"
    NOT_ACCEPTED = "not_accepted"  # by the caller's predicate: prompt too long
    FAILED = "failed"  # the library could not build it


class StreamError(ValueError):
    """A specialty that yields next to no usable question."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Draw:
    """Tasks drawn from a stream.

    Attributes:
        tasks: as many as asked for, in order.
        counter: the position after them, to go on from.
        skipped: how many questions were passed over, by reason.
    """

    tasks: tuple[Task, ...]
    counter: int
    skipped: Mapping[SkipReason, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskStream:
    """Where one node's training tasks come from.

    Attributes:
        source: builds them.
        specialties: what is drawn.
        run_seed: seed of the run.
        node_id: names the stream when it is independent.
        draw: "composite", each position a random specialty with equal chances, or "stratified",
            the specialties in turn.
        stream: "independent", or "shared": the node plays no part, all nodes hold the same tasks.
        pool_size: questions per specialty, the same for all nodes of a run, that are drawn again and
            again with replacement; 0 for fresh ones always.
    """

    source: TaskSource
    specialties: tuple[Specialty, ...]
    run_seed: int
    node_id: str
    draw: str = "composite"
    stream: str = "independent"
    pool_size: int = 0

    def __post_init__(self) -> None:
        """Raises ValueError for an unknown mode or an empty list of specialties."""
        for name, value, allowed in (
            ("draw", self.draw, ("composite", "stratified")),
            ("stream", self.stream, ("independent", "shared")),
        ):
            if value not in allowed:
                raise ValueError(f"config.tasks.{name} = {value!r}: must be one of {', '.join(allowed)}")
        if not self.specialties:
            raise ValueError("config.tasks.specialties: must hold at least one specialty")
        if self.pool_size < 0:
            raise ValueError(f"config.tasks.pool_size = {self.pool_size}: must be at least 0")

    @property
    def name(self) -> str:
        """What the hashes call this stream; a node can not be given the name of the shared one."""
        return "shared" if self.stream == "shared" else f"node {self.node_id}"

    def take(self, counter: int, count: int, accept: Accept = accept_all) -> Draw:
        """Returns the tasks of positions `counter` to `counter + count - 1`.

        Raises:
            StreamError: a position found no usable question in `MAX_ATTEMPTS` tries.
        """
        skipped: Counter[SkipReason] = Counter()
        tasks = tuple(self._task_at(position, accept, skipped) for position in range(counter, counter + count))
        return Draw(tasks=tasks, counter=counter + count, skipped=dict(skipped))

    def _task_at(self, position: int, accept: Accept, skipped: Counter[SkipReason]) -> Task:
        specialty = self.specialties[self._specialty_index(position)]
        if self.pool_size:
            entry = hash_seed(self.run_seed, "pool entry", self.name, position) % self.pool_size
            seed = hash_seed(self.run_seed, "pool", specialty.digest, entry)
        else:
            seed = hash_seed(self.run_seed, "task", self.name, specialty.digest, position)
        return _first_usable(self.source, specialty, seed, accept, skipped)

    def _specialty_index(self, position: int) -> int:
        if self.draw == "stratified":
            return position % len(self.specialties)
        return hash_seed(self.run_seed, "specialty", self.name, position) % len(self.specialties)


def require_usable(
    source: TaskSource,
    specialties: Sequence[Specialty],
    accept: Accept,
    *,
    questions: int = 40,
    least_frac: float = 0.5,
) -> Mapping[str, float]:
    """Returns the accepted share of `questions` fixed training questions per specialty, by name.

    Raises:
        StreamError: for a specialty whose share is below `least_frac`, which is then better left out
            (or given more room) than trained on its few short questions.
    """
    accepted_frac = {}
    for specialty in specialties:
        accepted = 0
        for number in range(questions):
            seed = hash_seed("trial", specialty.digest, number)
            accepted += accept(_first_usable(source, specialty, seed, accept_all, Counter()))
        accepted_frac[specialty.name] = accepted / questions
        if accepted < least_frac * questions:
            raise StreamError(
                f"specialty {specialty.name!r}: {questions - accepted} of {questions} questions make prompts beyond "
                "the limit; raise the last of config.sampling.prompt_buckets, lower config.tasks.shots, or leave it "
                "out of config.tasks.specialties"
            )
    return accepted_frac


def _first_usable(
    source: TaskSource, specialty: Specialty, seed: int, accept: Accept, skipped: Counter[SkipReason]
) -> Task:
    here: Counter[SkipReason] = Counter()
    for attempt in range(min(MAX_ATTEMPTS, specialty.config["size"])):
        try:
            task = source.task(source.ref(specialty, seed, attempt))
        except GenerationError:
            here[SkipReason.FAILED] += 1
            continue
        if is_held_out(task.question):
            here[SkipReason.HELD_OUT] += 1
        elif not accept(task):
            here[SkipReason.NOT_ACCEPTED] += 1
        else:
            skipped.update(here)
            return task
    counts = ", ".join(f"{reason.value} {n}" for reason, n in here.items())
    raise StreamError(
        f"specialty {specialty.name!r}: no usable training question in {here.total()} tries ({counts}); see "
        "config.tasks.specialties, config.tasks.shots and config.sampling.prompt_buckets"
    )
