"""Several processes that form one mesh: who they are, and the connections between them.

The first process, the leader, runs everything of a host; the others, its followers, hold their part
of the arrays and make the leader's device calls again (`mirrored_host.py`). jax joins the devices.
Beside it there is one connection from each follower to the leader, over which calls go down and
arrays go both ways; each end watches it in a thread, so that no process outlives the group. Neither
jax's service nor these connections are encrypted: a process group belongs on a private network.
"""

from __future__ import annotations

import atexit
import collections
import contextlib
import hashlib
import importlib.metadata
import os
import pickle
import queue
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

import sapo_jax
from sapo_jax.config import ConfigError, SapoConfig, from_config_dict, to_dict
from sapo_jax.errors import first_line
from sapo_jax.process_link import SECRET_BYTES, Link, Message, frame, listen, own_address, welcome
from sapo_jax.process_start import END_TIMEOUT_S, START_TIMEOUT_S, GroupError
from sapo_jax.workdir import config_differences

_GREETING_BYTES = 256  # of what the leader tells all: its address and a secret


class ProcessGroup:
    """This process among those of its group, between `initialize` and the end; a context manager."""

    def __init__(self, config: SapoConfig, host: str = "") -> None:
        """Connects leader and followers.

        Args:
            config: must be the same in all processes, and so must be the code.
            host: an address of the leader's machine; empty: of the interface to its default route.

        Raises:
            ConfigError: the mesh does not reach every process.
            GroupError: another configuration or version, or a process that did not connect.
        """
        self.index, self.count = jax.process_index(), jax.process_count()
        self._ending = threading.Event()
        self._on_stop: Callable[[], None] | None = None
        self._stop_asked = threading.Event()
        self._links: dict[int, Link] = {}
        self._inboxes: dict[int, queue.SimpleQueue[Message]] = collections.defaultdict(queue.SimpleQueue)
        _check_mesh(config)
        if self.leads:
            self._listen(config, host)
        else:
            self._dial(config)
        for index, link in self._links.items():
            threading.Thread(target=self._watch, args=(index, link), daemon=True, name=f"process {index}").start()

    @property
    def leads(self) -> bool:
        """Whether this is process 0, which runs the host."""
        return self.index == 0

    @property
    def followers(self) -> tuple[int, ...]:
        """The indices of all processes but the leader."""
        return tuple(range(1, self.count))

    def on_stop(self, ask: Callable[[], None]) -> None:
        """Calls `ask` whenever a follower is asked to stop, in a thread, and now if one was before."""
        self._on_stop = ask
        if self._stop_asked.is_set():
            ask()

    def send(self, index: int, kind: str, content: Any = None) -> None:
        """Sends a message to process `index`; a follower knows only the leader."""
        try:
            self._links[index].send(Message(kind, content))
        except OSError as error:
            raise GroupError(f"process {index} of the group is gone: {first_line(error)}") from error

    def broadcast(self, kind: str, content: Any = None) -> None:
        """Sends a message to every follower."""
        content_frame = frame(Message(kind, content))
        for index in self.followers:
            try:
                self._links[index].send_frame(content_frame)
            except OSError as error:
                raise GroupError(f"process {index} of the group is gone: {first_line(error)}") from error

    def receive(self, index: int) -> Message:
        """Returns the next message of process `index`, waiting for it."""
        return self._inboxes[index].get()

    def __enter__(self) -> ProcessGroup:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the group: followers are told, the leader is told what failed."""
        ended = self._ending.is_set()
        self._ending.set()
        failure = "" if kind is None else first_line(value)
        if self.leads or (failure and not ended):
            for link in self._links.values():
                with contextlib.suppress(OSError):  # it is gone, which its machine says better than we could
                    link.send(Message("end" if self.leads else "failed", failure))
            if not self.leads:
                atexit.register(_leave_at_once)  # jax would take leave of a leader that is gone by then
        if not failure:
            jax.distributed.shutdown()  # waits for the others, so that none sees another vanish
        for link in self._links.values():
            link.close()

    def _listen(self, config: SapoConfig, host: str) -> None:
        secret = secrets.token_bytes(SECRET_BYTES)
        with listen(host) as server:
            address = pickle.dumps((host or own_address(), server.getsockname()[1], secret))
            multihost_utils.broadcast_one_to_all(np.frombuffer(address.ljust(_GREETING_BYTES, b"\0"), np.uint8))
            deadline = time.monotonic() + START_TIMEOUT_S
            while len(self._links) < self.count - 1:
                server.settimeout(max(deadline - time.monotonic(), 0.001))  # 0 would mean: do not wait at all
                try:
                    connection = server.accept()[0]
                except TimeoutError as error:
                    missing = sorted(set(self.followers) - set(self._links))
                    raise GroupError(f"processes {missing} of the group did not connect to process 0") from error
                if (link := welcome(connection, secret)) is None:
                    continue
                hello = _hello(link)
                self._links[hello["index"]] = link
                if problem := _mismatch(hello, config):
                    self._refuse(f"process {hello['index']} {problem}")
        for link in self._links.values():
            link.send(Message("welcome"))

    def _refuse(self, problem: str) -> NoReturn:
        for link in self._links.values():
            link.send(Message("refused", problem))
        raise GroupError(problem)

    def _dial(self, config: SapoConfig) -> None:
        greeting = multihost_utils.broadcast_one_to_all(np.zeros(_GREETING_BYTES, np.uint8))
        host, port, secret = pickle.loads(np.asarray(greeting, np.uint8).tobytes())
        try:
            connection = socket.create_connection((host, port), timeout=START_TIMEOUT_S)
            connection.settimeout(None)
            link = Link(connection)
            link.send_bytes(secret)
            link.send(Message("hello", _introduction(self.index, config)))
            answer = link.receive()
        except (OSError, EOFError) as error:
            raise GroupError(f"process 0 of the group does not answer at {host}:{port}: {first_line(error)}") from error
        if answer.kind != "welcome":
            raise GroupError(str(answer.content))
        self._links[0] = link

    def _watch(self, index: int, link: Link) -> None:
        """Sorts what process `index` sends, and ends this process when that one ends too early."""
        while True:
            try:
                message = link.receive()
            except (OSError, EOFError):
                if not self._ending.is_set():
                    _end_now(f"process {index} of the group is gone; {_ADVICE}")
                return
            if message.kind == "stop":
                self._stop_asked.set()
                if self._on_stop is not None:
                    self._on_stop()
            elif message.kind == "failed" and not self._ending.is_set():
                _end_now(f"process {index} of the group failed: {message.content}; {_ADVICE}")
            elif message.kind == "end":
                self._ending.set()
                self._inboxes[index].put(message)
                if message.content:  # the main thread may be in a computation that others do not take part in
                    line = f"process 0 of the group ended: {message.content}"
                    patience = threading.Timer(END_TIMEOUT_S, _end_now, (line,))
                    patience.daemon = True
                    patience.start()
                return
            else:
                self._inboxes[index].put(message)


_ADVICE = "the same command in every process resumes from the last checkpoint"


def _check_mesh(config: SapoConfig) -> None:
    """Raises ConfigError unless every process has a device in the mesh; all processes find the same."""
    host = config.host
    needed = host.mesh_node * host.mesh_data * host.mesh_fsdp * host.mesh_tensor
    reached = {device.process_index for device in jax.devices()[:needed]}
    if len(reached) < jax.process_count():
        raise ConfigError(
            f"config.host.mesh_node * mesh_data * mesh_fsdp * mesh_tensor = {needed}: reaches {len(reached)} of the "
            f"{jax.process_count()} processes, which have {len(jax.devices())} devices together"
        )


def _hello(link: Link) -> dict[str, Any]:
    try:
        return link.receive().content
    except (OSError, EOFError) as error:
        raise GroupError(f"a process of the group is gone before it said which: {first_line(error)}") from error


def _introduction(index: int, config: SapoConfig) -> dict[str, Any]:
    versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib")}
    return {"index": index, "config": to_dict(config), "code": _code_digest(), "versions": versions}


def _mismatch(hello: dict[str, Any], config: SapoConfig) -> str:
    """Returns what a follower has otherwise than this process, empty if nothing."""
    own = _introduction(0, config)
    if hello["code"] != own["code"] or hello["versions"] != own["versions"]:
        return (
            f"runs other code than process 0: sapo_jax {hello['code']} with {hello['versions']} there, "
            f"{own['code']} with {own['versions']} here"
        )
    different = config_differences(from_config_dict(hello["config"]), config)
    lines = [f"config.{key} = {theirs!r} there, {ours!r} in process 0" for key, (theirs, ours) in different.items()]
    return f"has another configuration: {'; '.join(lines)}" if lines else ""


def _code_digest() -> str:
    """Returns the version of this package with a digest of its files, which a checkout between releases needs."""
    root = Path(sapo_jax.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return f"{sapo_jax.__version__} ({digest.hexdigest()[:12]})"


def _end_now(line: str) -> NoReturn:
    """Ends the process from any thread with one line; what the main thread waits for may never come."""
    print(f"error: {line}", file=sys.stderr, flush=True)
    os._exit(1)


def _leave_at_once() -> NoReturn:
    """Ends a process that has said why, without what is left to do at its exit."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
