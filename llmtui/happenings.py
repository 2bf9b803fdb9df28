"""What happened lately: the daemon's own log, and who was turned away or failed.

A flood of refusals is one line that counts them, and stands still while it does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from llmd.admin import protocol as p

KEPT = 100
_TOGETHER_S = 30.0  # the same again within this time is counted, and not told anew
_FIELD = re.compile(r'(?:^| )(\w+)=("(?:[^"\\]|\\.)*"|\S+)')
_STATES = {
    "off": "is off", "starting": "starts", "loading": "loads", "ready": "is ready",
    "draining": "drains", "stopping": "stops", "backoff": "backs off", "failed": "failed",
}  # fmt: skip
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
    """One line of what happened; `key` is its own as long as it is kept.

    Attributes:
        text: For a person.
        whole: With every field, as the daemon's log has it.
    """

    key: str
    at: float
    level: str
    text: str
    whole: str


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
    found = [Happening(f"n{n.seq}", n.at, n.level, spoken(n.text), n.text) for n in log]
    found += [Happening(f"m{m.number}", m.at, _WRONG[m.state], _told(m), _told(m)) for m in wrong]
    return sorted(found, key=lambda one: one.at)


def _told(one: Mishap) -> str:
    often = f" {one.count} times, last" if one.count > 1 else ""
    reason = one.reason or one.code
    code = f" ({one.code})" if one.code and one.code != reason else ""
    return f"{one.who}: {one.state.replace('_', ' ')}{often} {one.request}: {reason}{code}"


def spoken(text: str) -> str:
    """Return a line of the daemon's log as a person would say it; unknown ones as they are."""
    first = _FIELD.search(text)
    event = text[: first.start()].strip() if first else text
    fields = {name: _bare(value) for name, value in _FIELD.findall(text)}
    if event.startswith("operator: "):
        return _act(event.removeprefix("operator: "), fields)
    if event.startswith("worker ") and "model" in fields:
        return _worker(event.removeprefix("worker "), fields)
    return text


def _bare(value: str) -> str:
    return value[1:-1].replace('\\"', '"').replace("\\\\", "\\") if value[:1] == '"' else value


def _act(verb: str, fields: dict[str, str]) -> str:
    who = fields.pop("user", "") or fields.pop("key", "") or "somebody"
    uid, model = fields.pop("uid", ""), fields.pop("model", "")
    fields.pop("pid", None)
    evict, plan = fields.pop("evict", ""), fields.pop("generation", "")
    said = f"{who} (uid {uid})" if uid else who
    said += f": {verb} {f'{evict} -> ' if evict else ''}{model}".rstrip()
    said += f"  plan#{plan}" if plan else ""
    return said + "".join(f"  {name} {value}" for name, value in fields.items())


def _worker(state: str, fields: dict[str, str]) -> str:
    said = f"{fields.pop('model')} {_STATES.get(state, state)}"
    load_s = fields.pop("load_s", "")
    if load_s:
        said += f", loaded in {load_s}s"
    reason = fields.pop("reason", "")
    said += f": {reason.replace('_', ' ')}" if reason else ""
    return said + "".join(f"  {name} {value}" for name, value in fields.items())
