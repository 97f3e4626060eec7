"""Which questions are for evaluation only, decided by their content.

Small question spaces repeat under any seed, so train and test are kept apart by a hash of the
question's text: one bucket in five is never trained on, by anybody, whoever sends it.
"""

from __future__ import annotations

import hashlib
import logging

from sapo_jax.seeding import hash_seed
from sapo_jax.tasks.source import Accept, GenerationError, TaskSource, accept_all
from sapo_jax.tasks.specialty import Specialty
from sapo_jax.types import Task

logger = logging.getLogger(__name__)

BUCKETS = 5
_HELD_OUT_BUCKET = 0

# The search ends after this many draws without a new question. One question in n is missed by that
# many draws with probability exp(-500 / n), so a space of a hundred is seen nearly whole.
_FRUITLESS_DRAWS = 500


class HeldOutError(ValueError):
    """A specialty without a single usable held-out question."""


def is_held_out(question: str) -> bool:
    """Returns whether `question` is for evaluation only (bucket 0 of 5 of a hash of its text)."""
    digest = hashlib.sha256(question.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") % BUCKETS == _HELD_OUT_BUCKET


def held_out_tasks(
    source: TaskSource, specialty: Specialty, count: int, accept: Accept = accept_all
) -> tuple[Task, ...]:
    """Returns the first `count` distinct held-out tasks of `specialty`, the same for every run and node.

    Fewer, with a warning in the log, if the specialty has no more: a run on a tiny question space is
    evaluated on what there is.

    Args:
        source: where tasks come from.
        specialty: one of the source's.
        count: questions wanted.
        accept: tasks it refuses (prompts beyond the limit) are passed over.

    Raises:
        HeldOutError: there is not a single one.
    """
    size = specialty.config["size"]
    found: dict[str, Task] = {}
    draws = fruitless = refused = failed = 0
    while len(found) < count and fruitless < _FRUITLESS_DRAWS:
        page, index = divmod(draws, size)
        draws += 1
        fruitless += 1
        try:
            task = source.task(source.ref(specialty, hash_seed("held out", specialty.digest, page), index))
        except GenerationError:
            failed += 1
            continue
        if not is_held_out(task.question) or task.question in found:
            continue
        if not accept(task):
            refused += 1
            continue
        found[task.question] = task
        fruitless = 0
    about = f"{draws} draws, {refused} not accepted, {failed} failed"
    if not found:
        raise HeldOutError(
            f"specialty {specialty.name!r} has no usable held-out question ({about}): its question space is too "
            "small or its prompts are too long (config.tasks.specialties, config.sampling.prompt_buckets)"
        )
    if len(found) < count:
        logger.warning(
            "specialty %r has only %d held-out questions of the %d asked for (%s)",
            specialty.name,
            len(found),
            count,
            about,
        )
    return tuple(found.values())
