"""The terminal, and that it may go."""

from __future__ import annotations

import signal
import termios
from queue import Full

from textual.drivers.linux_driver import LinuxDriver

_LOOK_S = 0.5


class Terminal(LinuxDriver):
    """Textual's driver, which also ends the app when its terminal has gone.

    Textual waits for ever to hand what it draws to a thread that a closed terminal has ended. And
    a hang-up sends SIGCONT right after SIGHUP, which textual takes for the way back from a stop.
    """

    _lost = False

    def start_application_mode(self) -> None:
        """Take the terminal over, if it is there and is not had already."""
        thread = self._writer_thread
        if thread is None or not (thread.is_alive() or self._gone()):
            super().start_application_mode()  # type: ignore[no-untyped-call]

    def write(self, data: str) -> None:
        """Have this written, as soon as the terminal takes it."""
        if not self._hand(data) and not self._lost:
            self._lost = True
            code = 128 + signal.SIGHUP
            self._app.exit(code, return_code=code)

    def close(self) -> None:
        """Have all of it written, unless the terminal has gone."""
        if self._hand(None) and self._writer_thread is not None:
            self._writer_thread.join()

    def _hand(self, data: str | None) -> bool:
        """Hand something to the thread that writes; None ends it. Return whether it lives."""
        thread = self._writer_thread
        while thread is not None and thread.is_alive():
            try:
                thread._queue.put(data, timeout=_LOOK_S)
            except Full:
                continue
            return True
        return False

    def _gone(self) -> bool:
        try:
            termios.tcgetattr(self.fileno)
        except termios.error:
            return True
        return False
