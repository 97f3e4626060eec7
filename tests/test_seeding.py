from __future__ import annotations

import subprocess
import sys

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sapo_jax.seeding import generator, hash_seed

_PARTS = st.lists(st.integers() | st.text(), max_size=4)


def test_known_values():
    # The first four bytes of what this prints:
    # printf 'int:0\037str:node-0\037str:tasks\037int:7' | sha256sum
    assert hash_seed(0, "node-0", "tasks", 7) == 0x31C1621F
    assert hash_seed() == 0xE3B0C442  # the empty text


@given(_PARTS)
def test_seeds_are_32_bit_and_repeatable(parts):
    assert 0 <= hash_seed(*parts) < 2**32
    assert hash_seed(*parts) == hash_seed(*parts)


def test_parts_do_not_run_together():
    seeds = [
        hash_seed("ab", "c"),
        hash_seed("a", "bc"),
        hash_seed("abc"),
        hash_seed("c", "ab"),
        hash_seed(1, 2),
        hash_seed(12),
        hash_seed("1", "2"),
        hash_seed("1", 2),
        hash_seed(),
        hash_seed(""),
    ]
    assert len(set(seeds)) == len(seeds)


def test_neighboring_counters_give_distant_seeds():
    seeds = np.array([hash_seed(0, "node-0", "tasks", counter) for counter in range(2_000)], dtype=np.float64)
    # Consecutive uniform draws from [0, 2**32) differ by 2**32 / 3 on average; additive seeds by 1.
    assert abs(np.abs(np.diff(seeds)).mean() / (2**32 / 3) - 1) < 0.05
    assert abs(seeds.mean() / 2**31 - 1) < 0.05


def test_seeds_do_not_depend_on_the_process():
    code = "from sapo_jax.seeding import hash_seed; print(hash_seed('a', 1))"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("0", "1")
    }
    assert outputs == {f"{hash_seed('a', 1)}\n"}


def test_generator_streams():
    first = generator(0, "node-0", "selection", 3).random(4)
    np.testing.assert_array_equal(first, generator(0, "node-0", "selection", 3).random(4))
    assert not np.array_equal(first, generator(0, "node-0", "selection", 4).random(4))
    np.testing.assert_array_equal(first, np.random.default_rng(hash_seed(0, "node-0", "selection", 3)).random(4))
