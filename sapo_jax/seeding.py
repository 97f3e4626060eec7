"""Host seeds as hashes of (run seed, names, counters), so that no two streams are neighbors.

ReasoningGym item i of seed s is item i - 1 of seed s + 1, so seeds made by adding small numbers
overlap; hashed seeds do not (up to chance).
"""

from __future__ import annotations

import hashlib

import numpy as np


def hash_seed(*parts: str | int) -> int:
    """Returns a seed in [0, 2**32) that is a pure function of `parts`, in order.

    Some ReasoningGym datasets fail on larger seeds, hence 32 bits.
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def generator(*parts: str | int) -> np.random.Generator:
    """Returns a numpy generator seeded by `hash_seed(*parts)`."""
    return np.random.default_rng(hash_seed(*parts))
