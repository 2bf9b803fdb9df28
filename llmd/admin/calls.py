"""What both clients share: errors, and the way from a command to its typed result."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, TypeVar

import msgspec

from llmd.admin import protocol as p
from llmd.admin.framing import MAX_LINE_BYTES, clean_line

R = TypeVar("R")
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class AdminError(Exception):
    """The root of what a client of the admin socket raises."""


class Unreachable(AdminError):
    """There is no daemon at the socket, it may not be used, or the connection broke."""


class Refused(AdminError):
    """The daemon said no.

    Attributes:
        code: For programs: `model_not_found`, `conflict`, `permission_denied`, ...
        message: For a person.
        retry_after_s: When another try is likely to succeed; None when that is not known.
    """

    def __init__(self, failure: p.Failure) -> None:
        super().__init__(failure.message)
        self.code = failure.code
        self.message = failure.message
        self.retry_after_s = failure.retry_after_s


class BadReply(AdminError):
    """What came is not of this protocol."""


class Codec:
    """Turns commands into lines and lines into messages; numbers the commands.

    Decoders are made when they are first needed: a program that asks one thing starts sooner.
    """

    def __init__(self) -> None:
        self._encode = msgspec.json.Encoder().encode
        self._results: dict[Any, msgspec.json.Decoder[Any]] = {}
        self._last = 0

    def numbered(self, command: p.Command[R]) -> p.Command[R]:
        """Return the command with an `id` of its own."""
        self._last += 1
        return msgspec.structs.replace(command, id=self._last)

    def line(self, command: p.Command[Any]) -> bytes:
        """Return the command as a line.

        Raises:
            AdminError: It is longer than a line may be, or holds what is no text.
        """
        try:
            data = self._encode(command)
        except UnicodeEncodeError as error:
            raise AdminError(f"the command holds what is no text: {error.reason}") from error
        if len(data) > MAX_LINE_BYTES:
            raise AdminError(f"the command is longer than {MAX_LINE_BYTES} bytes")
        return data + b"\n"

    @cached_property
    def _messages(self) -> msgspec.json.Decoder[p.AnyMessage]:
        return msgspec.json.Decoder(p.AnyMessage)

    @cached_property
    def _answers(self) -> msgspec.json.Decoder[p.Ok | p.Failure]:
        return msgspec.json.Decoder(p.Ok | p.Failure)

    def answer(self, line: bytes) -> p.AnyMessage:
        """Return what `message` does, sooner where it is an answer.

        What a subscription tells is made of most types of the protocol, and a decoder has to look
        at all of them before it knows a message.

        Raises:
            BadReply: There is none.
        """
        try:
            return self._answers.decode(clean_line(line))
        except _UNREADABLE:
            return self.message(line)  # which it is, or why it is none

    def message(self, line: bytes) -> p.AnyMessage:
        """Return the message in a line, its text made safe to show.

        Raises:
            BadReply: There is none.
        """
        try:
            message = self._messages.decode(clean_line(line))
        except _UNREADABLE as error:
            raise BadReply(f"the daemon said what is no message: {error}") from error
        return message

    def result(self, command: p.Command[R], message: p.AnyMessage) -> R:
        """Return what a command's answer holds.

        Raises:
            Refused: The answer is a failure.
            BadReply: It is of another type.
        """
        if isinstance(message, p.Failure):
            raise Refused(message)
        if not isinstance(message, p.Ok):
            raise BadReply(f"the daemon answered with a {type(message).__name__}")
        kind = type(command).returns
        decoder = self._results.get(kind)
        if decoder is None:
            decoder = self._results[kind] = msgspec.json.Decoder(kind)
        try:
            result: R = decoder.decode(message.result)
        except _UNREADABLE as error:
            raise BadReply(f"the daemon's answer is not as expected: {error}") from error
        return result

    def streamed(self, command: p.Command[Any], line: bytes) -> p.AnyMessage | None:
        """Return the message in a line of a stream; None when the stream is over.

        Raises:
            Refused: The command was refused.
            BadReply: There is no message.
        """
        message = self.message(line)
        if isinstance(message, p.Failure):
            raise Refused(message)
        return None if isinstance(message, p.Ended) else message


def unreachable(path: str, error: OSError) -> Unreachable:
    """Return what to tell a person about a socket that broke."""
    return Unreachable(f"the connection to llmd at {path} broke: {error.strerror or error}")


def nobody(tried: Mapping[str, OSError]) -> Unreachable:
    """Return what to tell a person when there is no daemon at any of the places tried."""
    if any(isinstance(error, PermissionError) for error in tried.values()):
        head = "this user may not use llmd's admin socket"
        hint = "ask for server.admin_group, or server.admin_read_all to look only"
    else:
        head = "no llmd is running"
        hint = "start one (llmd serve), or name its socket with --socket or $LLMD_SOCKET"
    places = ", ".join(f"{path} ({_said(error)})" for path, error in tried.items())
    return Unreachable(f"{head}; tried {places}; {hint}")


def _said(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "not there"
    if isinstance(error, ConnectionRefusedError):
        return "nobody listens"
    if isinstance(error, PermissionError):
        return "not allowed"
    return error.strerror or str(error)
