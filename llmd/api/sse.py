"""A worker's event stream: cut into whole events, and its token counts found on the way.

Events mostly come one at a time, so this does no more than look for the end of each and for the
few markers that only last events carry. JSON is parsed where a marker was found and nowhere else.
A marker is the name of a field with its quotes: in the text of an answer those are escaped, so no
model can write one.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from llmd.errors import BadWorkerResponse

MAX_EVENT_BYTES = 1 << 25
"""Longest event taken: the last one of a `/completion` repeats the whole prompt."""

_END = b"\n\n"
_CHUNK_END = b"\n\n\r\n"  # of a chunk that ends with an event
_DATA = b"data: "
_DONE = b"data: [DONE]"
_NULL = b"data: null"  # only says that a prompt has begun
_ERROR = b'data: {"error":'
_OLD_ERROR = b"error: {"
_TIMINGS = b'"timings":'
_USAGE = b'"usage":'
_STOPPED = b'"stop":true'
_PROGRESS = b'"prompt_progress":'
_UNFINISHED = b'"finish_reason":null'
_UNSTOPPED = b'"stop":false'


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that a request used, over all its sequences.

    Attributes:
        prompt_tokens: Of the prompt, those found in the cache included; once for `n` choices.
        completion_tokens: Generated.
        cached_tokens: Those of the prompt that were not computed again.
        exact: The worker said so. False where the stream broke off: then one token is counted
            for every event that came, and none for a prompt whose end was not seen.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    exact: bool = True


class _Details(msgspec.Struct):
    cached_tokens: int = 0


class _UsageField(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _Details | None = None


class _TimingsField(msgspec.Struct):
    cache_n: int = 0
    prompt_n: int = 0
    predicted_n: int = 0


class _Choice(msgspec.Struct):
    finish_reason: str | None = None


class _Counted(msgspec.Struct):
    """What is read of an event, or of a plain answer, that carries counts."""

    usage: _UsageField | None = None
    timings: _TimingsField | None = None
    choices: list[_Choice] | None = None
    stop: bool | None = None

    def ends(self) -> bool:
        """Tell the end of a sequence from an event that reports timings on the way."""
        if self.usage is not None or self.stop:
            return True
        choices = self.choices or ()
        return any(choice.finish_reason is not None for choice in choices)

    def counts(self) -> tuple[int, int, int]:
        """Return prompt, completion and cached tokens."""
        usage, timings = self.usage, self.timings
        if usage is not None:
            details = usage.prompt_tokens_details
            cached = details.cached_tokens if details is not None else 0
            return usage.prompt_tokens, usage.completion_tokens, cached
        if timings is not None:
            return timings.prompt_n + timings.cache_n, timings.predicted_n, timings.cache_n
        return 0, 0, 0


_decode_counted = msgspec.json.Decoder(_Counted).decode
_decode_several = msgspec.json.Decoder(list[_Counted]).decode


class Splitter:
    """Cuts the bytes of one event stream into whole events.

    Args:
        choices: How many answers the request wants for each prompt (`n`); they share its tokens.

    Attributes:
        count: Events that the last `feed` returned, comments and `[DONE]` included.
        events: All that came so far.
        generating: An event of the answer itself has come, not only the progress of the prompt.
        failed: The worker has sent an error as an event.
        finished: The stream has come to its proper end: `[DONE]`, an error or, in the form that
            knows no `[DONE]`, the last event of a sequence.
    """

    __slots__ = (
        "_cached_tokens",
        "_choices",
        "_completion_tokens",
        "_pending",
        "_pending_bytes",
        "_prompt_tokens",
        "_settled",
        "count",
        "events",
        "failed",
        "finished",
        "generating",
    )

    def __init__(self, choices: int = 1) -> None:
        self._choices = max(choices, 1)
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self.events = 0
        self._settled = False
        self._prompt_tokens = 0
        self._completion_tokens = 0
        self._cached_tokens = 0
        self.count = 0
        self.generating = False
        self.failed = False
        self.finished = False

    def feed(self, data: bytes) -> bytes:
        """Take what the worker sent and return the whole events in it, b"" for none yet.

        Raises:
            BadWorkerResponse: An event is longer than `MAX_EVENT_BYTES`, or one that carries
                counts is not JSON.
        """
        if self._pending or not data.endswith(_END):
            data = self._cut(data)
            if not data:
                self.count = 0
                return data
        self.count = count = data.count(_END)
        self.events += count
        if not self.generating:
            self.generating = _DATA in data and _PROGRESS not in data and not data.startswith(_NULL)
        # ordinary events are known by what each of them carries; all others are looked at
        if (
            data.count(_UNFINISHED) != count and data.count(_UNSTOPPED) != count
        ) or _TIMINGS in data:
            self._look(data)
        return data

    def ordinary(self, chunk: bytes) -> bool:
        """Tell whether a chunk is one event like most, to be counted in `events` if passed on.

        Args:
            chunk: As it came, the framing of its chunk included.
        """
        # `in` raises and drops a TypeError for each bytes object that it looks for, since that is
        # no number (bytes_methods.c of CPython): a third of what an event that comes alone costs
        find = chunk.find
        return (
            chunk.endswith(_CHUNK_END)
            and chunk.count(_END) == 1
            and (find(_UNFINISHED) >= 0 or find(_UNSTOPPED) >= 0)
            and find(_TIMINGS) < 0
            and not self._pending
        )

    def usage(self) -> Usage:
        """Return what has been used until now; final once the stream has ended."""
        exact = self._settled and self.finished and not self.failed
        return Usage(
            self._prompt_tokens // self._choices,
            self._completion_tokens if exact else max(self._completion_tokens, self.events),
            self._cached_tokens // self._choices,
            exact,
        )

    def _cut(self, data: bytes) -> bytes:
        """Return what is complete with `data` and keep the rest."""
        pending = self._pending
        end = data.rfind(_END) + 2
        if end < 2 and pending and pending[-1].endswith(b"\n") and data.startswith(b"\n"):
            end = 1  # the blank line itself came in two pieces
        elif end < 2:
            end = 0
        rest = data[end:]
        if end:
            data = b"".join((*pending, data[:end]))
            pending.clear()
            self._pending_bytes = 0
        else:
            data = b""
        if rest:
            pending.append(rest)
            self._pending_bytes += len(rest)
            if self._pending_bytes > MAX_EVENT_BYTES:
                raise BadWorkerResponse("the worker sent an event that is too long")
        return data

    def _look(self, events: bytes) -> None:
        for event in events.split(_END):
            if event == _DONE:
                self.finished = True
            elif event.startswith((_ERROR, _OLD_ERROR)):
                self.failed = self.finished = True
            elif event.startswith(_DATA):
                if _TIMINGS in event or _USAGE in event:
                    self._count(event)
                if _STOPPED in event:
                    self.finished = True

    def _count(self, event: bytes) -> None:
        try:
            counted = _decode_counted(event[len(_DATA) :])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise BadWorkerResponse("the worker sent an event that cannot be read") from error
        if counted.ends():
            prompt, completion, cached = counted.counts()
            self._settled = True
            self._prompt_tokens += prompt
            self._completion_tokens += completion
            self._cached_tokens += cached


def plain_usage(body: bytes, choices: int = 1) -> Usage:
    """Return what a plain answer of a worker says it used; inexact where it does not say.

    Args:
        body: A whole JSON answer of any kind; what cannot be read counts as nothing.
        choices: As for `Splitter`.
    """
    try:
        several = _decode_several(body) if body.startswith(b"[") else [_decode_counted(body)]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Usage(exact=False)
    counts = [item.counts() for item in several if item.usage or item.timings]
    if not counts:
        return Usage(exact=False)
    prompt, completion, cached = (sum(column) for column in zip(*counts, strict=True))
    if len(several) > 1:  # one object for each sequence, in llama.cpp's own form
        return Usage(prompt // max(choices, 1), completion, cached // max(choices, 1))
    # the worker counts the first of several choices only; the others are taken to be as long
    answers = max(len(several[0].choices or ()), 1)
    return Usage(prompt, completion * answers, cached, exact=answers == 1)
