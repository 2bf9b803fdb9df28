"""The terminal, and that it may go."""

from __future__ import annotations

import os
import selectors
import signal
import termios
from codecs import getincrementaldecoder
from queue import Full
from threading import Event
from typing import Any

from textual import constants
from textual._xterm_parser import XTermParser
from textual.drivers.linux_driver import LinuxDriver

_LOOK_S = 0.5
_ESCAPE_S = 2 * constants.ESCAPE_DELAY  # after that a lone escape is one, and no key's beginning
_LAST_S = 0.1  # for answers of the terminal, so that no shell gets them
_MOST_BYTES = 4096


class Bell(Event):
    """An event that can be waited for together with files."""

    def __init__(self) -> None:
        super().__init__()
        self._heard, self._rung = os.pipe()

    def fileno(self) -> int:
        """Return what can be read from while the event is set."""
        return self._heard

    def set(self) -> None:
        """Set it."""
        if not self.is_set():
            super().set()
            os.write(self._rung, b"!")

    def clear(self) -> None:
        """Take it back."""
        if self.is_set():
            super().clear()
            os.read(self._heard, 1)


class Terminal(LinuxDriver):
    """Textual's driver, which also ends the app when its terminal has gone, and sleeps until then.

    Textual waits for ever to hand what it draws to a thread that a closed terminal has ended. And
    a hang-up sends SIGCONT right after SIGHUP, which textual takes for the way back from a stop.
    The thread that reads looks ten times a second whether to go on, which is a seventh of what an
    idle screen costs: here it is told.
    """

    _lost = False

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.exit_event: Event = Bell()

    def run_input_thread(self) -> None:
        """Hand on what is typed until the bell rings."""
        parser = XTermParser(self._debug)
        decode = getincrementaldecoder("utf-8")().decode

        def take(ready: list[tuple[selectors.SelectorKey, int]]) -> bool:
            typed = any(key.fd == self.fileno for key, _ in ready)
            data = os.read(self.fileno, _MOST_BYTES) if typed else b""
            if typed and not data:  # the other end has gone: there would be "something" for ever
                self.exit_event.set()
            text = decode(data)
            for message in (*(parser.feed(text) if text else ()), *parser.tick()):
                self.process_message(message)
            return typed

        with selectors.SelectSelector() as selector:
            selector.register(self.fileno, selectors.EVENT_READ)
            selector.register(self.exit_event, selectors.EVENT_READ)  # type: ignore[arg-type]
            typed = False
            while not self.exit_event.is_set():
                typed = take(selector.select(_ESCAPE_S if typed else None))
            selector.unregister(self.exit_event)  # type: ignore[arg-type]
            take(selector.select(_LAST_S))

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
