"""A connection between two processes of one group: whole messages, and a secret that keeps strangers out.

Messages are pickles, so they are read only from who has shown the group's secret.
"""

from __future__ import annotations

import hmac
import pickle
import socket
import struct
import threading
from typing import Any, NamedTuple

SECRET_BYTES = 32
GREETING_TIMEOUT_S = 10.0  # for whoever connects to show that it belongs to the group


class Message(NamedTuple):
    """What goes over a connection: what it is, and its content."""

    kind: str
    content: Any = None


class Link:
    """A connection that carries whole messages; any thread may send, one may receive."""

    def __init__(self, connection: socket.socket) -> None:
        """Takes over an open connection; close it after use."""
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._connection = connection
        self._sending = threading.Lock()

    def send(self, message: Message) -> None:
        """Sends a message; raises OSError where nobody listens any more, like the methods below."""
        self.send_frame(frame(message))

    def send_frame(self, frame: bytes) -> None:
        """Sends what `frame` made of a message."""
        with self._sending:
            self._connection.sendall(struct.pack("!Q", len(frame)))
            self._connection.sendall(frame)

    def send_bytes(self, content: bytes) -> None:
        """Sends bytes as they are."""
        self._connection.sendall(content)

    def receive(self) -> Message:
        """Returns the next message; raises EOFError where there will be none, like the method below."""
        (length,) = struct.unpack("!Q", self.receive_bytes(8))
        return pickle.loads(self.receive_bytes(length))

    def receive_bytes(self, length: int) -> bytearray:
        """Returns the next `length` bytes."""
        content = bytearray(length)
        view, done = memoryview(content), 0
        while done < length:
            count = self._connection.recv_into(view[done:])
            if not count:
                raise EOFError("the connection was closed")
            done += count
        return content

    def close(self) -> None:
        """Ends the connection, for both sides."""
        self._connection.close()


def frame(message: Message) -> bytes:
    """Returns a message as `Link.send_frame` sends it, to be sent to several."""
    return pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)


def welcome(connection: socket.socket, secret: bytes) -> Link | None:
    """Returns the connection of a process of this group, None if it is a stranger's, which is closed."""
    connection.settimeout(GREETING_TIMEOUT_S)
    link = Link(connection)
    try:
        if hmac.compare_digest(link.receive_bytes(SECRET_BYTES), secret):
            connection.settimeout(None)
            return link
    except (OSError, EOFError):
        pass
    link.close()
    return None


def listen(host: str) -> socket.socket:
    """Returns a server on a free port: for this machine alone if `host` is of the loopback, else on all interfaces."""
    if host == "localhost" or host.startswith("127."):
        return socket.create_server((host, 0))
    if host == "::1":
        return socket.create_server((host, 0), family=socket.AF_INET6)
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))


def own_address() -> str:
    """Returns the address of the interface to the default route, this host's name where there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("10.255.255.255", 1))  # sends nothing
            return probe.getsockname()[0]
        except OSError:
            return socket.gethostname()
