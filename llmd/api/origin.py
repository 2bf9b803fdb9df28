"""Where a request comes from: loopback or not, proxies that are believed, Host and Origin.

In open mode everybody who reaches the port is an admin, so a web page must not be able to reach
it through the browser of somebody on this box: neither by naming this address (Origin) nor by
pointing a name of its own at it (DNS rebinding, seen in Host).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from typing import TypeAlias

from llmd.errors import ConfigError, PermissionDenied

Headers: TypeAlias = Sequence[tuple[bytes, bytes]]
_Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
_Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

_MAX_HOPS = 20
_DEFAULT_PORTS = {"http": 80, "https": 443}


def is_loopback(host: str) -> bool:
    """Tell whether `host`, an address or a name, can only mean this box."""
    name = host.strip("[]").rstrip(".").lower()
    if name in {"localhost", "ip6-localhost", "ip6-loopback"}:
        return True
    address = _address(name)
    return address is not None and address.is_loopback


def listen_allowed(host: str, *, has_keys: bool, allow_open: bool) -> None:
    """Refuse to serve the network without any key, unless the config says so.

    Raises:
        ConfigError: It would; the fault says what to do.
    """
    if not has_keys and not allow_open and not is_loopback(host):
        raise ConfigError(
            [
                f'server.host: "{host}" can be reached from other machines and there is no API '
                'key, so everybody would be an admin; add [[api_keys]] ("llmd init" makes one), '
                'listen on "127.0.0.1", or set auth.allow_open = true'
            ]
        )


class OpenModeGuard:
    """Keeps web pages away from a daemon without keys.

    Args:
        listen_host: `server.host`. On loopback, Host must name loopback and Origin must be on
            loopback; elsewhere the names of this box are unknown, any Host goes, and Origin must
            be the Host itself.
        cors_origins: Origins that are allowed besides; "*" allows all.
    """

    def __init__(self, listen_host: str, cors_origins: Iterable[str]) -> None:
        self._host = listen_host.strip("[]").rstrip(".").lower()
        self._loopback = is_loopback(listen_host)
        self._origins = frozenset(origin.lower() for origin in cors_origins)

    def check(self, headers: Headers) -> None:
        """Refuse a request that some other site may have made a browser send.

        Raises:
            PermissionDenied: Host or Origin is not ours.
        """
        host = origin = None
        for name, value in headers:
            if name == b"host":
                if host is not None:
                    raise PermissionDenied("More than one Host header was sent.")
                host = value
            elif name == b"origin":
                if origin is not None:
                    raise PermissionDenied("More than one Origin header was sent.")
                origin = value
        if host is not None and self._loopback and not self._is_ours(_split(host)[0]):
            raise PermissionDenied(
                "Without API keys llmd answers only to loopback names such as localhost in Host; "
                "add an API key to serve other names."
            )
        if origin is not None and not self._may_come_from(origin, host):
            raise PermissionDenied(
                "Without API keys llmd takes no requests from other web sites; add the site to "
                "server.cors_origins, or add an API key."
            )

    def _is_ours(self, name: str) -> bool:
        return name == self._host or is_loopback(name)

    def _may_come_from(self, origin: bytes, host: bytes | None) -> bool:
        text = origin.decode("latin-1").strip().lower()
        if "*" in self._origins or text in self._origins:
            return True
        scheme, colon, authority = text.partition("://")
        if not colon or scheme not in _DEFAULT_PORTS:
            return False  # "null" and what is no web page
        name, port = _split(authority.encode("latin-1"))
        if self._loopback:
            return self._is_ours(name)
        if host is None or not name:
            return False
        default = _DEFAULT_PORTS[scheme]
        host_name, host_port = _split(host)
        return (name, port or default) == (host_name, host_port or default)


class TrustedProxies:
    """The proxies in front of llmd, whose word about their clients is believed.

    Args:
        networks: `server.trusted_proxies`: addresses and networks, checked with the config.
    """

    def __init__(self, networks: Iterable[str]) -> None:
        self._networks: tuple[_Network, ...] = tuple(
            ipaddress.ip_network(network, strict=False) for network in networks
        )

    def client(self, peer: str, headers: Headers) -> str:
        """Return the client's address, for logs and anonymous limits only.

        It is the last address in X-Forwarded-For that is no trusted proxy's: everything before it
        may have been made up by the client.

        Args:
            peer: The other end of the connection; returned when it is no trusted proxy.
            headers: The request's, names in lower case.
        """
        if not self._networks or not self._trusts(_address(peer)):
            return peer
        chain = b",".join([value for name, value in headers if name == b"x-forwarded-for"])
        found = peer
        for hop in reversed(chain.decode("latin-1").split(",")[-_MAX_HOPS:]):
            address = _address(_without_port(hop.strip()))
            if address is None:
                break
            found = str(address)
            if not self._trusts(address):
                break
        return found

    def _trusts(self, address: _Address | None) -> bool:
        return address is not None and any(
            address.version == network.version and address in network for network in self._networks
        )


def address_group(address: str) -> str:
    """Return what counts as one client: an IPv4 address, or the /64 of an IPv6 one.

    Whoever has one IPv6 address has 2**64 of them.
    """
    if ":" not in address:
        return address
    parsed = _address(address)
    if parsed is None or parsed.version == 4:
        return str(parsed or address)
    return str(ipaddress.ip_network((int(parsed) >> 64 << 64, 64)))


def _address(text: str) -> _Address | None:
    """Read an address; an IPv4 one that came over an IPv6 socket is IPv4."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = getattr(address, "ipv4_mapped", None)
    return address if mapped is None else mapped


def _without_port(hop: str) -> str:
    if hop.startswith("["):
        return hop[1:].partition("]")[0]
    return hop.partition(":")[0] if hop.count(":") == 1 else hop


def _split(authority: bytes) -> tuple[str, int]:
    """Split a Host into name and port, 0 for none; ("", 0) for what is none."""
    text = authority.decode("latin-1").strip().lower()
    if text.startswith("["):
        name, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            return "", 0
        port = rest[1:]
    else:
        name, _, port = text.partition(":")
    if port and not (port.isascii() and port.isdigit() and len(port) <= 5):
        return "", 0
    return name.rstrip("."), int(port or 0)
