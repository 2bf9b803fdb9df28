"""Where things are on this box: the home, state and runtime directories, and the admin socket.

Nothing is created here, and the environment is handed in. Clients use this too, so it imports
nothing of llmd; and not pathlib, which takes longer to import than `llmctl` has to spare, so that
places are strings here. `llmd.config.places` has them as paths.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping

SOCKET_NAME = "admin.sock"
SYSTEM_SOCKET = f"/run/llmd/{SOCKET_NAME}"


def home_dir(env: Mapping[str, str]) -> str:
    """Return the home directory: `$HOME`, else what the user database says."""
    return env.get("HOME") or pwd.getpwuid(os.getuid()).pw_dir


def state_dir(env: Mapping[str, str]) -> str:
    """Return what outlives a restart: `$STATE_DIRECTORY`, else `llmd` in `$XDG_STATE_HOME`."""
    given = _first(env.get("STATE_DIRECTORY", ""))
    if given:
        return given
    base = _absolute(env.get("XDG_STATE_HOME", ""))
    return _below(base or _below(home_dir(env), ".local/state"), "llmd")


def runtime_dir(env: Mapping[str, str]) -> str:
    """Return the place of sockets.

    That is `$RUNTIME_DIRECTORY`, else `llmd` in `$XDG_RUNTIME_DIR`, else the state directory.
    """
    given = _first(env.get("RUNTIME_DIRECTORY", ""))
    if given:
        return given
    base = _absolute(env.get("XDG_RUNTIME_DIR", ""))
    return _below(base, "llmd") if base else state_dir(env)


def find_sockets(named: str | os.PathLike[str] | None, env: Mapping[str, str]) -> tuple[str, ...]:
    """Return where a client looks for the admin socket, the likeliest place first.

    Args:
        named: By the user, and then the only place; None or "" = look for it.
        env: `$LLMD_SOCKET` is the only place, too; else the runtime directory goes before the
            system's.
    """
    given = os.fspath(named or env.get("LLMD_SOCKET", ""))
    if given.startswith("~"):  # of a shell that left it alone
        from pathlib import Path

        return (str(Path(given).expanduser()),)
    if given:
        return (given,)
    try:
        own = _below(runtime_dir(env), SOCKET_NAME)
    except KeyError:  # a user without a home, and without an entry that names one
        return (SYSTEM_SOCKET,)
    return (own,) if own == SYSTEM_SOCKET else (own, SYSTEM_SOCKET)


def _below(directory: str, name: str) -> str:
    return f"{directory.rstrip('/')}/{name}"


def _first(value: str) -> str:
    # systemd joins the directories of a unit with colons
    return _absolute(value.split(":", 1)[0])


def _absolute(value: str) -> str:
    """Return an absolute path without what says nothing in it; "" for another."""
    if not value.startswith("/"):
        return ""  # the XDG specification has relative paths ignored
    return "/" + "/".join(part for part in value.split("/") if part not in ("", "."))
