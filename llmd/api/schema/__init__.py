"""Request bodies: which kinds there are, what llmd reads of them, what it sends on.

`parse(KINDS[path], body, limits)` is the one parse that a request gets.
"""

from llmd.api.schema.kinds import KINDS, Form, Kind
from llmd.api.schema.parse import check_depth, parse
from llmd.api.schema.parsed import NEVER_DEFAULTS, ParsedRequest
from llmd.api.schema.text import SchemaLimits

__all__ = [
    "KINDS",
    "NEVER_DEFAULTS",
    "Form",
    "Kind",
    "ParsedRequest",
    "SchemaLimits",
    "check_depth",
    "parse",
]
