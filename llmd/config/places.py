"""Where the config file is; the other places are those of `llmd.places`.

Nothing is created here, and the environment is handed in.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from llmd.places import home_dir, runtime_dir, state_dir

__all__ = ["SYSTEM_CONFIG", "find_config", "home_dir", "runtime_dir", "state_dir", "user_config"]

SYSTEM_CONFIG = Path("/etc/llmd/config.toml")


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
