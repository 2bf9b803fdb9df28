"""Who is calling, and what may they do: API keys by digest, and open mode where there is none.

Keys are only ever held as SHA-256 digests. A digest is looked up in a dictionary and then compared
in constant time; what the lookup's timing could tell of a digest is of no use to anyone who
cannot invert SHA-256.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal

from llmd.api.origin import Headers, OpenModeGuard, TrustedProxies, address_group, listen_allowed
from llmd.config import ApiKey, Config, RateLimit
from llmd.core.lifecycle import Priority
from llmd.core.ratelimit import Limits
from llmd.errors import InvalidApiKey, PermissionDenied

__all__ = [
    "ANONYMOUS",
    "CHALLENGE",
    "Authenticator",
    "Principal",
    "TrustedProxies",
    "listen_allowed",
    "may_use_model",
    "require_admin",
]

ANONYMOUS = "anonymous"
CHALLENGE = (b"www-authenticate", b'Bearer realm="llmd"')
"""The header that goes with every 401."""

_FREE_FAILURES = 5
_FIRST_DELAY_S = 0.1
_MAX_DELAY_S = 2.0
_FORGIVEN_S = 60.0
_MAX_ADDRESSES = 4096

_NO_KEY = (
    "You did not send an API key. Send it as Authorization: Bearer KEY, or in the header x-api-key."
)
_WRONG_KEY = "The API key is wrong, has expired or was revoked."
_TWO_KEYS = "Two different API keys were sent; send one, as Authorization: Bearer or x-api-key."


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller who was let in.

    Attributes:
        name: Name of the key; "anonymous" in open mode.
        account: By what limits, shares and concurrency are counted: the name, or in open mode
            with `rate_limit.anonymous` the client's address.
        user: Whose key it is.
        role: "user" or "admin".
        priority: The highest class it may ask for.
        weight: Its share within a class.
        models: Names of models that it may use; () = all.
        limits: Its limits per minute.
        concurrency: How many of its requests may run at once; 0 = no limit.
        anonymous: True in open mode.
        fingerprint: Of the key, so that an operator can tell two of one name, or an old one from
            its successor: the ends of its digest. "" in open mode.
    """

    name: str
    account: str
    user: str
    role: Literal["user", "admin"]
    priority: Priority
    weight: float
    models: tuple[str, ...]
    limits: Limits
    concurrency: int
    anonymous: bool = False
    fingerprint: str = ""

    @property
    def admin(self) -> bool:
        """True for the role admin."""
        return self.role == "admin"

    def capped(self, wanted: Priority | None) -> Priority:
        """Return the class that a request of this caller gets.

        None, for a request that asks for nothing, is normal, or low where that is the cap.
        """
        asked = Priority.NORMAL if wanted is None else wanted
        return asked if asked.rank >= self.priority.rank else self.priority


@dataclass(frozen=True, slots=True)
class _Entry:
    digest: bytes
    principal: Principal
    expires_at: float  # Unix seconds, inf for never


class Authenticator:
    """Lets callers in by key, or everybody while there is no key (open mode).

    Open mode is decided when this is made; `reload` can end it and never begins it.

    Args:
        config: Its keys, limits, `server.host` and `server.cors_origins`.
        may_open: False when some place that may hold keys could not be read.
        now_wall: Unix seconds, for keys that expire.
    """

    def __init__(
        self,
        config: Config,
        *,
        may_open: bool = True,
        now_wall: Callable[[], float] = time.time,
    ) -> None:
        self._now_wall = now_wall
        self._open = may_open and not config.api_keys
        self._failures = _Failures()
        self._take(config)

    @property
    def open(self) -> bool:
        """True while every caller is an admin because there is no key."""
        return self._open

    def has_key(self, name: str) -> bool:
        """Tell whether `name` is the name of a key, expired or not."""
        return name in self._names

    def reload(self, config: Config) -> None:
        """Take the keys of a new config, at once. Without any, nobody comes in any more."""
        self._open = self._open and not config.api_keys
        self._take(config)

    def authenticate(self, headers: Headers, client: str = "") -> Principal:
        """Tell who is calling. A few microseconds; never reads a body.

        Args:
            headers: The request's, names in lower case.
            client: Its address, as far as proxies are believed; used in open mode only.

        Raises:
            InvalidApiKey: No key, two different ones, or one that is wrong or has expired.
                Answer it with `CHALLENGE`, after `delay_s`.
            PermissionDenied: Open mode, and Host or Origin are another site's.
        """
        if self._open:
            self._guard.check(headers)
            if self._per_client:
                return replace(self._anonymous, account=address_group(client) or ANONYMOUS)
            return self._anonymous
        digest = hashlib.sha256(_presented(headers)).digest()
        entry = self._entries.get(digest)
        if entry is None or not hmac.compare_digest(entry.digest, digest):
            raise InvalidApiKey(_WRONG_KEY)
        if entry.expires_at != math.inf and entry.expires_at <= self._now_wall():
            raise InvalidApiKey(_WRONG_KEY)
        return entry.principal

    def delay_s(self, peer: str, now: float) -> float:
        """Count a failure, and return how long to hold back its answer.

        Only answers to failures are held back, so that others behind the same address do not
        suffer for them.

        Args:
            peer: The other end of the connection, whatever X-Forwarded-For says.
            now: Monotonic seconds.
        """
        return self._failures.delay_s(address_group(peer), now)

    def _take(self, config: Config) -> None:
        self._guard = OpenModeGuard(config.server.host, config.server.cors_origins)
        self._per_client = config.rate_limit.anonymous
        self._anonymous = _anonymous(config.rate_limit)
        self._entries = _entries(config.api_keys, config.rate_limit)
        self._names = frozenset(key.name for key in config.api_keys)


def may_use_model(principal: Principal, model: str, aliases: Iterable[str] = ()) -> bool:
    """Tell whether a caller may see and use a model.

    Args:
        principal: The caller.
        model: The model's name in the catalog, never what a client wrote.
        aliases: Its other names, by which an allow-list may name it too.
    """
    allowed = principal.models
    return not allowed or model in allowed or any(alias in allowed for alias in aliases)


def require_admin(principal: Principal) -> None:
    """Let only admins pass.

    Raises:
        PermissionDenied: The caller is no admin.
    """
    if not principal.admin:
        raise PermissionDenied("This needs a key with the role admin.")


class _Failures:
    """Failed attempts by address: the first few are free, then each one waits longer."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[int, float]] = {}  # count and time; longest ago first

    def delay_s(self, address: str, now: float) -> float:
        count, last = self._seen.pop(address, (0, now))
        count = 1 if now - last > _FORGIVEN_S else count + 1
        if len(self._seen) >= _MAX_ADDRESSES:
            del self._seen[next(iter(self._seen))]
        self._seen[address] = (count, now)
        if count <= _FREE_FAILURES:
            return 0.0
        return min(_MAX_DELAY_S, _FIRST_DELAY_S * 2.0 ** min(count - _FREE_FAILURES - 1, 10))


def _presented(headers: Headers) -> bytes:
    """Return the one key that a request presents.

    Credentials of other schemes are not ours to read: a proxy in front may want them.
    """
    found = b""
    for name, value in headers:
        if name == b"authorization":
            scheme, _, key = value.strip().partition(b" ")
            if scheme.lower() != b"bearer":
                continue
            key = key.strip()
        elif name == b"x-api-key":
            key = value.strip()
        else:
            continue
        if found and key and not hmac.compare_digest(found, key):
            raise InvalidApiKey(_TWO_KEYS)
        found = found or key
    if not found:
        raise InvalidApiKey(_NO_KEY)
    return found


def _entries(keys: Iterable[ApiKey], defaults: RateLimit) -> dict[bytes, _Entry]:
    entries = {}
    for key in keys:
        expires_at = key.expires_at
        digest = key.digest
        entries[digest] = _Entry(
            digest, _principal(key, defaults), math.inf if expires_at is None else expires_at
        )
    return entries


def _principal(key: ApiKey, defaults: RateLimit) -> Principal:
    cap = Priority.HIGH if key.role == "admin" else Priority.NORMAL
    digest = key.digest.hex()
    return Principal(
        name=key.name,
        account=key.name,
        user=key.name,
        role=key.role,
        priority=Priority(key.priority) if key.priority else cap,
        weight=key.weight,
        models=key.models,
        limits=Limits(
            _or(key.requests_per_minute, defaults.requests_per_minute),
            _or(key.estimated_tokens_per_minute, defaults.estimated_tokens_per_minute),
        ),
        concurrency=_or(key.concurrent_requests, defaults.concurrent_requests),
        fingerprint=f"{digest[:2]}..{digest[-2:]}",
    )


def _anonymous(limits: RateLimit) -> Principal:
    held = limits.anonymous
    return Principal(
        name=ANONYMOUS,
        account=ANONYMOUS,
        user=ANONYMOUS,
        role="admin",
        priority=Priority.HIGH,
        weight=1.0,
        models=(),
        limits=(
            Limits(limits.requests_per_minute, limits.estimated_tokens_per_minute)
            if held
            else Limits(0, 0)
        ),
        concurrency=limits.concurrent_requests if held else 0,
        anonymous=True,
    )


def _or(own: int, default: int) -> int:
    return default if own < 0 else own
