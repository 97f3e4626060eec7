"""The memory of the machine and of the control groups above this process, of both versions."""

from __future__ import annotations

from pathlib import Path

import jax
import pytest

from sapo_jax import machine_memory
from sapo_jax.machine_memory import free_bytes, total_bytes
from sapo_jax.memory_fit import memory_limit_bytes

MACHINE = "MemFree: 1 kB\nMemTotal:        4 kB\nMemAvailable: 3 kB\n"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(machine_memory, "_ROOT", tmp_path)
    return tmp_path


def write(root: Path, machine: str, groups: str, files: dict[str, str]) -> None:
    contents = {"proc/meminfo": machine, "proc/self/cgroup": groups}
    contents |= {f"sys/fs/cgroup/{name}": f"{value}\n" for name, value in files.items()}
    for name, content in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)


@pytest.mark.parametrize(
    ("groups", "files", "total"),
    [
        ("0::/\n", {}, 4096),
        ("0::/\n", {"memory.max": "max"}, 4096),
        ("0::/a/b\n", {"memory.max": "max", "a/memory.max": "3000", "a/b/memory.max": "3500"}, 3000),
        ("0::/gone\n", {"memory.max": "2000"}, 2000),  # a container that sees its own group as the root
        ("4:memory:/a\n0::/\n", {"memory/a/memory.limit_in_bytes": "1000", "memory.max": "max"}, 1000),
        ("4:memory:/a\n", {"memory/memory.limit_in_bytes": str(2**63 - 4096)}, 4096),
        ("3:cpu,cpuacct:/a\n", {"a/memory.max": "5"}, 4096),
        ("nonsense\n", {"memory.max": "2000"}, 4096),
    ],
)
def test_the_total_is_that_of_the_machine_or_the_least_limit(
    root: Path, groups: str, files: dict[str, str], total: int
) -> None:
    write(root, MACHINE, groups, files)
    assert total_bytes() == total
    assert memory_limit_bytes(jax.devices("cpu")[0]) == total


@pytest.mark.parametrize(
    ("machine", "files", "free"),
    [
        (MACHINE, {}, 3072),
        (MACHINE, {"memory.max": "max", "memory.current": "5000"}, 3072),
        (MACHINE, {"memory.max": "6000", "memory.current": "5000"}, 1000),
        (MACHINE, {"memory.max": "60000", "memory.current": "5000"}, 3072),
        (MACHINE, {"a/memory.max": "900", "a/memory.current": "200", "memory.max": "600"}, 600),
        ("MemTotal: 9 kB\n", {"memory.max": "6000", "memory.current": "5000"}, 0),  # the machine does not say
    ],
)
def test_what_is_free_is_what_both_leave(root: Path, machine: str, files: dict[str, str], free: int) -> None:
    write(root, machine, "0::/a\n", files)
    assert free_bytes() == free


def test_nothing_is_known_where_nothing_can_be_read(root: Path) -> None:
    assert not list(root.iterdir())
    assert total_bytes() is None and free_bytes() == 0
    assert memory_limit_bytes(jax.devices("cpu")[0]) is None
