from __future__ import annotations

import pytest

from sapo_jax.text.byte_tokenizer import byte_tokenizer
from sapo_jax.text.chat import Prompt, answer_turn, encode_prompt, render_prompt
from sapo_jax.text.tokenizer import Tokenizer, TokenizerError
from tests.models.hf_folders import small_tokenizer

PROMPT = Prompt(
    system="Answer in tags.",
    examples=(("1+1?", "2"), ("2+3?", "5")),
    question="4+4?",
)


def with_template(template: str) -> Tokenizer:
    fast = small_tokenizer()
    fast.chat_template = template
    return Tokenizer(fast, origin="templated")


TURNS = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}[go]{% endif %}"
)


def test_the_layout_of_a_prompt() -> None:
    text = render_prompt(byte_tokenizer(), PROMPT, enable_thinking=False)
    assert text == (
        "<|im_start|>system\nAnswer in tags.<|im_end|>\n"
        "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n<answer>2</answer><|im_end|>\n"
        "<|im_start|>user\n2+3?<|im_end|>\n<|im_start|>assistant\n<answer>5</answer><|im_end|>\n"
        "<|im_start|>user\n4+4?<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = encode_prompt(byte_tokenizer(), PROMPT, enable_thinking=False)
    assert ids.count(257) == 6 and ids.count(258) == ids.count(259) == 2 and ids[:2] == [256, ord("s")]
    assert answer_turn("2") == "<answer>2</answer>"


def test_an_empty_system_prompt_leaves_the_template_its_own() -> None:
    prompt = Prompt(system="", examples=(), question="Hi")
    text = render_prompt(Tokenizer(small_tokenizer(), origin="small"), prompt, enable_thinking=False)
    assert text.startswith("<|im_start|>system\nYou are helpful.<|im_end|>\n<|im_start|>user\nHi")
    assert "system" not in render_prompt(byte_tokenizer(), prompt, enable_thinking=False)


@pytest.mark.parametrize(
    "template",
    [
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + TURNS,
        TURNS.replace("{% for m in messages %}", "{% for m in messages if m['role'] != 'system' %}"),
    ],
    ids=["refused", "dropped"],
)
def test_a_template_without_system_role_gets_it_in_the_first_user_turn(template: str) -> None:
    text = render_prompt(with_template(template), PROMPT, enable_thinking=False)
    assert text == (
        "[user]Answer in tags.\n\n1+1?[assistant]<answer>2</answer>"
        "[user]2+3?[assistant]<answer>5</answer>[user]4+4?[go]"
    )


def test_a_template_that_refuses_everything_is_an_error() -> None:
    tokenizer = with_template("{{ raise_exception('Never') }}")
    for system in ("", "Be brief."):
        with pytest.raises(TokenizerError, match=r"templated: the chat template refuses the prompt \(Never\)"):
            render_prompt(tokenizer, Prompt(system=system, examples=(), question="?"), enable_thinking=False)


def test_thinking_is_passed_to_templates_that_know_it() -> None:
    tokenizer = with_template(TURNS + "{% if not enable_thinking %}<think></think>{% endif %}")
    prompt = Prompt(system="", examples=(), question="?")
    assert render_prompt(tokenizer, prompt, enable_thinking=False) == "[user]?[go]<think></think>"
    assert render_prompt(tokenizer, prompt, enable_thinking=True) == "[user]?[go]"


def test_prompts_do_not_depend_on_the_day() -> None:
    dated = (
        "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
        "{{ date_string }}"
    )
    text = render_prompt(
        with_template(dated + TURNS), Prompt(system="", examples=(), question="?"), enable_thinking=False
    )
    assert text == "26 Jul 2024[user]?[go]"
