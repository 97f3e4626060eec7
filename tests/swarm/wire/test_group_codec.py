"""Which groups open, byte for byte, and which are refused, reason by reason."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sapo_jax.config import MAX_GROUP_SIZE
from sapo_jax.swarm.wire.errors import STATUS_CODE, WireError, WireReason
from sapo_jax.swarm.wire.generated import rollout_exchange_pb2 as pb
from sapo_jax.swarm.wire.group_codec import group_id_of, open_group, pack_group, reopen_group, seal_group
from sapo_jax.swarm.wire.identity import PEER_LABEL, Identity
from sapo_jax.swarm.wire.limits import DEFAULT_WIRE_LIMITS, WireLimits
from sapo_jax.swarm.wire.parse import parse
from sapo_jax.swarm.wire.signed_content import GeneratorInfo, SignedGroup
from sapo_jax.types import Completion, FinishReason, Rollout, TaskRef
from scripts.faults import wire_fuzz

SWARM = "test swarm"
KIB = 1024
IDENTITY = Identity.generate()
REF = TaskRef(dataset="chain_sum", config_digest="0f" * 32, seed=7, index=3)
ROLLOUT = Rollout(
    task_ref=REF,
    node_id=IDENTITY.node_id,
    round=5,
    policy_version=6,
    completions=(
        Completion(text="<answer>4</answer>", finish_reason=FinishReason.STOP),
        Completion(text="", finish_reason=FinishReason.LENGTH),
    ),
)


def packed(rollout=ROLLOUT, **changes):
    options = {
        "swarm_id": SWARM,
        "sequence": 1,
        "created_unix_s": 1_700_000_000.25,
        "ttl_s": 600.0,
        "generator": GeneratorInfo(model_name="m"),
    }
    return pack_group(rollout, **{**options, **changes})


def message() -> pb.RolloutGroup:
    """Returns a valid group, to be changed."""
    return pb.RolloutGroup.FromString(packed())


def sealed(content: pb.RolloutGroup | bytes, **changes) -> SignedGroup:
    payload = content if isinstance(content, bytes) else content.SerializeToString()
    return SignedGroup(envelope=seal_group(payload, IDENTITY), **changes)


def refusal(signed: SignedGroup, limits: WireLimits = DEFAULT_WIRE_LIMITS) -> tuple[WireReason, str] | None:
    """Returns reason and field of the refusal; None if the group opens."""
    try:
        open_group(signed, swarm_id=SWARM, limits=limits)
    except WireError as error:
        return error.reason, error.field
    return None


# What goes in comes out.


def test_a_group_comes_out_as_it_went_in():
    payload = packed(claimed_scores=(0.25, 1.0), verifier_version="0.1.25")
    opened = open_group(SignedGroup(envelope=seal_group(payload, IDENTITY), hops=2, age_s=1.5), swarm_id=SWARM)
    assert opened.rollout == ROLLOUT
    assert (opened.sequence, opened.ttl_s, opened.hops, opened.age_s) == (1, 600.0, 2, 1.5)
    assert opened.created_unix_s == 1_700_000_000.25
    assert opened.verifier_version == "0.1.25"
    assert opened.generator == GeneratorInfo(model_name="m")
    assert opened.claimed_scores == (0.25, 1.0)
    assert (opened.dataset, opened.publisher) == ("chain_sum", IDENTITY.node_id)
    assert opened.size_bytes == len(payload) + 32 + 64
    assert opened.envelope.payload == payload


def test_local_fields_stay_here_and_only_their_number_leaves():
    local = replace(ROLLOUT.completions[0], token_ids=(11, 12, 13), behavior_logprobs=(-0.5, -1.0, -1.5))
    payload = packed(replace(ROLLOUT, completions=(local,)))
    assert open_group(sealed(payload), swarm_id=SWARM).rollout.completions == ROLLOUT.completions[:1]
    assert pb.RolloutGroup.FromString(payload).completions[0].token_count == 3


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
ROLLOUTS = st.builds(
    Rollout,
    task_ref=st.builds(
        TaskRef,
        dataset=st.text("abcxyz019_", min_size=1, max_size=64),
        config_digest=st.binary(min_size=32, max_size=32).map(bytes.hex),
        seed=st.integers(0, 2**32 - 1),
        index=st.integers(0, 2**63 - 1),
    ),
    node_id=st.just(IDENTITY.node_id),
    round=st.integers(0, 2**63 - 1),
    policy_version=st.integers(0, 2**63 - 1),
    completions=st.lists(
        st.builds(Completion, text=TEXTS, finish_reason=st.sampled_from(FinishReason)), min_size=1, max_size=6
    ).map(tuple),
)


@given(ROLLOUTS, st.integers(0, 2**63 - 1), st.floats(0, 4e9))
def test_every_rollout_comes_out_as_it_went_in(rollout, sequence, created_unix_s):
    signed = sealed(packed(rollout, sequence=sequence, created_unix_s=created_unix_s))
    opened = open_group(signed, swarm_id=SWARM)
    assert opened.rollout == rollout
    assert opened.sequence == sequence
    assert opened.created_unix_s == pytest.approx(created_unix_s, abs=1e-6)
    assert opened == reopen_group(signed, swarm_id=SWARM)


def test_what_utf8_cannot_say_is_replaced_and_pairs_are_joined():
    texts = ("a\ud800b", "\udc80", "\ud83d\ude00", "plain é")
    completions = tuple(Completion(text=text, finish_reason=FinishReason.STOP) for text in texts)
    opened = open_group(sealed(packed(replace(ROLLOUT, completions=completions))), swarm_id=SWARM)
    received = [completion.text for completion in opened.rollout.completions]
    assert received == ["a\ufffdb", "\ufffd", "\U0001f600", "plain é"]


def test_the_same_content_makes_the_same_bytes_and_id():
    first, second = (seal_group(packed(), IDENTITY) for _ in range(2))
    assert first == second  # Ed25519 is deterministic too
    assert group_id_of(first) == group_id_of(second)
    assert group_id_of(first) != group_id_of(replace(first, public_key=Identity.generate().public_key))


def test_unknown_fields_of_a_newer_version_survive_an_older_relay():
    newer = packed() + wire_fuzz.field_bytes(14, b"of a newer minor version") + wire_fuzz.varint(99 << 3) + b"\x01"
    at_relay = open_group(sealed(newer), swarm_id=SWARM)
    relayed = at_relay.to_signed(kept_s=2.0, relayed=True)
    assert relayed.envelope.payload == newer
    at_end = open_group(relayed, swarm_id=SWARM)  # the signature still fits
    assert at_end.group_id == at_relay.group_id
    assert (at_end.hops, at_end.age_s) == (1, 2.0)


def test_signed_bytes_are_kept_even_where_protobuf_would_write_others():
    odd = packed() + b"\x08\x81\x00"  # schema_minor again, in more bytes than needed
    assert pb.RolloutGroup.FromString(odd).SerializeToString() != odd
    assert open_group(sealed(odd), swarm_id=SWARM).to_signed().envelope.payload == odd


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (pb.FINISH_REASON_STOP, FinishReason.STOP),
        (pb.FINISH_REASON_LENGTH, FinishReason.LENGTH),
        (pb.FINISH_REASON_UNSPECIFIED, FinishReason.LENGTH),
        (pb.FINISH_REASON_ERROR, FinishReason.LENGTH),
        (77, FinishReason.LENGTH),
    ],
)
def test_nothing_but_stop_is_read_as_stop(number, expected):
    changed = message()
    changed.completions[0].finish_reason = number
    assert open_group(sealed(changed), swarm_id=SWARM).rollout.completions[0].finish_reason is expected


@pytest.mark.parametrize(
    ("ttl_s", "expected"),
    [
        (0.0, 60.0),
        (59.9, 60.0),
        (60.0, 60.0),
        (60.5, 60.5),
        (86_400.0, 86_400.0),
        (86_400.1, 86_400.0),
        (1e30, 86_400.0),
    ],
)
def test_the_time_to_live_is_clamped(ttl_s, expected):
    assert open_group(sealed(packed(ttl_s=ttl_s)), swarm_id=SWARM).ttl_s == expected


def test_a_missing_time_to_live_is_an_hour_and_a_missing_clock_is_1970():
    bare = message()
    bare.ClearField("ttl")
    bare.ClearField("create_time")
    bare.ClearField("generator")
    opened = open_group(sealed(bare), swarm_id=SWARM)
    assert (opened.ttl_s, opened.created_unix_s, opened.generator) == (3600.0, 0.0, GeneratorInfo())


@pytest.mark.parametrize("seconds", [-(2**63), -1, 2**63 - 1])
def test_no_clock_of_a_publisher_is_an_error(seconds):
    skewed = message()
    skewed.create_time.seconds = seconds
    skewed.create_time.nanos = -(2**31)
    assert math.isfinite(open_group(sealed(skewed), swarm_id=SWARM).created_unix_s)


# Limits, at the limit and one beyond on either side.


def group_with(path: str, value) -> SignedGroup:
    changed = message()
    *parents, name = path.split(".")
    owner: Any = changed
    for parent in parents:
        owner = owner.completions[1] if parent == "completion" else getattr(owner, parent)
    setattr(owner, name, value)
    return sealed(changed)


LARGE, FIELD = WireReason.TOO_LARGE, WireReason.FIELD


@pytest.mark.parametrize(
    ("path", "good", "bad", "reason"),
    [
        ("task.dataset", ["a", "a" * 63, "a" * 64], ["a" * 65, "ä" * 33], LARGE),
        ("task.dataset", ["gcd", "arc_1d"], ["", "GCD", "g-d", "g d", "gcd\n", "gcd\0", "ä"], FIELD),
        ("task.verifier_version", ["", "1" * 31, "1" * 32], ["1" * 33], LARGE),
        ("task.verifier_version", ["0.1.25 ~"], ["0.1\n", "\x7f", "é"], FIELD),
        ("task.config_digest", [bytes(32)], [b"", bytes(31), bytes(33)], FIELD),
        ("task.seed", [0, 1, 2**32 - 2, 2**32 - 1], [-1, 2**32, 2**63 - 1, -(2**63)], FIELD),
        ("task.index", [0, 2**63 - 2, 2**63 - 1], [2**63, 2**64 - 1], FIELD),
        ("sequence", [0, 2**63 - 1], [2**63], FIELD),
        ("policy_version", [0, 2**63 - 1], [2**63], FIELD),
        ("round", [0, 2**63 - 1], [2**63], FIELD),
        ("ttl.seconds", [0, 2**63 - 1], [-1, -(2**63)], FIELD),
        ("ttl.nanos", [0, 10**9 - 1], [-1, 10**9], FIELD),
        ("completion.text", ["", "x" * (64 * KIB - 1), "x" * 64 * KIB, "é" * 32 * KIB], ["x" * (64 * KIB + 1)], LARGE),
        ("completion.text", ["\0\x1b\u202e\ufffe"], ["é" * (32 * KIB) + "x"], LARGE),
        (
            "completion.claimed_score",
            [0.0, 1.0, 0.5],
            [-5e-324, 1.0000000000000002, math.nan, math.inf, -math.inf, 148.4],
            FIELD,
        ),
        ("generator.model_name", ["", "m" * 127, "m" * 128, "é" * 64], ["m" * 129, "é" * 64 + "m"], LARGE),
        ("generator.tokenizer_name", ["m" * 128], ["m" * 129], LARGE),
        ("generator.prompt_template_id", ["m" * 64], ["m" * 65], LARGE),
        ("generator.parameter_count", [0, 2**63 - 1], [2**63], FIELD),
        ("generator.temperature", [0.0, 1e308], [-5e-324, math.nan, math.inf], FIELD),
        ("generator.top_p", [0.0, 1.0], [-5e-324, 1.0000000000000002, math.nan, -math.inf], FIELD),
        ("generator.max_new_tokens", [0, 2**32 - 1], [], FIELD),
        ("schema_minor", [0, 2**32 - 1], [], FIELD),
    ],
)
def test_fields_keep_their_limits(path, good, bad, reason):
    field = {"ttl.seconds": "ttl", "ttl.nanos": "ttl"}.get(path, path.replace("completion.", "completions[1]."))
    for value in good:
        assert refusal(group_with(path, value)) is None, value
    for value in bad:
        assert refusal(group_with(path, value)) == (reason, field), value


@pytest.mark.parametrize("count", [0, 1, MAX_GROUP_SIZE - 1, MAX_GROUP_SIZE, MAX_GROUP_SIZE + 1, 200])
def test_a_group_has_1_to_64_completions(count):
    changed = message()
    del changed.completions[:]
    changed.completions.extend([pb.Completion(text="x")] * count)
    expected = (FIELD if count == 0 else LARGE, "completions")
    assert refusal(sealed(changed)) == (None if 1 <= count <= 64 else expected)


@pytest.mark.parametrize(("excess", "expected"), [(-1, None), (0, None), (1, (LARGE, "completions"))])
def test_the_texts_of_a_group_have_512_kib_together(excess, expected):
    changed = message()
    del changed.completions[:]
    changed.completions.extend([pb.Completion(text="x" * 51 * KIB)] * 10)
    changed.completions.add(text="x" * (2 * KIB + excess))
    assert refusal(sealed(changed)) == expected


@pytest.mark.parametrize(("excess", "expected"), [(-1, None), (0, None), (1, (LARGE, "payload"))])
def test_a_payload_has_960_kib(excess, expected):
    payload = packed()
    overhead = len(wire_fuzz.field_bytes(100, bytes(900 * KIB))) - 900 * KIB
    filled = payload + wire_fuzz.field_bytes(100, bytes(960 * KIB - len(payload) - overhead + excess))
    assert len(filled) == 960 * KIB + excess
    assert refusal(sealed(filled)) == expected


@pytest.mark.parametrize(("count", "expected"), [(4, None), (5, (LARGE, ""))])
def test_a_payload_has_a_bounded_number_of_fields(count, expected):
    payload = message()
    payload.ClearField("generator")
    limits = WireLimits(max_payload_fields=len(payload.ListFields()) + 1 + 4)  # one completion more than lists
    assert refusal(sealed(payload.SerializeToString() + b"\xa0\x06\x01" * count), limits) == expected


@pytest.mark.parametrize(
    ("swarm_id", "expected"),
    [
        (SWARM, None),
        ("", (WireReason.WRONG_SWARM, "swarm_id")),
        (SWARM + " ", (WireReason.WRONG_SWARM, "swarm_id")),
        ("s" * 64, (WireReason.WRONG_SWARM, "swarm_id")),
        ("s" * 65, (LARGE, "swarm_id")),
    ],
)
def test_only_groups_of_this_swarm_open(swarm_id, expected):
    assert refusal(group_with("swarm_id", swarm_id)) == expected


@pytest.mark.parametrize(("hops", "expected"), [(3, None), (4, None), (5, (WireReason.HOPS, "hops"))])
def test_a_group_passes_four_relays(hops, expected):
    assert refusal(sealed(packed(), hops=hops)) == expected


@pytest.mark.parametrize(
    ("age_s", "expected"),
    [
        (0.0, None),
        (599.999, None),
        (600.0, (WireReason.EXPIRED, "age")),
        (1e300, (WireReason.EXPIRED, "age")),
        (-0.001, (FIELD, "age")),
        (math.nan, (FIELD, "age")),
        (math.inf, (FIELD, "age")),
    ],
)
def test_a_group_expires_by_the_time_it_was_carried(age_s, expected):
    assert refusal(sealed(packed(ttl_s=600.0), age_s=age_s)) == expected


@pytest.mark.parametrize("algorithm", [-1, 0, 2, 2**31 - 1])
def test_other_algorithms_are_refused(algorithm):
    assert refusal(sealed(packed(), algorithm=algorithm)) == (WireReason.UNKNOWN_ALGORITHM, "algorithm")


@pytest.mark.parametrize("field", ["public_key", "signature"])
@pytest.mark.parametrize("excess", [-1, 1])
def test_keys_and_signatures_have_their_size(field, excess):
    signed = sealed(packed())
    size = {"public_key": 32, "signature": 64}[field] + excess
    broken = replace(signed, envelope=replace(signed.envelope, **{field: bytes(size)}))
    assert refusal(broken) == (FIELD, field)


def test_a_missing_task_is_named():
    changed = message()
    changed.ClearField("task")
    assert refusal(sealed(changed)) == (FIELD, "task")


# Signatures.


def test_a_group_signed_by_another_or_for_another_purpose_does_not_open():
    payload = packed()
    good = sealed(payload)
    first, rest = good.envelope.signature[0], good.envelope.signature[1:]
    forgeries = {
        "another key": replace(good.envelope, public_key=Identity.generate().public_key),
        "another purpose": replace(good.envelope, signature=IDENTITY.sign(PEER_LABEL, payload)),
        "another payload": replace(good.envelope, payload=packed(sequence=2)),
        "one bit": replace(good.envelope, signature=bytes([first ^ 1]) + rest),
    }
    assert refusal(good) is None
    for name, envelope in forgeries.items():
        assert refusal(SignedGroup(envelope=envelope)) == (WireReason.BAD_SIGNATURE, "signature"), name


def test_t13_a_forged_sender_is_never_the_publisher():
    victim = Identity.generate()
    forged = replace(sealed(packed()).envelope, public_key=victim.public_key)
    assert refusal(SignedGroup(envelope=forged)) == (WireReason.BAD_SIGNATURE, "signature")
    opened = open_group(sealed(packed(replace(ROLLOUT, node_id=victim.node_id))), swarm_id=SWARM)
    assert opened.publisher == IDENTITY.node_id  # whatever a rollout said about itself


def test_reopening_trusts_the_signature_and_nothing_else():
    signed = sealed(packed(ttl_s=600.0), hops=9, age_s=601.0)
    unsigned = replace(signed, envelope=replace(signed.envelope, signature=bytes(64)))
    assert reopen_group(unsigned, swarm_id=SWARM).rollout == ROLLOUT
    with pytest.raises(WireError, match="seed"):
        reopen_group(group_with("task.seed", -1), swarm_id=SWARM)
    with pytest.raises(WireError):
        reopen_group(sealed(packed()[:-1]), swarm_id=SWARM)


# Packing refuses what others would refuse.


@pytest.mark.parametrize(
    ("rollout", "options", "reason", "field"),
    [
        (replace(ROLLOUT, completions=()), {}, FIELD, "completions"),
        (replace(ROLLOUT, completions=ROLLOUT.completions * 33), {}, LARGE, "completions"),
        (replace(ROLLOUT, round=-1), {}, FIELD, "round"),
        (replace(ROLLOUT, policy_version=2**63), {}, FIELD, "policy_version"),
        (replace(ROLLOUT, task_ref=replace(REF, seed=2**32)), {}, FIELD, "task.seed"),
        (replace(ROLLOUT, task_ref=replace(REF, index=-1)), {}, FIELD, "task.index"),
        (replace(ROLLOUT, task_ref=replace(REF, config_digest="0F" * 32)), {}, FIELD, "task.config_digest"),
        (replace(ROLLOUT, task_ref=replace(REF, config_digest="")), {}, FIELD, "task.config_digest"),
        (replace(ROLLOUT, task_ref=replace(REF, dataset="Chain Sum")), {}, FIELD, "task.dataset"),
        (ROLLOUT, {"sequence": -1}, FIELD, "sequence"),
        (ROLLOUT, {"claimed_scores": (0.5, math.nan)}, FIELD, "completions[1].claimed_score"),
        (ROLLOUT, {"swarm_id": "s" * 65}, LARGE, "swarm_id"),
        (ROLLOUT, {"generator": GeneratorInfo(max_new_tokens=2**32)}, FIELD, "generator.max_new_tokens"),
        (ROLLOUT, {"generator": GeneratorInfo(top_p=1.5)}, FIELD, "generator.top_p"),
        (ROLLOUT, {"limits": WireLimits(max_payload_bytes=50)}, LARGE, "payload"),
    ],
)
def test_packing_refuses_what_receivers_would(rollout, options, reason, field):
    with pytest.raises(WireError) as caught:
        packed(rollout, **options)
    assert (caught.value.reason, caught.value.field) == (reason, field)


def test_claims_go_with_completions():
    with pytest.raises(ValueError, match="3 claimed scores for 2 completions"):
        packed(claimed_scores=(0.0, 0.5, 1.0))


# Reasons.


def test_errors_name_field_and_rule_and_never_the_value():
    secret = "Se3ret Value"
    for path in ("task.dataset", "swarm_id"):
        with pytest.raises(WireError) as caught:
            open_group(group_with(path, secret), swarm_id=SWARM)
        assert path in str(caught.value) and secret not in str(caught.value)
    with pytest.raises(WireError) as caught:
        parse(pb.RolloutGroup, wire_fuzz.field_bytes(2, secret.encode() + b"\xff"))
    assert secret not in str(caught.value)


def test_every_reason_has_a_status_code_and_unknown_is_none_of_them():
    assert STATUS_CODE.keys() == set(WireReason)
    assert "UNKNOWN" not in STATUS_CODE.values() and "OK" not in STATUS_CODE.values()


# T1, T2: the fuzz tier runs the same stream for a million messages.

CONTENT_REASONS = {
    WireReason.MALFORMED,
    WireReason.FIELD,
    WireReason.TOO_LARGE,
    WireReason.UNKNOWN_ALGORITHM,
    WireReason.BAD_SIGNATURE,
    WireReason.WRONG_SWARM,
    WireReason.HOPS,
    WireReason.EXPIRED,
}


def test_t1_hostile_groups_open_or_are_refused_for_the_right_reason():
    outcomes: Counter[WireReason | str] = Counter()
    resigned, count = 0, 4000
    for case in itertools.islice(wire_fuzz.cases(seed=20), count):
        try:
            opened = open_group(case.signed, swarm_id=wire_fuzz.SWARM_ID)
            outcome = wire_fuzz.OPEN
            assert opened.envelope == case.signed.envelope
            assert 1 <= opened.rollout.group_size <= MAX_GROUP_SIZE and 60 <= opened.ttl_s <= 86_400
        except WireError as error:
            outcome = error.reason
        assert case.expected in (wire_fuzz.ANY, outcome), case.name
        outcomes[outcome] += 1
        resigned += case.resigned
    assert resigned >= count / 2
    assert outcomes.keys() == CONTENT_REASONS | {wire_fuzz.OPEN}
    assert min(outcomes.values()) >= count / 200, outcomes


def test_the_fuzz_tries_every_way_it_knows():
    names = {case.name.split(" ", 1)[1] for case in itertools.islice(wire_fuzz.cases(seed=1), 4000) if " " in case.name}
    assert names >= {*wire_fuzz.FIELD_BREAKS, *wire_fuzz.PAYLOADS, *wire_fuzz.ENVELOPES}


@given(st.binary(max_size=200))
@settings(max_examples=300)
def test_t1_noise_is_no_group(noise):
    assert refusal(sealed(noise)) is not None
