"""The plain answer that a worker would have sent, put together from its stream.

llama-server ends a streamed job as soon as its client has gone, a plain one only after a whole
second in which none of its jobs delivered anything. So plain requests are streamed from the worker
and gathered here. What comes out is what the worker itself would have answered, ids and clocks
aside: the same fields in the same order, values that need no joining copied byte for byte.
Requests of which a stream does not tell all that a plain answer does are told apart in
`schema.lossy` and are not gathered.

Three differences remain, at the end of answers that hit their token limit, and a streaming client
sees the same: the last tokens are missing if they might have become a stop word; so is half of a
character (but not in llama.cpp's own form); and a chat answer of which the worker's parser could
make nothing yet, such as the beginning of a tool call, is empty instead of raw text.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec

from llmd.api.schema import Form, Kind
from llmd.errors import BadWorkerResponse

Raw: TypeAlias = msgspec.Raw

_DATA = b"data: "
_EMPTY = (b"[DONE]", b"null")  # null: a further prompt of the same request has begun
_OLD_ERROR = b"error: "


class WorkerError(Exception):
    """The worker answered with an error; the client gets it unchanged.

    Attributes:
        status: The HTTP status that a plain request would have been answered with.
        body: The worker's JSON.
    """

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(f"the worker answered {status}")
        self.status = status
        self.body = body


class _ErrorCode(msgspec.Struct):
    code: Any = None


class _ErrorBody(msgspec.Struct):
    error: _ErrorCode


class _Probabilities(msgspec.Struct):
    content: list[Raw] | None = None


class _Choice(msgspec.Struct):
    """One choice of an event of either OpenAI form."""

    index: int = 0
    finish_reason: str | None = None
    delta: dict[str, Any] | None = None
    text: str | None = None
    logprobs: _Probabilities | None = None


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _CallDelta(msgspec.Struct):
    """A piece of one tool call."""

    index: int = 0
    id: str | None = None
    type: str | None = None
    function: _Function | None = None


class _Event(msgspec.Struct):
    choices: list[_Choice]


class _NativeEvent(msgspec.Struct):
    index: int = 0
    content: str = ""
    stop: bool = False
    tokens_predicted: int = 0
    completion_probabilities: list[Raw] | None = None


_decode_event = msgspec.json.Decoder(_Event).decode
_decode_native = msgspec.json.Decoder(_NativeEvent).decode
_decode_fields = msgspec.json.Decoder(dict[str, Raw]).decode
_decode_error = msgspec.json.Decoder(_ErrorBody).decode
_encode = msgspec.json.Encoder().encode
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Assembler:
    """Gathers one stream.

    Args:
        kind: What was asked for; one whose `form` is not `Form.NONE`.
    """

    __slots__ = ("_gather",)

    def __init__(self, kind: Kind) -> None:
        if kind.form is Form.NONE:
            raise ValueError(f"answers to {kind.path} are not streamed")
        self._gather: _OpenAI | _Native
        self._gather = _Native() if kind.form is Form.NATIVE else _OpenAI(kind.form)

    def feed(self, events: bytes) -> None:
        """Take whole events, any number of them, as `sse.Splitter.feed` returns them.

        Raises:
            WorkerError: One of them is an error.
            BadWorkerResponse: One of them is no event of this kind of stream.
        """
        take = self._gather.take
        for event in events.split(b"\n\n"):
            if event.startswith(_DATA):
                data = event[len(_DATA) :]
                if data in _EMPTY:
                    continue
                if data.startswith(b'{"error":'):
                    raise worker_error(data)
                try:
                    take(data)
                except _UNREADABLE as error:
                    raise BadWorkerResponse(
                        "the worker sent an event that cannot be read"
                    ) from error
            elif event.startswith(_OLD_ERROR):
                raise worker_error(b'{"error":%b}' % event[len(_OLD_ERROR) :])

    def result(self) -> bytes:
        """Return the plain answer, JSON in UTF-8.

        Raises:
            BadWorkerResponse: The stream ended before its end.
        """
        return self._gather.result()


def worker_error(body: bytes) -> WorkerError:
    """Return the error of an error event's JSON, its status taken from the worker's `code`."""
    try:
        code = _decode_error(body).error.code
    except _UNREADABLE:
        code = None
    status = code if type(code) is int and 400 <= code <= 599 else 500
    return WorkerError(status, body)


class _Message:
    """What has come of one choice."""

    __slots__ = ("calls", "fields", "finish_reason", "logprobs", "texts")

    def __init__(self) -> None:
        self.texts: dict[str, list[str]] = {"content": []}
        self.fields: dict[str, Any] = {}
        self.calls: dict[int, _Call] = {}
        self.logprobs: list[Raw] = []
        self.finish_reason: str | None = None

    def add(self, delta: dict[str, Any]) -> None:
        """Join a chat delta: text is appended, calls by their index, the rest is set."""
        for name, value in delta.items():
            if name == "tool_calls":
                for call in msgspec.convert(value or (), list[_CallDelta]):
                    if call.index not in self.calls:
                        self.calls[call.index] = _Call()
                    self.calls[call.index].add(call)
            elif name == "role" or type(value) is not str:
                if value is not None:
                    self.fields[name] = value
            elif name in self.texts:
                self.texts[name].append(value)
            else:
                self.texts[name] = [value]

    def chat(self, index: int) -> dict[str, Any]:
        """Return it as a choice of a plain chat answer."""
        message: dict[str, Any] = {"role": self.fields.pop("role", "assistant")}
        for name, parts in self.texts.items():
            message[name] = "".join(parts)
        message.update(self.fields)
        if self.calls:
            message["tool_calls"] = [call.plain() for _, call in sorted(self.calls.items())]
        choice = {"finish_reason": self.finish_reason, "index": index, "message": message}
        if self.logprobs:
            choice["logprobs"] = {"content": self.logprobs}
        return choice

    def text(self, index: int) -> dict[str, Any]:
        """Return it as a choice of a plain text completion."""
        return {
            "text": "".join(self.texts["content"]),
            "index": index,
            "logprobs": {"content": self.logprobs} if self.logprobs else None,
            "finish_reason": self.finish_reason,
        }


class _Call:
    """One tool call on its way."""

    __slots__ = ("arguments", "id", "name", "type")

    def __init__(self) -> None:
        self.id: str | None = None
        self.type = "function"
        self.name = ""
        self.arguments: list[str] = []

    def add(self, delta: _CallDelta) -> None:
        self.id = delta.id or self.id
        self.type = delta.type or self.type
        if delta.function is not None:
            # a name found late is sent again in full
            self.name = delta.function.name or self.name
            self.arguments.append(delta.function.arguments or "")

    def plain(self) -> dict[str, Any]:
        call: dict[str, Any] = {
            "type": self.type,
            "function": {"name": self.name, "arguments": "".join(self.arguments)},
        }
        if self.id is not None:
            call["id"] = self.id
        return call


_OBJECTS = {Form.CHAT: Raw(b'"chat.completion"'), Form.TEXT: Raw(b'"text_completion"')}
_ORDER = ("choices", "created", "model", "system_fingerprint", "object", "usage", "id", "timings")
_ONLY_STREAMED = ("prompt_progress", "__verbose")


class _OpenAI:
    """Chat completions and text completions in OpenAI's form."""

    __slots__ = ("_ended", "_form", "_messages", "_tail")

    def __init__(self, form: Form) -> None:
        self._form = form
        self._messages: dict[int, _Message] = {}
        self._tail: dict[str, Raw] = {}
        self._ended = -1  # the choice that the last event ended, or that ended last

    def take(self, data: bytes) -> None:
        choices = _decode_event(data).choices
        for choice in choices:
            index = choice.index
            message = self._messages.get(index)
            if message is None:
                message = self._messages[index] = _Message()
            if choice.delta:
                message.add(choice.delta)
            elif choice.text:
                message.texts["content"].append(choice.text)
            if choice.logprobs is not None and choice.logprobs.content:
                message.logprobs += choice.logprobs.content
            if choice.finish_reason is not None:
                message.finish_reason = choice.finish_reason
                self._ended = index
        # Usage and timings of a plain answer are those of its first choice. In a chat they come
        # in an event of their own, without choices, right after that choice's last one.
        if self._ended == 0 and (not choices or choices[0].finish_reason is not None):
            self._tail.update(_decode_fields(data))

    def result(self) -> bytes:
        messages = sorted(self._messages.items())
        if not messages or any(message.finish_reason is None for _, message in messages):
            raise BadWorkerResponse("the worker's stream ended before its end")
        fields: dict[str, Any] = dict(self._tail)
        for name in _ONLY_STREAMED:
            fields.pop(name, None)
        chat = self._form is Form.CHAT
        fields["choices"] = [
            message.chat(index) if chat else message.text(index) for index, message in messages
        ]
        fields["object"] = _OBJECTS[self._form]
        plain = {name: fields.pop(name) for name in _ORDER if name in fields}
        return _encode({**plain, **fields})


class _Native:
    """llama.cpp's own form of completion: one object, or a list where several were asked for."""

    __slots__ = ("_sequences",)

    def __init__(self) -> None:
        self._sequences: dict[int, _Sequence] = {}

    def take(self, data: bytes) -> None:
        event = _decode_native(data)
        sequence = self._sequences.get(event.index)
        if sequence is None:
            sequence = self._sequences[event.index] = _Sequence()
        if event.stop:
            if event.tokens_predicted > sequence.tokens:
                # the last tokens were half a character, which a plain answer shows like this
                sequence.parts.append("\ufffd")
            sequence.last = _decode_fields(data)
        else:
            sequence.tokens = event.tokens_predicted
        sequence.parts.append(event.content)
        if event.completion_probabilities:
            sequence.probabilities += event.completion_probabilities

    def result(self) -> bytes:
        sequences = [sequence for _, sequence in sorted(self._sequences.items())]
        if not sequences or not all(sequence.last for sequence in sequences):
            raise BadWorkerResponse("the worker's stream ended before its end")
        answers = [sequence.plain() for sequence in sequences]
        return _encode(answers[0] if len(answers) == 1 else answers)


class _Sequence:
    """What has come of one sequence in llama.cpp's own form."""

    __slots__ = ("last", "parts", "probabilities", "tokens")

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.probabilities: list[Raw] = []
        self.tokens = 0
        self.last: dict[str, Raw] = {}

    def plain(self) -> dict[str, Any]:
        answer: dict[str, Any] = {**self.last, "content": "".join(self.parts)}
        settings = bytes(self.last.get("generation_settings", b""))
        if settings:
            # the client asked for a plain answer; quotes in the values are escaped
            answer["generation_settings"] = Raw(
                settings.replace(b'"stream":true', b'"stream":false', 1)
            )
        if self.probabilities:
            answer["completion_probabilities"] = self.probabilities
        return answer
