"""Who is at the other end of a Unix socket, as the kernel has it."""

from __future__ import annotations

import array
import ctypes
import errno
import grp
import os
import pwd
import socket
import struct
from dataclasses import dataclass

from llmd.errors import ConfigError

_SO_PEERGROUPS = 59  # socket.h of Linux; Python has no name for it
_UCRED = struct.Struct("3i")
_MOST_BY_PYTHON = 1024  # bytes that socket.getsockopt returns at most


@dataclass(frozen=True, slots=True)
class Peer:
    """A process that connected, with the rights that it had then.

    Attributes:
        pid: Of the process; 0 when it is in a namespace that we cannot see.
        uid, gid: Its user and primary group.
        groups: Its supplementary groups.
    """

    pid: int
    uid: int
    gid: int
    groups: frozenset[int]

    @property
    def user(self) -> str:
        """The user's name, or the number when it has none."""
        try:
            return pwd.getpwuid(self.uid).pw_name
        except KeyError:
            return str(self.uid)

    def __str__(self) -> str:
        return f"{self.user} (uid {self.uid}, pid {self.pid})"


def peer_of(sock: socket.socket) -> Peer:
    """Return who connected to a Unix socket.

    Raises:
        OSError: The kernel does not say.
    """
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, uid, gid = _UCRED.unpack(raw)
    return Peer(pid, uid, gid, frozenset(_groups(sock)))


def _groups(sock: socket.socket) -> array.array[int]:
    """Return the supplementary groups, which SO_PEERCRED leaves out."""
    found = array.array("I")
    try:
        found.frombytes(sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _MOST_BY_PYTHON))
    except OSError as error:
        if error.errno != errno.ERANGE:
            raise
        return _many_groups(sock)
    return found


def _many_groups(sock: socket.socket) -> array.array[int]:
    """Return more groups than Python's own getsockopt has room for."""
    libc = ctypes.CDLL(None, use_errno=True)
    room = (ctypes.c_uint32 * 65536)()  # NGROUPS_MAX
    size = ctypes.c_uint32(ctypes.sizeof(room))
    if libc.getsockopt(
        sock.fileno(), socket.SOL_SOCKET, _SO_PEERGROUPS, ctypes.byref(room), ctypes.byref(size)
    ):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return array.array("I", room[: size.value // 4])


@dataclass(frozen=True, slots=True)
class Rights:
    """Who may do what on the admin socket.

    Attributes:
        owner: The daemon's own user.
        group: Its members may write; None = no group.
        read_all: Every local user may connect and read.
    """

    owner: int
    group: int | None = None
    read_all: bool = False

    @classmethod
    def of(cls, group: str, *, read_all: bool) -> Rights:
        """Return the rights for this process's socket.

        Raises:
            ConfigError: There is no such group.
        """
        if not group:
            return cls(os.geteuid(), None, read_all)
        try:
            gid = grp.getgrnam(group).gr_gid
        except KeyError:
            raise ConfigError([f"server.admin_group: there is no group {group!r}"]) from None
        return cls(os.geteuid(), gid, read_all)

    def access(self, peer: Peer) -> str:
        """Return "write", "read" or "" (nothing at all)."""
        if peer.uid in (0, self.owner):
            return "write"
        if self.group is not None and (peer.gid == self.group or self.group in peer.groups):
            return "write"
        return "read" if self.read_all else ""

    @property
    def mode(self) -> int:
        """Of the socket's file: the kernel refuses those who could not do anything anyway."""
        if self.read_all:
            return 0o666
        return 0o600 if self.group is None else 0o660
