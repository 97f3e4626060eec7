"""A finished run that several tests look at."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.runs import OVERRIDES, tiny, train


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of an uninterrupted run of two nodes."""
    workdir = tmp_path_factory.mktemp("whole")
    train(tiny(workdir, *OVERRIDES))
    return workdir
