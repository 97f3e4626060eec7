from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sapo_jax.tasks.frames import ALIVE, MAX_FRAME_BYTES, FrameDecoder, FrameError, encode, read_messages

TEXTS = st.text(st.characters(codec=None))  # surrogates included
MESSAGES = st.lists(
    st.one_of(TEXTS, st.floats(allow_nan=False), st.lists(TEXTS), st.dictionaries(TEXTS, st.integers()))
)


@given(MESSAGES, st.integers(1, 40))
def test_messages_come_back_whatever_the_pieces_they_arrive_in(messages: list[object], piece: int):
    stream = b"".join(encode(message) for message in messages)
    pieces = [stream[start : start + piece] for start in range(0, len(stream), piece)]
    decoder = FrameDecoder()
    assert [message for data in pieces for message in decoder.feed(data)] == messages
    waiting = iter([*pieces, b""])
    assert list(read_messages(lambda count: next(waiting))) == messages


def test_floats_keep_their_bits_and_texts_their_code_points():
    floats = [0.1, math.nextafter(1.0, 0.0), 5e-324, 1 / 3]
    texts = ["\ud83d\ude00", "\U0001f600", "\ud800", "\x00\u2028", "é"]
    (back,) = FrameDecoder().feed(encode([floats, texts]))
    assert back == [floats, texts]
    assert back[1][0] != back[1][1], "two surrogates are not the character that they would encode in UTF-16"


def test_an_empty_frame_says_that_work_goes_on():
    assert list(FrameDecoder().feed(ALIVE + encode([1]) + ALIVE)) == [None, [1], None]


@pytest.mark.parametrize(
    "data",
    [
        (MAX_FRAME_BYTES + 1).to_bytes(4, "big"),
        b"\xff\xff\xff\xff",
        b"HTTP/1.1 200 OK\r\n",
        b"\0\0\0\x01{",
        b"\0\0\0\x02\xff\xfe",
        (200_000).to_bytes(4, "big") + b"[" * 200_000,
    ],
)
def test_what_is_no_frame_is_an_error(data: bytes):
    with pytest.raises(FrameError):
        list(FrameDecoder().feed(data))


def test_a_message_beyond_the_limit_is_not_sent():
    with pytest.raises(FrameError, match=str(MAX_FRAME_BYTES)):
        encode("x" * MAX_FRAME_BYTES)
