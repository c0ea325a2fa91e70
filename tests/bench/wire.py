"""HTTP on a raw socket, for measuring: what a client adds to both sides is next to nothing."""

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from tests.bench import ours


_END: Final = b"\r\n0\r\n\r\n"
_READ_BYTES: Final = 1 << 18


@dataclass(frozen=True)
class Served:
    """Where an app listens, and the process that it runs in."""

    port: int
    pid: int


@dataclass(frozen=True)
class Read:
    """What came of a chunked reply: its beginning, how much, how many events, and when."""

    head: bytes
    size: int
    events: int
    seconds: float
    first_s: float
    """Seconds to the first byte of the body, or to the event that was waited for."""


@contextmanager
def connected(port: int) -> Iterator[socket.socket]:
    """Connect to a port of this machine."""
    with socket.create_connection(("127.0.0.1", port), 60) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield client


def request(method: str, target: str, body: bytes = b"") -> bytes:
    """Return a request, with the key of the bench."""
    head = (
        f"{method} {target} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        f"authorization: Bearer {ours.KEY}\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def exchange(client: socket.socket, asked: bytes) -> bytes:
    """Send a request and return the body of its reply, which tells its length."""
    client.sendall(asked)
    read = bytearray()
    while (end := read.find(b"\r\n\r\n")) < 0:
        read += _received(client)
    length = int(read[:end].lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
    while len(read) < end + 4 + length:
        read += _received(client)
    return bytes(read[end + 4 :])


def stream(client: socket.socket, asked: bytes, awaited: bytes = b"\r\n\r\n") -> Read:
    """Send a request and read its chunked reply, of which nothing is kept but the beginning."""
    begun = time.perf_counter()
    client.sendall(asked)
    head, tail, size, events, first_s = b"", b"", 0, 0, 0.0
    while not tail.endswith(_END):
        piece = _received(client)
        size += len(piece)
        joined = tail + piece
        events += joined.count(b"\nevent: ") - tail.count(b"\nevent: ")
        if not first_s:
            head += piece
            _, found, rest = head.partition(awaited)
            first_s = time.perf_counter() - begun if found and rest else 0.0
        tail = joined[-64:]
    return Read(head, size, events, time.perf_counter() - begun, first_s)


def _received(client: socket.socket) -> bytes:
    piece = client.recv(_READ_BYTES)
    if not piece:
        raise ConnectionError("the reply broke off")
    return piece
