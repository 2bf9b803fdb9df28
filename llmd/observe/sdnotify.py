"""Messages to the service manager, by sd_notify's protocol (see its manual page).

A message is one datagram of `KEY=value` lines to the socket that `NOTIFY_SOCKET` names. Nobody
has to be listening: whatever goes wrong, the daemon goes on without.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping

_MAX_STATUS_CHARS = 500


class Notifier:
    """Tells the service manager how the daemon is. Never blocks and never raises.

    Args:
        address: Path of the socket, "@name" for an abstract one; "" makes every call a no-op.
        watchdog_s: Seconds within which `watchdog` must be called again; 0 = never.
    """

    def __init__(self, address: str = "", *, watchdog_s: float = 0.0) -> None:
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self.watchdog_s = watchdog_s

    @classmethod
    def from_env(cls, env: Mapping[str, str], pid: int) -> Notifier:
        """Read `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID`.

        Args:
            env: The environment, untouched; children must not inherit these variables.
            pid: This process; a watchdog that is meant for another one is ignored.
        """
        address = env.get("NOTIFY_SOCKET", "")
        if not address.startswith(("/", "@")):
            address = ""
        usec, owner = env.get("WATCHDOG_USEC", ""), env.get("WATCHDOG_PID", "")
        ours = not owner or owner == str(pid)
        watched = ours and usec.isascii() and usec.isdigit() and len(usec) <= 18
        return cls(address, watchdog_s=int(usec) / 1e6 if watched else 0.0)

    @property
    def enabled(self) -> bool:
        """True when there is somebody to tell."""
        return bool(self._address)

    def ready(self, status: str = "") -> bool:
        """Say that starting is over."""
        return self._send("READY=1", _status(status) if status else "")

    def stopping(self, status: str = "") -> bool:
        """Say that the daemon is on its way out."""
        return self._send("STOPPING=1", _status(status) if status else "")

    def status(self, text: str) -> bool:
        """Set the one line that `systemctl status` shows."""
        return self._send(_status(text))

    def watchdog(self) -> bool:
        """Say that the daemon is alive."""
        return self._send("WATCHDOG=1")

    def extend_timeout(self, seconds: float) -> bool:
        """Ask for `seconds` more from now, while starting or stopping."""
        return self._send(f"EXTEND_TIMEOUT_USEC={max(0, round(seconds * 1e6))}")

    def _send(self, *lines: str) -> bool:
        """Send one datagram; return whether the kernel took it."""
        if not self._address:
            return False
        message = "\n".join(line for line in lines if line)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.setblocking(False)
                sock.sendto(message.encode(errors="replace"), self._address)
        except (OSError, ValueError):  # ValueError: a path with a NUL in it
            return False
        return True


def _status(text: str) -> str:
    # a line break would begin another variable, such as MAINPID
    clean = "".join(char if char.isprintable() else " " for char in text[:_MAX_STATUS_CHARS])
    return f"STATUS={clean}"
