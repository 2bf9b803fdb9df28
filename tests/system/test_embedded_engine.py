"""The embedded engine as a process: what it promises beside the worker contract.

Each test starts `python -m llmd.workers.embedded` on a Unix socket, as `auto` does.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest
import trio

from llmd.workers.command import worker_environment
from llmd.workers.engine import embedded_available

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(not embedded_available(), reason="xllamacpp is not installed"),
]
ENGINE = (sys.executable, "-m", "llmd.workers.embedded")


class Running:
    """One engine process, and a client for it."""

    def __init__(self, process: trio.Process, socket: Path, errors: Path) -> None:
        self.process = process
        self.socket = socket
        self._errors = errors
        self.client = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=str(socket)),
            base_url="http://engine",
            headers={"Accept-Encoding": "gzip"},
            timeout=30,
            trust_env=False,
        )

    def stderr(self) -> str:
        return self._errors.read_text(errors="replace")

    async def health(self) -> int:
        """The status of /health, as soon as anybody answers."""
        while True:
            assert self.process.poll() is None, self.stderr()
            with contextlib.suppress(httpx.TransportError):
                return (await self.client.get("/health")).status_code
            await trio.sleep(0.005)

    async def ready(self) -> None:
        while await self.health() != 200:
            await trio.sleep(0.005)

    async def get(self, path: str):
        response = await self.client.get(path)
        assert response.status_code == 200, response.text
        return response.json()

    async def post(self, path: str, body):
        response = await self.client.post(path, json=body)
        assert response.status_code == 200, response.text
        return response.json()


@contextlib.asynccontextmanager
async def start(directory: Path, *words: str, env=None, program=ENGINE):
    socket, errors = directory / "e.sock", directory / "stderr"
    with errors.open("wb") as stderr:
        process = await trio.lowlevel.open_process(
            [*program, "--host", str(socket), *words],
            env={**worker_environment(os.environ, {}), **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=stderr,
            stderr=stderr,
        )
    running = Running(process, socket, errors)
    try:
        async with running.client:
            yield running
    finally:
        if process.poll() is None:
            process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


@contextlib.asynccontextmanager
async def serving(directory: Path, model: Path, *words: str, env=None):
    async with start(directory, "-m", str(model), "-t", "1", *words, env=env) as running:
        await running.ready()
        yield running


def chat(**more):
    return {"messages": [{"role": "user", "content": "Tell me of a river"}], **more}


# --- serving -------------------------------------------------------------------------------


async def test_serves_all_that_llmd_asks_of_a_worker(runtime_dir, demo_small):
    words = ("--alias", "small", "-c", "2048", "-np", "2", "--fit", "off", "--metrics", "--slots")
    with trio.fail_after(30):
        async with serving(runtime_dir, demo_small, *words) as engine:
            props = await engine.get("/props")
            assert props["total_slots"] == 2
            assert props["default_generation_settings"]["n_ctx"] == 1024
            assert props["model_path"] == str(demo_small)
            slots = await engine.get("/slots")
            assert [slot["is_processing"] for slot in slots] == [False, False]
            answer = await engine.post("/v1/chat/completions", chat(max_tokens=5))
            assert answer["model"] == "small"
            assert answer["usage"]["completion_tokens"] == 5
            tokens = (await engine.post("/tokenize", {"content": "a river"}))["tokens"]
            assert (await engine.post("/detokenize", {"tokens": tokens}))["content"] == "a river"
            assert "river" in (await engine.post("/apply-template", chat()))["prompt"]
            metrics = await engine.client.get("/metrics")
            assert "llamacpp:prompt_tokens_total" in metrics.text
            ui = await engine.client.get("/")
            assert ui.status_code == 200
            assert "html" in ui.headers["content-type"]


async def test_streams_and_says_what_was_used(runtime_dir, demo_small):
    with trio.fail_after(30):
        async with serving(runtime_dir, demo_small) as engine:
            body = chat(max_tokens=8, stream=True, stream_options={"include_usage": True})
            async with engine.client.stream("POST", "/v1/chat/completions", json=body) as response:
                assert response.headers["content-type"] == "text/event-stream"
                lines = [line async for line in response.aiter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    last = json.loads(lines[-2].removeprefix("data: "))
    assert last["usage"]["completion_tokens"] == 8


async def test_embeds(runtime_dir, demo_models):
    with trio.fail_after(30):
        model = demo_models / "demo-embed.gguf"
        async with serving(runtime_dir, model, "--embeddings", "--pooling", "mean") as engine:
            answer = await engine.post("/v1/embeddings", {"input": ["a river", "a mountain"]})
    assert [item["index"] for item in answer["data"]] == [0, 1]
    assert all(item["embedding"] for item in answer["data"])


async def test_every_slot_has_its_context_while_all_are_in_use(runtime_dir, demo_small):
    """What `context_size` promises, with llama-server's own choice of slots."""
    answers = []
    with trio.fail_after(60):
        words = ("--kv-unified-per-slot", "256", "--fit", "off", "--no-ui")
        async with serving(runtime_dir, demo_small, *words) as engine:
            props = await engine.get("/props")
            assert props["default_generation_settings"]["n_ctx"] == 256

            async def fill() -> None:
                answers.append(await engine.post("/v1/chat/completions", chat(max_tokens=-1)))

            async with trio.open_nursery() as nursery:
                for _ in range(props["total_slots"]):
                    nursery.start_soon(fill)
            assert (await engine.client.get("/")).status_code == 404
    assert [answer["usage"]["total_tokens"] for answer in answers] == [256] * props["total_slots"]


async def test_downloads_a_repository(runtime_dir, demo_small):
    content = demo_small.read_bytes()
    with trio.fail_after(60), hub(content) as url:
        env = {"HF_ENDPOINT": url, "LLAMA_CACHE": str(runtime_dir / "cache")}
        async with start(runtime_dir, "-hf", "acme/tiny-GGUF:Q8_0", env=env) as engine:
            await engine.ready()
            props = await engine.get("/props")
    assert Path(props["model_path"]).name == "tiny-Q8_0.gguf"


@contextlib.contextmanager
def hub(content: bytes):
    """As much of Hugging Face as llama.cpp asks, with one file in every repository."""
    digest = hashlib.sha256(content).hexdigest()
    commit = "a" * 40
    entry = {"type": "file", "path": "tiny-Q8_0.gguf", "oid": "b" * 40, "size": len(content)}
    entry["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 100}
    branch = {"name": "main", "ref": "refs/heads/main", "targetCommit": commit}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if "/resolve/" in self.path:
                body = content
            elif self.path.partition("?")[0].endswith("/refs"):
                body = json.dumps({"branches": [branch], "tags": [], "converts": []}).encode()
            else:
                body = json.dumps([entry]).encode()
            self.send_response(200)
            self.send_header("ETag", f'"{digest}"')
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


# --- loading -------------------------------------------------------------------------------


async def test_a_load_in_progress_answers_503_and_ends_when_told(runtime_dir):
    # nobody ever writes to it: a disk as slow as one likes
    endless = runtime_dir / "model.gguf"
    os.mkfifo(endless)
    with trio.fail_after(30):
        async with start(runtime_dir, "-m", str(endless)) as engine:
            assert await engine.health() == 503
            engine.process.send_signal(signal.SIGTERM)
            # xllamacpp holds the interpreter while it loads, so the kernel ends it
            assert await engine.process.wait() == -signal.SIGTERM


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "failed to load model"), (b"no model", "failed to load model"), (b"", "failed")],
    ids=["missing", "garbage", "empty"],
)
async def test_a_load_that_fails_exits_with_1_and_the_reason(runtime_dir, content, said):
    model = runtime_dir / "model.gguf"
    if content is not None:
        model.write_bytes(content)
    with trio.fail_after(30):
        async with start(runtime_dir, "-m", str(model)) as engine:
            assert await engine.process.wait() == 1
            assert said in engine.stderr()
            assert "Traceback" not in engine.stderr()


async def test_a_model_cut_short_is_refused(runtime_dir, demo_small):
    model = runtime_dir / "model.gguf"
    model.write_bytes(demo_small.read_bytes()[:-4096])
    with trio.fail_after(30):
        async with start(runtime_dir, "-m", str(model)) as engine:
            assert await engine.process.wait() == 1
            assert "model is corrupted" in engine.stderr()


async def test_a_socket_that_is_taken_is_refused(runtime_dir, demo_small):
    (runtime_dir / "e.sock").touch()
    with trio.fail_after(30):
        async with start(runtime_dir, "-m", str(demo_small)) as engine:
            assert await engine.process.wait() == 1
            assert "couldn't bind" in engine.stderr()


async def test_llmd_engine_is_the_same_program(runtime_dir):
    program = (sys.executable, "-m", "llmd", "engine")
    with trio.fail_after(30):
        async with start(runtime_dir, "--bogus", program=program) as engine:
            assert await engine.process.wait() == 1
            assert engine.stderr() == "error: invalid argument: --bogus\n"


# --- stopping ------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_it_at_once_with_0(runtime_dir, demo_small, number):
    with trio.fail_after(30):
        async with serving(runtime_dir, demo_small) as engine:
            body = chat(max_tokens=-1, stream=True)
            async with engine.client.stream("POST", "/v1/chat/completions", json=body) as response:
                pieces = response.aiter_raw()
                await anext(pieces)
                # the engine is ready a moment before it waits for signals
                while not _waits_for_signals(engine.process.pid):
                    await trio.sleep(0.005)
                engine.process.send_signal(number)
                assert await engine.process.wait() == 0
                with contextlib.suppress(httpx.TransportError):
                    async for _ in pieces:
                        pass


def _waits_for_signals(pid: int) -> bool:
    """Whether both signals are caught, as the kernel says."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    caught = int(next(line for line in lines if line.startswith("SigCgt")).split()[1], 16)
    return all(caught >> (number - 1) & 1 for number in (signal.SIGTERM, signal.SIGINT))
