"""Rollout groups as signed bytes, and back into checked records.

Opening a group goes from cheap to dear, and what fails early costs little: sizes, a strict parse, the
signature, the swarm, then every field rule. Nothing a stranger sends raises anything but `WireError`.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence

from sapo_jax.swarm.wire.envelope import check_envelope, check_signature, seal
from sapo_jax.swarm.wire.errors import WireError, WireReason
from sapo_jax.swarm.wire.field_rules import (
    COUNTER_LIMIT,
    DIGEST_BYTES,
    SEED_LIMIT,
    check_bytes,
    check_dataset,
    check_range,
    check_size,
    check_swarm_id,
    check_text,
    digest_to_bytes,
    field_error,
    utf8_size,
    valid_utf8,
)
from sapo_jax.swarm.wire.generated import rollout_exchange_pb2 as pb
from sapo_jax.swarm.wire.identity import GROUP_LABEL, PUBLIC_KEY_BYTES, SIGNATURE_BYTES, Identity, node_id_of
from sapo_jax.swarm.wire.limits import DEFAULT_WIRE_LIMITS, WireLimits
from sapo_jax.swarm.wire.parse import parse
from sapo_jax.swarm.wire.signed_content import Envelope, GeneratorInfo, OpenedGroup, SignedGroup
from sapo_jax.swarm.wire.spans import duration_from_seconds, seconds_of, timestamp_from_seconds
from sapo_jax.types import Completion, FinishReason, Rollout, TaskRef

SCHEMA_MINOR = 1

_PRINTABLE_ASCII = re.compile(r"[ -~]*")
_FINISH_REASON_NUMBERS: Mapping[FinishReason, pb.FinishReason] = {
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
}


def group_id_of(envelope: Envelope) -> bytes:
    """Returns SHA-256(payload || public key): the same bytes of the same publisher are the same group."""
    return hashlib.sha256(envelope.payload + envelope.public_key).digest()


def pack_group(
    rollout: Rollout,
    *,
    swarm_id: str,
    sequence: int,
    created_unix_s: float,
    ttl_s: float,
    generator: GeneratorInfo,
    verifier_version: str = "",
    claimed_scores: Sequence[float] | None = None,
    limits: WireLimits = DEFAULT_WIRE_LIMITS,
) -> bytes:
    """Returns the payload to sign: `rollout` as text, without its local-only fields and its node id.

    The node id follows from the key that seals the payload. A lone surrogate in a text, which UTF-8
    cannot express, becomes U+FFFD.

    Args:
        rollout: what to publish.
        swarm_id: the swarm it is for.
        sequence: the publisher's count of its groups, higher than all before.
        created_unix_s: the publisher's clock.
        ttl_s: how long it may be used.
        generator: what to say about the policy.
        verifier_version: version of the task library.
        claimed_scores: own scores in [0, 1], one per completion; None: no claim.
        limits: bounds of the receivers.

    Raises:
        WireError: FIELD or TOO_LARGE, for whatever a receiver would refuse.
        ValueError: there is not one claimed score per completion.
    """
    if claimed_scores is not None and len(claimed_scores) != rollout.group_size:
        raise ValueError(f"{len(claimed_scores)} claimed scores for {rollout.group_size} completions")
    ref = rollout.task_ref
    for field, value, limit in (
        ("task.seed", ref.seed, SEED_LIMIT),
        ("task.index", ref.index, COUNTER_LIMIT),
        ("sequence", sequence, COUNTER_LIMIT),
        ("policy_version", rollout.policy_version, COUNTER_LIMIT),
        ("round", rollout.round, COUNTER_LIMIT),
        ("generator.parameter_count", generator.parameter_count, COUNTER_LIMIT),
        ("generator.max_new_tokens", generator.max_new_tokens, 2**32),
    ):
        check_range(value, limit, field)
    message = pb.RolloutGroup(
        schema_minor=SCHEMA_MINOR,
        swarm_id=valid_utf8(swarm_id),
        task=pb.TaskRef(
            dataset=valid_utf8(ref.dataset),
            verifier_version=valid_utf8(verifier_version),
            config_digest=digest_to_bytes(ref.config_digest, "task.config_digest"),
            seed=ref.seed,
            index=ref.index,
        ),
        generator=pb.GeneratorInfo(
            model_name=valid_utf8(generator.model_name),
            parameter_count=generator.parameter_count,
            tokenizer_name=valid_utf8(generator.tokenizer_name),
            prompt_template_id=valid_utf8(generator.prompt_template_id),
            temperature=generator.temperature,
            top_p=generator.top_p,
            max_new_tokens=generator.max_new_tokens,
        ),
        create_time=timestamp_from_seconds(created_unix_s),
        ttl=duration_from_seconds(ttl_s),
        sequence=sequence,
        policy_version=rollout.policy_version,
        round=rollout.round,
    )
    for i, completion in enumerate(rollout.completions):
        message.completions.add(
            text=valid_utf8(completion.text),
            finish_reason=_FINISH_REASON_NUMBERS[completion.finish_reason],
            token_count=len(completion.token_ids or ()),
            claimed_score=None if claimed_scores is None else claimed_scores[i],
        )
    _check_group(message, swarm_id, limits)
    payload = message.SerializeToString(deterministic=True)
    check_size(len(payload), limits.max_payload_bytes, "payload")
    return payload


def seal_group(payload: bytes, identity: Identity) -> Envelope:
    """Returns a packed group in the envelope that `identity` signs."""
    return seal(payload, identity, GROUP_LABEL)


def open_group(signed: SignedGroup, *, swarm_id: str, limits: WireLimits = DEFAULT_WIRE_LIMITS) -> OpenedGroup:
    """Returns the group that a stranger sent, once everything that the bytes themselves can show is checked.

    Raises:
        WireError: TOO_LARGE, HOPS, UNKNOWN_ALGORITHM, MALFORMED, BAD_SIGNATURE, WRONG_SWARM, FIELD or EXPIRED,
            checked in about this order.
    """
    check_envelope(signed.envelope, signed.algorithm, limits.max_payload_bytes)
    if signed.hops > limits.max_hops:
        raise WireError(WireReason.HOPS, f"a group passes at most {limits.max_hops} relays", field="hops")
    message = parse(pb.RolloutGroup, signed.envelope.payload, limits, max_fields=limits.max_payload_fields)
    check_signature(signed.envelope, GROUP_LABEL)
    opened = _read_group(message, signed, swarm_id, limits)
    if opened.age_s >= opened.ttl_s:
        raise WireError(WireReason.EXPIRED, "is not below the time to live", field="age")
    return opened


def reopen_group(signed: SignedGroup, *, swarm_id: str, limits: WireLimits = DEFAULT_WIRE_LIMITS) -> OpenedGroup:
    """Returns a group that this host has opened or sealed before and kept safe.

    Signature, hops and expiry are not looked at again, which makes this several times faster.

    Raises:
        WireError: as `open_group`, but for those three; the kept bytes are damaged.
    """
    check_envelope(signed.envelope, signed.algorithm, limits.max_payload_bytes)
    message = parse(pb.RolloutGroup, signed.envelope.payload, limits, max_fields=limits.max_payload_fields)
    return _read_group(message, signed, swarm_id, limits)


def _read_group(message: pb.RolloutGroup, signed: SignedGroup, swarm_id: str, limits: WireLimits) -> OpenedGroup:
    """Returns the checked content of a payload whose signature is settled."""
    _check_group(message, swarm_id, limits)
    if not (math.isfinite(signed.age_s) and signed.age_s >= 0):
        raise field_error("age", "must be a finite time of at least 0")
    envelope, generator = signed.envelope, message.generator
    ttl_s = seconds_of(message.ttl) if message.HasField("ttl") else limits.default_ttl_s
    return OpenedGroup(
        group_id=group_id_of(envelope),
        envelope=envelope,
        rollout=Rollout(
            task_ref=TaskRef(
                dataset=message.task.dataset,
                config_digest=message.task.config_digest.hex(),
                seed=message.task.seed,
                index=message.task.index,
            ),
            node_id=node_id_of(envelope.public_key),
            round=message.round,
            policy_version=message.policy_version,
            completions=tuple(
                Completion(
                    text=completion.text,
                    # Anything but a clear stop claims nothing: no end token is ever trained on it.
                    finish_reason=FinishReason.STOP
                    if completion.finish_reason == pb.FINISH_REASON_STOP
                    else FinishReason.LENGTH,
                )
                for completion in message.completions
            ),
        ),
        sequence=message.sequence,
        ttl_s=min(max(ttl_s, limits.min_ttl_s), limits.max_ttl_s),
        hops=signed.hops,
        age_s=signed.age_s,
        size_bytes=len(envelope.payload) + PUBLIC_KEY_BYTES + SIGNATURE_BYTES,
        created_unix_s=seconds_of(message.create_time),
        verifier_version=message.task.verifier_version,
        generator=GeneratorInfo(
            model_name=generator.model_name,
            parameter_count=generator.parameter_count,
            tokenizer_name=generator.tokenizer_name,
            prompt_template_id=generator.prompt_template_id,
            temperature=generator.temperature,
            top_p=generator.top_p,
            max_new_tokens=generator.max_new_tokens,
        ),
        claimed_scores=tuple(
            completion.claimed_score if completion.HasField("claimed_score") else None
            for completion in message.completions
        ),
    )


def _check_group(message: pb.RolloutGroup, swarm_id: str, limits: WireLimits) -> None:
    """Raises WireError unless every field keeps its rule."""
    check_swarm_id(message.swarm_id, swarm_id, limits.max_swarm_id_bytes)
    if not message.HasField("task"):
        raise field_error("task", "is required")
    task = message.task
    check_dataset(task.dataset, limits.max_dataset_bytes, "task.dataset")
    check_text(task.verifier_version, limits.max_verifier_version_bytes, "task.verifier_version")
    if not _PRINTABLE_ASCII.fullmatch(task.verifier_version):
        raise field_error("task.verifier_version", "must be printable ASCII")
    check_bytes(task.config_digest, DIGEST_BYTES, "task.config_digest")
    check_range(task.seed, SEED_LIMIT, "task.seed")
    check_range(task.index, COUNTER_LIMIT, "task.index")
    check_range(message.sequence, COUNTER_LIMIT, "sequence")
    check_range(message.policy_version, COUNTER_LIMIT, "policy_version")
    check_range(message.round, COUNTER_LIMIT, "round")
    if message.HasField("ttl") and not (message.ttl.seconds >= 0 and 0 <= message.ttl.nanos < 1_000_000_000):
        raise field_error("ttl", "must be at least 0, its nanoseconds in [0, 10**9)")
    _check_completions(message, limits)
    _check_generator(message.generator, limits)


def _check_completions(message: pb.RolloutGroup, limits: WireLimits) -> None:
    if not message.completions:
        raise field_error("completions", "must hold at least 1")
    if len(message.completions) > limits.max_completions:
        raise WireError(WireReason.TOO_LARGE, f"holds at most {limits.max_completions}", field="completions")
    total = 0
    for i, completion in enumerate(message.completions):
        size = utf8_size(completion.text)
        total += size
        if size > limits.max_text_bytes:
            check_size(size, limits.max_text_bytes, f"completions[{i}].text")
        # Not a number compares as false, so it is refused too.
        if completion.HasField("claimed_score") and not 0.0 <= completion.claimed_score <= 1.0:
            raise field_error(f"completions[{i}].claimed_score", "must be in [0, 1]")
    check_size(total, limits.max_group_text_bytes, "completions")


def _check_generator(generator: pb.GeneratorInfo, limits: WireLimits) -> None:
    check_text(generator.model_name, limits.max_name_bytes, "generator.model_name")
    check_text(generator.tokenizer_name, limits.max_name_bytes, "generator.tokenizer_name")
    check_text(generator.prompt_template_id, limits.max_template_id_bytes, "generator.prompt_template_id")
    check_range(generator.parameter_count, COUNTER_LIMIT, "generator.parameter_count")
    if not (math.isfinite(generator.temperature) and generator.temperature >= 0):
        raise field_error("generator.temperature", "must be finite and at least 0")
    if not 0.0 <= generator.top_p <= 1.0:
        raise field_error("generator.top_p", "must be in [0, 1]")
