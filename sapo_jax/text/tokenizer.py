"""The tokenizer of a model: ordinary text, template output, and what had to be assumed about it.

Text that a model or a peer wrote and text that a chat template laid out are encoded by two different
methods, because only the second may produce control tokens such as an end of turn.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import tokenizers
from transformers import PreTrainedTokenizerFast

FALLBACK_TEMPLATE = (
    "{{ bos_token if prepend_bos else '' }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ 'System: ' + message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'user' %}{{ 'Question: ' + message['content'] + '\n' }}"
    "{% else %}{{ 'Answer: ' + message['content'] + eos_token + '\n\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Answer:' }}{% endif %}"
)
# End tokens of well-known vocabularies, tried in this order when no file names one.
_USUAL_END_TOKENS = ("<|im_end|>", "<|eot_id|>", "<|endoftext|>", "</s>")
# Llama 3 templates print today's date unless told one: a prompt must not depend on the day of the run.
_TEMPLATE_DATE = "26 Jul 2024"


class TokenizerError(ValueError):
    """A tokenizer that cannot be used; the message names its file or folder."""


class Tokenizer:
    """Owns the tokenizer of one model.

    Attributes:
        end_id: the token that ends a completion.
        pad_id: fills padding; nothing may infer a mask from it, it can equal `end_id`.
        bos_id: begin-of-sequence token, or None.
        vocab_size: one more than the largest token id; a model's embedding may be padded beyond it.
        max_token_chars: no token of ordinary text stands for more characters.
        special_ids: control tokens; `encode_text` never returns one, `decode` never prints one.
        assumptions: what was missing and had to be assumed, one sentence each, for the log.
        origin: file or folder it came from.
    """

    def __init__(
        self, fast: PreTrainedTokenizerFast, *, origin: str, end_candidates: Sequence[tuple[int, str]] = ()
    ) -> None:
        """Takes `fast` over and completes it: end token, padding token, chat template.

        Args:
            fast: is changed and must not be used elsewhere.
            origin: its file or folder, for messages.
            end_candidates: (token id, where it was read), tried when `fast` has no end token.

        Raises:
            TokenizerError: no end token can be found.
        """
        self.origin = origin
        assumptions: list[str] = []
        if fast.eos_token_id is None:
            assumptions.append(_assume_end_token(fast, origin, end_candidates))
        if fast.pad_token_id is None:
            fast.pad_token = fast.eos_token
            assumptions.append(f"{origin}: names no padding token; padding with the end token {fast.eos_token!r}")
        template = fast.chat_template
        if isinstance(template, Mapping):
            template = template.get("default")
        if not template:
            # Saved with the model, so that whoever loads the export asks it the way it was trained.
            template = FALLBACK_TEMPLATE.replace("prepend_bos", "true" if _adds_bos(fast) else "false")
            assumptions.append(f"{origin}: has no chat template; prompts are laid out as System: / Question: / Answer:")
        fast.chat_template = template
        self.assumptions: tuple[str, ...] = tuple(assumptions)
        self.end_id: int = cast(int, fast.eos_token_id)
        self.pad_id: int = cast(int, fast.pad_token_id)
        self.bos_id: int | None = cast("int | None", fast.bos_token_id)
        self.special_ids: frozenset[int] = frozenset(
            [*fast.all_special_ids, *(id for id, token in fast.added_tokens_decoder.items() if token.special)]
        )
        self._fast = fast
        # Two backends rather than one switched back and forth: the switch is state, and encoding is
        # called from more than one thread.
        self._template = _backend(fast, parse_special=True)
        self._text = _backend(fast, parse_special=False)
        texts = (self._text.id_to_token(id) for id in sorted(self.special_ids))
        self._special_texts = tuple(text for text in texts if text)
        vocabulary = self._text.get_vocab(with_added_tokens=True)
        self.vocab_size: int = max(vocabulary.values()) + 1
        # Vocabularies of bytes write one character for each byte, so these lengths are never too small.
        self.max_token_chars: int = max(len(text) for text, id in vocabulary.items() if id not in self.special_ids)

    @property
    def chat_template(self) -> str:
        """The Jinja template in use, the model's own or the fallback."""
        return cast(str, self._fast.chat_template)

    def encode_text(self, text: str) -> list[int]:
        """Returns the ids of ordinary text: no control token is recognized, none is added.

        Text such as "<|im_end|>" becomes the characters it consists of. Characters that UTF-8 cannot
        encode (lone surrogates) become "?".
        """
        text = text.encode("utf-8", "replace").decode("utf-8")
        ids = self._text.encode(text, add_special_tokens=False).ids
        if self.special_ids.isdisjoint(ids):
            return ids
        # A vocabulary can reach a control token by ordinary merges; cut every such string in two.
        for special in self._special_texts:
            if special in text:
                pieces = text.split(special)
                glue = [*self._text.encode(special[0], add_special_tokens=False).ids, *self.encode_text(special[1:])]
                joined = self.encode_text(pieces[0])
                for piece in pieces[1:]:
                    joined += glue + self.encode_text(piece)
                return [id for id in joined if id not in self.special_ids]
        return [id for id in ids if id not in self.special_ids]

    def encode_template(self, text: str) -> list[int]:
        """Returns the ids of chat template output: control tokens are recognized, none is added."""
        return self._template.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of `ids` without control tokens, spaces as they are.

        Ids the vocabulary does not have (padding of the embedding) print nothing; bytes that are not
        UTF-8 print U+FFFD.
        """
        return self._text.decode([int(id) for id in ids], skip_special_tokens=True)

    def render(self, messages: Sequence[Mapping[str, str]], *, enable_thinking: bool) -> str:
        """Returns the chat template's output for `messages`, opened for an answer.

        Raises:
            jinja2.TemplateError: the template refuses the messages.
        """
        return cast(
            str,
            self._fast.apply_chat_template(
                [dict(message) for message in messages],
                tokenize=False,
                add_generation_prompt=True,
                enable_thinking=enable_thinking,
                date_string=_TEMPLATE_DATE,
            ),
        )

    def save(self, directory: Path) -> None:
        """Writes tokenizer.json and tokenizer_config.json (chat template inside) into `directory`."""
        self._fast.save_pretrained(os.fspath(directory), save_jinja_files=False)
        path = directory / "tokenizer_config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        for key in ("name_or_path", "is_local", "local_files_only", "backend"):
            config.pop(key, None)
        # Any version of transformers knows this class, and it takes tokenizer.json as it is.
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def load_tokenizer(folder: Path) -> Tokenizer:
    """Returns the tokenizer of a Hugging Face model folder.

    Raises:
        TokenizerError: missing or damaged files, or no end token anywhere.
    """
    # AutoTokenizer rebuilds some classes from their vocabulary; tokenizer.json itself is the reference.
    whole = (folder / "tokenizer.json").is_file()
    try:
        loader = PreTrainedTokenizerFast if whole else _auto_tokenizer()
        fast = loader.from_pretrained(os.fspath(folder), local_files_only=True)
    # The Rust parser raises plain Exception on a file it cannot read, so nothing narrower catches it.
    except Exception as error:
        raise TokenizerError(f"{folder}: cannot load the tokenizer ({error})") from error
    if not isinstance(fast, PreTrainedTokenizerFast):
        raise TokenizerError(f"{folder}: has no tokenizer.json and none can be made from its files")
    return Tokenizer(fast, origin=str(folder), end_candidates=_end_ids_of_model(folder))


def _auto_tokenizer() -> Any:
    # Few models need it, and it loads torch where that is installed: seconds at the start of every process.
    from transformers import AutoTokenizer

    return AutoTokenizer


def _end_ids_of_model(folder: Path) -> list[tuple[int, str]]:
    """Returns the end token ids that the model's own files name, with the file."""
    found: list[tuple[int, str]] = []
    for file in ("generation_config.json", "config.json"):
        path = folder / file
        if path.is_file():
            try:
                value: Any = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
            except (ValueError, AttributeError) as error:
                raise TokenizerError(f"{path}: not a JSON object ({error})") from error
            ids = value if isinstance(value, list) else [value]
            found += [(id, file) for id in ids if type(id) is int]
    return found


def _assume_end_token(fast: PreTrainedTokenizerFast, origin: str, candidates: Sequence[tuple[int, str]]) -> str:
    """Gives `fast` an end token and returns the sentence that says which and why."""
    vocabulary = fast.get_vocab()
    texts = {id: token for token, id in vocabulary.items()}
    named = [(texts[id], f"{where} names it") for id, where in candidates if id in texts]
    usual = [(token, "the vocabulary holds it") for token in _USUAL_END_TOKENS if token in vocabulary]
    for token, reason in named + usual:
        fast.eos_token = token
        return f"{origin}: the tokenizer names no end token; assuming {token!r} ({reason})"
    raise TokenizerError(
        f"{origin}: the tokenizer names no end token, and neither generation_config.json, config.json nor the "
        f"vocabulary ({', '.join(_USUAL_END_TOKENS)}) offers one; set eos_token in tokenizer_config.json"
    )


def _adds_bos(fast: PreTrainedTokenizerFast) -> bool:
    ids = cast("list[int]", fast.encode("a"))
    return fast.bos_token_id is not None and ids[:1] == [fast.bos_token_id]


def _backend(fast: PreTrainedTokenizerFast, *, parse_special: bool) -> tokenizers.Tokenizer:
    copy = tokenizers.Tokenizer.from_str(fast.backend_tokenizer.to_str())
    copy.no_truncation()
    copy.no_padding()
    copy.encode_special_tokens = not parse_special
    return copy
