"""System prompts by name, as the task library words them."""

from __future__ import annotations

from reasoning_gym.utils import SYSTEM_PROMPTS


def system_prompt(name: str) -> str:
    """Returns ReasoningGym's system prompt of that name, or `name` itself as a literal prompt."""
    return SYSTEM_PROMPTS.get(name, name)
