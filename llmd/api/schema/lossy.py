"""Which plain answers a stream cannot tell.

A worker's stream leaves some things out that its plain answer has; each rule here names one. Such
a plain request goes to the worker as it is. (llama-server ends a plain job that lost its client
too, but only once no other of its jobs has delivered anything for a whole second.)
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from llmd.api.schema.kinds import Form

SUSPECT = frozenset(
    {
        "logprobs",
        "n_indent",
        "n_probs",
        "reasoning_format",
        "response_fields",
        "return_tokens",
        "stop",
        "verbose",
    }
)
"""Fields that a rule looks at."""

_NOTHING = (b"null", b"false", b"0", b'""', b"[]", b"-1")


def is_lossy(form: Form, fields: Mapping[str, msgspec.Raw]) -> bool:
    """Tell whether the plain answer to these fields has what their stream has not.

    Args:
        form: Of the stream.
        fields: The request's top-level fields, undecoded.
    """

    def asks(name: str) -> bool:
        return name in fields and bytes(fields[name]) not in _NOTHING

    # text that has been streamed is cut off again
    if asks("n_indent"):
        return True
    # this format puts the reasoning elsewhere when it streams
    if asks("reasoning_format") and b"legacy" in bytes(fields["reasoning_format"]):
        return True
    probabilities = asks("logprobs") or asks("n_probs")
    if form is Form.CHAT:
        # tokens without visible text (end of turn, tags) have no event, and so their
        # probabilities have none; with tools the worker refuses to stream them at all
        return probabilities or asks("verbose")
    # a plain answer leaves out the probabilities of the stop word's tokens
    if probabilities and asks("stop"):
        return True
    if form is Form.TEXT:
        return asks("verbose")
    # tokens of half a character have no event; an event of picked fields has no known shape
    return asks("return_tokens") or asks("response_fields")
