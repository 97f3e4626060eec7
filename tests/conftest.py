"""The platform on which tests run, settled before anything imports jax."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import hypothesis
import pytest

_CACHE = Path(__file__).parents[1] / ".pytest_cache" / "xla"

os.environ["JAX_PLATFORMS"] = os.environ.get("SAPO_TEST_PLATFORM", "cpu")

_XLA_FLAGS = {
    # Eight virtual CPU devices, enough for a mesh with every axis used.
    "--xla_force_host_platform_device_count": "8",
    # Tests compile much and compute little: half the compile time at the same speed of tiny models.
    "--xla_backend_optimization_level": "1",
}
if version("jaxlib").startswith("0.10."):  # an unknown flag ends the process
    _XLA_FLAGS["--xla_cpu_use_fusion_emitters"] = "false"
_given = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = " ".join(
    [_given, *(f"{flag}={value}" for flag, value in _XLA_FLAGS.items() if flag not in _given)]
).strip()

# [B] against [B, 1] silently makes [B, B], a classic mistake in policy-gradient code.
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"

# Compiled programs survive from run to run and are shared with the processes that tests start.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

# No test asks a model hub, opens a window, or lets tokenizers start threads before a fork.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["MPLBACKEND"] = "Agg"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

# How long an example takes says nothing on a busy machine.
hypothesis.settings.register_profile("tests", deadline=None)
hypothesis.settings.load_profile("tests")


@pytest.fixture(scope="module")
def quick_compilation() -> Iterator[None]:
    """Compiles in half the time again, to programs four times as slow: for what runs only a few times."""
    import jax  # only now: the environment above must be settled first

    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(params=["cpu", "tpu"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Names the backend that the package believes in: some computations have one form for CPUs and one for the rest.

    jax does not tell programs apart by that name, so a cache of them must.
    """
    import jax

    monkeypatch.setattr(jax, "default_backend", lambda: request.param)
    return request.param


@pytest.fixture
def fresh_seed() -> int:
    """Returns a seed from the clock; a test that fails shows it, and SAPO_TEST_SEED brings it back."""
    seed = int(os.environ.get("SAPO_TEST_SEED", time.time_ns() % 2**32))
    print(f"SAPO_TEST_SEED={seed}")
    return seed


@pytest.fixture
def small_files() -> Iterator[None]:
    """Lets no file grow past 64 KiB: a write beyond fails as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
