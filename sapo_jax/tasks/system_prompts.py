"""System prompts by name, as the task library words them."""

from __future__ import annotations

from reasoning_gym.utils import SYSTEM_PROMPTS


class SystemPromptError(ValueError):
    """A system prompt that looks like a name and is none."""


def system_prompt(text: str) -> str:
    """Returns ReasoningGym's system prompt of that name, or `text` itself as a literal prompt.

    Raises:
        SystemPromptError: a single word that names no prompt, so most likely a slip of the pen.
    """
    if text not in SYSTEM_PROMPTS and text.isidentifier():
        raise SystemPromptError(
            f"config.text.system_prompt = {text!r}: must be one of {', '.join(SYSTEM_PROMPTS)}, or a prompt of more "
            "than one word"
        )
    return SYSTEM_PROMPTS.get(text, text)
