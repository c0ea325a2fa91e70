"""Which URLs and addresses a webhook may go to (pure): the guard against requests into private networks."""

import re
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final, TypeAlias
from urllib.parse import urlsplit

from msgspec import Struct


MAX_URL_LENGTH: Final = 2048

IPAddress: TypeAlias = IPv4Address | IPv6Address

_MAX_HOST_LENGTH: Final = 253
_PORTS: Final = {"https": 443, "http": 80}
_PRINTABLE: Final = re.compile(r"[!-~]*")
_HOST_NAME: Final = re.compile(
    r"(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?)(?:\.(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?))*"
)

_GLOBAL_UNICAST: Final = IPv6Network("2000::/3")
_NAT64: Final = IPv6Network("64:ff9b::/96")  # RFC 6052; how an IPv6-only network reaches IPv4
_SPECIAL: Final = [
    # Of IANA's special-purpose registries, what `is_global` of some supported Python lets pass.
    ip_network("192.0.0.0/24"),
    ip_network("192.88.99.0/24"),
    ip_network("2001::/23"),  # Teredo is in it
    ip_network("3fff::/20"),
]


class TargetRefusedError(ValueError):
    """Nothing is sent there; the message says why, in words that the owner may read."""


class Target(Struct, frozen=True):
    """A URL in its parts; `target` is what is asked for: the path and the query."""

    is_tls: bool
    host: str
    port: int
    target: str

    @property
    def authority(self) -> str:
        """The value of the `Host` header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self._scheme] else f"{host}:{self.port}"

    @property
    def _scheme(self) -> str:
        return "https" if self.is_tls else "http"


def parse_target(url: str, *, allow_private: bool = False) -> Target:
    """Return the parts of a URL; raises `TargetRefusedError` where nothing may be sent to it.

    `allow_private` allows http and addresses that are not public, for local development.
    """
    if len(url) > MAX_URL_LENGTH:
        raise TargetRefusedError(f"A URL has at most {MAX_URL_LENGTH} characters.")
    if not _PRINTABLE.fullmatch(url) or "\\" in url:
        raise TargetRefusedError("A URL has printable ASCII characters only, and no backslash.")
    if "#" in url:
        raise TargetRefusedError("A URL to post to has no fragment (#…).")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise TargetRefusedError("This is not a URL with a host and a port.") from error
    if parts.scheme not in _PORTS or not (allow_private or parts.scheme == "https"):
        raise TargetRefusedError("A URL to post to begins with https://.")
    if "@" in parts.netloc:
        raise TargetRefusedError("A URL to post to holds no user and no password.")
    host = _host(parts.hostname or "")
    if port == 0:
        raise TargetRefusedError("A URL has a port from 1 to 65535.")
    address = literal(host)
    if address is not None and not allow_private:
        require_public(address)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(parts.scheme == "https", host, port or _PORTS[parts.scheme], target)


def _host(name: str) -> str:
    is_name = len(name) <= _MAX_HOST_LENGTH and _HOST_NAME.fullmatch(name)
    is_address = (
        literal(name) is not None and "%" not in name
    )  # %: an interface of the sender's own
    if not (is_name or is_address):
        raise TargetRefusedError("The host of a URL is a DNS name in ASCII, or an IP address.")
    return name


def literal(host: str) -> IPAddress | None:
    """Return the address that a host is written as, or None where it is a name."""
    try:
        return ip_address(host)
    except ValueError:
        return None


def require_public(address: IPAddress) -> None:
    """Raise `TargetRefusedError` for an address that is not of the public internet."""
    if not is_public(address):
        raise TargetRefusedError(f"{address} is not a public address.")


def is_public(address: IPAddress) -> bool:
    """Whether an address is of the public internet: no private, local, multicast or reserved one.

    An IPv6 address in which an IPv4 address is embedded is what that one is.
    """
    if isinstance(address, IPv6Address):
        embedded = _embedded(address)
        if embedded is not None:
            return is_public(embedded)
        if address not in _GLOBAL_UNICAST:
            return False
    if address.is_multicast or address.is_reserved or not address.is_global:
        return False
    return not any(address in network for network in _SPECIAL)


def _embedded(address: IPv6Address) -> IPv4Address | None:
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour
