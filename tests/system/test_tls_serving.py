"""HTTPS: everything that a client does over TCP, with `server.tls_cert` and `server.tls_key`."""

from __future__ import annotations

import json
import socket
import ssl
from contextlib import asynccontextmanager

import httpx
import pytest
import trio
import trustme
from daemon_rig import DEADLINE_S, chat_body, read_answer, running

pytestmark = pytest.mark.system
WORDS = 20_000


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture(scope="module")
def trusting(authority):
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@pytest.fixture
def served(runtime_dir, fake_engine, demo_small, authority, tmp_path):
    """A daemon that speaks HTTPS."""
    issued = authority.issue_cert("127.0.0.1")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    tls = {"tls_cert": str(tmp_path / "cert.pem"), "tls_key": str(tmp_path / "key.pem")}
    entry = {"name": "m", "path": str(demo_small), "context_size": 2 * WORDS}

    @asynccontextmanager
    async def served(**server):
        models = [entry]
        async with running(runtime_dir, fake_engine, models, server={**tls, **server}) as llmd:
            assert llmd.bound.url.startswith("https://127.0.0.1:")
            yield llmd
            llmd.assert_nothing_left()

    return served


async def secured(llmd, trusting, *, room_bytes=0):
    """Connect with TLS; `room_bytes` bounds what the kernel takes for a client that reads late."""
    sock = trio.socket.socket()
    if room_bytes:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room_bytes)
    await sock.connect(llmd.address)
    stream = trio.SSLStream(
        trio.SocketStream(sock), trusting, server_hostname="127.0.0.1", https_compatible=True
    )
    await stream.do_handshake()
    return stream


def text_of(answer):
    parts = [event["choices"][0]["delta"] for event in answer.events[:-1] if event["choices"]]
    return "".join(part.get("content") or "" for part in parts)


async def test_plain_and_streamed_answers_on_one_kept_connection(served, trusting):
    async with (
        served() as llmd,
        httpx.AsyncClient(
            base_url=llmd.bound.url, verify=trusting, trust_env=False, timeout=DEADLINE_S
        ) as client,
    ):
        path = "/v1/chat/completions"
        plain = await client.post(path, json=chat_body(max_tokens=3))
        assert plain.json()["choices"][0]["message"]["content"] == "w0 w1 w2 "
        streamed = await client.post(path, json=chat_body(max_tokens=3, stream=True))
        data = [line[6:] for line in streamed.text.split("\n") if line.startswith("data: ")]
        assert data[-1] == "[DONE]"
        assert json.loads(data[0])["choices"][0]["delta"]["content"] == "w0 "
        refused = await client.post(path, json={"messages": 1})
        assert refused.status_code == 400
        assert (await client.get("/v1/models")).json()["data"][0]["id"] == "m"
        assert llmd.daemon.http.connections == 1


async def test_a_client_that_reads_late_and_little_gets_it_all(served, trusting):
    async with served() as llmd:
        stream = await secured(llmd, trusting, room_bytes=4096)
        await stream.send_all(llmd.chat_bytes(stream=True, max_tokens=WORDS))
        await llmd.until_states("decode")
        (handle,) = llmd.handles()
        sent = -1
        while sent != handle.record.response_bytes:  # until the daemon cannot send any more
            sent = handle.record.response_bytes
            await trio.sleep(0.2)
        assert llmd.handles()
        answer = await read_answer(Sipping(stream))
        assert answer.events[-1] == "[DONE]"
        assert text_of(answer) == "".join(f"w{number} " for number in range(WORDS))
        assert llmd.last().state.value == "done"


class Sipping:
    """A client that takes a little at a time."""

    def __init__(self, stream):
        self._stream = stream

    async def receive_some(self):
        return await self._stream.receive_some(1000)

    async def aclose(self):
        await self._stream.aclose()


async def test_one_that_takes_nothing_is_dropped(served, trusting):
    async with served(send_timeout_sec=0.5) as llmd:
        stream = await secured(llmd, trusting, room_bytes=4096)
        await stream.send_all(llmd.chat_bytes(stream=True, max_tokens=WORDS))
        await llmd.until_states("decode")
        await llmd.until(lambda: not llmd.handles())
        assert llmd.last().state.value == "abandoned"
        assert "server.send_timeout_sec" in llmd.last().reason
        await stream.aclose()
        await llmd.until_slots_free("m")


@pytest.mark.parametrize("plain", [True, False])
async def test_leaving_cancels(served, trusting, plain):
    async with served() as llmd:
        stream = await secured(llmd, trusting)
        fields = {"stream": not plain, "max_tokens": 1000}
        await stream.send_all(llmd.chat_bytes("[[token 0.02]]", **fields))
        await llmd.until_states("decode")
        await stream.transport_stream.aclose()
        await llmd.until(lambda: not llmd.handles())
        assert llmd.last().state.value == "abandoned"
        await llmd.until_slots_free("m")


async def test_a_cancel_ends_a_stream_with_an_error(served, trusting):
    async with (
        served() as llmd,
        httpx.AsyncClient(base_url=llmd.bound.url, verify=trusting, trust_env=False) as client,
    ):
        stream = await secured(llmd, trusting)
        await stream.send_all(llmd.chat_bytes("[[token 0.02]]", stream=True, max_tokens=1000))
        await llmd.until_states("decode")
        (handle,) = llmd.handles()
        cancelled = await client.post(f"/requests/{handle.record.id}/cancel")
        assert cancelled.status_code == 200
        answer = await read_answer(stream)
        assert answer.events[-1]["error"]["code"] == "request_cancelled"
        await llmd.until_slots_free("m")


async def test_who_speaks_no_tls_is_hung_up_on(served, trusting):
    async with served() as llmd:
        client = await llmd.connect()
        await client.send_all(b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n")
        got = await client.receive_some()
        assert not got.startswith(b"HTTP/")
        await client.aclose()
        await llmd.until(lambda: not llmd.daemon.http.connections)


async def test_a_connection_too_many_is_not_answered_in_plain_text(served, trusting):
    async with served(max_connections=1) as llmd:
        busy = await secured(llmd, trusting)
        await busy.send_all(llmd.chat_bytes("[[token 0.02]]", stream=True, max_tokens=1000))
        await llmd.until_states("decode")
        other = await llmd.connect()
        assert await other.receive_some() == b""
        await other.aclose()
        await busy.transport_stream.aclose()
        await llmd.until(lambda: not llmd.handles())
