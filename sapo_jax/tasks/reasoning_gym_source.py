"""Builds tasks from references with the ReasoningGym library.

Only specialties the operator configured can be built: no configuration ever comes from a peer.
"""

from __future__ import annotations

import decimal
import functools
import importlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

from reasoning_gym.factory import create_dataset

from sapo_jax.tasks.scorers import refuse_unsafe
from sapo_jax.tasks.source import GenerationError, UnknownTaskError
from sapo_jax.tasks.specialty import CatalogError, Specialty
from sapo_jax.types import Task, TaskRef

SEED_LIMIT = 2**32  # some datasets fail on larger ones

_DATASETS_KEPT = 16  # some hold megabytes
_TASKS_KEPT = 8192  # the questions of a few rounds of a swarm and its held-out set

_Value = TypeVar("_Value")


class ReasoningGymSource:
    """The tasks of a fixed set of specialties; thread-safe, and bounded in memory."""

    def __init__(self, specialties: Sequence[Specialty]):
        """Makes a source of `specialties`.

        Raises:
            CatalogError: two of them share a name or a digest.
            RefusedDatasetError: answers to one of them cannot be scored safely.
        """
        for specialty in specialties:
            refuse_unsafe(specialty.dataset)
        names = [s.name for s in specialties]
        self._specialties = tuple(specialties)
        self._by_digest = {s.digest: s for s in specialties}
        self._digests = {s.name: s.digest for s in specialties}
        if len(self._digests) < len(names) or len(self._by_digest) < len(names):
            raise CatalogError(
                f"config.tasks.specialties = {names}: two share a name, or a dataset and its configuration"
            )
        self._lock = threading.RLock()
        self._datasets = _Recent(_DATASETS_KEPT)
        self._tasks = _Recent(_TASKS_KEPT)
        _silence_bf()

    @property
    def specialties(self) -> tuple[Specialty, ...]:
        """The specialties this source was made with, in order."""
        return self._specialties

    def ref(self, specialty: Specialty, seed: int, index: int) -> TaskRef:
        """Returns the reference of item `index` of `specialty` under `seed`.

        Raises:
            UnknownTaskError: the specialty is not of this source, or seed or index is out of range.
        """
        ref = TaskRef(
            dataset=specialty.dataset,
            config_digest=self._digests.get(specialty.name, ""),
            seed=seed,
            index=index,
        )
        self.specialty_of(ref)
        return ref

    def task(self, ref: TaskRef) -> Task:
        """Returns the task that `ref` names.

        Raises:
            UnknownTaskError: dataset or digest is not of this source, seed is not in [0, 2**32), or
                index is not in [0, size of the dataset).
            GenerationError: the library fails on this item.
        """
        specialty = self.specialty_of(ref)
        with self._lock:
            return self._tasks.get(ref, lambda: self._build(specialty, ref))

    def specialty_of(self, ref: TaskRef) -> Specialty:
        """Returns the specialty of the task that `ref` names, which is not built.

        Raises:
            UnknownTaskError: as `task` does.
        """
        specialty = self._by_digest.get(ref.config_digest)
        if specialty is None or specialty.dataset != ref.dataset:
            raise UnknownTaskError(
                f"task of dataset {ref.dataset!r:.80} with config digest {ref.config_digest!r:.80}: not one of "
                f"this node's specialties ({', '.join(self._digests)})"
            )
        for name, value, limit in (("seed", ref.seed, SEED_LIMIT), ("index", ref.index, specialty.config["size"])):
            if type(value) is not int or not 0 <= value < limit:
                raise UnknownTaskError(
                    f"task of dataset {ref.dataset!r}: {name} {_shown(value)} is not in [0, {limit})"
                )
        return specialty

    def _build(self, specialty: Specialty, ref: TaskRef) -> Task:
        try:
            # Some datasets set the precision of the thread's decimal context and leave it so; the
            # next task must not depend on it.
            with decimal.localcontext(decimal.Context()):
                dataset = self._datasets.get(
                    (ref.config_digest, ref.seed),
                    lambda: create_dataset(specialty.dataset, seed=ref.seed, **specialty.config),
                )
                item = dataset[ref.index]
            ground_truth = item["answer"]
            return Task(
                ref=ref,
                specialty=specialty.name,
                question=str(item["question"]),
                ground_truth=None if ground_truth is None else str(ground_truth),
                metadata=item["metadata"],
            )
        except Exception as error:  # generators fail on single seeds in many ways
            raise GenerationError(
                f"ReasoningGym cannot build item {ref.index} of {specialty.dataset!r} under seed {ref.seed}: "
                f"{type(error).__name__}: {error}"
            ) from error


def _shown(value: object) -> str:
    # Python refuses to write integers of thousands of digits.
    return f"of {value.bit_length()} bits" if type(value) is int and value.bit_length() > 64 else f"{value!r:.80}"


class _Recent:
    """The values of the most recently used keys; not thread-safe."""

    def __init__(self, limit: int):
        self._limit = limit
        self._values: OrderedDict[Hashable, Any] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], _Value]) -> _Value:
        """Returns the value of `key`, made now if it is not there."""
        if key in self._values:
            self._values.move_to_end(key)
            return self._values[key]
        value = self._values[key] = make()
        if len(self._values) > self._limit:
            self._values.popitem(last=False)
        return value


@functools.cache
def _silence_bf() -> None:
    """Keeps the bf compiler from printing a dot per pass.

    Redirecting stdout would catch what other threads print at that moment, so `print` is replaced
    in that one module.
    """
    optimizer = importlib.import_module("reasoning_gym.code.contrib.bfit.Compiler.Optimizer")
    vars(optimizer)["print"] = _print_nothing


def _print_nothing(*args: Any, **kwargs: Any) -> None:
    del args, kwargs
