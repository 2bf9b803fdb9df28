"""`llmd.client` on a real daemon with a real engine: every command, blocking and asyncio."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import typing
from contextlib import aclosing, closing
from functools import partial
from pathlib import Path

import pytest
import trio
from daemon_rig import running

from llmd.admin import protocol as p
from llmd.admin.asking import Asking, asks
from llmd.client import AsyncClient, Client, Refused, Unreachable

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[2]
STREAMED = {p.Subscribe, p.Unsubscribe}


@pytest.fixture
async def llmd(runtime_dir, real_engine, demo_models):
    models = [demo_models / "demo-small.gguf", demo_models / "demo-large.gguf"]
    async with running(runtime_dir, real_engine, models) as found:
        yield found


def a_day(ask_for_the_other_model):
    """Yield what to ask, take what was answered; every command is there once at least."""
    hello = yield "hello"
    assert (hello.protocol, hello.access) == (p.PROTOCOL, "write")
    assert (yield "version").protocol == p.PROTOCOL
    assert (yield "status").daemon.pid == os.getpid()
    models = yield "models"
    assert {model.name for model in models.models} == {"demo-small", "demo-large"}
    plan = yield "switch", "demo-small", {"dry_run": True}
    assert (plan.fits, plan.dry_run, plan.loaded) == (True, True, False)
    done = yield "switch", "demo-small", {"if_gen": plan.generation, "wait": True}
    assert done.state == "ready"
    with pytest.raises(Refused) as refused:
        yield "load", "demo-large"
    assert refused.value.code == "insufficient_memory"
    while not (log := (yield "logs", "demo-small", {"lines": 3})).lines:
        pass  # what a worker says is read a moment later
    assert len(log.lines) <= 3
    ask_for_the_other_model("r-1")  # which waits: the one that is loaded has only just come
    while not (found := (yield "requests", {"state": "queued"})).total:
        pass
    assert [request.id for request in found.requests] == ["r-1"]
    assert (yield "queue").queued == 1
    assert (yield "why", "r-1").steps[0].rule == "min_residency"
    assert (yield "cancel", "r-1").cancelled == ("r-1",)
    assert (yield "requests", {"ended": True}).requests[0].state == "cancelled"
    with pytest.raises(Refused) as refused:
        yield "cancel", "r-none"
    assert refused.value.code == "request_not_found"
    assert not (yield "drain").admission_open
    assert (yield "resume").admission_open
    assert (yield "reset", "demo-small").state == "ready"
    assert (yield "restart", "demo-small", {"wait": True}).state == "ready"
    with pytest.raises(Refused) as refused:
        yield "unload", "demo-small", {"if_gen": 0}
    assert refused.value.code == "conflict"
    assert (yield "unload", "demo-small", {"wait": True}).state == "off"
    assert (yield "load", "demo-large", {"wait": True}).state == "ready"
    assert (yield "stop", {"wait": True}).unload == ("demo-large",)


def words(said):
    name, *rest = (said,) if isinstance(said, str) else said
    named = rest.pop() if rest and isinstance(rest[-1], dict) else {}
    return name, rest, named


def ask_in(llmd, nursery):
    """Return what starts a request for demo-large from another thread."""

    def ask(request_id):
        chat = partial(
            llmd.chat, model="demo-large", max_tokens=2, headers=[("x-request-id", request_id)]
        )
        trio.from_thread.run_sync(nursery.start_soon, chat)

    return ask


async def test_every_command_blocking(llmd, nursery):
    asked = set()

    def work():
        day = a_day(ask_in(llmd, nursery))
        with Client(llmd.daemon.admin.path) as client:
            said = next(day)
            while said is not None:
                name, arguments, named = words(said)
                asked.add(name)
                try:
                    answer = getattr(client, name)(*arguments, **named)
                except Refused as error:
                    said = day.throw(error)
                    continue
                try:
                    said = day.send(answer)
                except StopIteration:
                    said = None

    await trio.to_thread.run_sync(work)
    assert asked == METHODS


async def test_every_command_with_asyncio(llmd, nursery):
    asked = set()

    async def work():
        day = a_day(ask_in(llmd, nursery))
        async with AsyncClient(llmd.daemon.admin.path) as client:
            said = next(day)
            while said is not None:
                name, arguments, named = words(said)
                asked.add(name)
                try:
                    answer = await getattr(client, name)(*arguments, **named)
                except Refused as error:
                    said = day.throw(error)
                    continue
                try:
                    said = day.send(answer)
                except StopIteration:
                    said = None

    await trio.to_thread.run_sync(asyncio.run, work())
    assert asked == METHODS


METHODS = {name for name, value in vars(Asking).items() if isinstance(value, asks)}


def test_there_is_a_method_for_every_command():
    made = {typing.get_type_hints(getattr(Asking, name))["return"] for name in METHODS}
    assert made == set(typing.get_args(p.AnyCommand)) - STREAMED


async def test_events_and_logs_as_they_come(llmd):
    path = llmd.daemon.admin.path

    def blocking():
        with Client(path) as client, closing(client.subscribe("workers")) as events:
            assert isinstance(next(events), p.Snapshot)
            client.switch("demo-small", wait=True)
            seen = []
            while "ready" not in seen:
                seen += [worker.state for worker in next(events).workers]
            with closing(client.follow("demo-small", lines=2)) as lines:
                assert next(lines).seq < next(lines).seq
            with pytest.raises(Refused):
                next(client.subscribe("gossip"))
            with pytest.raises(Refused):
                next(client.follow("nope"))

    async def awaiting():
        async with AsyncClient(path) as client:
            async with aclosing(client.subscribe("workers")) as events:
                assert isinstance(await anext(events), p.Snapshot)
                await client.unload("demo-small", wait=True)
                seen = []
                while "off" not in seen:
                    seen += [worker.state for worker in (await anext(events)).workers]
            async with aclosing(client.follow("demo-small", lines=2)) as lines:
                assert (await anext(lines)).seq < (await anext(lines)).seq
            with pytest.raises(Refused):
                await anext(client.subscribe("gossip"))

    await trio.to_thread.run_sync(blocking)
    await trio.to_thread.run_sync(asyncio.run, awaiting())


async def test_a_client_that_waits_for_nothing_any_more_says_so(llmd):
    """The daemon goes while one call waits: that call ends, and so does the next."""
    path = llmd.daemon.admin.path
    begun = trio.Event()

    async def work():
        async with AsyncClient(path, timeout_s=None) as client:
            hello = await client.hello()
            assert hello.access == "write"
            trio.from_thread.run_sync(begun.set)
            with pytest.raises(Unreachable):
                await ask_for_ever(client)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, asyncio.run, work())
        await begun.wait()
        llmd.daemon.admin.close()


async def ask_for_ever(client):
    while True:
        await client.status()


async def example(llmd, *arguments):
    done = await trio.run_process(
        [sys.executable, str(ROOT / "examples" / "admin_client.py"), *arguments],
        env={**os.environ, "LLMD_SOCKET": str(llmd.daemon.admin.path), "PYTHONPATH": str(ROOT)},
        capture_stdout=True,
        capture_stderr=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


async def test_the_example_does_what_it_says(llmd):
    assert await example(llmd) == (0, "nothing is loaded\n", "")
    status, out, err = await example(llmd, "demo-small")
    assert (status, err) == (0, "")
    assert out.splitlines()[-1].startswith("demo-small: ready")
    status, out, _ = await example(llmd, "demo-large")
    assert status == 0
    assert "demo-small goes for it" in out
    status, _, err = await example(llmd, "demo-larg")
    assert status == 1
    assert "did you mean 'demo-large'?" in err
