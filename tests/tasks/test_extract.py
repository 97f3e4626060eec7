from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reasoning_gym.utils import extract_answer as library_extract

from sapo_jax.tasks.extract import extract_answer

PIECES = ["<answer>", "</answer>", "<answer", "</answer", "answer>", "<", ">", "/", " ", "\n", "\t", "\x1f", "\u00a0"]
PIECES += ["\u2003", "\r\n", "7", "x y", "<ANSWER>", "</ answer>", "\u0000", "\ud800", "é"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", None),
        ("no tags", None),
        ("<answer>", None),
        ("</answer><answer>", None),
        ("<answer></answer>", ""),
        ("<answer> \n </answer>", ""),
        ("<answer>\n 7\t</answer> trailing", "7"),
        ("<answer>1</answer> and <answer>2</answer>", "2"),
        ("<answer>1</answer> and <answer>2", "1"),
        ("<answer>a <answer>b</answer>", "a <answer>b"),
        ("<answer>a</answer>b</answer>", "a"),
        ("<answer>two\nlines</answer>", "two\nlines"),
    ],
)
def test_known_cases(text: str, expected: str | None):
    assert extract_answer(text) == expected == library_extract(text)


def compare_on_tag_soup(count: int, seed: int):
    rng = random.Random(seed)
    found = 0
    for _ in range(count):
        text = "".join(rng.choices(PIECES + 4 * PIECES[:2], k=rng.randrange(16)))
        expected = library_extract(text)
        assert extract_answer(text) == expected, repr(text)
        found += expected is not None
    assert found > 0.1 * count


def test_same_as_the_library_on_random_tag_soup():
    compare_on_tag_soup(20_000, seed=0)


@pytest.mark.slow
def test_same_as_the_library_on_ten_times_as_much_fresh_tag_soup(fresh_seed: int):
    compare_on_tag_soup(200_000, fresh_seed)


@settings(max_examples=300, derandomize=True)
@given(st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=5)), max_size=20).map("".join))
def test_same_as_the_library_on_generated_text(text: str):
    assert extract_answer(text) == library_extract(text)


class CountingText(str):
    """Counts the characters that searches pass over."""

    scanned = 0

    def find(self, sub: str, start: int = 0) -> int:  # type: ignore[override]
        position = super().find(sub, start)
        self.scanned += (len(self) if position == -1 else position + len(sub)) - start
        return position


@pytest.mark.parametrize(
    "piece", ["<answer>", "</answer>", "<answer>x</answer>", "</answer><answer>", "<answer", "<answer> </answer", " "]
)
def test_t5_work_is_linear_on_a_hostile_megabyte(piece: str):
    text = CountingText(piece * (2**20 // len(piece)))
    extract_answer(text)
    assert 0 < text.scanned <= 2 * len(text)
