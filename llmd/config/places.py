"""Where things are: the config file, the state directory, the runtime directory.

Nothing is created here, and the environment is handed in.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping
from pathlib import Path

SYSTEM_CONFIG = Path("/etc/llmd/config.toml")


def home_dir(env: Mapping[str, str]) -> Path:
    """Return the home directory: `$HOME`, else what the user database says."""
    return Path(env.get("HOME") or pwd.getpwuid(os.getuid()).pw_dir)


def user_config(env: Mapping[str, str]) -> Path:
    """Return where a user's own config belongs."""
    return home_dir(env) / ".config" / "llmd" / "config.toml"


def find_config(path: Path | None, env: Mapping[str, str]) -> Path | None:
    """Return the config file to read, or None when there is none.

    A file that was named (`path`, `$LLMD_CONFIG`) is returned whether it exists or not, for a
    name that leads nowhere must not lead to another file.
    """
    if path is not None:
        return path
    if env.get("LLMD_CONFIG"):
        return Path(env["LLMD_CONFIG"])
    for candidate in (Path("config.toml"), user_config(env), SYSTEM_CONFIG):
        if _exists(candidate):
            return candidate
    return None


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


def _first(value: str) -> Path | None:
    # systemd joins the directories of a unit with colons
    return _absolute(value.split(":", 1)[0])


def _absolute(value: str) -> Path | None:
    # the XDG specification has relative paths ignored
    return Path(value) if value.startswith("/") else None


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a directory on the way that we may not search
        return False
