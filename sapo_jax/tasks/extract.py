r"""The text inside the last answer tags of a completion, found in linear time.

ReasoningGym looks for `<answer>\s?(.*?)\s?</answer>` and takes the last match. Its search is
quadratic in unclosed tags (31 KiB of them take seconds), so anybody who may send text could stall
a node. The walk below gives the same result on every text and passes over each character at most
once.
"""

from __future__ import annotations

_OPEN = "<answer>"
_CLOSE = "</answer>"


def extract_answer(text: str) -> str | None:
    """Returns the stripped text between the last pair of answer tags, or None without a pair.

    A pair starts at the first open tag that is not inside an earlier pair and ends at the next
    close tag, so an open tag inside a pair is part of the answer.
    """
    extracted_answer = None
    start = text.find(_OPEN)
    while start != -1:
        end = text.find(_CLOSE, start + len(_OPEN))
        if end == -1:
            break
        extracted_answer = text[start + len(_OPEN) : end].strip()
        start = text.find(_OPEN, end + len(_CLOSE))
    return extracted_answer
