"""Logs: formats, hostile text and readers that do not read."""

from __future__ import annotations

import json
import logging
import os
import re
from enum import Enum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmd.observe.log import MAX_KEPT_LINES, MAX_LINE_BYTES, StderrHandler, clean, log, setup

LOGGER = logging.getLogger("llmd.test_log")


class Pipe:
    """A pipe that stands for stderr."""

    def __init__(self, form: str, level: str = "debug") -> None:
        self.reader, self.writer = os.pipe()
        root = logging.getLogger()
        self.level = root.level
        self.handler: StderrHandler = setup(level, form, fd=self.writer)

    def text(self) -> str:
        os.set_blocking(self.reader, False)
        data = b""
        while True:
            try:
                more = os.read(self.reader, 1 << 20)
            except BlockingIOError:
                break
            if not more:
                break
            data += more
        return data.decode()

    def close(self) -> None:
        self.handler.remove(0)
        logging.getLogger().setLevel(self.level)
        for fd in (self.reader, self.writer):
            os.close(fd)


@pytest.fixture(params=["text", "keyvalue", "json"])
def pipe(request):
    made = Pipe(request.param)
    yield made
    made.close()


@pytest.fixture
def keyvalue():
    made = Pipe("keyvalue")
    yield made
    made.close()


class Colour(str, Enum):
    RED = "red"


def test_keyvalue(keyvalue):
    log(
        LOGGER, "worker ready", model="qwen3 32b", load_s=1.25, slots=4, ok=True, pid=None,
        path='a"b\\c', empty="", colour=Colour.RED,
    )  # fmt: skip
    line = keyvalue.text()
    assert re.match(r"time=\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z level=info ", line)
    assert line.endswith(
        'logger=llmd.test_log event="worker ready" model="qwen3 32b" load_s=1.25 slots=4 ok=true '
        'pid=- path="a\\"b\\\\c" empty="" colour=red\n'
    )


def test_text():
    pipe = Pipe("text")
    try:
        log(LOGGER, "worker ready", level=logging.WARNING, model="qwen3")
        assert re.fullmatch(r"\d\d:\d\d:\d\d warning worker ready model=qwen3\n", pipe.text())
    finally:
        pipe.close()


def test_json():
    pipe = Pipe("json")
    try:
        log(
            LOGGER,
            "worker ready",
            model="qwen3",
            load_s=1.25,
            level_="x",
            logger="mine",
            huge=2**80,
        )
        line = json.loads(pipe.text())
    finally:
        pipe.close()
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "info", "logger": "llmd.test_log", "event": "worker ready", "model": "qwen3",
        "load_s": 1.25, "level_": "x", "logger_": "mine", "huge": str(2**80),
    }  # fmt: skip


def test_auto_is_keyvalue_off_a_terminal_and_text_on_one():
    pipe = Pipe("auto")
    try:
        log(LOGGER, "hello")
        assert pipe.text().startswith("time=")
    finally:
        pipe.close()
    master, slave = os.openpty()
    handler = setup("info", "auto", fd=slave)
    try:
        log(LOGGER, "hello")
        assert re.match(r"\d\d:\d\d:\d\d info    hello", os.read(master, 1000).decode())
    finally:
        handler.remove(0)
        os.close(master)
        os.close(slave)


def test_levels():
    pipe = Pipe("keyvalue", "warning")
    try:
        log(LOGGER, "quiet", level=logging.DEBUG)
        log(LOGGER, "quiet")
        log(LOGGER, "loud", level=logging.ERROR)
        assert [re.search(r"level=(\S+)", line)[1] for line in pipe.text().splitlines()] == [
            "error"
        ]
    finally:
        pipe.close()


def test_what_others_log_comes_through_with_its_traceback(pipe):
    try:
        raise RuntimeError("boom\x1b[2J")
    except RuntimeError:
        logging.getLogger("hypercorn.error").exception("it %s", "broke")
    text = pipe.text()
    assert "it broke" in text
    assert "RuntimeError: boom" in text
    assert "\x1b" not in text


def test_every_request_of_httpx_is_not_news(pipe):
    logging.getLogger("httpx").info("HTTP Request: GET ...")
    assert pipe.text() == ""


def test_hidden_fields_never_show(pipe):
    log(
        LOGGER, "oops", api_key="sk-1", authorization="Bearer sk-2", prompt="my secret", key="alice"
    )
    text = pipe.text()
    assert "sk-" not in text
    assert "secret" not in text
    assert "alice" in text


@pytest.mark.parametrize("limit", [10, 2000])
@given(text=st.text())
def test_clean_text_is_printable_and_bounded(limit, text):
    found = clean(text, limit)
    assert found.isprintable()
    assert len(found) <= max(limit, 3)


@given(event=st.text(max_size=50), value=st.text(max_size=200) | st.binary() | st.floats())
def test_nobody_forges_a_line(event, value):
    for name in ("keyvalue", "json"):
        pipe = Pipe(name)
        try:
            log(LOGGER, event, value=value, after=1)
            text = pipe.text()
        finally:
            pipe.close()
        assert text.count("\n") == 1
        assert text.endswith("\n")
        assert text[:-1].isprintable()
        if name == "json":
            assert json.loads(text)["after"] == 1
        else:
            assert text.endswith(" after=1\n")


def test_long_lines_are_cut_to_what_a_pipe_takes_whole(pipe):
    log(LOGGER, "x" * 10_000, **{f"field{i}": "é" * 3000 for i in range(10)})
    log(LOGGER, "next", **{f"field{i}": "é" * 3000 for i in range(1000)})
    lines = pipe.text().encode().splitlines(keepends=True)
    assert len(lines) == 2
    assert all(len(line) <= MAX_LINE_BYTES for line in lines)
    assert b"cut" in lines[1]


def test_a_field_that_cannot_be_shown_loses_its_line_and_nothing_else(keyvalue):
    class Rude:
        def __str__(self) -> str:
            raise RuntimeError("no")

    log(LOGGER, "one", rude=Rude())
    log(LOGGER, "two")
    lines = keyvalue.text().splitlines()
    assert [re.search(r'event=("[^"]*"|\S+)', line)[1] for line in lines] == [
        '"log lines dropped"',
        "two",
    ]
    assert keyvalue.handler.dropped == 1


def test_a_reader_that_does_not_read_blocks_nobody(keyvalue):
    for number in range(MAX_KEPT_LINES + 500):
        log(LOGGER, "line", number=number, filler="x" * 1000)
    dropped = keyvalue.handler.dropped
    assert dropped > 0
    assert "number=0 " in keyvalue.text()
    seen = []
    for _ in range(100):
        log(LOGGER, "after")
        text = keyvalue.text()
        seen += re.findall(r"number=(\d+)|count=(\d+)", text)
    assert ("", str(dropped)) in seen
    assert (str(MAX_KEPT_LINES + 499), "") in seen
    assert keyvalue.handler.dropped == dropped


def test_remove_waits_for_a_reader_that_comes_late():
    pipe = Pipe("keyvalue")
    for number in range(100):
        log(LOGGER, "line", number=number, filler="x" * 1000)
    first = pipe.text()
    pipe.close()
    assert "number=0 " in first
    reader, writer = os.pipe()
    handler = setup("info", "keyvalue", fd=writer)
    log(LOGGER, "line")
    handler.remove(1)
    os.close(writer)
    assert b"event=line" in os.read(reader, 1000)
    os.close(reader)


def test_a_non_blocking_stderr_loses_no_part_of_a_line(keyvalue):
    os.set_blocking(keyvalue.writer, False)
    for number in range(200):
        log(LOGGER, "line", number=number, filler="x" * 1500)
    text = ""
    for _ in range(50):
        text += keyvalue.text()
        log(LOGGER, "again")
    text += keyvalue.text()
    numbers = [int(n) for n in re.findall(r"number=(\d+) filler=x{1500}\n", text)]
    assert numbers == list(range(200))


def test_a_stderr_that_is_gone_harms_nothing():
    pipe = Pipe("keyvalue")
    os.close(pipe.reader)
    for _ in range(5):
        log(LOGGER, "anyone?")
    pipe.reader = os.open(os.devnull, os.O_RDONLY)
    pipe.close()
