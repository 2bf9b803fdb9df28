"""The benchmarks' own HTTP client: where an answer ends, and what it counted on the way."""

from __future__ import annotations

import json
import os
import socket
import threading
from pathlib import Path

import pytest

from benchmarks import stack
from benchmarks.client import TAIL_BYTES, Answer, BadAnswer, request_bytes
from benchmarks.generator import Load
from benchmarks.job import Generator, Job, process_cpu_s
from benchmarks.measures import Outcome, Yardstick
from benchmarks.relays import RelayProcess
from benchmarks.rounds import Spread
from llmd.config import load

PLAIN = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
EVENTS = [
    b'data: {"choices":[{"delta":{"role":"assistant","content":null}}]}\n\n',
    b'data: {"choices":[{"delta":{"content":"The"}}]}\n\n',
    b": queued position=1\n\n",
    b'data: {"choices":[{"delta":{"content":" data: {fox"}}],"timings":{"predicted_n":2}}\n\n',
    b"data: [DONE]\n\n",
]


def chunked(*parts: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (*parts, b""))


def stream(*parts: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(*parts)


def answer_one(listener: socket.socket, answer: bytes) -> None:
    sock, _ = listener.accept()
    with sock:
        sock.settimeout(20)
        while not sock.recv(65536).endswith(b"}"):
            pass
        sock.sendall(answer)


def fed(*pieces: bytes) -> Answer:
    answer = Answer()
    for number, piece in enumerate(pieces, 1):
        assert answer.feed(piece) == (number == len(pieces))
    return answer


def test_request_is_complete_and_carries_the_key():
    head, _, body = request_bytes("/x", {"a": 1}, host="box", key="k").partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert lines[0] == b"POST /x HTTP/1.1"
    assert b"Host: box" in lines
    assert b"Authorization: Bearer k" in lines
    assert b"Content-Length: %d" % len(body) in lines
    assert json.loads(body) == {"a": 1}


def test_request_without_a_body_is_a_get():
    assert request_bytes("/health") == b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


def test_plain_answer_ends_with_its_length():
    answer = fed(PLAIN)
    assert (answer.status, answer.body_bytes, answer.closes) == (200, 2, False)


def test_answer_without_a_body_is_complete_with_its_head():
    assert fed(b"HTTP/1.1 204 No Content\r\n\r\n").status == 204


@pytest.mark.parametrize("size", range(1, 9))
def test_stream_counts_the_same_however_it_is_cut(size):
    data = stream(*EVENTS)
    answer = fed(*(data[at : at + size] for at in range(0, len(data), size)))
    assert answer.events == 3
    assert answer.has_content
    assert answer.tokens() == 2
    assert answer.body_bytes == len(b"".join(EVENTS))


@pytest.mark.parametrize("size", [1, 7, 8, 50])
def test_events_are_counted_across_chunks(size):
    body = b"".join(EVENTS)
    answer = fed(stream(*(body[at : at + size] for at in range(0, len(body), size))))
    assert (answer.events, answer.has_content) == (3, True)


def test_first_content_is_not_the_role():
    answer = Answer()
    answer.feed(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(EVENTS[0])[:-5])
    assert (answer.events, answer.has_content, answer.complete) == (1, False, False)


def test_tokens_come_from_the_end_of_a_long_body():
    body = b"x" * (3 * TAIL_BYTES) + b'{"usage":{"completion_tokens":77}}'
    pieces = [body[at : at + 100] for at in range(0, len(body), 100)]
    answer = fed(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body), *pieces)
    assert answer.tokens() == 77
    assert len(answer.tail) <= TAIL_BYTES


def test_connection_close_is_seen():
    assert fed(PLAIN.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")).closes


def test_body_without_a_length_lasts_until_the_end_of_the_connection():
    answer = Answer()
    assert not answer.feed(b"HTTP/1.0 200 OK\r\n\r\nabc")
    assert answer.feed_eof()
    assert answer.body_bytes == 3


def test_end_before_the_answer_is_complete_is_told():
    answer = Answer()
    answer.feed(PLAIN[:-1])
    assert not answer.feed_eof()


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        PLAIN + b"x",
        stream(b"abc") + b"x",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70000,
    ],
)
def test_what_is_no_answer_is_refused(data):
    with pytest.raises(BadAnswer):
        Answer().feed(data)


def test_job_survives_its_line():
    job = Job(("127.0.0.1", 80), b"\x00\xff", clients=3, each=2, clock_pid=7)
    assert Job.decode(job.encode()) == job
    assert Job.decode(Job("/tmp/x.sock", b"").encode()).address == "/tmp/x.sock"


class Server:
    """A thread that gives canned answers, one connection after the other."""

    def __init__(self, path: Path, connections: list[list[bytes]]) -> None:
        self.address = str(path)
        self._connections = connections
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.address)
        self._listener.listen()
        self._listener.settimeout(10)
        self._thread = threading.Thread(target=self._serve)

    def _serve(self) -> None:
        for answers in self._connections:
            sock, _ = self._listener.accept()
            with sock:
                sock.settimeout(10)
                for answer in answers:
                    if not sock.recv(65536):
                        break
                    sock.sendall(answer)

    def __enter__(self) -> Server:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join()
        self._listener.close()


def run(job: Job):
    load = Load(job)
    try:
        return load.run()
    finally:
        load.close()


def test_load_opens_a_connection_again_that_its_server_closed(tmp_path):
    with Server(tmp_path / "s", [[PLAIN, PLAIN], [PLAIN]]) as server:
        result = run(Job(server.address, request_bytes("/"), each=3))
    assert (result.requests, result.reconnects, result.errors) == (3, 1, {})
    assert len(result.latency_s) == 3


def test_load_leaves_the_warm_up_out(tmp_path):
    with Server(tmp_path / "s", [[PLAIN] * 5]) as server:
        result = run(Job(server.address, request_bytes("/"), each=3, warmup=2))
    assert (result.requests, result.all_requests) == (3, 5)


def test_load_counts_a_stream(tmp_path):
    with Server(tmp_path / "s", [[stream(*EVENTS)]]) as server:
        result = run(Job(server.address, request_bytes("/"), each=1, clock_pid=os.getpid()))
    assert (result.events, result.reads, result.tokens) == (3, 1, 2)
    assert len(result.first_s) == 1
    assert result.clock_events == 0  # all of them came with the first


def test_load_tells_of_errors(tmp_path):
    refused = b"HTTP/1.1 429 No\r\nContent-Length: 0\r\n\r\n"
    with Server(tmp_path / "s", [[refused, PLAIN, PLAIN[:-1]]]) as server:
        result = run(Job(server.address, request_bytes("/"), each=3))
    assert result.requests == 1
    assert result.errors == {"429": 1, "0": 1}


def test_load_gives_up_on_a_server_that_never_answers(tmp_path):
    with Server(tmp_path / "s", [[b""], [b""], [b""]]) as server:
        result = run(Job(server.address, request_bytes("/"), each=1))
    assert result.errors == {"0": 1}


@pytest.mark.system
def test_generator_runs_in_a_process_of_its_own(tmp_path):
    with Server(tmp_path / "s", [[PLAIN, PLAIN]]) as server, Generator() as generator:
        result = generator.run(Job(server.address, request_bytes("/"), each=2))
        assert result.requests == 2
        with pytest.raises(RuntimeError, match="FileNotFoundError"):
            generator.run(Job(str(tmp_path / "none"), b""))
        assert generator.pid != os.getpid()


def test_cpu_clock_of_a_process_is_its_own():
    assert 0 < process_cpu_s(os.getpid()) < 1e6


def test_spread_of_one_value_is_that_value():
    assert Spread.of([2.0]) == Spread(2.0, 2.0, 2.0)
    assert Spread.of([1.0, 2.0, 3.0, 4.0, 5.0]) == Spread(3.0, 2.0, 4.0)


@pytest.mark.parametrize(
    ("value", "at_least", "faults", "met"),
    [(1.0, False, [], True), (3.0, False, [], False), (3.0, True, [], True), (1.0, True, [], False)]
    + [(1.0, False, ["broken"], None)],
)
def test_target_is_met_on_the_right_side(value, at_least, faults, met):
    spread = Spread.of([value])
    outcome = Outcome("x", "x", "s", None, spread, spread, "s", 2.0, at_least, faults=faults)
    assert outcome.met is met


@pytest.mark.parametrize(
    ("value", "prototype", "reference", "at_least", "target", "met"),
    [
        (3.0, 4.0, 1.0, False, 4.8, True),  # four times slower here: so may llmd be
        (5.0, 4.0, 1.0, False, 4.8, False),
        (45.0, 40.0, 50.0, True, 0.96, True),
        (3.0, None, 1.0, False, None, None),
        (3.0, 4.0, None, False, None, None),
    ],
)
def test_a_target_is_scaled_by_what_the_prototype_takes_here(
    value, prototype, reference, at_least, target, met
):
    spread = Spread(value, value, value)
    outcome = Outcome("x", "x", "ms", None, spread, spread, "ms", 1.2, at_least)
    if prototype is not None:
        here = Spread(prototype, prototype, prototype)
        outcome.yardstick = Yardstick("prototype", "ms", here, reference)
    assert outcome.scaled_target == (target if target is None else pytest.approx(target))
    assert outcome.met_by_yardstick is met
    outcome.faults.append("no answer")
    assert outcome.met_by_yardstick is None


def test_the_prototype_relays_plain_and_streamed_answers(tmp_path):
    # a worker that closes each connection after its answer, as llama-server does after a stream
    answers = [PLAIN, stream(*EVENTS), PLAIN]
    with socket.socket(socket.AF_UNIX) as worker:
        worker.bind(str(tmp_path / "worker.sock"))
        worker.listen()
        worker.settimeout(20)
        with RelayProcess("prototype", str(tmp_path / "worker.sock")) as relay:
            for answer in answers:
                served = threading.Thread(target=answer_one, args=(worker, answer))
                served.start()
                got = stack.ask(relay.address, "/v1/chat/completions", {"n": 1}, timeout_s=20)
                served.join()
                assert got.status == 200
                assert got.complete
                assert got.events == (3 if answer is not PLAIN else 0)


def test_config_is_one_that_llmd_takes(tmp_path):
    models = {stack.SMALL: tmp_path / "a.gguf", stack.SLOW: tmp_path / "b.gguf"}
    settings = stack.Settings(engine=Path("/bin/true"), threads=1, slow_layers=1, chat_template="")
    path = tmp_path / "config.toml"
    path.write_text(stack.config_toml(models, settings, 1234))
    path.chmod(0o600)
    config = load(path, env={}).config
    assert [model.name for model in config.models] == list(models)
    assert config.server.port == 1234
