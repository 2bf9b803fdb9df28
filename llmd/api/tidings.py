"""What a worker's events tell in passing: its own id of a completion, how far the prompt is.

Pure; looked at once a request, or for events that report on the prompt, never for each token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import msgspec

MAX_ID_CHARS = 128
_DATA = b"data: "
_END = b"\n\n"
_PROGRESS = b'"prompt_progress":'


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a worker has read a prompt.

    Attributes:
        done_tokens: Read so far, cached ones included.
        total_tokens: The whole prompt.
        cached_tokens: Those that did not have to be computed.
    """

    done_tokens: int
    total_tokens: int
    cached_tokens: int


class _Named(msgspec.Struct):
    id: str = ""


class _Counts(msgspec.Struct):
    total: int
    processed: int
    cache: int = 0


class _Reporting(msgspec.Struct):
    prompt_progress: _Counts


_T = TypeVar("_T")
_decode_named = msgspec.json.Decoder(_Named)
_decode_reporting = msgspec.json.Decoder(_Reporting)


def completion_id(events: bytes) -> str:
    """Return the id that the first of `events` carries, as in `chatcmpl-...`; "" for none.

    Args:
        events: Whole SSE events, or a plain JSON answer.
    """
    start = events.find(_DATA)
    if start >= 0:
        end = events.find(_END, start)
        events = events[start + len(_DATA) : end if end >= 0 else None]
    found = _read(_decode_named, events)
    if found is None or len(found.id) > MAX_ID_CHARS or not found.id.isprintable():
        return ""
    return found.id


def parse_progress(event: bytes) -> Progress | None:
    """Return what the last report on the prompt in whole events says; None where none does.

    Args:
        event: One event or several, each ended by a blank line.
    """
    for one in reversed(event.split(_END)):
        if _PROGRESS in one:
            found = _read(_decode_reporting, one.removeprefix(_DATA))
            if found is not None:
                counts = found.prompt_progress
                total = max(counts.total, 0)
                done = min(max(counts.processed, 0), total)
                return Progress(done, total, min(max(counts.cache, 0), done))
    return None


def _read(decoder: msgspec.json.Decoder[_T], data: bytes) -> _T | None:
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None  # the relay itself judges what is garbage
