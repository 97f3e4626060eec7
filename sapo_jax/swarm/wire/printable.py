"""Text from strangers, made harmless for logs, terminals and tables."""

from __future__ import annotations


def printable(text: str, limit: int) -> str:
    """Returns `text` without what moves a cursor or turns the reading direction, at most `limit` characters long.

    Line ends and tabs become spaces; all other control, formatting (bidirectional marks included),
    surrogate, private and unassigned characters are dropped. A text that is cut ends in "…". HTML and
    spreadsheets have dangers of their own: whoever writes those escapes for them.
    """
    # No more is looked at than could be kept if half of it were dropped: the text may be long.
    kept = "".join(_harmless(character) for character in text[: 2 * limit + 16])
    return kept if len(kept) <= limit else kept[: limit - 1] + "…"


def _harmless(character: str) -> str:
    if character.isprintable():
        return character
    return " " if character.isspace() else ""
