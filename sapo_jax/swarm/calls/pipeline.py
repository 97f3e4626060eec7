"""The way of one call through the server, from the outside in, each stage wrapping the next.

    error mapping -> request id and log -> metrics -> deadline -> rate and concurrency -> token -> handler

A caller's body is read only after everything before the handler has agreed: until then it waits in
the transport, whose window bounds it. Nothing that any stage raises leaves with its own text unless
it is one of our own errors.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# grpc is partly typed.

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeVar, cast

import grpc

from sapo_jax.swarm.calls.quota import BucketTable
from sapo_jax.swarm.calls.server_metrics import ServerMetrics
from sapo_jax.swarm.calls.service_error import ServiceError
from sapo_jax.swarm.calls.slots import CallSlots
from sapo_jax.swarm.calls.status_codes import DETAIL_KEY, failure_of
from sapo_jax.swarm.calls.trust import TOKEN_HEADER, Trust
from sapo_jax.swarm.calls.turns import Turns
from sapo_jax.swarm.wire.addresses import host_of_caller, prefix_of
from sapo_jax.swarm.wire.codec_parts import error_detail_to_message
from sapo_jax.swarm.wire.errors import WireError, WireReason
from sapo_jax.swarm.wire.printable import printable

logger = logging.getLogger(__name__)

_T = TypeVar("_T")
_NO_TIMEOUT = contextlib.nullcontext()

# A caller that uses the longest deadline may arrive with a little more: it is rounded up on the way.
DEADLINE_SLACK_S = 0.5
MAX_STREAMS = 16  # watchers of health and users of reflection together; they may stay for long
BODY_S = 5.0  # for a request's body to arrive once we read it
_LOGGED_REFUSALS_PER_S, _LOGGED_REFUSALS_BURST = 0.1, 5.0  # of one address prefix


@dataclass(frozen=True, kw_only=True, slots=True)
class Rpc:
    """One thing that can be called.

    Attributes:
        name: for metrics and logs.
        answer: request bytes and the caller's address prefix to response bytes; raises ServiceError or WireError.
        max_deadline_s: the longest deadline that is accepted; None: the call is refused before its deadline matters.
        needs_token: False for what anybody may ask, such as health.
    """

    name: str
    answer: Callable[[bytes, str], bytes]
    max_deadline_s: float | None
    needs_token: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamRpc:
    """A call with a stream of answers: health's Watch, and reflection.

    Attributes:
        name: for metrics and logs.
        answer: request bytes to response bytes, one after the other; raises ServiceError or WireError.
        needs_token: False for what anybody may ask.
    """

    name: str
    answer: Callable[[AsyncIterator[bytes]], AsyncIterator[bytes]]
    needs_token: bool = True


def refusing(name: str, reason: WireReason, text: str) -> Rpc:
    """Returns an RPC that fails the same way whatever is sent."""

    def refuse(body: bytes, prefix: str) -> bytes:
        raise ServiceError(reason, text)

    return Rpc(name=name, answer=refuse, max_deadline_s=None, needs_token=False)


@dataclass(kw_only=True, slots=True)
class _Call:
    rpc: Rpc | StreamRpc
    context: grpc.aio.ServicerContext[Any, Any]
    tokens: list[str | bytes]
    connection: str
    prefix: str
    gave_way: bool = field(default=False)


class CallPipeline:
    """Owns what the stages of one server share; its loop is the only user."""

    def __init__(
        self,
        *,
        trust: Trust,
        slots: CallSlots,
        charge_call: Callable[[str], None],
        metrics: ServerMetrics,
        clock: Callable[[], float],
    ) -> None:
        """Joins the parts.

        Args:
            trust: checks tokens.
            slots: bounds the calls in progress.
            charge_call: charges one call to an address prefix; raises ServiceError.
            metrics: counts.
            clock: seconds, never goes back.
        """
        self._trust = trust
        self._slots = slots
        self._turns = Turns()
        self._charge_call = charge_call
        self._metrics = metrics
        self._clock = clock
        self._streams = 0
        self._log_budget = BucketTable(per_s=_LOGGED_REFUSALS_PER_S, burst=_LOGGED_REFUSALS_BURST, clock=clock)

    async def run(
        self, rpc: Rpc, metadata: Iterable[tuple[str, str | bytes]], context: grpc.aio.ServicerContext[Any, Any]
    ) -> bytes:
        """Returns the response to a call, or ends it with a status. Outermost stage: error mapping."""
        call = _call(rpc, metadata, context)
        try:
            return await self._logged(call, lambda: self._measured(call, rpc))
        except Exception as error:
            await _abort(context, error)

    async def run_stream(
        self,
        rpc: StreamRpc,
        metadata: Iterable[tuple[str, str | bytes]],
        requests: AsyncIterator[bytes],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> None:
        """Writes the responses of a streaming call, or ends it with a status. Such calls need no deadline."""
        call = _call(rpc, metadata, context)
        try:
            await self._logged(call, lambda: self._streamed(call, rpc, requests))
        except Exception as error:
            await _abort(context, error)

    async def _logged(self, call: _Call, inner: Callable[[], Awaitable[_T]]) -> _T:
        """Stage: request id and log. A defect gets an id that the caller sees and the log explains."""
        try:
            return await inner()
        except (ServiceError, WireError) as error:
            if self._log_budget.wait_s(call.prefix, 1.0) == 0.0:
                self._log_budget.take(call.prefix, 1.0)
                logger.info("%s of %s refused: %s (%s)", call.rpc.name, call.connection, error.reason.value, error)
            raise
        except Exception as error:
            error_id = os.urandom(6).hex()
            text = printable("".join(traceback.format_exception(error)).replace("\n", " | "), 4096)
            logger.error("%s of %s failed, error id %s: %s", call.rpc.name, call.connection, error_id, text)
            raise _Defect(error_id) from error

    async def _measured(self, call: _Call, rpc: Rpc) -> bytes:
        """Stage: metrics."""
        start_s = self._clock()
        code = "CANCELLED"
        try:
            response = await self._timed(call, rpc)
            code = "OK"
            self._metrics.count_bytes(sent=len(response))
            return response
        except Exception as error:
            code = failure_of(error, "").code.name
            raise
        finally:
            self._metrics.count_call(rpc.name, code, self._clock() - start_s)

    async def _timed(self, call: _Call, rpc: Rpc) -> bytes:
        """Stage: deadline. A call without one could wait for ever, so it is refused."""
        most_s = rpc.max_deadline_s
        if most_s is not None:
            remaining_s = cast(float | None, call.context.time_remaining())  # None: no deadline
            if remaining_s is None:
                raise ServiceError(WireReason.NO_DEADLINE, f"a deadline of at most {most_s:g} s is required")
            if remaining_s > most_s + DEADLINE_SLACK_S:
                raise ServiceError(WireReason.NO_DEADLINE, f"the deadline must be at most {most_s:g} s")
        return await self._admitted(call, rpc)

    async def _admitted(self, call: _Call, rpc: Rpc) -> bytes:
        """Stage: rate and concurrency."""
        self._turns.arrive()
        self._charge_call(call.prefix)
        task = asyncio.current_task()
        assert task is not None  # we are in a coroutine

        def give_way() -> None:
            call.gave_way = True
            task.cancel()

        slot = self._slots.enter(call.connection, call.prefix, give_way)

        def leave(_: object, /) -> None:
            self._slots.leave(slot)

        # The place is free when the answer has left, not when it is made: a caller may be slow to read.
        call.context.add_done_callback(cast(Any, leave))  # its type in the stubs is one nothing fits
        try:
            return await self._authenticated(call, rpc)
        except asyncio.CancelledError:
            if not call.gave_way:
                raise  # the caller is gone
            task.uncancel()
            raise ServiceError(
                WireReason.CONCURRENCY,
                "the call was slow and gave way to others",
                limit="calls at a time",
                retry_after_s=1.0,
            ) from None

    async def _authenticated(self, call: _Call, rpc: Rpc) -> bytes:
        """Stage: token."""
        if rpc.needs_token:
            self._trust.authenticate(call.tokens)
        return await self._handled(call, rpc)

    async def _handled(self, call: _Call, rpc: Rpc) -> bytes:
        """Innermost: reads the body, answers."""
        if rpc.max_deadline_s is None:
            return rpc.answer(b"", call.prefix)
        try:
            # A deadline that is nearer ends the call just as well, without a timer.
            async with asyncio.timeout(BODY_S) if call.context.time_remaining() > BODY_S else _NO_TIMEOUT:
                body = await call.context.read()
        except TimeoutError:
            raise ServiceError(WireReason.TIMEOUT, f"the request did not arrive within {BODY_S:g} s") from None
        if not isinstance(body, bytes):
            # Nothing was sent, or the transport has refused it for its size and has told the caller so.
            raise ServiceError(WireReason.MALFORMED, "a request is required, and its size must be within the limit")
        self._metrics.count_bytes(received=len(body))
        return await self._turns.take(lambda: rpc.answer(body, call.prefix), len(body))

    async def _streamed(self, call: _Call, rpc: StreamRpc, requests: AsyncIterator[bytes]) -> None:
        """The same stages for a stream, which has a place of its own kind."""
        start_s = self._clock()
        code = "CANCELLED"
        self._streams += 1
        try:
            self._charge_call(call.prefix)
            if self._streams > MAX_STREAMS:
                limit = f"streams at a time, {MAX_STREAMS}"
                raise ServiceError(WireReason.CONCURRENCY, f"too many {limit}", limit=limit, retry_after_s=10.0)
            if rpc.needs_token:
                self._trust.authenticate(call.tokens)
            async for response in rpc.answer(requests):
                await call.context.write(response)
                self._metrics.count_bytes(sent=len(response))
            code = "OK"
        except Exception as error:
            code = failure_of(error, "").code.name
            raise
        finally:
            self._streams -= 1
            self._metrics.count_call(rpc.name, code, self._clock() - start_s)


def _call(
    rpc: Rpc | StreamRpc, metadata: Iterable[tuple[str, str | bytes]], context: grpc.aio.ServicerContext[Any, Any]
) -> _Call:
    peer = context.peer()
    return _Call(
        rpc=rpc,
        context=context,
        tokens=[value for key, value in metadata if key == TOKEN_HEADER],
        connection=peer,
        prefix=prefix_of(host_of_caller(peer)),
    )


async def _abort(context: grpc.aio.ServicerContext[Any, Any], error: Exception) -> NoReturn:
    """Ends a call with the status of `error`: the one place where a failure leaves the server."""
    failure = failure_of(error, error.error_id if isinstance(error, _Defect) else "")
    detail = error_detail_to_message(failure.detail).SerializeToString()
    try:
        await context.abort(failure.code, failure.text, ((DETAIL_KEY, detail),))
    except grpc.aio.InternalError as gone:  # the caller has vanished, which grpc would log as a defect of ours
        raise asyncio.CancelledError from gone


class _Defect(Exception):
    """An error that is ours; its text is for the log only."""

    def __init__(self, error_id: str) -> None:
        super().__init__(f"error id {error_id}")
        self.error_id = error_id
