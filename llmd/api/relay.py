"""From the worker to the client: streamed on as it comes, or gathered into one answer.

The relay reads, forwards and watches; it decides nothing about retries. A worker that falls
silent is reported and checked; a client that waits in silence is told so by SSE comments.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from llmd.api.answer import JSON, Answer, passed_on
from llmd.api.assemble import Assembler
from llmd.api.pace import Pace
from llmd.api.sse import Splitter, Usage, plain_usage
from llmd.api.tidings import completion_id, parse_progress
from llmd.core.record import RequestRecord
from llmd.errors import BadWorkerResponse, WorkerDied, WorkerStalled
from llmd.pump import DONE, Pump
from llmd.workers.upstream import Upstream, UpstreamResponse

_T = TypeVar("_T")
_HEADERS = ((b"Content-Type", b"application/json"),)

PROGRESS = b'"prompt_progress":'  # quoted: no text of an answer can hold it
MAX_PLAIN_BYTES = 1 << 28  # embeddings of a large batch are large; nothing honest is larger


class Relay:
    """One exchange with a worker on behalf of one client.

    Args:
        upstream: The way to the worker that the lease is for.
        answer: Where it goes.
        record: Written as it happens: first byte, events.
        pump: Serves a stream whose events come one at a time.
        choices: Answers that the request wants for each prompt.
        keepalive_s: Silence after which a streaming client gets a comment; inf = never.
        stall_s: Silence of the worker after which `suspect` is called; inf = never.
        suspect: Has the worker checked; a hung one is killed, which breaks the connection.

    Attributes:
        drop_progress: The client did not ask for the prompt's progress: keep it from it.
        worker_status: The status of an error that the worker itself answered, 0 without one.
    """

    def __init__(
        self,
        upstream: Upstream,
        answer: Answer,
        record: RequestRecord,
        *,
        pump: Pump,
        choices: int,
        keepalive_s: float,
        stall_s: float,
        suspect: Callable[[], None],
    ) -> None:
        self._upstream = upstream
        self._answer = answer
        self._record = record
        self._pump = pump
        self._choices = choices
        self._keepalive_s = keepalive_s
        self._stall_s = stall_s
        self._suspect = suspect
        self._suspected = False
        self.drop_progress = False
        self.worker_status = 0
        self._heard = self._told = self._checked = 0.0
        self._pause_s = 0.0
        self._unsent: bytes | None = b""

    async def exchange(self, target: bytes, body: bytes, assembler: Assembler | None) -> Usage:
        """Send the request, pass the answer on and return what it used.

        Args:
            target: The worker's path.
            body: The request.
            assembler: Gathers the worker's stream into a plain answer; None passes the answer
                on in the form in which it comes.

        Raises:
            WorkerDied: The worker went; `record.first_byte_at` says whether the answer had begun.
            WorkerStalled: It went silent and was found hung.
            BadWorkerResponse: It answered garbage.
        """
        response: UpstreamResponse | None = None
        self._heard = trio.current_time()
        try:
            response = await self._upstream.request(b"POST", target, body, _HEADERS)
            await self._minded(response.head)
            if response.status == 200 and is_event_stream(response):
                if assembler is None:
                    return await self._stream(response)
                return await self._gather(response, assembler)
            return await self._whole(response)
        except WorkerDied as died:
            if self._suspected and self._heard <= self._checked:  # else it had come back since
                raise WorkerStalled(
                    "the worker stopped responding while it served this request and was replaced"
                ) from died
            raise
        finally:
            if response is not None:
                response.close()

    # --- silence ----------------------------------------------------------------------------

    def _silence_ends(self) -> float:
        """Return when silence will have lasted too long, for the client or for the worker."""
        heard = self._heard
        return min(
            max(heard, self._told) + self._keepalive_s, max(heard, self._checked) + self._stall_s
        )

    async def _mind_silence(self) -> None:
        """Do what is due: tell the client, have the worker checked."""
        now, heard = trio.current_time(), self._heard
        if now >= max(heard, self._checked) + self._stall_s:
            self._suspected = True
            self._checked = now
            self._suspect()
        if now >= max(heard, self._told) + self._keepalive_s:
            self._told = now
            await self._answer.comment(self._record.state.value)

    async def _minded(self, step: Callable[[], Awaitable[_T]]) -> _T:
        """Await a step of the worker's answer, minding the silence on both sides."""
        while True:
            with trio.CancelScope(deadline=self._silence_ends()):
                result = await step()
                self._heard = trio.current_time()
                return result
            await self._mind_silence()

    async def _received(self, response: UpstreamResponse) -> bytes:
        """Return the next bytes of the worker's answer, minding the silence before them."""
        if response.ready:  # then nothing is waited for, and a cancel scope is not cheap
            return await response.receive()
        return await self._minded(response.receive)

    # --- the three forms of an answer -------------------------------------------------------

    async def _stream(self, response: UpstreamResponse) -> Usage:
        """Pass an SSE stream on, whole events at a time."""
        splitter, pace = Splitter(self._choices), Pace()
        while True:
            self._unsent = b""
            events = b""
            # one scope for many events, since a scope an event is a tenth of its cost; nothing
            # that it could interrupt loses bytes, which is why sends that wait are outside
            with trio.CancelScope(deadline=self._silence_ends()) as scope:
                while self._unsent == b"":
                    events = await self._next_events(response, splitter, pace)
                    if not events:
                        break
                    self._unsent = self._answer.more_now(events)
                    if self._unsent == b"" and self._record.first_byte_at is not None:
                        await self._pump_events(response, splitter, pace)
            unsent = self._unsent
            if unsent:
                await self._answer.rest(unsent)
            elif scope.cancelled_caught:
                await self._mind_silence()
            elif not events:
                break
            elif unsent is None:
                await self._more(response, events)
        if not splitter.finished:
            raise BadWorkerResponse("the worker's stream ended before its end")
        if splitter.failed:
            self.worker_status = 500
        await self._answer.end()
        return splitter.usage()

    async def _next_events(
        self, response: UpstreamResponse, splitter: Splitter, pace: Pace
    ) -> bytes:
        """Return the next events that the client is to see, b"" at the end of the stream."""
        record = self._record
        while True:
            if self._pause_s:
                pause_s, self._pause_s = self._pause_s, 0.0
                await trio.sleep(pause_s)
            data = await response.receive()
            self._heard = now = trio.current_time()
            if not data:
                return data
            events = splitter.feed(data)
            if record.first_byte_at is None:
                self._note(events)
            if self.drop_progress and PROGRESS in events:
                events = without_progress(events)
            if not events:
                continue
            if record.first_byte_at is None and (self.drop_progress or splitter.generating):
                record.first_byte(now)
            record.events += splitter.count
            if splitter.finished:
                self._answer.all_said()
            elif not response.complete:
                self._pause_s = pace.after_read(now, splitter.count)
            return events

    async def _pump_events(
        self, response: UpstreamResponse, splitter: Splitter, pace: Pace
    ) -> None:
        """Pass events on as they come, without taking this task up for each.

        Returns when something else is to be done: the end, what could not be sent at once.
        """
        record, answer, drop_progress = self._record, self._answer, self.drop_progress
        send, ordinary, after_read = answer.chunk_sender, splitter.ordinary, pace.after_read
        if send is None:
            return

        def take(data: bytes, framed: bool, now: float) -> float | None:
            if framed:
                # A token that comes alone finds cold caches, and every further call its own.
                if not ordinary(data) or (drop_progress and data.find(PROGRESS) >= 0):
                    return None
                try:
                    sent = send(data)
                except OSError:
                    return None
                record.response_bytes += len(data) - data.index(b"\r\n") - 4
                record.events += 1
                splitter.events += 1
                self._heard = now
                if sent == len(data):
                    return after_read(now, 1)
                self._unsent = data[sent:]
                return DONE
            if not answer.in_chunks:
                return None
            if not data:
                return after_read(now, 0)
            events = splitter.feed(data)
            if drop_progress and PROGRESS in events:
                events = without_progress(events)
            left = answer.more_now(events) if events else b""
            self._heard = now
            record.events += splitter.count
            self._unsent = left
            if splitter.finished:
                answer.all_said()
                return DONE
            pause_s = after_read(now, splitter.count)
            return pause_s if left == b"" else DONE

        pause_s, self._pause_s = self._pause_s, 0.0
        await response.pumped(self._pump, take, pause_s)

    def _note(self, events: bytes) -> None:
        """Keep what events up to the first token tell: how far the prompt is, the worker's id."""
        record = self._record
        if PROGRESS in events and (progress := parse_progress(events)) is not None:
            record.prefill(progress.done_tokens, progress.total_tokens, progress.cached_tokens)
        if not record.completion_id and events:
            record.completion_id = completion_id(events)

    async def _more(self, response: UpstreamResponse, events: bytes) -> None:
        if not self._answer.started:
            self._answer.streaming = True
            await self._answer.begin(200, passed_on(200, response.headers))
        await self._answer.more(events)

    async def _gather(self, response: UpstreamResponse, assembler: Assembler) -> Usage:
        """Gather an SSE stream into the plain answer that the worker would have sent."""
        splitter, pace, record = Splitter(self._choices), Pace(), self._record

        def take(data: bytes, framed: bool, now: float) -> float | None:
            if framed:
                return None
            if not data:
                return pace.after_read(now, 0)
            self._heard = now
            events = splitter.feed(data)
            if record.first_byte_at is None:
                self._note(events)
                if splitter.generating:
                    record.first_byte(now)
            record.events += splitter.count if splitter.generating else 0
            assembler.feed(events)
            return pace.after_read(now, splitter.count)

        while data := await self._received(response):
            take(data, False, self._heard)
            await self._minded(lambda: response.pumped(self._pump, take))
        if not splitter.finished:
            raise BadWorkerResponse("the worker's answer ended before its end")
        await self._answer.whole(200, [JSON], assembler.result())
        return splitter.usage()

    async def _whole(self, response: UpstreamResponse) -> Usage:
        """Pass on an answer that is no stream, errors included, its body unchanged."""
        parts: list[bytes] = []
        size = 0
        while data := await self._received(response):
            size += len(data)
            if size > MAX_PLAIN_BYTES:
                raise BadWorkerResponse(f"the worker's answer is longer than {MAX_PLAIN_BYTES}")
            parts.append(data)
        body = b"".join(parts)
        if response.status >= 400:
            self.worker_status = response.status
        else:
            self._record.first_byte(self._heard)
        if not self._answer.started:
            headers = passed_on(response.status, response.headers)
            await self._answer.whole(response.status, headers, body)
        else:  # comments have gone: the error can only be an event
            await self._answer.more(b"data: %b\n\n" % body.replace(b"\n", b" "))
            await self._answer.end()
        return plain_usage(body, self._choices)


def without_progress(events: bytes) -> bytes:
    """Return whole events without those that only report on the prompt."""
    return b"".join(
        b"%b\n\n" % event for event in events.split(b"\n\n") if event and PROGRESS not in event
    )


def is_event_stream(response: UpstreamResponse) -> bool:
    """Tell whether the worker answers with SSE."""
    return response.header(b"content-type").startswith(b"text/event-stream")
