"""The text of a request: how much there is, and whether any of it is blocked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import re2

from llmd import config
from llmd.api.schema.bodies import Message
from llmd.errors import BlockedContent, InvalidRequest

TOKEN_ID_BYTES = 4
"""What a prompt's token id counts as, where text is counted: a typical token's length."""


@dataclass(frozen=True, slots=True)
class SchemaLimits:
    """`[limits]`, as far as they bound a request's text; 0 = no limit.

    Attributes:
        max_messages: Messages of one chat.
        max_message_bytes: Text of one message, one prompt or one input, in UTF-8.
        max_content_bytes: Text of all of them together.
        blocked: Compiled patterns, as `compile_patterns` returns them.
    """

    max_messages: int = 0
    max_message_bytes: int = 0
    max_content_bytes: int = 0
    blocked: tuple[Any, ...] = ()

    @classmethod
    def of(cls, limits: config.Limits) -> SchemaLimits:
        """Return the limits that a config sets; its patterns have been checked on loading."""
        return cls(
            limits.max_messages,
            limits.max_message_bytes,
            limits.max_content_bytes,
            compile_patterns(limits.blocked_patterns),
        )


def compile_patterns(patterns: Sequence[str]) -> tuple[Any, ...]:
    """Return compiled RE2 expressions that match what any of `patterns` matches.

    Usually one for all of them, so that many patterns cost one pass over the text.

    Raises:
        re2.error: A pattern is none.
    """
    options = re2.Options()
    options.never_capture = True
    options.log_errors = False
    if not patterns:
        return ()
    # each is compiled alone first: two faulty ones could make a good union
    single = tuple(re2.compile(pattern, options) for pattern in patterns)
    try:
        return (re2.compile("|".join(f"(?:{pattern})" for pattern in patterns), options),)
    except re2.error:  # together they are too large
        return single


class TextMeter:
    """Measures the text of one request and holds it to the limits.

    Attributes:
        text_bytes: What has been counted, in UTF-8.
        largest_bytes: The largest message or prompt of it.
        other_parts: Images, sounds and videos met.
    """

    __slots__ = ("_limits", "largest_bytes", "other_parts", "text_bytes")

    def __init__(self, limits: SchemaLimits) -> None:
        self._limits = limits
        self.text_bytes = self.largest_bytes = 0
        self.other_parts = 0

    def message(self, message: Message, number: int) -> None:
        """Count one message of a chat.

        Raises:
            InvalidRequest: It is too long, or all until here are.
            BlockedContent: A blocked pattern matches in it.
        """
        content = message.content
        size = len(message.tool_calls) + len(message.reasoning_content)
        if isinstance(content, str):
            size += utf8_length(content)
        elif content is not None:
            for part in content:
                if part.text is not None:
                    size += utf8_length(part.text)
                else:
                    self.other_parts += 1
        self._add(size, "messages", number)
        if self._limits.blocked:
            try:
                self._refuse_blocked(_texts(message), "messages", number)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:  # in what was left undecoded
                place = _place("messages", number)
                raise InvalidRequest(
                    f"{place} has JSON that cannot be read", param=place
                ) from error

    def prompt(self, prompt: Any, param: str, number: int | None) -> None:
        """Count one prompt: text, token ids, a mix of both, or an object with text and media.

        Args:
            prompt: Decoded JSON.
            param: The field that it is, or that holds it.
            number: Its place there; None if it is the field itself.

        Raises:
            InvalidRequest: It is none of these, too long, or all until here are.
            BlockedContent: A blocked pattern matches in it, or none could be looked for.
        """
        blocked = self._limits.blocked
        if type(prompt) is str:
            self._add(utf8_length(prompt), param, number)
            if blocked:
                self._refuse_blocked((prompt,), param, number)
        elif type(prompt) is list:
            self._mixed(prompt, param, number)
        elif type(prompt) is dict and type(prompt.get("prompt_string")) is str:
            media = prompt.get("multimodal_data")
            self.other_parts += len(media) if type(media) is list else 0
            self.prompt(prompt["prompt_string"], param, number)
        elif type(prompt) is dict and type(prompt.get("content")) is list:
            self._parts(prompt["content"], param, number)
        else:
            raise InvalidRequest(
                f"{_place(param, number)} must be a string or an array of token ids", param=param
            )

    def _mixed(self, prompt: list[Any], param: str, number: int | None) -> None:
        texts = [item for item in prompt if type(item) is str]
        ids = len(prompt) - len(texts)
        if ids and not all(type(item) in (int, str) for item in prompt):
            raise InvalidRequest(
                f"{_place(param, number)} must hold only token ids and strings", param=param
            )
        if ids and self._limits.blocked:
            raise BlockedContent(
                "this server blocks some text, which it cannot look for in token ids; "
                f"send {param} as text",
                param=param,
            )
        self._add(ids * TOKEN_ID_BYTES + sum(map(utf8_length, texts)), param, number)
        if self._limits.blocked:
            self._refuse_blocked(texts, param, number)

    def _parts(self, parts: list[Any], param: str, number: int | None) -> None:
        texts = [
            part["text"] for part in parts if type(part) is dict and type(part.get("text")) is str
        ]
        self.other_parts += len(parts) - len(texts)
        self._mixed(texts, param, number)

    def _add(self, size: int, param: str, number: int | None) -> None:
        limits = self._limits
        self.text_bytes += size
        self.largest_bytes = max(self.largest_bytes, size)
        if size > limits.max_message_bytes > 0:
            raise InvalidRequest(
                f"{_place(param, number)} has {size} bytes of text, more than the "
                f"{limits.max_message_bytes} that are allowed; shorten it",
                param=_place(param, number),
            )
        if self.text_bytes > limits.max_content_bytes > 0:
            raise InvalidRequest(
                f"{param} has more than the {limits.max_content_bytes} bytes of text that are "
                "allowed in all; shorten it",
                param=param,
            )

    def _refuse_blocked(
        self, texts: Sequence[str] | Iterator[str], param: str, number: int | None
    ) -> None:
        for text in texts:
            if any(pattern.search(text) is not None for pattern in self._limits.blocked):
                raise BlockedContent(
                    f"{_place(param, number)} has text that this server does not accept",
                    param=_place(param, number),
                )


def utf8_length(text: str) -> int:
    """Return how many bytes `text` takes in UTF-8."""
    return len(text) if text.isascii() else len(text.encode())


def _place(param: str, number: int | None) -> str:
    return param if number is None else f"{param}[{number}]"


def _texts(message: Message) -> Iterator[str]:
    """Yield every string of a message that can reach the prompt."""
    content = message.content
    if isinstance(content, str):
        yield content
    elif content is not None:
        for part in content:
            if part.text is not None:
                yield part.text
    if message.name is not None:
        yield message.name
    for raw in (message.reasoning_content, message.tool_calls):
        if len(raw):
            yield from _strings(msgspec.json.decode(raw))


def _strings(value: Any) -> Iterator[str]:
    """Yield the strings in decoded JSON, names and JSON within strings included."""
    waiting = [value]  # no recursion: the depth is the client's choice
    while waiting:
        item = waiting.pop()
        if type(item) is str:
            yield item
            if item.lstrip()[:1] in ("{", "["):  # as the arguments of a tool call are
                try:
                    waiting.append(msgspec.json.decode(item))
                except (msgspec.DecodeError, RecursionError):
                    continue
        elif type(item) is list:
            waiting.extend(item)
        elif type(item) is dict:
            waiting.extend(item)
            waiting.extend(item.values())
