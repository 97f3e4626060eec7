"""Lays a question out as the model expects it: system prompt, solved examples, question, answer opened.

One place, so that training, evaluation and a person's own question meet the same prompt.
"""

from __future__ import annotations

from dataclasses import dataclass

from jinja2 import TemplateError

from sapo_jax.text.tokenizer import Tokenizer, TokenizerError


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """What the model is asked.

    Attributes:
        system: literal system prompt; empty: none (a template may then put in its own default).
        examples: solved questions as (question, ground truth), shown in order as earlier turns.
        question: the question to answer.
    """

    system: str
    examples: tuple[tuple[str, str], ...]
    question: str


def answer_turn(ground_truth: str) -> str:
    """Returns an ideal completion, without end token: the answer in the tags the verifier reads."""
    return f"<answer>{ground_truth}</answer>"


def encode_prompt(tokenizer: Tokenizer, prompt: Prompt, *, enable_thinking: bool) -> list[int]:
    """Returns the token ids of `prompt` in the model's chat template, ending where the answer begins.

    A template that refuses a system message, or drops it, gets it at the head of the first user turn.
    Control tokens are recognized in the whole text, so questions must come from our own task sources,
    never from a peer.

    Args:
        tokenizer: of the model that is asked.
        prompt: system prompt, examples and question.
        enable_thinking: given to the template; only some know it.

    Raises:
        TokenizerError: the template refuses these messages altogether.
    """
    return tokenizer.encode_template(render_prompt(tokenizer, prompt, enable_thinking=enable_thinking))


def render_prompt(tokenizer: Tokenizer, prompt: Prompt, *, enable_thinking: bool) -> str:
    """Returns the text that `encode_prompt` encodes."""
    turns = _turns(prompt)
    if prompt.system:
        system = {"role": "system", "content": prompt.system}
        try:
            text = tokenizer.render([system, *turns], enable_thinking=enable_thinking)
            if prompt.system.strip() in text:
                return text
        except TemplateError:
            pass  # the template knows no system role
        turns[0] = {"role": "user", "content": f"{prompt.system}\n\n{turns[0]['content']}"}
    try:
        return tokenizer.render(turns, enable_thinking=enable_thinking)
    except TemplateError as error:
        raise TokenizerError(f"{tokenizer.origin}: the chat template refuses the prompt ({error})") from error


def _turns(prompt: Prompt) -> list[dict[str, str]]:
    turns: list[dict[str, str]] = []
    for question, ground_truth in prompt.examples:
        turns.append({"role": "user", "content": question})
        turns.append({"role": "assistant", "content": answer_turn(ground_truth)})
    return [*turns, {"role": "user", "content": prompt.question}]
