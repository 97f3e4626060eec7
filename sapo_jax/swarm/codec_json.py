"""Rollouts and their scores as JSON-ready data, exact in both directions: what checkpoints hold.

Floats keep their bits (Python writes the shortest text that reads back the same), and texts keep
every code point. Decoding checks each key and type and names the place that is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar, cast

from sapo_jax.types import Completion, FinishReason, Rollout, ScoredRollout, Task, TaskRef

_T = TypeVar("_T", int, str, list[Any], dict[str, Any])


class CodecError(ValueError):
    """JSON data that is not what this module writes; the message names the place."""


def rollout_to_json(rollout: Rollout) -> dict[str, Any]:
    """Returns `rollout` as nested dicts and lists; local-only fields are kept where they are known."""
    ref = rollout.task_ref
    return {
        "task_ref": {
            "dataset": ref.dataset,
            "config_digest": ref.config_digest,
            "seed": ref.seed,
            "index": ref.index,
        },
        "node_id": rollout.node_id,
        "round": rollout.round,
        "policy_version": rollout.policy_version,
        "completions": [_completion_to_json(completion) for completion in rollout.completions],
    }


def rollout_from_json(data: Any) -> Rollout:
    """Returns the rollout that `rollout_to_json` wrote.

    Raises:
        CodecError: a key is missing, unknown or of the wrong type.
    """
    fields = fields_from_json(data, "rollout", ("task_ref", "node_id", "round", "policy_version", "completions"))
    ref = fields_from_json(fields["task_ref"], "rollout.task_ref", ("dataset", "config_digest", "seed", "index"))
    completions = typed(fields["completions"], list, "rollout.completions")
    return Rollout(
        task_ref=TaskRef(
            dataset=typed(ref["dataset"], str, "rollout.task_ref.dataset"),
            config_digest=typed(ref["config_digest"], str, "rollout.task_ref.config_digest"),
            seed=typed(ref["seed"], int, "rollout.task_ref.seed"),
            index=typed(ref["index"], int, "rollout.task_ref.index"),
        ),
        node_id=typed(fields["node_id"], str, "rollout.node_id"),
        round=typed(fields["round"], int, "rollout.round"),
        policy_version=typed(fields["policy_version"], int, "rollout.policy_version"),
        completions=tuple(
            _completion_from_json(item, f"rollout.completions[{i}]") for i, item in enumerate(completions)
        ),
    )


def scored_to_json(scored: ScoredRollout) -> dict[str, Any]:
    """Returns a rollout with its scores; the task is left out, its reference suffices."""
    return {"rollout": rollout_to_json(scored.rollout), "scores": list(scored.scores)}


def scored_from_json(data: Any, path: str, rebuild_task: Callable[[TaskRef], Task]) -> ScoredRollout:
    """Returns what `scored_to_json` wrote; scores are taken over, not computed again.

    Raises:
        CodecError: a key is missing, unknown or of the wrong type, or the scores are not one per completion.
    """
    fields = fields_from_json(data, path, ("rollout", "scores"))
    rollout = rollout_from_json(fields["rollout"])
    scores = floats_from_json(fields["scores"], f"{path}.scores")
    if len(scores) != rollout.group_size:
        raise CodecError(f"{path} has {len(scores)} scores for {rollout.group_size} completions")
    return ScoredRollout(rollout=rollout, task=rebuild_task(rollout.task_ref), scores=scores)


def _completion_to_json(completion: Completion) -> dict[str, Any]:
    token_ids, logprobs = completion.token_ids, completion.behavior_logprobs
    return {
        "text": completion.text,
        "finish_reason": completion.finish_reason.value,
        "token_ids": None if token_ids is None else list(token_ids),
        "behavior_logprobs": None if logprobs is None else list(logprobs),
    }


def _completion_from_json(data: Any, path: str) -> Completion:
    fields = fields_from_json(data, path, ("text", "finish_reason", "token_ids", "behavior_logprobs"))
    reason = typed(fields["finish_reason"], str, f"{path}.finish_reason")
    known = [member.value for member in FinishReason]
    if reason not in known:
        raise CodecError(f"{path}.finish_reason = {reason!r}: must be one of {', '.join(known)}")
    token_ids, logprobs = fields["token_ids"], fields["behavior_logprobs"]
    return Completion(
        text=typed(fields["text"], str, f"{path}.text"),
        finish_reason=FinishReason(reason),
        token_ids=None
        if token_ids is None
        else tuple(typed(item, int, f"{path}.token_ids") for item in typed(token_ids, list, f"{path}.token_ids")),
        behavior_logprobs=None if logprobs is None else floats_from_json(logprobs, f"{path}.behavior_logprobs"),
    )


def floats_from_json(data: Any, path: str) -> tuple[float, ...]:
    """Returns a list of JSON numbers as a tuple of floats; raises CodecError naming `path` otherwise."""
    values = typed(data, list, path)
    for value in values:
        if type(value) not in (float, int):
            raise CodecError(f"{path} holds {value!r}, which is not a number")
    return tuple(float(value) for value in values)


def fields_from_json(data: Any, path: str, names: Collection[str]) -> Mapping[str, Any]:
    """Returns `data` if it is a dict with exactly the keys `names`; raises CodecError naming `path` otherwise."""
    fields = typed(data, dict, path)
    if set(fields) != set(names):
        raise CodecError(f"{path} has the keys {sorted(fields)}, expected {sorted(names)}")
    return fields


def typed(value: Any, kind: type[_T], path: str) -> _T:
    """Returns `value` if its type is exactly `kind`; raises CodecError naming `path` otherwise."""
    # `type() is` rather than isinstance: True is an int to isinstance.
    if type(value) is not kind:
        raise CodecError(f"{path} is a {type(value).__name__}, expected {kind.__name__}")
    return cast(_T, value)
