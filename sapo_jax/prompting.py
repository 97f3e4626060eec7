"""Between text and tokens for one node: tasks to prompts, sampled tokens to completions."""

from __future__ import annotations

from collections.abc import Sequence

from sapo_jax.host import SampledRow
from sapo_jax.tasks.examples import solved_examples
from sapo_jax.tasks.source import TaskSource
from sapo_jax.text.chat import Prompt, encode_prompt
from sapo_jax.text.encode import EncodedPrompts, bucket_for, pad_prompts
from sapo_jax.text.tokenizer import Tokenizer
from sapo_jax.types import Completion, FinishReason, Task

_KNOWN_PROMPTS = 4096  # remembered encodings: some hundred megabytes of long prompts at most


class Prompter:
    """Lays tasks out in the node's own chat template; remembers what it has encoded."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        source: TaskSource,
        *,
        system: str,
        shots: int,
        enable_thinking: bool,
        prompt_buckets: Sequence[int],
    ) -> None:
        """Takes the literal system prompt; `shots` solved examples come before every question."""
        self.tokenizer = tokenizer
        self._source = source
        self._system = system
        self._shots = shots
        self._enable_thinking = enable_thinking
        self._buckets = tuple(prompt_buckets)
        self._known: dict[str, tuple[int, ...]] = {}

    def encode(self, task: Task) -> tuple[int, ...]:
        """Returns the token ids of the task's prompt, whatever their number."""
        key = f"{task.specialty}\x1f{task.question}"
        if key not in self._known:
            if len(self._known) >= _KNOWN_PROMPTS:
                self._known.clear()
            examples = solved_examples(self._source, task, self._shots)
            prompt = Prompt(system=self._system, examples=examples, question=task.question)
            self._known[key] = tuple(encode_prompt(self.tokenizer, prompt, enable_thinking=self._enable_thinking))
        return self._known[key]

    def encode_question(self, question: str) -> tuple[int, ...]:
        """Returns the token ids of a free question: system prompt and question, no examples."""
        prompt = Prompt(system=self._system, examples=(), question=question)
        return tuple(encode_prompt(self.tokenizer, prompt, enable_thinking=self._enable_thinking))

    def fits(self, task: Task) -> bool:
        """Returns whether the task's prompt fits the largest bucket."""
        return len(self.encode(task)) <= self._buckets[-1]

    def encode_all(self, tasks: Sequence[Sequence[Task]]) -> list[EncodedPrompts]:
        """Returns one batch per node, all left-padded to the bucket of the longest prompt."""
        return self.pad([[self.encode(task) for task in row] for row in tasks])

    def pad(self, ids: Sequence[Sequence[Sequence[int]]]) -> list[EncodedPrompts]:
        """Returns prompts [M][Q] of token ids as one left-padded batch per node, all of one length.

        Raises:
            PromptTooLongError: one does not fit the largest bucket.
        """
        length = bucket_for(max(len(prompt) for row in ids for prompt in row), self._buckets)
        return [pad_prompts(row, length, pad_id=self.tokenizer.pad_id, side="left") for row in ids]

    def completion(self, row: SampledRow) -> Completion:
        """Returns the completion that sampled tokens spell; the end token is not part of its text."""
        ids = row.token_ids[:-1] if row.stopped else row.token_ids
        return Completion(
            text=self.tokenizer.decode(ids),
            finish_reason=FinishReason.STOP if row.stopped else FinishReason.LENGTH,
            token_ids=row.token_ids,
            behavior_logprobs=row.logprobs,
        )
