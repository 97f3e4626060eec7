from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sapo_jax.swarm.wire.printable import printable


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain text", "plain text"),
        ("größe 数 😀", "größe 数 😀"),
        ("\x1b[31mred\x1b[0m", "[31mred[0m"),
        ("\x9b31mred", "31mred"),
        ("\x1b]0;title\x07", "]0;title"),
        ("a\r\nb\tc", "a  b c"),
        ("a\u2028b\u2029c\x85d", "a b c d"),
        ("\u202etxt.exe\u202c \u2066x\u2069 \u200f", "txt.exe x "),
        ("zero\u200bwidth\ufeff", "zerowidth"),
        ("\ud800\ue000\U000e0001\ufdd0", ""),
        ("nul\x00 del\x7f back\x08", "nul del back"),
    ],
)
def test_t16_what_steers_a_terminal_is_dropped(text, expected):
    assert printable(text, 100) == expected


@given(st.text(st.characters()), st.integers(1, 30))
def test_any_text_becomes_one_short_printable_line(text, limit):
    shown = printable(text, limit)
    assert len(shown) <= limit
    assert shown.isprintable()
    shown.encode()


def test_a_cut_text_says_so():
    assert printable("x" * 10, 10) == "x" * 10
    assert printable("x" * 11, 10) == "x" * 9 + "…"
    assert printable("x" * 10_000_000, 10) == "x" * 9 + "…"
