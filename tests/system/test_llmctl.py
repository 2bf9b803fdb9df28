"""llmctl and both clients against a whole daemon with real workers."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
from functools import partial

import pytest
import trio
from daemon_rig import running

from llmd.client import AsyncClient, Client, Refused, Unreachable

pytestmark = pytest.mark.system


@pytest.fixture
async def daemon(runtime_dir, fake_engine, demo_models):
    models = [demo_models / "demo-small.gguf", demo_models / "demo-large.gguf"]
    async with running(runtime_dir, fake_engine, models) as found:
        found.socket = runtime_dir / "admin.sock"
        yield found


async def llmctl(daemon, *words, env=None):
    """Run llmctl as a process; return its status, its output and what it complained about."""
    code = "import sys; from llmd.ctl import main; sys.exit(main())"
    done = await trio.run_process(
        [sys.executable, "-c", code, "--socket", str(daemon.socket), *words],
        capture_stdout=True,
        capture_stderr=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


async def said(daemon, *words):
    """Return the JSON lines of a command that was done."""
    status, out, err = await llmctl(daemon, "--json", *words)
    assert (status, err) == (0, "")
    return [json.loads(line) for line in out.splitlines()]


async def test_a_day_at_the_desk(daemon):
    assert {m["name"] for m in await said(daemon, "models")} == {"demo-small", "demo-large"}
    [plan] = await said(daemon, "switch", "demo-small", "--dry-run")
    assert (plan["fits"], plan["state"]) == (True, "off")
    [done] = await said(
        daemon, "switch", "demo-small", "--if-gen", str(plan["generation"]), "--wait"
    )
    assert done["state"] == "ready"
    status, _, err = await llmctl(daemon, "switch", "demo-large", "--if-gen", "0")
    assert status == 1
    assert "look again" in err
    answer = await daemon.chat(model="demo-small", max_tokens=4, headers=[("x-request-id", "r-1")])
    assert answer.status == 200
    status, out, _ = await llmctl(daemon, "why", "r-1")
    assert status == 0
    assert "granted" in out
    assert "done 200" in out
    status, out, _ = await llmctl(daemon, "status")
    assert status == 0
    assert "demo-small" in out
    assert "\x1b" not in out
    [row] = await said(daemon, "requests", "--ended")
    assert (row["id"], row["state"]) == ("r-1", "done")
    [restarted] = await said(daemon, "restart", "demo-small", "--wait")
    assert restarted["state"] == "ready"
    [stopped] = await said(daemon, "stop", "--wait")
    assert stopped["unload"] == ["demo-small"]


async def test_a_running_request_is_cancelled(daemon):
    async with trio.open_nursery() as nursery:
        nursery.start_soon(
            partial(
                daemon.chat,
                "[[token 0.1]]",
                model="demo-small",
                max_tokens=500,
                headers=[("x-request-id", "r-2")],
            )
        )
        await daemon.until(lambda: daemon.services.registry.live("r-2") is not None)
        [hit] = await said(daemon, "cancel", "r-2")
    assert hit["cancelled"] == ["r-2"]
    status, _, err = await llmctl(daemon, "--json", "cancel", "r-none")
    assert status == 1
    assert json.loads(err)["error"]["code"] == "request_not_found"


async def test_a_command_by_hand(daemon):
    def by_hand():
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(daemon.socket))
            sock.sendall(b'{"type":"status","id":1}\n')
            sock.shutdown(socket.SHUT_WR)
            return sock.makefile().read()

    answer = json.loads(await trio.to_thread.run_sync(by_hand))
    assert (answer["type"], answer["id"]) == ("ok", 1)


async def test_the_blocking_client_asks_everything(daemon):
    def work():
        with Client(daemon.socket) as client:
            assert client.hello().access == "write"
            assert client.status().daemon.state == "ok"
            assert client.switch("demo-small", wait=True).state == "ready"
            assert client.logs("demo-small").model == "demo-small"
            assert client.queue().queued == 0
            assert not client.drain().admission_open
            assert client.resume().admission_open
            assert client.reset("demo-small").state == "ready"
            assert client.version().protocol == 1
            assert client.requests(ended=True).total == 0
            with pytest.raises(Refused) as refused:
                client.why("nope")
            assert refused.value.code == "request_not_found"
            events = client.subscribe("workers")
            assert {w.model for w in next(events).workers} == {"demo-small", "demo-large"}
            client.unload("demo-small", wait=True)
            states = set()
            while "off" not in states:
                states |= {w.state for w in getattr(next(events), "workers", None) or ()}
            events.close()
        with pytest.raises(Unreachable):
            Client(daemon.socket.with_name("none.sock"))

    await trio.to_thread.run_sync(work)


async def test_the_asyncio_client_asks_side_by_side(daemon):
    async def work():
        async with AsyncClient(daemon.socket) as client:
            loaded, status, queue = await asyncio.gather(
                client.switch("demo-small", wait=True), client.status(), client.queue()
            )
            assert loaded.state == "ready"
            assert (status.daemon.state, queue.queued) == ("ok", 0)
            with pytest.raises(Refused):
                await client.load("nope")
            events = client.subscribe("workers", "requests")
            snapshot = await anext(events)
            assert any(w.model == "demo-small" for w in snapshot.workers)
            await client.restart("demo-small", wait=True)
            event = await anext(events)
            assert event.seq > snapshot.seq
            await events.aclose()
        with pytest.raises(Unreachable):
            await client.status()

    await trio.to_thread.run_sync(asyncio.run, work())


async def test_clients_see_the_daemon_end_and_the_file_is_gone(daemon):
    def work():
        with Client(daemon.socket) as client:
            events = client.subscribe("workers")
            next(events)
            trio.from_thread.run_sync(daemon.daemon.admin.close)
            for _ in events:
                pass  # what was on its way
            with pytest.raises(Unreachable):
                client.status()

    await trio.to_thread.run_sync(work)
    assert not daemon.socket.exists()
