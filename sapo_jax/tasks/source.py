"""What the rest of the package may expect of a source of tasks, and how it fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from sapo_jax.tasks.specialty import Specialty
from sapo_jax.types import Task, TaskRef

# Decides whether a task may be used, for example whether its prompt fits the limit.
Accept = Callable[[Task], bool]


def accept_all(task: Task) -> bool:
    """Returns True."""
    return True


class UnknownTaskError(ValueError):
    """A reference that this source cannot or will not rebuild."""


class GenerationError(ValueError):
    """The library failed while it built one item; its neighbors may be fine."""


class TaskSource(Protocol):
    """Rebuilds tasks from references and makes references of its own specialties."""

    @property
    def specialties(self) -> tuple[Specialty, ...]:
        """The specialties this source knows; references to any other are refused."""
        ...

    def ref(self, specialty: Specialty, seed: int, index: int) -> TaskRef:
        """Returns the reference of item `index` under `seed` (no task is built)."""
        ...

    def task(self, ref: TaskRef) -> Task:
        """Returns the task that `ref` names, the same on every machine.

        Raises:
            UnknownTaskError: dataset, digest, seed or index is not one of ours.
            GenerationError: the item cannot be built.
        """
        ...
