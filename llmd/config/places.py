"""Where the config file is, and as paths the directories of `llmd.places`.

Nothing is created here, and the environment is handed in.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from llmd import places

SYSTEM_CONFIG = Path("/etc/llmd/config.toml")


def home_dir(env: Mapping[str, str]) -> Path:
    """Return the home directory."""
    return Path(places.home_dir(env))


def state_dir(env: Mapping[str, str]) -> Path:
    """Return the directory of what outlives a restart."""
    return Path(places.state_dir(env))


def runtime_dir(env: Mapping[str, str]) -> Path:
    """Return the directory of sockets."""
    return Path(places.runtime_dir(env))


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


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a directory on the way that we may not search
        return False
