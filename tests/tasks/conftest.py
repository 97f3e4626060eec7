"""Sources shared by the tests of this folder; building them imports the whole task library once."""

from __future__ import annotations

import pytest

from sapo_jax.tasks.catalog import resolve
from sapo_jax.tasks.reasoning_gym_source import ReasoningGymSource


@pytest.fixture(scope="session")
def paper_source() -> ReasoningGymSource:
    return ReasoningGymSource(resolve("paper"))


@pytest.fixture(scope="session")
def mini_source() -> ReasoningGymSource:
    return ReasoningGymSource(resolve("rg_mini_l1"))
