"""Requests to a host as hostile or broken peers would send them, each with what must come of it.

A request is the body of one call. Groups and peer records inside are `wire_fuzz`'s and `record_fuzz`'s;
here they are put into calls, the calls' own fields are broken one by one, and whole bodies are damaged.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from sapo_jax.swarm.wire.errors import WireReason
from sapo_jax.swarm.wire.generated import rollout_exchange_pb2 as pb
from sapo_jax.swarm.wire.identity import Identity
from sapo_jax.swarm.wire.limits import MIB
from scripts.faults import record_fuzz, wire_fuzz
from scripts.faults.record_fuzz import RecordCase, record_case
from scripts.faults.wire_fuzz import ANY, OPEN, Case, damage, field_bytes, group_case

DUPLICATE = "duplicate"  # the group is known
PUBLISHERS = 16
_REPLAYED = 64  # groups that may be sent once more

FIELD, MALFORMED, TOO_LARGE = WireReason.FIELD, WireReason.MALFORMED, WireReason.TOO_LARGE

Expected = WireReason | str


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One call.

    Attributes:
        rpc: which one.
        name: what was done to it.
        body: its bytes.
        expected: of the whole call: OPEN, ANY, or the one reason for which it must fail.
        groups: of each group inside, if the call passes: OPEN, DUPLICATE, ANY or a reason.
        names: what was done to each group.
        messages: how many messages it counts for: what is signed inside, at least 1.
        resigned: how many of those have a fitting signature.
        asked: how many items the response may hold.
        valid: groups that may be sent once more, should this call go through.
        is_late: the host finds out only after it has looked at its own state, not while it decodes.
    """

    rpc: str
    name: str
    body: bytes
    expected: Expected = OPEN
    groups: tuple[Expected, ...] = ()
    names: tuple[str, ...] = ()
    messages: int = 1
    resigned: int = 0
    asked: int = 0
    valid: tuple[Case, ...] = ()
    is_late: bool = False


class RequestFuzz:
    """Makes requests without end from one generator of random numbers; knows the host's epoch and keys."""

    def __init__(self, rng: random.Random, *, epoch: str, with_damaged_records: bool = True) -> None:
        """Draws the keys of the publishers.

        Args:
            rng: decides everything.
            epoch: of the host's store, for cursors.
            with_damaged_records: send records of damaged bytes that are signed again; see `record_case`.
        """
        self._rng = rng
        self.epoch = epoch  # of the host whose store is asked
        self._with_damaged_records = with_damaged_records
        self.publishers = wire_fuzz.make_identities(rng, PUBLISHERS)
        self.banned = wire_fuzz.make_identities(rng, 1)[0]
        self.flooder = wire_fuzz.make_identities(rng, 1)[0]
        self._valid: deque[Case] = deque(maxlen=_REPLAYED)  # sent before, and taken in

    def next(self) -> Request:
        """Returns the next request: two thirds publish, a tenth of all are damaged as a whole."""
        rng = self._rng
        kind = rng.randrange(30)
        if kind < 20:
            request = self._publish()
        elif kind < 23:
            request = self._peers()
        else:
            request = simple_request(rng.choice(_SIMPLE_NAMES), rng, self.epoch)
        if rng.random() < 0.1 and len(request.body) < 3 * MIB:
            return damaged_request(request, rng)
        return request

    def publish(self, cases: Sequence[Case], expected: Sequence[Expected] | None = None) -> Request:
        """Returns the call that publishes `cases`, which come to `expected`, by default what each says itself."""
        message = pb.PublishGroupsRequest(groups=[group_message(case) for case in cases])
        return Request(
            rpc="PublishGroups",
            name="publish",
            body=message.SerializeToString(),
            groups=tuple(expected or (case.expected for case in cases)),
            names=tuple(case.name for case in cases),
            messages=max(1, len(cases)),
            resigned=sum(case.resigned for case in cases),
            asked=len(cases),
        )

    def flood(self, groups: int) -> Request:
        """Returns a call with that many new and valid groups of one publisher."""
        cases = [wire_fuzz.valid_case(self._rng, self.flooder) for _ in range(groups)]
        return self.publish(cases)

    def forget(self) -> None:
        """Replays nothing that was sent so far; for when the host may have forgotten it."""
        self._valid.clear()

    def went_through(self, request: Request) -> None:
        """Notes that a request was answered, so that its valid groups may be sent once more."""
        self._valid.extend(request.valid)

    def _publish(self) -> Request:
        rng = self._rng
        count = rng.choice((1, 1, 1, 2, 2, 3, 4, 5, 8, 12, 32))
        cases: list[Case] = []
        expected: list[Expected] = []
        for _ in range(count):
            kind = rng.randrange(100)
            if kind < 2:
                case = wire_fuzz.valid_case(rng, self.banned)
                expected.append(WireReason.BANNED)
            elif kind < 5 and self._valid:
                case = replace(rng.choice(self._valid), name="replayed")
                expected.append(DUPLICATE)
            elif kind < 6 and cases and cases[-1].expected == OPEN and expected[-1] == OPEN:
                case = replace(cases[-1], name="twice in one call")
                expected.append(DUPLICATE)
            else:
                case = group_case(rng, rng.choice(self.publishers))
                expected.append(case.expected)
            cases.append(case)
        request = self.publish(cases, expected)
        if len(request.body) > 4 * MIB:  # several of the largest groups: the call is refused as a whole
            return replace(request, expected=TOO_LARGE)
        valid = [case for case, each in zip(cases, expected, strict=True) if each == OPEN and case.name == "valid"]
        return replace(request, valid=tuple(valid))

    def _peers(self) -> Request:
        rng = self._rng
        count = rng.choice((0, 1, 1, 1, 2, 8, 32))
        cases = [
            record_case(rng, rng.choice(self.publishers), with_damage=self._with_damaged_records) for _ in range(count)
        ]
        return peers_request(cases)


def group_message(case: Case) -> pb.SignedGroup:
    """Returns the message that carries a case; an age that no message can express becomes a negative one."""
    signed, envelope = case.signed, case.signed.envelope
    message = pb.SignedGroup(
        payload=envelope.payload, public_key=envelope.public_key, signature=envelope.signature, hops=signed.hops
    )
    message.algorithm = signed.algorithm  # pyright: ignore[reportAttributeAccessIssue] - enums are open
    if 0 <= signed.age_s < 2**62:
        message.age.seconds = int(signed.age_s)
    else:
        message.age.seconds = -1
    return message


def peers_request(cases: Sequence[RecordCase]) -> Request:
    """Returns the call that swaps `cases`; the first broken one decides what comes of it."""
    expected: Expected = next((case.expected for case in cases if case.expected != OPEN), OPEN)
    return Request(
        rpc="ExchangePeers",
        name="; ".join(case.name for case in cases) or "no records",
        body=pb.ExchangePeersRequest(peer_records=[case.message for case in cases]).SerializeToString(),
        expected=expected,
        messages=max(1, len(cases)),
        resigned=sum(case.resigned for case in cases),
        asked=32,
        is_late=True,
    )


def damaged_request(request: Request, rng: random.Random) -> Request:
    """Returns a request whose body is damaged as a whole; what is signed inside no longer counts as signed."""
    body = request.body
    kind = rng.randrange(8)
    if kind == 0:
        # Unknown fields of a newer version, nested as deeply as one likes, are never looked into.
        content = b""
        for _ in range(rng.choice((1, 20, 200))):
            content = field_bytes(900, content)
        if request.expected == OPEN:
            return replace(request, name=f"{request.name}, newer", body=body + content)
    endings = {1: (b"\x00", MALFORMED), 2: (b"\xa3\x06", MALFORMED), 3: (b"\xc8\x06\x01" * 2049, TOO_LARGE)}
    if kind in endings and request.expected == OPEN:
        ending, expected = endings[kind]
        body += ending
    else:
        expected = ANY
        for _ in range(rng.choice((1, 1, 2, 5))):
            body = damage(body, rng) if kind != 4 else rng.randbytes(rng.randrange(200))
    # Whatever it asks for now, no response holds more than a thousand items.
    return Request(rpc=request.rpc, name=f"damaged {request.name}", body=body, expected=expected, asked=1000)


# Calls without signed content: rpc, how its message is made, what must come of it.

Making = Callable[[random.Random, str], bytes]

_NODE = "a" * 52
_BAD_NAMES = ("", "Gcd", "a b", "../x", "x\x00", "größe")
_BAD_NODES = ("", "a" * 51, "A" * 52, "1" * 52)
_KEYWORDS = ("gcd", "leap_year")


def _sample(**fields: object) -> Making:
    return lambda rng, epoch: pb.SampleGroupsRequest(**{"count": 1, **fields}).SerializeToString()  # pyright: ignore


def _sample_one(name: str, *values: object) -> Making:
    return lambda rng, epoch: _sample(**{name: rng.choice(values)})(rng, epoch)


def _list(**fields: object) -> Making:
    return lambda rng, epoch: pb.ListGroupsRequest(**{"page_size": 5, **fields}).SerializeToString()  # pyright: ignore


def _cursor(sequences: Sequence[int], epochs: Sequence[str] = ()) -> Making:
    def make(rng: random.Random, epoch: str) -> bytes:
        cursor = pb.GroupCursor(epoch=rng.choice(epochs) if epochs else epoch, sequence=rng.choice(sequences))
        return _list(cursor=cursor)(rng, epoch)

    return make


def _get(*sizes: int) -> Making:
    return lambda rng, epoch: pb.GetGroupsRequest(group_ids=[rng.randbytes(size) for size in sizes]).SerializeToString()


def _too_many(number: int, count: int, content: bytes = b"") -> Making:
    return lambda rng, epoch: field_bytes(number, content) * count


def _bare(content: bytes) -> Making:
    return lambda rng, epoch: content


_NEWER = field_bytes(700, b"of a newer version")

SIMPLE: Mapping[str, tuple[str, Making, Expected]] = {
    "sample": (
        "SampleGroups",
        lambda rng, epoch: _sample(
            count=rng.choice((1, 4, 64)),
            datasets=rng.choice(((), _KEYWORDS)),
            excluded_publishers=rng.choice(((), (_NODE,))),
            seed=rng.choice((0, 2**64 - 1)),
        )(rng, epoch),
        OPEN,
    ),
    "sample of no age": ("SampleGroups", lambda rng, epoch: _sample(max_age={"seconds": 0})(rng, epoch), OPEN),
    "sample of a newer version": ("SampleGroups", lambda rng, epoch: _sample()(rng, epoch) + _NEWER, OPEN),
    "sample count": ("SampleGroups", _sample_one("count", 0, 65, 2**32 - 1), FIELD),
    "sample dataset": ("SampleGroups", _sample_one("datasets", *((name,) for name in _BAD_NAMES)), FIELD),
    "sample long dataset": ("SampleGroups", _sample(datasets=("a" * 65,)), TOO_LARGE),
    "sample 129 datasets": ("SampleGroups", _sample(datasets=("a",) * 129), TOO_LARGE),
    "sample excluded": ("SampleGroups", _sample_one("excluded_publishers", *((n,) for n in _BAD_NODES)), FIELD),
    "sample 257 excluded": ("SampleGroups", _sample(excluded_publishers=(_NODE,) * 257), TOO_LARGE),
    "sample negative age": (
        "SampleGroups",
        lambda rng, epoch: _sample(max_age={"seconds": rng.choice((-1, -(2**63)))})(rng, epoch),
        FIELD,
    ),
    "list": (
        "ListGroups",
        lambda rng, epoch: _list(page_size=rng.choice((1, 50, 1000)), datasets=rng.choice(((), _KEYWORDS)))(rng, epoch),
        OPEN,
    ),
    "list from the start": ("ListGroups", _cursor((0,)), OPEN),
    "list page size": (
        "ListGroups",
        lambda rng, epoch: _list(page_size=rng.choice((0, 1001, 2**32 - 1)))(rng, epoch),
        FIELD,
    ),
    "list dataset": ("ListGroups", lambda rng, epoch: _list(datasets=(rng.choice(_BAD_NAMES),))(rng, epoch), FIELD),
    "list 129 datasets": ("ListGroups", _list(datasets=("a",) * 129), TOO_LARGE),
    "cursor of another epoch": (
        "ListGroups",
        _cursor((0, 1, 2**63 - 1), ("", "gone", "e" * 64, "\x1b[2J")),
        WireReason.UNKNOWN_CURSOR,
    ),
    "cursor beyond the end": ("ListGroups", _cursor((2**62, 2**63 - 1)), WireReason.UNKNOWN_CURSOR),
    "cursor sequence": ("ListGroups", _cursor((2**63, 2**64 - 1)), FIELD),
    "cursor long epoch": ("ListGroups", _cursor((0,), ("e" * 65,)), TOO_LARGE),
    "get": ("GetGroups", _get(32, 32, 32), OPEN),
    "get 64": ("GetGroups", _get(*[32] * 64), OPEN),
    "get nothing": ("GetGroups", _bare(b""), FIELD),
    "get id": ("GetGroups", lambda rng, epoch: _get(32, rng.choice((0, 31, 33, 5000)))(rng, epoch), FIELD),
    "get 65": ("GetGroups", _get(*[32] * 65), TOO_LARGE),
    "info": ("GetNodeInfo", _bare(b""), OPEN),
    "info of a newer version": ("GetNodeInfo", _bare(_NEWER), OPEN),
    "info of too many fields": ("GetNodeInfo", _bare(b"\xc8\x06\x01" * 2049), TOO_LARGE),
    "info cut off": ("GetNodeInfo", _bare(b"\x0a\x05abc"), MALFORMED),
    "publish nothing": ("PublishGroups", _bare(b""), FIELD),
    "publish 33": ("PublishGroups", _too_many(1, 33), TOO_LARGE),
    "publish no groups": ("PublishGroups", _too_many(1, 1, b"\xff"), MALFORMED),
    "33 peers": ("ExchangePeers", _too_many(1, 33), TOO_LARGE),
    "peers that are none": ("ExchangePeers", _too_many(1, 1, b"\xff"), MALFORMED),
    "a body too large": ("PublishGroups", _bare(bytes(4 * MIB + 1)), TOO_LARGE),
}
_SIMPLE_NAMES = [name for name in SIMPLE if name != "a body too large"]  # dear, and always the same


def simple_request(name: str, rng: random.Random, epoch: str) -> Request:
    """Returns a call without signed content, by its name in `SIMPLE`."""
    rpc, make, expected = SIMPLE[name]
    is_late = expected is WireReason.UNKNOWN_CURSOR
    return Request(rpc=rpc, name=name, body=make(rng, epoch), expected=expected, asked=1000, is_late=is_late)


def crafted_requests(fuzz: RequestFuzz, rng: random.Random, epoch: str, identity: Identity) -> Iterator[Request]:
    """Yields one request for everything that is broken on purpose: fields, payloads, envelopes, records, calls."""
    for case in wire_fuzz.crafted(rng, identity):
        yield replace(fuzz.publish([case]), name=case.name)
    for name in record_fuzz.RECORD_BREAKS:
        yield peers_request([record_fuzz.broken_record(name, rng, identity)])
    for name in record_fuzz.RECORD_ATTACKS:
        yield peers_request([record_fuzz.attacked_record(name, rng, identity)])
    for name in SIMPLE:
        yield simple_request(name, rng, epoch)
