"""How many requests and tokens a key may use in a minute: two token buckets per key.

A bucket holds up to one minute's worth and refills evenly. A request takes one from the first and
its estimate from the second, or nothing from either; the difference to what it really used is
settled at its end. Time is handed in, in seconds on any monotonic clock; time that stands still or
runs backwards refills nothing and harms nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

_MINUTE_S = 60.0
_SLACK = 1e-6  # rounding must not deny what `retry_after_s` promised


@dataclass(frozen=True, slots=True)
class Limits:
    """A key's limits per minute; 0 = no limit."""

    requests_per_minute: int
    tokens_per_minute: int

    @property
    def unlimited(self) -> bool:
        """True when neither limit holds."""
        return not self.requests_per_minute and not self.tokens_per_minute


@dataclass(frozen=True, slots=True)
class Allowed:
    """The request may go on; it was charged. Settle or refund it when it ends."""


@dataclass(frozen=True, slots=True)
class Denied:
    """The request must wait, or never fits; nothing was charged.

    Attributes:
        what: The bucket that is too empty; the one that takes longer if both are.
        retry_after_s: When the same request would be allowed if nothing else happens; when the
            bucket is full, if `could_never`.
        could_never: The request is larger than the whole bucket.
        message: For the client.
    """

    what: Literal["requests", "tokens"]
    retry_after_s: float
    could_never: bool
    message: str


Decision: TypeAlias = Allowed | Denied

_ALLOWED = Allowed()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A key's buckets at one moment, as the `x-ratelimit-*` headers tell them.

    Attributes:
        limits: The limits that hold.
        remaining_requests: Whole requests left now; 0 where there is no limit.
        remaining_tokens: Likewise.
        reset_requests_s: Seconds until that bucket is full; 0 where there is no limit.
        reset_tokens_s: Likewise.
    """

    limits: Limits
    remaining_requests: int
    remaining_tokens: int
    reset_requests_s: float
    reset_tokens_s: float

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Return OpenAI's headers, for the limits that there are."""
        found: list[tuple[bytes, bytes]] = []
        if self.limits.requests_per_minute:
            found += (
                (b"x-ratelimit-limit-requests", b"%d" % self.limits.requests_per_minute),
                (b"x-ratelimit-remaining-requests", b"%d" % self.remaining_requests),
                (b"x-ratelimit-reset-requests", format_duration(self.reset_requests_s).encode()),
            )
        if self.limits.tokens_per_minute:
            found += (
                (b"x-ratelimit-limit-tokens", b"%d" % self.limits.tokens_per_minute),
                (b"x-ratelimit-remaining-tokens", b"%d" % self.remaining_tokens),
                (b"x-ratelimit-reset-tokens", format_duration(self.reset_tokens_s).encode()),
            )
        return found


def format_duration(seconds: float) -> str:
    """Write a duration as OpenAI's headers do: "20ms", "7s", "6m0s"; rounded up."""
    if seconds <= 0:
        return "0s"
    if seconds <= 0.999:
        return f"{math.ceil(seconds * 1000)}ms"
    whole = math.ceil(seconds)
    return f"{whole}s" if whole < 60 else f"{whole // 60}m{whole % 60}s"


@dataclass(slots=True)
class _Account:
    """One key's two levels. A tokens level below 0 is debt, of at most one full bucket."""

    limits: Limits
    requests: float
    tokens: float
    updated: float

    def refill(self, limits: Limits, now: float) -> None:
        """Bring both levels up to `now`, under `limits`, which may have changed."""
        old = self.limits
        if limits != old:
            if not old.requests_per_minute:
                self.requests = limits.requests_per_minute
            if not old.tokens_per_minute:
                self.tokens = limits.tokens_per_minute
            self.limits = limits
        minutes = max(0.0, now - self.updated) / _MINUTE_S
        self.updated = max(self.updated, now)
        rpm, tpm = limits.requests_per_minute, limits.tokens_per_minute
        self.requests = min(rpm, self.requests + minutes * rpm)
        self.tokens = min(tpm, self.tokens + minutes * tpm)

    def give(self, requests: int, tokens: int) -> None:
        """Put back what was charged too much, or take (a negative number) what was too little."""
        rpm, tpm = self.limits.requests_per_minute, self.limits.tokens_per_minute
        self.requests = min(rpm, self.requests + requests)
        self.tokens = max(-tpm, min(tpm, self.tokens + tokens))


class RateLimiter:
    """The buckets of all keys.

    Args:
        max_keys: Keys remembered. Client addresses have no other bound; past it the key that was
            away longest is forgotten, whose buckets are full again after two minutes away.
    """

    def __init__(self, max_keys: int = 10_000) -> None:
        self._max_keys = max(1, max_keys)
        self._accounts: dict[str, _Account] = {}  # the least recently seen first

    def __len__(self) -> int:
        return len(self._accounts)

    def check(self, key: str, limits: Limits, tokens: int, now: float) -> Decision:
        """Charge a request of `tokens` (estimated, >= 0) to both buckets, or to neither."""
        if limits.unlimited:
            return _ALLOWED
        rpm, tpm = limits.requests_per_minute, limits.tokens_per_minute
        account = self._account(key, limits, now)
        if tpm and tokens > tpm:
            full_s = (tpm - account.tokens) / tpm * _MINUTE_S
            return Denied("tokens", full_s, True, _never(tokens, tpm))
        requests_s = max(0.0, 1 - account.requests) / rpm * _MINUTE_S if rpm else 0.0
        tokens_s = max(0.0, tokens - account.tokens) / tpm * _MINUTE_S if tpm else 0.0
        if requests_s > _SLACK and requests_s >= tokens_s:
            message = f"This key may send {rpm} requests per minute; try again later."
            return Denied("requests", requests_s, False, message)
        if tokens_s > _SLACK:
            message = (
                f"This key may use {tpm} tokens per minute, and this request was estimated at "
                f"{tokens}; try again later."
            )
            return Denied("tokens", tokens_s, False, message)
        account.requests -= 1
        account.tokens -= tokens
        return _ALLOWED

    def settle(self, key: str, estimated: int, actual: int, now: float) -> None:
        """Put the real usage in place of the estimate that `check` charged.

        What was too little is charged even if the bucket goes below empty, down to one full
        bucket of debt. A key that was forgotten since has nothing to settle.
        """
        self._give(key, 0, estimated - actual, now)

    def refund(self, key: str, estimated: int, now: float) -> None:
        """Take back a charge entirely: the request was refused, or cancelled in the queue."""
        self._give(key, 1, estimated, now)

    def snapshot(self, key: str, limits: Limits, now: float) -> Snapshot:
        """Return what the key has left; changes nothing."""
        rpm, tpm = limits.requests_per_minute, limits.tokens_per_minute
        requests, tokens = float(rpm), float(tpm)
        account = self._accounts.get(key)
        if account is not None:
            account.refill(limits, now)
            requests, tokens = account.requests, account.tokens
        return Snapshot(
            limits=limits,
            remaining_requests=max(0, int(requests + _SLACK)),
            remaining_tokens=max(0, int(tokens + _SLACK)),
            reset_requests_s=(rpm - requests) / rpm * _MINUTE_S if rpm else 0.0,
            reset_tokens_s=(tpm - tokens) / tpm * _MINUTE_S if tpm else 0.0,
        )

    def _give(self, key: str, requests: int, tokens: int, now: float) -> None:
        account = self._accounts.get(key)
        if account is not None:
            account.refill(account.limits, now)
            account.give(requests, tokens)

    def _account(self, key: str, limits: Limits, now: float) -> _Account:
        account = self._accounts.pop(key, None)
        if account is None:
            if len(self._accounts) >= self._max_keys:
                del self._accounts[next(iter(self._accounts))]
            account = _Account(limits, limits.requests_per_minute, limits.tokens_per_minute, now)
        else:
            account.refill(limits, now)
        self._accounts[key] = account
        return account


def _never(tokens: int, limit: int) -> str:
    return (
        f"This request was estimated at {tokens} tokens, more than the {limit} that this key may "
        "use in a minute; ask for fewer tokens or send a shorter prompt."
    )
