"""What the thread that reads the keyboard does: it sleeps until a key comes, or its end."""

from __future__ import annotations

import os
import queue
import selectors
import threading
import tty

import pytest
from textual import events

from llmtui.terminal import Bell, Terminal


@pytest.fixture
def keyboard(monkeypatch):
    """A driver on a terminal of its own, where to type, what came of it, and its waits."""
    ours, theirs = os.openpty()
    tty.setraw(theirs)
    waits, came = queue.Queue(), queue.Queue()

    class Watched(selectors.SelectSelector):
        def select(self, timeout=None):
            waits.put(timeout)
            return super().select(timeout)

    monkeypatch.setattr(selectors, "SelectSelector", Watched)
    driver = Terminal.__new__(Terminal)  # without an app, and its signals
    driver.fileno, driver._debug, driver.exit_event = theirs, False, Bell()
    driver.process_message = came.put
    thread = threading.Thread(target=driver.run_input_thread)
    thread.start()
    yield driver, ours, came, waits
    driver.exit_event.set()
    thread.join(20)
    assert not thread.is_alive()
    os.close(ours)
    os.close(theirs)


def typed(came):
    message = came.get(timeout=20)
    assert isinstance(message, events.Key)
    return message.key


def test_it_sleeps_until_a_key_comes(keyboard):
    driver, ours, came, waits = keyboard
    assert waits.get(timeout=20) is None  # for ever
    os.write(ours, b"j")
    assert typed(came) == "j"
    assert waits.get(timeout=20) > 0  # an escape that came last would be one by then
    assert waits.get(timeout=20) is None
    driver.exit_event.set()
    assert waits.get(timeout=20) == pytest.approx(0.1)
    assert waits.empty()


def test_a_lone_escape_is_one_and_a_letter_in_two_pieces_a_letter(keyboard):
    _, ours, came, _ = keyboard
    os.write(ours, b"\x1b")
    assert typed(came) == "escape"
    os.write(ours, b"\x1b[A")
    assert typed(came) == "up"
    letter = "é".encode()
    os.write(ours, letter[:1])
    os.write(ours, letter[1:])
    assert came.get(timeout=20).character == "é"


def test_it_ends_when_the_other_end_has_gone():
    heard, typed_into = os.pipe()
    driver = Terminal.__new__(Terminal)
    driver.fileno, driver._debug, driver.exit_event = heard, False, Bell()
    os.close(typed_into)
    thread = threading.Thread(target=driver.run_input_thread)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    os.close(heard)


def test_a_bell_rings_until_it_is_taken_back():
    bell = Bell()
    for _ in range(2):
        bell.set()
        bell.set()
        assert bell.is_set()
        with selectors.SelectSelector() as selector:
            selector.register(bell, selectors.EVENT_READ)
            assert selector.select(0)
            bell.clear()
            bell.clear()
            assert not selector.select(0)
        assert not bell.is_set()
