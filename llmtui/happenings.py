"""What happened lately: the daemon's own log, and who was turned away or failed.

A flood of refusals is one line that counts them, and stands still while it does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from llmd.admin import protocol as p

KEPT = 100
_TOGETHER_S = 30.0  # the same again within this time is counted, and not told anew
_WRONG = {"refused": "warning", "failed": "error", "timed_out": "error"}


@dataclass(frozen=True)
class Mishap:
    """Requests of one key that ended badly for one reason.

    Attributes:
        number: Tells them apart.
        at, last_at: When the first and the last of them ended.
        who: Their key, or where they came from.
        state, code, reason: How the last of them ended.
        count: How many there were.
        request: Id of the last.
    """

    number: int
    at: float
    last_at: float
    who: str
    state: str
    code: str
    reason: str
    count: int
    request: str


@dataclass(frozen=True)
class Happening:
    """One line of what happened; `key` is its own as long as it is kept."""

    key: str
    at: float
    level: str
    text: str


def mishaps(known: Sequence[Mishap], ended: Iterable[p.Request]) -> tuple[Mishap, ...]:
    """Return what went wrong, with requests that have just ended counted in."""
    made = list(known)
    for request in ended:
        if request.state not in _WRONG:
            continue
        who, at = request.key or request.client or "somebody", request.ended_at or 0.0
        same = (who, request.state, request.code)
        for place in range(len(made) - 1, -1, -1):
            one = made[place]
            if (one.who, one.state, one.code) == same and at - one.last_at < _TOGETHER_S:
                made[place] = replace(
                    one, last_at=at, count=one.count + 1, reason=request.reason, request=request.id
                )
                break
        else:
            number = made[-1].number + 1 if made else 1
            made.append(
                Mishap(number, at, at, *same, reason=request.reason, count=1, request=request.id)
            )
    return tuple(made[-KEPT:])


def happenings(log: Iterable[p.Notice], wrong: Iterable[Mishap]) -> list[Happening]:
    """Return all that happened, the oldest first."""
    found = [Happening(f"n{n.seq}", n.at, n.level, n.text) for n in log]
    found += [Happening(f"m{m.number}", m.at, _WRONG[m.state], _told(m)) for m in wrong]
    return sorted(found, key=lambda one: one.at)


def _told(one: Mishap) -> str:
    often = f" {one.count} times, last" if one.count > 1 else ""
    reason = one.reason or one.code
    code = f" ({one.code})" if one.code and one.code != reason else ""
    return f"{one.who}: {one.state.replace('_', ' ')}{often} {one.request}: {reason}{code}"
