"""A request's body after its one parse, and the body that goes to the worker."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import msgspec

from llmd.api.schema.kinds import Form, Kind
from llmd.api.schema.lossy import SUSPECT, is_lossy
from llmd.errors import InvalidRequest

Raw: TypeAlias = msgspec.Raw

_decode_fields = msgspec.json.Decoder(dict[str, Raw]).decode
_encode = msgspec.json.Encoder().encode

MAX_SEQUENCES = 1 << 20
MAX_TOKENS = (1 << 31) - 1
"""Counted at most, whatever a client writes: beyond any worker, and small enough to reckon with."""

ONE_BATCH_BYTES = 1024
"""A prompt that a worker surely reads in one batch; the smallest usual batch is 512 tokens."""

NEVER_DEFAULTS = frozenset(
    {"content", "input", "messages", "model", "prompt", "stream", "stream_options"}
)
"""Fields that say what a request is; `generation` in the config may not set them."""

_TOKENS = ("n_predict", "max_completion_tokens", "max_tokens")  # as llama-server ranks them
_ANSWERS = ("n_cmpl", "n")
_GRAMMARS = ("response_format", "json_schema", "grammar")
_PROBABILITIES = ("n_probs", "logprobs")
_SAME = {name: group for group in (_TOKENS, _ANSWERS, _GRAMMARS, _PROBABILITIES) for name in group}
_UNSET_VALUES = (b"null",)
_STREAM = Raw(b"true")
_WITH_USAGE = Raw(b'{"include_usage":true}')


class ParsedRequest:
    """What llmd knows of a request from its body.

    Attributes:
        kind: Which kind it is.
        body: The bytes that came.
        model: The model's name as the client wrote it; None if it named none.
        stream: The client wants events.
        max_tokens: Most tokens of one answer: -1 = as many as fit, None = not said, 0 for kinds
            that generate nothing.
        choices: Answers wanted for each prompt (`n`).
        prompts: Prompts or inputs in it.
        prompt_bytes: Length of its text in UTF-8: messages, prompts, inputs and tools.
        largest_prompt_bytes: Of it, what the longest message, prompt or input has.
        messages: Messages of a chat; else as many as there are prompts.
        continues: The last message is the assistant's, so the answer may go on with it.
        images: Images, sounds and videos.
        service_tier: As the client wrote it.
        gathers: The plain answer is to be put together from the worker's stream: it can be
            without loss, and it runs long enough that it may have to be cancelled.
    """

    __slots__ = (
        "_added",
        "_fields",
        "_named",
        "_suspect",
        "body",
        "choices",
        "continues",
        "gathers",
        "images",
        "kind",
        "largest_prompt_bytes",
        "max_tokens",
        "messages",
        "model",
        "prompt_bytes",
        "prompts",
        "service_tier",
        "stream",
        "temperature",
    )

    def __init__(self, kind: Kind, body: bytes) -> None:
        self.kind = kind
        self.body = body
        self.model: str | None = None
        self.stream = False
        self.max_tokens: int | None = None
        self.temperature: float | None = None
        self.choices = 1
        self.prompts = 1
        self.prompt_bytes = 0
        self.largest_prompt_bytes = 0
        self.messages = 1
        self.continues = False
        self.images = 0
        self.service_tier: str | None = None
        self.gathers = False
        self._named = False  # the client itself wrote `stream` or `stream_options`
        self._suspect = False
        self._fields: dict[str, Raw] | None = None
        self._added: dict[str, Raw] = {}

    @property
    def sequences(self) -> int:
        """Sequences that the worker will decode: prompts times answers for each."""
        return min(self.prompts * self.choices, MAX_SEQUENCES)

    @property
    def fields(self) -> dict[str, Raw]:
        """The client's fields, undecoded."""
        if self._fields is None:
            try:
                self._fields = _decode_fields(self.body)
            except UnicodeDecodeError as error:
                raise InvalidRequest("the request body is not valid UTF-8") from error
        return self._fields

    def count_tokens(self, wanted: float) -> None:
        """Set `max_tokens` from what was written."""
        self.max_tokens = int(min(max(wanted, -1), MAX_TOKENS))

    def count_choices(self, wanted: float) -> None:
        """Set `choices` from what was written."""
        self.choices = int(min(max(wanted, 1), MAX_SEQUENCES))

    def note_temperature(self, wanted: Any) -> None:
        """Set `temperature`; what is no number is left to the worker to judge."""
        if type(wanted) in (int, float):
            self.temperature = float(wanted)

    def note_stream(self, *, stream: bool, named: bool) -> None:
        """Set `stream`; `named` says whether the body has the field or its options at all."""
        self.stream = stream
        self._named = named

    def name_model(self, name: str) -> None:
        """Have the worker see the model's own name, which some of its answers repeat."""
        if self.model != name:
            self._added["model"] = Raw(_encode(name))

    def apply_defaults(self, *levels: Mapping[str, Any]) -> None:
        """Fill in fields that are absent or null, under whatever name.

        Args:
            levels: `generation` of the model, then of the config; earlier ones win.
        """
        if not self.kind.generates:
            return
        for level in levels:
            for name, value in level.items():
                if name not in NEVER_DEFAULTS and not self._has(name):
                    self._added[name] = Raw(_encode(value))
                    if name in _TOKENS:
                        self.count_tokens(value)
                    elif name in _ANSWERS:
                        self.count_choices(value)
                    elif name == "temperature":
                        self.note_temperature(value)
        if self._added:
            self.decide_gathering(suspect=not SUSPECT.isdisjoint(self._added))

    def decide_gathering(self, *, suspect: bool) -> None:
        """Set `gathers`; `suspect` says that there are fields that need a closer look."""
        self._suspect = self._suspect or suspect
        form = self.kind.form
        # a message that is continued is repeated in a plain answer only
        if form is Form.NONE or self.stream or self.continues or self.is_one_batch:
            self.gathers = False
        else:
            self.gathers = not (self._suspect and is_lossy(form, {**self.fields, **self._added}))

    @property
    def is_one_batch(self) -> bool:
        """Whether it is over after one batch: llama-server looks for cancels between batches."""
        return (
            self.max_tokens in (0, 1)
            and self.prompt_bytes <= ONE_BATCH_BYTES
            and self.prompts == self.choices == 1
            and not self.images
        )

    def upstream_body(self, *, force_stream: bool) -> bytes:
        """Return the body for the worker: the client's own bytes where nothing must change.

        Args:
            force_stream: Ask for a stream, with usage, though the client wants a plain answer.
        """
        changes = self._added
        if force_stream and not self.stream:
            changes = {**changes, "stream": _STREAM}
            if self.kind.form is Form.CHAT:
                changes["stream_options"] = _WITH_USAGE
        if not changes:
            return self.body
        if self._named or not self._added.keys().isdisjoint(self._fields or ()):
            return _encode({**self.fields, **changes})
        # appended: nothing of what the client wrote is touched, or even looked at again
        end = self.body.rindex(b"}")
        return b"%b,%b" % (self.body[:end], _encode(changes)[1:])

    def _has(self, name: str) -> bool:
        fields, added = self.fields, self._added
        return any(
            same in added or (same in fields and bytes(fields[same]) not in _UNSET_VALUES)
            for same in _SAME.get(name, (name,))
        )
