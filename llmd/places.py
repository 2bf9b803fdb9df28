"""Where things are on this box: the home, state and runtime directories, and the admin socket.

Nothing is created here, and the environment is handed in. Clients use this too, so it imports
nothing of llmd.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping
from pathlib import Path

SOCKET_NAME = "admin.sock"
SYSTEM_SOCKET = Path("/run/llmd") / SOCKET_NAME


def home_dir(env: Mapping[str, str]) -> Path:
    """Return the home directory: `$HOME`, else what the user database says."""
    return Path(env.get("HOME") or pwd.getpwuid(os.getuid()).pw_dir)


def state_dir(env: Mapping[str, str]) -> Path:
    """Return what outlives a restart: `$STATE_DIRECTORY`, else `llmd` in `$XDG_STATE_HOME`."""
    given = _first(env.get("STATE_DIRECTORY", ""))
    if given is not None:
        return given
    base = _absolute(env.get("XDG_STATE_HOME", ""))
    return (base or home_dir(env) / ".local" / "state") / "llmd"


def runtime_dir(env: Mapping[str, str]) -> Path:
    """Return the place of sockets.

    That is `$RUNTIME_DIRECTORY`, else `llmd` in `$XDG_RUNTIME_DIR`, else the state directory.
    """
    given = _first(env.get("RUNTIME_DIRECTORY", ""))
    if given is not None:
        return given
    base = _absolute(env.get("XDG_RUNTIME_DIR", ""))
    return base / "llmd" if base is not None else state_dir(env)


def find_sockets(named: str | Path | None, env: Mapping[str, str]) -> tuple[Path, ...]:
    """Return where a client looks for the admin socket, the likeliest place first.

    Args:
        named: By the user, and then the only place; None or "" = look for it.
        env: `$LLMD_SOCKET` is the only place, too; else the runtime directory goes before the
            system's.
    """
    given = named or env.get("LLMD_SOCKET", "")
    if given:
        return (Path(given).expanduser(),)
    try:
        own = runtime_dir(env) / SOCKET_NAME
    except KeyError:  # a user without a home, and without an entry that names one
        return (SYSTEM_SOCKET,)
    return (own,) if own == SYSTEM_SOCKET else (own, SYSTEM_SOCKET)


def _first(value: str) -> Path | None:
    # systemd joins the directories of a unit with colons
    return _absolute(value.split(":", 1)[0])


def _absolute(value: str) -> Path | None:
    # the XDG specification has relative paths ignored
    return Path(value) if value.startswith("/") else None
