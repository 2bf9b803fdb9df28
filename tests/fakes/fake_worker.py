#!/usr/bin/env python3
"""A stand-in for llama-server, as far as llmd uses it: no model, but every way to misbehave.

It takes llama-server's flags, listens on `--host X.sock`, and answers /health, /props, /slots,
/metrics, /v1/models, /tokenize, /apply-template, /v1/chat/completions, /v1/completions and
/v1/embeddings. Answers are words `w0 w1 ...`, as many as `max_tokens` asks for.

How it starts is told by the environment:
    FAKE_LOAD_S=S          /health says 503 for S seconds; with FAKE_LOAD_LOG=1 it logs meanwhile
    FAKE_NEVER_READY=1     /health says 503 for ever
    FAKE_NO_LISTEN=1       it never binds its socket
    FAKE_CRASH=TEXT        it prints TEXT on stderr and exits with 1 while loading
    FAKE_CRASHES=FILE      as FAKE_CRASH, as long as the number in FILE, counted down, is above 0
    FAKE_PATH=P            /props names P as its model, whatever it was given
    FAKE_IGNORE_TERM=1     SIGTERM does nothing
    FAKE_CHATTER=N         N bytes of log on stdout and on stderr before it listens

As a router's child (LLAMA_SERVER_ROUTER_PORT) it says on stdout how far its load is, and ends with
its stdin, as llama-server does.

What it does with a prompt is told by the prompt:
    [[prefill S]]   S seconds before the first token      [[token S]]   S seconds a token
    [[crash]]       exits at once, as by abort            [[hang]]      answers nobody any more
    [[sticky]]      the slot stays busy for ever after a disconnect
    [[status N]]    answers with status N and an error    [[garbage]]   answers what is no HTTP
    [[cut]]         ends the connection after 2 tokens    [[say]]       logs the prompt as it is
    [[fails N]]     a stream's first event is an error with code N
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path

FLAGS = {  # name: values it takes
    "-m": 1, "--model": 1, "-hf": 1, "--hf-repo": 1, "--host": 1, "-a": 1, "--alias": 1,
    "-c": 1, "--ctx-size": 1, "--kv-unified-per-slot": 1, "-np": 1, "--parallel": 1,
    "--fit": 1, "-ngl": 1, "--gpu-layers": 1, "-t": 1, "--threads": 1, "-b": 1,
    "--batch-size": 1, "-ub": 1, "--ubatch-size": 1, "--pooling": 1, "--mmproj": 1, "--lora": 1,
    "--cache-type-k": 1, "--cache-type-v": 1, "--flash-attn": 1, "--tensor-split": 1,
    "--chat-template": 1, "--slots": 0, "--metrics": 0, "--jinja": 0, "--no-ui": 0,
    "--embeddings": 0, "--embedding": 0, "--reranking": 0, "--rerank": 0,
}  # fmt: skip
DEFAULT_TOKENS = 16
QUIET_S = 1.0
DIRECTIVE = re.compile(r"\[\[(\w+)(?: ([\d.]+))?\]\]")


def say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def parse(argv: list[str]) -> dict[str, str]:
    options: dict[str, str] = {}
    words = iter(argv)
    for word in words:
        if word in ("-h", "--help"):
            say("----- common params -----\n" + "\n".join(f"{flag}    help" for flag in FLAGS))
            raise SystemExit(0)
        if word == "--version":
            say("version: 0 (fake)")
            raise SystemExit(0)
        if word not in FLAGS:
            say(f"error: invalid argument: {word}")
            raise SystemExit(1)
        options[word] = next(words) if FLAGS[word] else ""
    return options


def check_model(path: str) -> None:
    """Refuse what llama-server would refuse, in its words."""
    trouble = ""
    if not Path(path).exists():
        trouble = f"gguf_init_from_file: failed to open GGUF file '{path}' "
        trouble += "(No such file or directory)"
    elif Path(path).is_file() and Path(path).read_bytes()[:4] != b"GGUF":
        trouble = "gguf_init_from_reader: invalid magic characters: '????', expected 'GGUF'"
    if trouble:
        say(f"0.00.007.017 E {trouble}")
        say("0.00.007.272 E srv    load_model: failed to load model")
        say("0.00.007.896 E srv  llama_server: exiting due to model loading error")
        raise SystemExit(1)


def crashes() -> str:
    """Return what to crash with while loading, "" for nothing."""
    counter = os.environ.get("FAKE_CRASHES")
    if counter:
        left = int(Path(counter).read_text())
        if left > 0:
            Path(counter).write_text(str(left - 1))
            return "terminate called after throwing an instance of 'fake'"
    return os.environ.get("FAKE_CRASH", "")


class Gone(Exception):
    """The client has closed its connection."""


class Slot:
    def __init__(self, number: int) -> None:
        self.number = number
        self.busy = False
        self.decoded = 0


class Worker:
    def __init__(self, options: dict[str, str]) -> None:
        count = int(options.get("--parallel", options.get("-np", "4")))
        total = int(options.get("--ctx-size", options.get("-c", "0"))) // max(count, 1)
        self.context = int(options.get("--kv-unified-per-slot", "0")) or total or 4096
        self.slots = [Slot(number) for number in range(count)]
        self.alias = options.get("--alias", options.get("-a", "fake"))
        self.path = options.get("--model", options.get("-m", ""))
        self.ready = False
        self.deferred = 0
        self.freed = asyncio.Condition()
        self.result = asyncio.Event()  # set when anybody gets anything, and replaced then

    # --- connections ----------------------------------------------------------------------

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            ahead = b""
            while True:
                head = ahead + await reader.readuntil(b"\r\n\r\n")
                line, *rest = head.decode("latin-1").split("\r\n")
                method, target, _ = line.split(" ")
                headers = dict(item.lower().split(": ", 1) for item in rest if item)
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                watch = asyncio.ensure_future(reader.read(1))
                await self.answer(method, target.partition("?")[0], body, writer, watch)
                await writer.drain()
                if headers.get("connection") == "close":
                    watch.cancel()
                    return
                ahead = await watch
                if not ahead:
                    return
        except (asyncio.IncompleteReadError, ConnectionError, Gone):
            pass
        finally:
            writer.close()

    async def answer(self, method, path, body, writer, watch) -> None:
        if path == "/health":
            if self.ready:
                self.send(writer, 200, {"status": "ok"})
            else:
                error = {"message": "Loading model", "type": "unavailable_error", "code": 503}
                self.send(writer, 503, {"error": error})
            return
        if not self.ready:
            self.send(writer, 503, {"error": {"message": "Loading model", "code": 503}})
            return
        if method == "GET":
            self.look(path, writer)
            return
        await self.work(path, json.loads(body or b"{}"), writer, watch)

    def look(self, path: str, writer) -> None:
        if path == "/props":
            settings = {"n_ctx": self.context}
            served = os.environ.get("FAKE_PATH", self.path)
            props = {"total_slots": len(self.slots), "model_path": served}
            self.send(writer, 200, {**props, "default_generation_settings": settings})
        elif path == "/slots":
            self.send(
                writer,
                200,
                [
                    {
                        "id": slot.number,
                        "n_ctx": self.context,
                        "is_processing": slot.busy,
                        "next_token": [{"n_decoded": slot.decoded}],
                    }
                    for slot in self.slots
                ],
            )
        elif path == "/metrics":
            text = f"# TYPE x gauge\nllamacpp:requests_deferred {self.deferred}\n"
            self.send(writer, 200, text.encode(), "text/plain")
        elif path == "/v1/models":
            self.send(writer, 200, {"object": "list", "data": [{"id": self.alias}]})
        else:
            self.send(writer, 404, {"error": {"message": "File Not Found", "code": 404}})

    def send(self, writer, status, content, kind="application/json; charset=utf-8") -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        writer.write(
            b"HTTP/1.1 %d X\r\nServer: fake\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n%b"
            % (status, kind.encode(), len(data), data)
        )

    # --- work -----------------------------------------------------------------------------

    async def work(self, path: str, request: dict, writer, watch) -> None:
        prompt = text_of(request)
        orders = {name: float(value or 0) for name, value in DIRECTIVE.findall(prompt)}
        if path == "/tokenize":
            self.send(writer, 200, {"tokens": list(range(len(prompt.split())))})
        elif path == "/apply-template":
            self.send(writer, 200, {"prompt": prompt})
        elif "status" in orders:
            error = {"message": "as told", "type": "server_error", "code": int(orders["status"])}
            self.send(writer, int(orders["status"]), {"error": error})
        elif "garbage" in orders:
            writer.write(b"this is no HTTP at all\r\n\r\n")
        elif "crash" in orders:
            say("GGML_ASSERT(fake) failed")
            os.abort()
        elif "hang" in orders:
            time.sleep(3600)  # the whole process, as a deadlocked one would
        elif path == "/v1/embeddings":
            await self.embed(request, orders, writer)
        elif path in ("/v1/chat/completions", "/v1/completions"):
            await self.generate(path, request, prompt, orders, writer, watch)
        else:
            self.send(writer, 404, {"error": {"message": "File Not Found", "code": 404}})

    async def take(self) -> Slot:
        async with self.freed:
            self.deferred += 1
            try:
                await self.freed.wait_for(lambda: any(not slot.busy for slot in self.slots))
            finally:
                self.deferred -= 1
            slot = next(slot for slot in self.slots if not slot.busy)
            slot.busy, slot.decoded = True, 0
            return slot

    async def free(self, slot: Slot) -> None:
        async with self.freed:
            slot.busy = False
            self.freed.notify()

    async def embed(self, request, orders, writer) -> None:
        slot = await self.take()
        await asyncio.sleep(orders.get("prefill", 0))
        await self.free(slot)
        inputs = request["input"] if isinstance(request["input"], list) else [request["input"]]
        data = [
            {"object": "embedding", "index": index, "embedding": [0.5, 0.5]}
            for index, _ in enumerate(inputs)
        ]
        usage = {"prompt_tokens": len(inputs), "total_tokens": len(inputs)}
        self.send(
            writer, 200, {"object": "list", "data": data, "model": self.alias, "usage": usage}
        )

    async def generate(self, path, request, prompt, orders, writer, watch) -> None:
        if "say" in orders:
            say(prompt)
        stream = bool(request.get("stream"))
        count = request.get("max_tokens", DEFAULT_TOKENS)
        slot = await self.or_gone(watch, self.take(), stream)
        chat = path == "/v1/chat/completions"
        frame = Frame(self.alias, chat, len(prompt.split()), count)
        try:
            await self.or_gone(watch, asyncio.sleep(orders.get("prefill", 0)), stream)
            if stream:
                writer.write(
                    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
                    b"Transfer-Encoding: chunked\r\n\r\n"
                )
            if stream and "fails" in orders:
                error = {"message": "as told", "code": int(orders["fails"])}
                chunk(
                    writer,
                    b"data: %b\n\n" % json.dumps({"error": error}, separators=(",", ":")).encode(),
                )
                count = 0
            for number in range(count):
                slot.decoded += 1
                if stream:
                    chunk(writer, frame.delta(f"w{number} "))
                    self.result.set()
                    self.result = asyncio.Event()
                    await writer.drain()
                if "cut" in orders and number == 1:
                    raise Gone
                await self.or_gone(watch, asyncio.sleep(orders.get("token", 0)), stream)
        except (Gone, ConnectionError):
            if "sticky" in orders:
                return
            await self.free(slot)
            raise
        await self.free(slot)
        if stream:
            chunk(writer, frame.end())
            chunk(writer, b"data: [DONE]\n\n")
            writer.write(b"0\r\n\r\n")
        else:
            self.send(writer, 200, frame.whole("".join(f"w{n} " for n in range(count))))

    async def or_gone(self, watch, awaitable, stream: bool):
        """Do it unless the client goes; a plain request notices only as in llama-server."""
        doing = asyncio.ensure_future(awaitable)
        if stream:
            await asyncio.wait({doing, watch}, return_when=asyncio.FIRST_COMPLETED)
            gone = watch.done() and not watch.result()
        else:
            gone = await self.seen_gone(doing, watch)
        if gone and (not doing.done() or doing.result() is None):  # a slot once taken is kept
            doing.cancel()
            raise Gone
        return await doing

    async def seen_gone(self, doing, watch) -> bool:
        """Look for the client whenever a whole second has passed since anybody got anything."""
        while not doing.done():
            began, result = time.monotonic(), asyncio.ensure_future(self.result.wait())
            await asyncio.wait(
                {doing, result}, timeout=QUIET_S, return_when=asyncio.FIRST_COMPLETED
            )
            result.cancel()
            # by the clock: after a SIGSTOP both have happened, and a real handler times out first
            if time.monotonic() - began >= QUIET_S and watch.done() and not watch.result():
                return True
        return False


class Frame:
    """The JSON around an answer."""

    def __init__(self, model: str, chat: bool, prompt_tokens: int, count: int) -> None:
        self.chat = chat
        kind = "chat.completion" if chat else "text_completion"
        self.common = {"id": f"fake-{time.monotonic_ns()}", "model": model, "created": 0}
        self.kind = kind
        self.usage = {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": count,
            "total_tokens": prompt_tokens + count,
        }
        self.timings = {"prompt_n": prompt_tokens, "predicted_n": count, "cache_n": 0}

    def _event(self, choice: dict, **more) -> bytes:
        kind = "chat.completion.chunk" if self.chat else self.kind
        data = {**self.common, "object": kind, "choices": [{"index": 0, **choice}], **more}
        return b"data: " + json.dumps(data, separators=(",", ":")).encode() + b"\n\n"

    def delta(self, text: str) -> bytes:
        content = {"delta": {"content": text}} if self.chat else {"text": text}
        return self._event({**content, "finish_reason": None})

    def end(self) -> bytes:
        content = {"delta": {}} if self.chat else {"text": ""}
        choice = {**content, "finish_reason": "length"}
        return self._event(choice, usage=self.usage, timings=self.timings)

    def whole(self, text: str) -> dict:
        message = {"role": "assistant", "content": text}
        content = {"message": message} if self.chat else {"text": text}
        choice = {"index": 0, **content, "finish_reason": "length"}
        answer = {**self.common, "object": self.kind, "choices": [choice]}
        return {**answer, "usage": self.usage, "timings": self.timings}


def chunk(writer, data: bytes) -> None:
    writer.write(b"%x\r\n%b\r\n" % (len(data), data))


def text_of(request: dict) -> str:
    """Return every text of a request, joined."""
    parts = [message.get("content") or "" for message in request.get("messages", [])]
    for key in ("prompt", "input", "content"):
        value = request.get(key, "")
        parts += value if isinstance(value, list) else [value]
    return " ".join(part if isinstance(part, str) else json.dumps(part) for part in parts)


async def run(options: dict[str, str]) -> None:
    env = os.environ
    worker = Worker(options)
    chatter = int(env.get("FAKE_CHATTER", "0"))
    for stream in (sys.stdout, sys.stderr) if chatter else ():
        stream.write(("x" * 99 + "\n") * (chatter // 100))
        stream.flush()
    if "FAKE_NO_LISTEN" not in env:
        await asyncio.start_unix_server(worker.serve, options["--host"])
    load_s = float(env.get("FAKE_LOAD_S", "0"))
    until = time.monotonic() + load_s
    report(0.0)
    while time.monotonic() < until or "FAKE_NEVER_READY" in env or "FAKE_NO_LISTEN" in env:
        if "FAKE_LOAD_LOG" in env:
            say("0.00.020.000 I load: ...")
        if load_s:
            report(min(1.0, 1 - (until - time.monotonic()) / load_s))
        await asyncio.sleep(0.02)
    trouble = crashes()
    if trouble:
        say(trouble)
        os._exit(1)
    check_model(worker.path)
    report(1.0)
    worker.ready = True
    say("0.00.100.000 I srv  llama_server: listening")
    await asyncio.Event().wait()


def report(value: float) -> None:
    """Say how far the load is, if anybody asked to know."""
    if "LLAMA_SERVER_ROUTER_PORT" in os.environ:
        payload = {"stages": ["text_model"], "current": "text_model", "value": value}
        said = json.dumps({"state": "loading", "payload": payload})
        sys.stdout.write(f"cmd_child_to_router:state:{said}\n")
        sys.stdout.flush()


def mind_stdin(ignore: bool) -> None:
    """End when told to on stdin, and when it ends."""
    for line in sys.stdin:
        if "cmd_router_to_child:exit" in line and not ignore:
            os._exit(0)
    os._exit(1)


def main() -> None:
    ignore = "FAKE_IGNORE_TERM" in os.environ
    if "LLAMA_SERVER_ROUTER_PORT" in os.environ:
        threading.Thread(target=mind_stdin, args=(ignore,), daemon=True).start()
    signal.signal(signal.SIGTERM, signal.SIG_IGN if ignore else lambda *_: os._exit(0))
    options = parse(sys.argv[1:])
    asyncio.run(run(options))


if __name__ == "__main__":
    main()
