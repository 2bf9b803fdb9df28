"""Messages to the service manager, on real datagram sockets."""

from __future__ import annotations

import os
import socket

import pytest

from llmd.observe.sdnotify import Notifier


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path):
    if request.param == "path":
        address = bound = str(tmp_path / "notify")
    else:
        address = f"@llmd-test-{os.getpid()}-{tmp_path.name}"
        bound = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(bound)
        sock.setblocking(False)
        yield address, sock


def test_the_manager_hears_every_message(manager):
    address, sock = manager
    notifier = Notifier.from_env({"NOTIFY_SOCKET": address}, 1)
    assert notifier.enabled
    said = [
        notifier.status("loading qwen3"),
        notifier.ready("serving 2 models"),
        notifier.watchdog(),
        notifier.extend_timeout(1.5),
        notifier.stopping(),
    ]
    assert all(said)
    assert [sock.recv(1000) for _ in said] == [
        b"STATUS=loading qwen3",
        b"READY=1\nSTATUS=serving 2 models",
        b"WATCHDOG=1",
        b"EXTEND_TIMEOUT_USEC=1500000",
        b"STOPPING=1",
    ]


def test_a_status_cannot_bring_other_variables(manager):
    address, sock = manager
    Notifier(address).status("x\nMAINPID=1\n" + "y" * 1000)
    message = sock.recv(10_000)
    assert b"\n" not in message
    assert len(message) < 600


def test_a_manager_that_does_not_read_blocks_nobody(manager):
    address, _ = manager
    notifier = Notifier(address)
    assert False in {notifier.watchdog() for _ in range(10_000)}


@pytest.mark.parametrize("address", ["", "relative", "/no/such/socket", "@llmd-nobody", "/a\0b"])
def test_without_a_manager_nothing_happens(address):
    notifier = Notifier.from_env({"NOTIFY_SOCKET": address}, 1)
    assert notifier.ready("x") is False
    assert Notifier.from_env({}, 1).stopping() is False


@pytest.mark.parametrize(
    ("env", "seconds"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "7"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "8"}, 0.0),
        ({"WATCHDOG_USEC": "soon"}, 0.0),
        ({}, 0.0),
    ],
)
def test_the_watchdog_is_read(env, seconds):
    assert Notifier.from_env(env, 7).watchdog_s == seconds
