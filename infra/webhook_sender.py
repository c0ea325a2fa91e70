"""One HTTP POST to where a webhook may go: to the very address that was checked, within a time limit.

Over asyncio's own connections, since these are made to an address (so that a name cannot resolve to
another one after the check), end when time is up, and take no thread from the store. A redirect is
not followed, no proxy of the environment is asked, and of the reply the status is all that is read.
"""

import asyncio
import re
import socket
import ssl
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Final, TypeAlias

from infra.webhook_targets import Target, TargetRefusedError, literal, parse_target, require_public


CONNECT_S: Final = 3.0
WHOLE_S: Final = 10.0

_MAX_LINE_BYTES: Final = 8192
_MAX_LINES: Final = 64
_LOOKUPS: Final = 16
_CLOSE_S: Final = 1.0
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.[01] ([1-9][0-9]{2})(?: |\r?\n)")
_INTERIM: Final = frozenset({100, *range(102, 200)})

Resolve: TypeAlias = Callable[[str, int], Sequence[str]]
"""Returns the addresses of a host; it may block, and raises `OSError`."""


class NoReplyError(ConnectionError):
    """What came back is no HTTP, or nothing came before the connection was closed."""


def resolve(host: str, port: int) -> list[str]:
    """Return the addresses of a host by the operating system."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


class WebhookSender:
    """Posts to public addresses by https, or, with `allow_private`, to any by http too."""

    def __init__(
        self,
        *,
        allow_private: bool = False,
        connect_s: float = CONNECT_S,
        whole_s: float = WHOLE_S,
        resolve: Resolve = resolve,
        make_tls: Callable[[], ssl.SSLContext] = ssl.create_default_context,
    ) -> None:
        """Take the limits: seconds to look up, connect and agree on TLS; and for all of a request."""
        self._allow_private = allow_private
        self._connect_s = connect_s
        self._whole_s = whole_s
        self._resolve = resolve
        self._make_tls = make_tls
        self._tls: ssl.SSLContext | None = None
        # Threads of its own: a name server that does not answer would hold those of the store.
        self._threads = ThreadPoolExecutor(_LOOKUPS, thread_name_prefix="webhook-lookup")
        self._lookups: dict[str, Future[Sequence[str]]] = {}

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> int:
        """Post, and return the HTTP status.

        Raises `TargetRefusedError` where nothing may be sent there, and `OSError` (`TimeoutError`,
        `ConnectionError`, `ssl.SSLError`, …) where no status came back.
        """
        target = parse_target(url, allow_private=self._allow_private)
        async with asyncio.timeout(self._whole_s):
            async with asyncio.timeout(self._connect_s):
                reader, writer = await self._connect(target, await self._addresses(target))
            try:
                writer.write(_head(target, headers, len(body)) + body)
                await writer.drain()
                return await _read_status(reader)
            finally:
                await _drop(writer)

    async def _addresses(self, target: Target) -> Sequence[str]:
        """Return the addresses of the host, all of them checked."""
        found = [target.host] if literal(target.host) else await self._look_up(target)
        addresses = [literal(address) for address in found]
        for address in addresses:
            if address is None:
                raise TargetRefusedError("The host has an address that cannot be read.")
            if not self._allow_private:
                require_public(address)
        return [str(address) for address in addresses]

    async def _look_up(self, target: Target) -> Sequence[str]:
        # One at a time for each host, or else a slow one would take all of the threads.
        lookup = self._lookups.get(target.host)
        if lookup is None:
            lookup = self._threads.submit(self._resolve, target.host, target.port)
            self._lookups[target.host] = lookup
            lookup.add_done_callback(lambda _: self._lookups.pop(target.host, None))
        return await asyncio.shield(asyncio.wrap_future(lookup))

    async def _connect(
        self, target: Target, addresses: Sequence[str]
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to the first address that can be reached; the certificate is that of the name."""
        failure: OSError = NoReplyError("The host has no address.")
        for address in addresses:
            try:
                return await asyncio.open_connection(
                    address,
                    target.port,
                    limit=_MAX_LINE_BYTES,
                    ssl=self._tls_context() if target.is_tls else None,
                    server_hostname=target.host if target.is_tls else None,
                    flags=socket.AI_NUMERICHOST,  # nothing is looked up again
                )
            except OSError as error:
                failure = error
        raise failure

    def _tls_context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = self._make_tls()
        return self._tls


def _head(target: Target, headers: Mapping[str, str], length: int) -> bytes:
    lines = [
        f"POST {target.target} HTTP/1.1",
        f"host: {target.authority}",
        "user-agent: lambda-responses",
        "content-type: application/json",
        f"content-length: {length}",
        "connection: close",
        *[f"{name}: {value}" for name, value in headers.items()],
    ]
    return "\r\n".join([*lines, "", ""]).encode("ascii")


async def _read_status(reader: asyncio.StreamReader) -> int:
    """Return the status of the final reply; those before it (100, 103) are passed over."""
    is_head = True
    for _ in range(_MAX_LINES):
        line = await _read_line(reader)
        if is_head:
            match = _STATUS_LINE.match(line)
            if match is None:
                raise NoReplyError("What came back is no HTTP.")
            status = int(match[1])
            if status not in _INTERIM:
                return status
        is_head = not line.strip()
    raise NoReplyError("The reply does not begin.")


async def _read_line(reader: asyncio.StreamReader) -> bytes:
    try:
        line = await reader.readline()
    except ValueError as error:
        raise NoReplyError("A line of the reply is too long.") from error
    if not line.endswith(b"\n"):
        raise NoReplyError("The connection was closed before a reply came.")
    return line


async def _drop(writer: asyncio.StreamWriter) -> None:
    """Close at once: there is nothing that the other side could still say, or be waited for."""
    writer.transport.abort()
    # How a connection ends that is not needed any more is nobody's concern.
    with suppress(OSError):
        async with asyncio.timeout(_CLOSE_S):
            await writer.wait_closed()
