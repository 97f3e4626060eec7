"""What an error says, for a message of one line."""

from __future__ import annotations


def first_line(error: BaseException | None) -> str:
    """Returns the first line of what `error` says, its kind if it says nothing."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
