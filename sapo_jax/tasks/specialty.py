"""A specialty: a ReasoningGym dataset with a configuration, and the digest by which others know it."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# Items of one dataset object. It belongs to the configuration because some datasets (acre) make
# other questions when it changes.
DATASET_SIZE = 500

# Items of these depend on Python's string hashing: other processes rebuild them only with the same
# PYTHONHASHSEED.
HASH_SEED_DEPENDENT = frozenset(
    {
        "codeio",
        "intermediate_integration",  # the form of the ground truth
        "isomorphic_strings",
        "knight_swap",
        "polynomial_multiplication",
        "ransom_note",
        "word_ladder",
    }
)


class CatalogError(ValueError):
    """A catalog or specialty that cannot be used; the message names the config key."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Specialty:
    """A dataset, configured: one skill that is trained and reported by itself.

    Attributes:
        name: how metrics and configs call it; unique within a run.
        dataset: ReasoningGym dataset name.
        config: JSON-ready keyword arguments of the dataset; what is left out has the library's
            default, `size` is always there.
    """

    name: str
    dataset: str
    config: Mapping[str, Any] = field(hash=False)

    @property
    def digest(self) -> str:
        """Hex SHA-256 over dataset, configuration and library version; names play no part."""
        content = {"dataset": self.dataset, "config": dict(self.config), "reasoning_gym": library_version()}
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()


@functools.cache
def library_version() -> str:
    """Returns the installed version of ReasoningGym (its own `__version__` lags behind)."""
    return importlib.metadata.version("reasoning_gym")


def require_reproducible(specialties: Sequence[Specialty]) -> None:
    """Makes sure that other processes build the same tasks as this one.

    Raises:
        CatalogError: a dataset depends on string hashing, which this process randomizes.
    """
    dependent = [s.name for s in specialties if s.dataset in HASH_SEED_DEPENDENT]
    if dependent and sys.flags.hash_randomization:
        raise CatalogError(
            f"config.tasks.specialties: the questions of {', '.join(map(repr, dependent))} depend on Python's string "
            "hashing; start the command with PYTHONHASHSEED=0 in its environment, as scorer processes do"
        )
