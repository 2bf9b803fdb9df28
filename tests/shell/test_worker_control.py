"""Control calls take nothing on trust: whatever a worker answers, they end, bounded and typed."""

from __future__ import annotations

import os
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from llmd.errors import BadWorkerResponse, WorkerDied, WorkerStalled
from llmd.workers import control as control_module
from llmd.workers.control import Control, Health


@asynccontextmanager
async def answering(reply, *, hold=False):
    """Serve one raw `reply` to every connection; `hold` keeps it open afterwards."""
    with tempfile.TemporaryDirectory(prefix="llmd-") as directory, trio.fail_after(20):
        path = Path(directory) / "w.sock"
        listener = trio.SocketListener(await bound(path))
        heads = []

        async def serve(stream):
            async with stream:
                heads.append(await stream.receive_some(65536))
                try:
                    await stream.send_all(reply)
                    if hold:
                        await trio.sleep_forever()
                except trio.BrokenResourceError:
                    pass

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, serve, [listener])
            control = Control(path)
            control.heads = heads
            yield control
            control.close()
            nursery.cancel_scope.cancel()


async def bound(path):
    sock = trio.socket.socket(trio.socket.AF_UNIX)
    await sock.bind(str(path))
    sock.listen(8)
    return sock


def http(body, status=200, extra=b""):
    head = b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n%b\r\n" % (status, len(body), extra)
    return head + body


async def test_health():
    async with answering(http(b'{"status":"ok"}')) as control:
        assert await control.health() is Health.READY
    async with answering(http(b"{}", 503)) as control:
        assert await control.health() is Health.LOADING
    async with answering(http(b"{}", 401)) as control:
        with pytest.raises(BadWorkerResponse, match="401"):
            await control.health()


async def test_props():
    body = b'{"total_slots":3,"model_path":"/m","default_generation_settings":{"n_ctx":7},"x":1}'
    async with answering(http(body)) as control:
        props = await control.props()
    assert (props.total_slots, props.model_path, props.context_tokens) == (3, "/m", 7)


async def test_slots_of_old_and_new_llama_servers():
    body = (
        b'[{"id":0,"is_processing":true,"next_token":[{"n_decoded":4}]},'
        b'{"id":1,"is_processing":true,"next_token":{"n_decoded":4}},'
        b'{"id":2,"is_processing":true,"next_token":[{"n_decoded":0}]},'
        b'{"id":3,"is_processing":false,"next_token":[]},{"id":4,"is_processing":true},'
        b'{"id":5,"is_processing":true,"next_token":[{"n_decoded":"9"}]}]'
    )
    async with answering(http(body)) as control:
        slots = await control.slots()
    assert [slot.is_decoding for slot in slots] == [True, True, False, False, False, False]


async def test_what_waits_inside():
    text = b"# HELP x\nllamacpp:requests_processing 2\nllamacpp:requests_deferred 5\n"
    async with answering(http(text)) as control:
        assert await control.deferred() == 5
    async with answering(http(b"llamacpp:requests_deferred nan\n")) as control:
        assert await control.deferred() == 0


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'{"total_slots":0}',
        b'{"total_slots":-1}',
        b'{"total_slots":99999}',
        b'{"total_slots":"4"}',
        b'{"total_slots":1,"model_path":7}',
        b'{"total_slots":1,"default_generation_settings":{"n_ctx":-4}}',
        b'{"total_slots":1,"model_path":"\xff"}',
        b'{"total_slots":1,"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
async def test_props_that_cannot_be_used(body):
    async with answering(http(body)) as control:
        with pytest.raises(BadWorkerResponse):
            await control.props()


async def test_an_answer_that_is_too_large(monkeypatch):
    monkeypatch.setattr(control_module, "MAX_ANSWER_BYTES", 1000)
    async with answering(http(b"[" + b" " * 2000 + b"]")) as control:
        with pytest.raises(BadWorkerResponse, match="longer than 1000"):
            await control.slots()


async def test_an_answer_that_never_comes():
    async with answering(b"", hold=True) as control:
        with pytest.raises(WorkerStalled, match="GET /health within 0.05 s"):
            await control.health(0.05)


async def test_an_answer_that_never_ends():
    async with answering(b"HTTP/1.1 200 X\r\nContent-Length: 10\r\n\r\n{", hold=True) as control:
        with pytest.raises(WorkerStalled):
            await control.props(0.05)


async def test_an_answer_that_breaks_off():
    async with answering(b"HTTP/1.1 200 X\r\nContent-Length: 10\r\n\r\n{") as control:
        with pytest.raises(WorkerDied):
            await control.props()


async def test_no_http():
    async with answering(b"hello there\r\n\r\n", hold=True) as control:
        with pytest.raises(BadWorkerResponse):
            await control.health()


async def test_nobody_there():
    with tempfile.TemporaryDirectory() as directory:
        control = Control(Path(directory) / "none.sock")
        for call in (control.health, control.props, control.slots, control.peer_pid):
            with pytest.raises(WorkerDied):
                await call()
        control.close()


async def test_the_peer_is_who_listens_and_a_pinned_one_nobody_else():
    async with answering(http(b"{}")) as control:
        assert await control.peer_pid() == os.getpid()
        control.pin(os.getpid())
        assert await control.health() is Health.READY
        heads = len(control.heads)
        control.pin(os.getppid())
        with pytest.raises(WorkerDied, match="another process"):
            await control.health()
        assert len(control.heads) == heads


async def test_no_connection_is_kept():
    async with answering(http(b"{}")) as control:
        for _ in range(3):
            await control.health()
        assert len(control.heads) == 3
        assert all(b"connection: close" in head.lower() for head in control.heads)
