"""The last lines of the daemon's own log, for the operators' screens."""

from __future__ import annotations

import logging
from collections import deque
from itertools import islice

from llmd.admin.protocol import Notice
from llmd.observe.log import sentence

KEPT = 200


class Notices(logging.Handler):
    """Keeps the last lines; given to a logger by `attach` until `detach`.

    Attributes:
        seq: Number of the newest line; 0 before the first.
    """

    def __init__(self, logger: logging.Logger) -> None:
        super().__init__(logging.INFO)
        self._logger = logger
        self._lines: deque[Notice] = deque(maxlen=KEPT)
        self.seq = 0

    def attach(self) -> None:
        """Begin to listen."""
        self._logger.addHandler(self)

    def detach(self) -> None:
        """Stop listening."""
        self._logger.removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line."""
        self.seq += 1
        self._lines.append(
            Notice(
                seq=self.seq,
                at=round(record.created, 3),
                level=record.levelname.lower(),
                text=sentence(record),
            )
        )

    def since(self, seq: int) -> tuple[Notice, ...]:
        """Return the kept lines newer than number `seq`."""
        lines = tuple(self._lines)
        return tuple(islice(lines, max(0, len(lines) - (self.seq - seq)), None))

    def until(self, seq: int) -> tuple[Notice, ...]:
        """Return the kept lines up to number `seq`."""
        return tuple(line for line in tuple(self._lines) if line.seq <= seq)
