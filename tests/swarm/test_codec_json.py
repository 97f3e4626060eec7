from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sapo_jax.swarm.codec_json import CodecError, floats_from_json, rollout_from_json, rollout_to_json
from sapo_jax.types import Completion, FinishReason, Rollout, TaskRef

# Surrogates included: a byte-level tokenizer's decoder may leave any code point in a text.
_TEXT = st.text(st.characters(), max_size=20)
_FLOATS = st.floats(allow_nan=False)
_COMPLETIONS = st.builds(
    Completion,
    text=_TEXT,
    finish_reason=st.sampled_from(FinishReason),
    token_ids=st.none() | st.lists(st.integers(0, 2**31)).map(tuple),
    behavior_logprobs=st.none() | st.lists(_FLOATS).map(tuple),
)
_ROLLOUTS = st.builds(
    Rollout,
    task_ref=st.builds(
        TaskRef, dataset=_TEXT, config_digest=_TEXT, seed=st.integers(0, 2**32 - 1), index=st.integers(0, 2**63)
    ),
    node_id=_TEXT,
    round=st.integers(0),
    policy_version=st.integers(0),
    completions=st.lists(_COMPLETIONS, max_size=4).map(tuple),
)


@given(_ROLLOUTS)
def test_round_trip_through_json_text_is_exact(rollout):
    assert rollout_from_json(json.loads(json.dumps(rollout_to_json(rollout)))) == rollout


@given(st.lists(_FLOATS))
def test_floats_keep_their_bits(values):
    restored = floats_from_json(json.loads(json.dumps(values)), "x")
    assert [value.hex() for value in restored] == [value.hex() for value in values]


@pytest.mark.parametrize(
    ("break_data", "message"),
    [
        (lambda d: d.pop("round"), "rollout has the keys"),
        (lambda d: d.update(extra=1), "rollout has the keys"),
        (lambda d: d.update(round="3"), r"rollout\.round is a str, expected int"),
        (lambda d: d.update(round=True), r"rollout\.round is a bool, expected int"),
        (lambda d: d["task_ref"].update(seed=1.0), r"rollout\.task_ref\.seed is a float, expected int"),
        (lambda d: d["task_ref"].pop("index"), r"rollout\.task_ref has the keys"),
        (lambda d: d.update(completions={}), r"rollout\.completions is a dict, expected list"),
        (lambda d: d["completions"][1].update(text=None), r"completions\[1\]\.text is a NoneType, expected str"),
        (lambda d: d["completions"][0].update(finish_reason="eos"), r"finish_reason = 'eos': must be one of stop, len"),
        (lambda d: d["completions"][0].update(token_ids=[1, "2"]), r"completions\[0\]\.token_ids is a str"),
        (lambda d: d["completions"][0].update(behavior_logprobs=["-1"]), r"behavior_logprobs holds '-1'"),
    ],
)
def test_damaged_data_names_the_place(rollout, break_data, message):
    data = rollout_to_json(rollout())
    break_data(data)
    with pytest.raises(CodecError, match=message):
        rollout_from_json(data)


def test_not_even_a_dict():
    with pytest.raises(CodecError, match="rollout is a list, expected dict"):
        rollout_from_json([])
