"""The directory of the admin socket: who could put a socket of his own there, who can reach ours.

A client trusts whoever listens at the path, and what it sends there steers the box; so nobody but
the daemon's user and root may be able to exchange the file. And a mode that lets a group or all
users connect is worth nothing behind a directory that they may not enter.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import shlex
import stat
from collections.abc import Iterator
from pathlib import Path

from llmd.admin.peercred import Rights
from llmd.errors import ConfigError

_NOBODY = 65534  # whom a user namespace shows instead of users that it does not map
_ACL = "system.posix_acl_access"


def examine(path: Path, rights: Rights, *, own: bool) -> list[str]:
    """Return what an operator should know about the place of a socket.

    Args:
        path: Of the socket. What is missing on the way to it will be made, as it should be.
        rights: Who is to use it.
        own: Its directory is llmd's alone, so `prepare` will let those in who may use it.

    Raises:
        ConfigError: Everybody may exchange the socket.
    """
    warnings, closed = [], []
    directory = Path(os.path.realpath(path.parent))
    for place, found in _existing(directory):
        nearest = place == directory
        if nearest and _open_to_all(found) and not found.st_mode & stat.S_ISVTX:
            raise ConfigError(
                [
                    f"server.admin_socket: everybody may write to {place}, so anyone could put a "
                    f"socket of his own at {path}; run chmod o-w {shlex.quote(str(place))}, or "
                    "choose another place"
                ]
            )
        warnings += _exchangeable(path, place, found, rights, nearest=nearest)
        mine = own and nearest and found.st_uid == rights.owner
        if not mine and not _enterable(place, found, rights):
            closed.append(place)
    return warnings + _unreachable(path, closed, rights)


def prepare(directory: Path, rights: Rights, *, own: bool) -> None:
    """Make a socket's directory, private, and let those in who may use the socket.

    Args:
        directory: An existing one is left as it is unless it is llmd's own.
        rights: Who is to use the socket.
        own: It is llmd's alone.

    Raises:
        OSError: It cannot be made, or not be given to the group.
    """
    try:
        directory.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        found = directory.stat()
        if not own or found.st_uid != rights.owner or _enterable(directory, found, rights):
            return
    if rights.group is not None and not rights.read_all:
        os.chown(directory, -1, rights.group)
        directory.chmod(0o710)
    elif rights.read_all:
        directory.chmod(0o711)


def _existing(directory: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for place in (directory, *directory.parents):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            yield place, place.stat()


def _exchangeable(
    path: Path, place: Path, found: os.stat_result, rights: Rights, *, nearest: bool
) -> list[str]:
    """Warn of those who could exchange the socket, or a directory on the way to it."""
    who = ""
    if found.st_uid not in (0, rights.owner, _NOBODY):
        who = f"{place} belongs to {_user(found.st_uid)}, who"
    elif found.st_mode & stat.S_ISVTX:
        # there, what exists is safe; but a name that is free between two starts may be taken
        if nearest and _open_to_all(found):
            who = f"everybody may write to {place}, and while llmd is not running anyone"
    elif _open_to_all(found):
        who = f"everybody may write to {place} and"
    elif found.st_mode & stat.S_IWGRP and found.st_gid not in _trusted_groups(rights):
        who = f"group {_group(found.st_gid)} may write to {place} and"
    if not who:
        return []
    return [
        f"server.admin_socket: {who} could put another socket at {path}; choose a directory of "
        "llmd's own"
    ]


def _open_to_all(found: os.stat_result) -> bool:
    return bool(found.st_mode & stat.S_IWOTH)


def _trusted_groups(rights: Rights) -> set[int | None]:
    trusted: set[int | None] = {0, rights.group}
    with contextlib.suppress(KeyError):
        trusted.add(pwd.getpwuid(rights.owner).pw_gid)  # often a group of that user alone
    return trusted


def _enterable(place: Path, found: os.stat_result, rights: Rights) -> bool:
    """Tell whether those who may use the socket may pass a directory."""
    if rights.group is None and not rights.read_all:
        return True
    if found.st_mode & stat.S_IXOTH:
        return True
    if not rights.read_all and found.st_gid == rights.group:
        return bool(found.st_mode & stat.S_IXGRP)
    try:
        return _ACL in os.listxattr(place)  # it says more than the mode; taken on trust
    except OSError:
        return False


def _unreachable(path: Path, closed: list[Path], rights: Rights) -> list[str]:
    if not closed:
        return []
    places = shlex.join(map(str, reversed(closed)))
    if rights.read_all:
        key, who, fix = "admin_read_all", "other users", f"chmod o+x {places}"
    else:
        group = _group(rights.group or 0)
        key, who = "admin_group", f"members of {group}"
        fix = f"chgrp {group} {places} && chmod g+x {places}"
    return [
        f"server.{key}: {who} cannot reach {path}, since they may not enter "
        f"{', '.join(map(str, reversed(closed)))}; set server.admin_socket to a place that they "
        f"can reach, such as /run/llmd/admin.sock, or let them pass: {fix}"
    ]


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
