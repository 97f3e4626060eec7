"""Every threat that the design answers has a test that names it, and the table in WORKSPACE.md lists it."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
# Those of a closed swarm; the rest come with the mode that lets strangers in.
THREATS = (1, 2, 3, 4, 5, 7, 8, 9, 10, 13, 14, 15, 16, 17, 18, 19, 20, 22)


@functools.cache
def named() -> dict[int, list[str]]:
    """Returns the tests that carry a threat's number in their name, as `test_t16_...` does."""
    found: dict[int, list[str]] = {}
    for path in TESTS.rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_t"):
                prefix = re.match(r"test_((?:t\d+_)+)", node.name)
                for number in re.findall(r"\d+", prefix[1]) if prefix else ():
                    found.setdefault(int(number), []).append(f"{path.relative_to(TESTS)}::{node.name}")
    return found


def test_no_other_number_is_in_use() -> None:
    assert set(named()) <= set(THREATS)


@pytest.mark.parametrize("threat", THREATS)
def test_a_threat_has_a_test_with_its_number(threat: int) -> None:
    assert named().get(threat), f"no test is called test_t{threat}_..."


def test_the_table_lists_every_threat_and_names_files_that_test_it() -> None:
    rows = re.findall(r"^\| T(\d+) \|.*\| ([^|]*) \|$", (TESTS.parent / "WORKSPACE.md").read_text(), re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(THREATS)
    tests = named()
    for number, files in rows:
        listed = re.findall(r"`([^`]+)`", files)
        assert listed, f"T{number} names no file"
        for file in listed:
            assert any(name.startswith(f"{file}::") for name in tests[int(number)]), f"T{number}: {file}"
