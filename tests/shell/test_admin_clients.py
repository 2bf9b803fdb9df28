"""The clients before something that says what is no message: each tells it, none breaks."""

from __future__ import annotations

import asyncio
import json
import socket
import tempfile
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from llmd import ctl
from llmd.client import AsyncClient, BadReply, Client
from llmd.ctl.program import UNREACHABLE
from llmtui.link import Link

DEADLINE_S = 20
NO_TEXT = (
    b'{"type":"ok","id":1,"result":{"protocol":1,"version":"\xff","access":"","generation":1}}\n'
)
NO_MESSAGE = b'{"type":"ok\xff","id":1}\n'
TOO_DEEP = b'{"type":"ok","id":1,"more":' + b"[" * 100_000 + b"\n"
HELLO = b'{"type":"ok","id":1,"result":{"protocol":1,"version":"","access":"","generation":1}}\n'


@contextmanager
def impostor(*answers):
    """Listen, and answer the first line of each connection with the next of `answers`."""
    # the path of a Unix socket has at most 107 bytes, which pytest's own may exceed
    with tempfile.TemporaryDirectory(prefix="llmd-") as directory, ThreadPoolExecutor(8) as pool:
        path = Path(directory) / "admin.sock"
        left = deque(answers)

        def serve(peer):
            peer.settimeout(DEADLINE_S)
            with peer:
                if peer.recv(65536):
                    peer.sendall(left.popleft())
                while peer.recv(65536):
                    pass

        def listen():
            with suppress(OSError):
                while True:
                    pool.submit(serve, listener.accept()[0])

        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen()
            pool.submit(listen)
            try:
                yield path
            finally:
                listener.shutdown(socket.SHUT_RDWR)  # ends the accept


@pytest.mark.parametrize("answer", [NO_TEXT, NO_MESSAGE, TOO_DEEP])
def test_both_clients_say_that_it_is_no_answer(answer):
    with impostor(answer) as path, Client(path) as client, pytest.raises(BadReply):
        client.hello()

    async def work(path):
        async with AsyncClient(path) as client:
            with pytest.raises(BadReply):
                await client.hello()

    with impostor(answer) as path:
        asyncio.run(asyncio.wait_for(work(path), DEADLINE_S))


@pytest.mark.parametrize("answer", [NO_TEXT, NO_MESSAGE, TOO_DEEP])
@pytest.mark.parametrize("words", [["version"], ["watch"]])
def test_llmctl_says_so_in_a_line_and_ends_with_3(words, answer, capsys):
    if words == ["watch"]:
        answer = answer.replace(b'"ok"', b'"event"').replace(b'"result"', b'"daemon"')
    with impostor(answer) as path:
        assert ctl.main(["--socket", str(path), *words]) == UNREACHABLE
    err = capsys.readouterr().err
    assert err.startswith("llmctl: the daemon")
    assert err.count("\n") == 1
    with impostor(answer) as path:
        assert ctl.main(["--json", "--socket", str(path), *words]) == UNREACHABLE
    assert json.loads(capsys.readouterr().err)["error"]["code"] == "unreachable"


def test_the_screen_stays_and_tries_again():
    async def work(path):
        link = Link(lambda: AsyncClient(path), lambda: None)
        task = asyncio.create_task(link.run())
        while not link.state.trouble:
            await asyncio.sleep(0.01)
        assert not task.done()
        assert link.state.trouble.startswith("the daemon said what is no message")
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    with impostor(HELLO, NO_MESSAGE) as path:
        asyncio.run(asyncio.wait_for(work(path), DEADLINE_S))
