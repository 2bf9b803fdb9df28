"""The admin socket's file: who owns the path, and what becomes of one that was left behind."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
from pathlib import Path

from llmd.admin.directory import examine, prepare
from llmd.admin.peercred import Rights
from llmd.errors import ConfigError
from llmd.places import SOCKET_NAME

_BACKLOG = 128
_MAX_PATH_BYTES = 107  # sun_path of Linux, its end mark not counted
_NOT_A_MEMBER = (
    "server.admin_group: {} cannot be given to that group: llmd's own user must be a member of it"
)


class SocketFile:
    """A listening Unix socket at a path that one daemon at a time owns.

    Args:
        path: Where; its directory is made, private, when it is missing.
        rights: For owner and mode of the file.
        own_directory: Its directory is llmd's alone: who may use the socket may enter it.

    Attributes:
        warnings: What an operator should know of its place, once it is open.
        listener: Non-blocking; another one after `restore` has made the file anew.
    """

    def __init__(self, path: Path, rights: Rights, *, own_directory: bool = False) -> None:
        self.path = path
        self.warnings: list[str] = []
        self._rights = rights
        self._own_directory = own_directory
        self._lock = -1
        self._identity = (-1, -1)
        self.listener: socket.socket | None = None

    def open(self) -> None:
        """Take the path and listen.

        Raises:
            ConfigError: Another daemon has it, it is no socket, or it cannot be made.
        """
        if len(os.fsencode(self.path)) > _MAX_PATH_BYTES:
            raise ConfigError(
                [
                    f"server.admin_socket: {self.path} is longer than the {_MAX_PATH_BYTES} bytes "
                    "that the path of a Unix socket may have"
                ]
            )
        try:
            self._make_directory()
            self.warnings = examine(self.path, self._rights, own=self._own_directory)
            self._take_lock()
            self._clear()
            self._bind()
        except OSError as error:
            self.close()
            raise ConfigError(
                [f"server.admin_socket: cannot listen at {self.path}: {error.strerror or error}"]
            ) from error
        except ConfigError:
            self.close()
            raise

    def restore(self) -> tuple[socket.socket | None, str] | None:
        """Make the file anew when somebody has deleted or replaced it.

        A socket in its place that nobody listens on is removed; anything else is moved aside, to
        the one name that ends in `.found`. Somebody else's listener stays.

        Returns:
            The listener that nobody can reach any more, for the caller to close, and what has
            become of the file; None when nothing was done.

        Raises:
            OSError, ConfigError: It cannot be made.
        """
        try:
            found = self.path.lstat()
        except FileNotFoundError:
            note = "its file was gone"
        else:
            # an inode is not used again while a socket is bound to it
            if stat.S_ISSOCK(found.st_mode) and (found.st_dev, found.st_ino) == self._identity:
                return None
            note = self._put_away(found)
        self._make_directory()
        old = self.listener
        self._bind()
        return old, note

    def close(self) -> None:
        """Stop listening and remove the file, if it is still ours. Idempotent."""
        if self.listener is not None:
            self.listener.close()
            self.listener = None
            with contextlib.suppress(OSError):
                found = self.path.lstat()
                if (found.st_dev, found.st_ino) == self._identity:
                    self.path.unlink()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    # --- steps ------------------------------------------------------------------------------

    def _make_directory(self) -> None:
        try:
            prepare(self.path.parent, self._rights, own=self._own_directory)
        except PermissionError as error:
            if self._rights.group is None:
                raise
            raise ConfigError([_NOT_A_MEMBER.format(self.path.parent)]) from error

    def _take_lock(self) -> None:
        """Be the only daemon at this path, also while its file is deleted or not there yet."""
        path = self.path.with_name(self.path.name + ".lock")
        self._lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise self._taken() from None

    def _clear(self) -> None:
        """Remove a socket that nobody listens on any more; anything else at the path stays."""
        try:
            found = self.path.lstat()
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(found.st_mode):
            raise ConfigError(
                [f"server.admin_socket: {self.path} exists and is no socket; remove or rename it"]
            )
        with socket.socket(socket.AF_UNIX) as probe:
            probe.setblocking(False)
            try:
                probe.connect(str(self.path))
            except ConnectionRefusedError:
                self.path.unlink()
                return
            except BlockingIOError:
                pass  # somebody listens, and is busy
        raise self._taken()

    def _put_away(self, found: os.stat_result) -> str:
        """Free the path of what has come to it, and say what was done."""
        if stat.S_ISSOCK(found.st_mode):
            self._clear()
            return "a socket that nobody listens on was in its place, and is removed"
        aside = self.path.with_name(self.path.name + ".found")
        if os.path.lexists(aside):
            raise ConfigError(
                [f"{self.path} is no socket any more; remove or rename it (and {aside.name})"]
            )
        self.path.rename(aside)
        return f"something that is no socket was in its place, and is now {aside.name}"

    def _bind(self) -> None:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        bound = False
        try:
            # Linux gives the file the mode of the socket, so that it is never open to all
            os.fchmod(made.fileno(), 0o600)
            made.bind(str(self.path))
            bound = True
            self._give_to_group()
            self.path.chmod(self._rights.mode)
            made.setblocking(False)
            made.listen(_BACKLOG)
            found = self.path.lstat()
        except (OSError, ConfigError):
            made.close()
            if bound:
                self.path.unlink(missing_ok=True)
            raise
        self._identity = (found.st_dev, found.st_ino)
        self.listener = made

    def _give_to_group(self) -> None:
        if self._rights.group is None:
            return
        try:
            os.chown(self.path, -1, self._rights.group)
        except PermissionError as error:
            raise ConfigError([_NOT_A_MEMBER.format(self.path)]) from error

    def _taken(self) -> ConfigError:
        return ConfigError(
            [
                f"server.admin_socket: another llmd is running and listens at {self.path}; stop "
                "it, or give this one another path"
            ]
        )


def is_busy(error: OSError) -> bool:
    """Tell whether an accept failed for want of descriptors or memory, and may be tried again."""
    return error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


def socket_path(configured: str, runtime: Path) -> Path:
    """Return where the socket is: as configured, else in the runtime directory."""
    return Path(configured).expanduser() if configured else runtime / SOCKET_NAME
