"""Little-endian values from a file that may lie about everything, within fixed bounds.

The reader never trusts a length: what is asked for must lie inside the file, what is read from
disk is counted against a budget, and what is skipped is not read. It uses plain reads and no
memory map, since a file that shrinks while it is mapped kills the process that reads it.
"""

from __future__ import annotations

import os
import stat
import struct
from pathlib import Path
from types import TracebackType

CHUNK_BYTES = 256 * 1024
MAX_READ_BYTES = 128 * 1024 * 1024
MAX_STRINGS = 8_000_000

_U64 = struct.Struct("<Q")


class BinaryError(Exception):
    """The bytes are not what they claim to be; the message says how."""


class BoundedReader:
    """A forward-only reader over one regular file.

    A context manager that owns its descriptor. Every method raises `BinaryError` for a bad
    file and `OSError` when the file cannot be read.

    Args:
        path: The file. Anything but a regular file (a FIFO, a device) is refused before it
            could block.
    """

    def __init__(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(descriptor)
            raise BinaryError("not a regular file")
        self._descriptor = descriptor
        self._buffer = b""
        self._start = 0  # offset in the file of the buffer's first byte
        self._at = 0  # offset within the buffer; may lie beyond it after a skip
        self._read_bytes = 0
        self._strings = 0
        self.size_bytes = status.st_size

    def __enter__(self) -> BoundedReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self._descriptor)

    @property
    def position(self) -> int:
        """Offset in the file of the next byte."""
        return self._start + self._at

    @property
    def remaining_bytes(self) -> int:
        """Bytes between here and the end of the file as it was when opened."""
        return max(0, self.size_bytes - self.position)

    def take(self, count: int) -> bytes:
        """Return the next `count` bytes; the caller has bounded `count`."""
        if self._at + count > len(self._buffer):
            self._fill(count)
        piece = self._buffer[self._at : self._at + count]
        self._at += count
        return piece

    def skip(self, count: int) -> None:
        """Pass over `count` bytes without reading them."""
        if count > self.remaining_bytes:
            raise BinaryError(
                f"cut off: {count} bytes should follow at offset {self.position}, "
                f"{self.remaining_bytes} do"
            )
        self._at += count

    def u32(self) -> int:
        """Return an unsigned 32-bit number."""
        return int.from_bytes(self.take(4), "little")

    def u64(self) -> int:
        """Return an unsigned 64-bit number."""
        return int.from_bytes(self.take(8), "little")

    def string(self, limit_bytes: int, what: str) -> bytes:
        """Return a string of at most `limit_bytes`; `what` names it in the error."""
        length = self.u64()
        if length > limit_bytes:
            raise BinaryError(f"{what} claims {length} bytes, at most {limit_bytes} are believed")
        return self.take(length)

    def skip_strings(self, count: int) -> None:
        """Pass over `count` strings, reading little more than their lengths."""
        if count * 8 > self.remaining_bytes:
            raise BinaryError(f"cut off: {count} strings cannot fit in what is left of the file")
        self._strings += count
        if self._strings > MAX_STRINGS:
            raise BinaryError(f"more than {MAX_STRINGS} strings in arrays")
        unpack = _U64.unpack_from
        while count:
            # a tight loop: vocabularies hold hundreds of thousands of these
            buffer, at, last = self._buffer, self._at, len(self._buffer) - 8
            while count and at <= last:
                at += 8 + unpack(buffer, at)[0]
                count -= 1
            self._at = at
            if self.position > self.size_bytes:
                raise BinaryError("cut off: a string in an array ends beyond the file")
            if count:
                self._fill(8)

    def _fill(self, count: int) -> None:
        """Bring at least `count` bytes from the present position into the buffer."""
        if count > self.remaining_bytes:
            raise BinaryError(
                f"cut off: {count} bytes should follow at offset {self.position}, "
                f"{self.remaining_bytes} do"
            )
        start = self.position
        wanted = min(max(count, CHUNK_BYTES), self.size_bytes - start)
        if self._read_bytes + wanted > MAX_READ_BYTES:
            raise BinaryError(f"more than {MAX_READ_BYTES // 2**20} MiB of metadata")
        pieces: list[bytes] = []
        got = 0
        while got < wanted:
            piece = os.pread(self._descriptor, wanted - got, start + got)
            if not piece:
                break
            pieces.append(piece)
            got += len(piece)
        self._read_bytes += got
        if got < count:
            raise BinaryError("the file became shorter while it was read")
        self._buffer = b"".join(pieces)
        self._start, self._at = start, 0
