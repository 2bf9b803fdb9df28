"""What the parts of the protocol share."""

from __future__ import annotations

from msgspec import Struct

PROTOCOL = 1


class View(Struct, frozen=True, kw_only=True):
    """What all answers share: immutable, and open to fields of newer daemons."""
