"""The host of a process group: the leader's calls are made again by every follower.

A computation on a mesh of several processes runs only if all of them call it, in the same order and
with the same arguments. `LeadingHost` has the interface of `Host` and tells the followers of each
call before it makes it; `follow` makes the calls that it is told of. What a checkpoint holds is
gathered in the leader, one array at a time, and dealt out again, so only the leader needs a disk and
its checkpoints are those of any host; its memory holds a copy of all arrays meanwhile.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from sapo_jax.host import Host
from sapo_jax.process_group import ProcessGroup
from sapo_jax.process_link import Message
from sapo_jax.process_start import GroupError
from sapo_jax.signals import StopRequest

# Methods of Host that compute on the devices. `params_of` and the arrays of a checkpoint have ways of their own.
MIRRORED = ("sample", "start_sample", "update", "start_update", "supervise", "begin")

_Box = tuple[tuple[int, int], ...]  # start and stop along every dimension of an array


class GroupHost(Host):
    """A host whose arrays lie in several processes, each of which makes the same calls."""

    def __init__(self, group: ProcessGroup, *args: Any, **kwargs: Any) -> None:
        """Takes what `Host` takes, after the group."""
        self._group = group
        super().__init__(*args, **kwargs)

    def release_arrays(self) -> dict[str, Any]:
        """Frees `arrays` and returns their shapes, dtypes and shardings, which are kept as `shapes`."""
        self.shapes = super().release_arrays()
        return self.shapes

    def _put(self, arrays: Any, shardings: Any, *, may_alias: bool | None = None) -> Any:
        # jax.device_put would compare the arrays of all processes, which the group has no need of.
        del may_alias  # always a copy
        if isinstance(shardings, Sharding):
            return jax.tree.map(lambda x: _spread(np.asarray(x), shardings), arrays)
        return jax.tree.map(lambda x, place: _spread(np.asarray(x), place), arrays, shardings)

    def _results_sharding(self) -> NamedSharding:
        return NamedSharding(self._mesh, PartitionSpec())  # the leader reads all of it


class LeadingHost(GroupHost):
    """The leader's host, for whoever knows `Host`."""

    def __init__(self, group: ProcessGroup, config: Any, model: Any, params: Any, **kwargs: Any) -> None:
        """Makes every follower build its host too."""
        self._calling = threading.RLock()  # followers make the calls in the order in which they are told
        self._depth = 0
        settings = {"compute_dtype": np.dtype(kwargs["dtype"]).name, "per_program": kwargs["nodes_per_program"]}
        group.broadcast("build", settings | {"weights": weights_digest(params)})
        super().__init__(group, config, model, params, **kwargs)

    @property
    def arrays(self) -> dict[str, Any]:
        """Everything on the devices that a resumed run needs, as numpy arrays of this process."""
        with self._telling("gather") as is_outermost:
            arrays = super().arrays
            return _gather(self._group, arrays) if is_outermost else arrays

    def release_arrays(self) -> dict[str, Any]:
        """Frees `arrays` and returns numpy arrays of their shapes and dtypes that take no memory."""
        with self._telling("call", ("release_arrays", (), {})):
            shapes = super().release_arrays()
        return jax.tree.map(lambda x: np.broadcast_to(np.zeros((), x.dtype), x.shape), shapes)

    def load_arrays(self, arrays: dict[str, Any]) -> None:
        """Takes over numpy arrays of the structure of `arrays`, after `release_arrays`."""
        with self._telling("deal"):
            super().load_arrays(_deal(self._group, arrays, self.shapes))

    def params_of(self, node: int) -> Any:
        """Returns the parameters of one node, without node axis, as numpy arrays."""
        program, row = divmod(node, self._per_program)
        return jax.tree.map(lambda x: x[row], self.arrays["states"][program]["params"])

    def _read(self, results: Any) -> Any:
        with _patience():
            return super()._read(results)

    @contextlib.contextmanager
    def _telling(self, kind: str, content: Any = None) -> Iterator[bool]:
        """Tells the followers of a call, unless it is part of one; yields whether they were told."""
        with self._calling:
            is_outermost = self._depth == 0
            if is_outermost:
                self._group.broadcast(kind, content)
            self._depth += 1
            try:
                with _patience():
                    yield is_outermost
            finally:
                self._depth -= 1


@contextlib.contextmanager
def _patience() -> Iterator[None]:
    """Holds errors of the devices up: a process that died shows there first; who watches it ends this one clearly."""
    try:
        yield
    except jax.errors.JaxRuntimeError:
        time.sleep(1.0)
        raise


def _mirrored(name: str) -> Callable[..., Any]:
    """Returns the method of `Host` called `name`, made by all processes."""
    method = getattr(Host, name)

    @functools.wraps(method)
    def call(self: LeadingHost, *args: Any, **kwargs: Any) -> Any:
        with self._telling("call", (name, args, kwargs)):
            return method(self, *args, **kwargs)

    return call


for _name in MIRRORED:
    setattr(LeadingHost, _name, _mirrored(_name))


def follow(group: ProcessGroup, build: Callable[..., Host], announce: Callable[[str], None] = print) -> None:
    """Makes the leader's calls until it ends.

    Args:
        build: returns a host; takes compute dtype, `per_program`, and `kind`, which makes it.
        announce: told about a request to stop, which is passed on to the leader.

    Raises:
        GroupError: the leader failed, or its weights are others.
    """

    def pass_on(message: str) -> None:
        announce(message)
        group.send(0, "stop")

    host: Host | None = None
    with StopRequest(pass_on):
        while (message := group.receive(0)).kind != "end":
            if message.kind == "build":
                host = build(
                    message.content["compute_dtype"],
                    per_program=message.content["per_program"],
                    kind=functools.partial(_following_host, group, message.content["weights"]),
                )
            else:
                assert host is not None, "the leader calls a host that it has not built"
                _answer(group, host, message)
    if message.content:
        raise GroupError(f"process 0 of the group ended: {message.content}")


def weights_digest(params: Any) -> int:
    """Returns a checksum of numpy parameters."""
    digest = 0
    for leaf in jax.tree.leaves(params):
        digest = zlib.crc32(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data, digest)
    return digest


def _following_host(group: ProcessGroup, weights: int, config: Any, model: Any, params: Any, **kwargs: Any) -> Host:
    if weights_digest(params) != weights:
        raise GroupError(f"config.model.source = {config.model.source!r}: other weights here than in process 0")
    return GroupHost(group, config, model, params, **kwargs)


def _answer(group: ProcessGroup, host: Host, message: Message) -> None:
    if message.kind == "call":
        name, args, kwargs = message.content
        getattr(host, name)(*args, **kwargs)
    elif message.kind == "gather":
        host.busy_s()  # its clock forgets what it added up; the arrays are waited for in any case
        for leaf in jax.tree.leaves(host.arrays):
            group.send(0, "pieces", _pieces(leaf))
    else:
        assert message.kind == "deal" and isinstance(host, GroupHost)
        host.load_arrays(jax.tree.map(lambda shape: _from_pieces(shape, _receive_pieces(group, 0)), host.shapes))


def _gather(group: ProcessGroup, arrays: Any) -> Any:
    """Returns the whole of every array, of which each process holds a part."""

    def whole(leaf: jax.Array) -> np.ndarray:
        gathered = np.empty(leaf.shape, leaf.dtype)
        parts = [_pieces(leaf), *(_receive_pieces(group, index) for index in group.followers)]
        for box, piece in (item for part in parts for item in part.items()):
            gathered[_slices(box)] = piece
        return gathered

    return jax.tree.map(whole, arrays)


def _deal(group: ProcessGroup, arrays: Any, shapes: Any) -> Any:
    """Returns `arrays` on the devices of this process, having sent every follower what belongs on its own."""

    def spread(leaf: np.ndarray, shape: jax.ShapeDtypeStruct) -> jax.Array:
        places: dict[int, dict[_Box, np.ndarray]] = {index: {} for index in group.followers}
        for device, slices in shape.sharding.devices_indices_map(leaf.shape).items():
            if device.process_index in places:
                box = _box(slices, leaf.shape)
                places[device.process_index][box] = leaf[_slices(box)]
        for index, pieces in places.items():
            group.send(index, "pieces", pieces)
        return _spread(leaf, shape.sharding)

    return jax.tree.map(spread, arrays, shapes)


def _pieces(leaf: jax.Array) -> dict[_Box, np.ndarray]:
    """Returns what this process holds of an array; of copies, the group sends one."""
    shards = [shard for shard in leaf.addressable_shards if shard.replica_id == 0]
    return {_box(shard.index, leaf.shape): np.asarray(shard.data) for shard in shards}


def _receive_pieces(group: ProcessGroup, index: int) -> dict[_Box, np.ndarray]:
    message = group.receive(index)
    if message.kind != "pieces":
        raise GroupError(f"process {index} of the group ended: {message.content}")
    return message.content


def _from_pieces(shape: jax.ShapeDtypeStruct, pieces: dict[_Box, np.ndarray]) -> jax.Array:
    return jax.make_array_from_callback(shape.shape, shape.sharding, lambda index: pieces[_box(index, shape.shape)])


def _spread(array: np.ndarray, sharding: Sharding) -> jax.Array:
    """Returns `array`, which all processes have, on the devices of `sharding`."""
    return jax.make_array_from_callback(array.shape, sharding, lambda index: np.array(array[index]))


def _box(slices: Any, shape: tuple[int, ...]) -> _Box:
    return tuple(piece.indices(size)[:2] for piece, size in zip(slices, shape, strict=True))


def _slices(box: _Box) -> tuple[slice, ...]:
    return tuple(slice(*ends) for ends in box)
