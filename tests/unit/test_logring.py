"""A worker's log is bounded and safe to show, whatever the worker writes."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmd.workers.logring import LineSplitter, LogRing, LogStream, clean


def ring(**bounds):
    return LogRing(clock=lambda: 12.5, **bounds)


def fill(log, count, stream=LogStream.STDERR):
    for number in range(count):
        log.append(stream, f"line {number}")


@pytest.mark.parametrize(
    ("hostile", "safe"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07text", "text"),
        ("\x1b]52;c;Y2xpcA==\x1b\\text", "text"),
        ("a\x00b\x07c\x9bd", "abcd"),
        ("tab\there", "tab here"),
        ("evil\u202egnp.exe", "evilgnp.exe"),
        ("two\u2028lines", "twolines"),
        ("Grüße 🦙", "Grüße 🦙"),
        ("\x1b", ""),
    ],
)
def test_what_a_terminal_would_obey_is_removed(hostile, safe):
    assert clean(hostile) == safe


@given(st.binary(max_size=400), st.integers(1, 40))
def test_lines_are_printable_and_bounded_however_the_bytes_are_cut(data, step):
    splitter = LineSplitter(max_chars=20)
    lines = []
    for start in range(0, len(data), step):
        lines += splitter.feed(data[start : start + step])
    lines += splitter.feed(b"\n")
    assert lines == LineSplitter(max_chars=20).feed(data + b"\n")
    for line in lines:
        assert 0 < len(line) <= 20
        assert not any(unicodedata.category(char) == "Cc" for char in line)


def test_a_long_line_is_cut_and_the_next_one_is_whole():
    splitter = LineSplitter(max_chars=10)
    assert splitter.feed(b"x" * 100) == []
    assert splitter.feed(b"x" * 100 + b"\nnext\n") == ["x" * 9 + "…", "next"]


def test_a_carriage_return_ends_a_line_and_empty_ones_are_dropped():
    assert LineSplitter().feed(b"10%\r20%\r\n\n  \ndone\n") == ["10%", "20%", "done"]


def test_the_ring_forgets_the_oldest_by_count_and_by_size():
    log = ring(max_lines=3)
    fill(log, 5)
    assert [line.text for line in log.since(0)] == ["line 2", "line 3", "line 4"]
    assert [line.sequence for line in log.since(0)] == [3, 4, 5]
    assert {line.at for line in log.since(0)} == {12.5}
    small = ring(max_chars=13)
    fill(small, 5)
    assert len(small.since(0)) == 2


def test_since_returns_what_is_newer_and_survives_gaps():
    log = ring(max_lines=3)
    fill(log, 5)
    assert [line.sequence for line in log.since(4)] == [5]
    assert [line.sequence for line in log.since(1)] == [3, 4, 5]
    assert log.since(5) == ()
    assert log.since(99) == ()


def test_tail_picks_streams_and_the_present_life():
    log = ring()
    fill(log, 2)
    log.append(LogStream.STDOUT, "out")
    fill(log, 1, LogStream.LLMD)
    assert [line.text for line in log.tail(5, LogStream.STDERR)] == ["line 0", "line 1"]
    assert [line.text for line in log.tail(5, LogStream.STDERR, after=1)] == ["line 1"]
    assert [line.text for line in log.tail(2)] == ["out", "line 0"]
    assert log.tail(0) == ()


OUTPUT = st.lists(
    st.tuples(
        st.sampled_from([LogStream.STDOUT, LogStream.STDERR]),
        st.lists(st.sampled_from([b"a", b"bc", b"\n", b"d\n", b"\r", b" ", b"\x1b[0m"])).map(
            b"".join
        ),
        st.booleans(),
    ),
    max_size=30,
)


@given(OUTPUT)
def test_lines_are_the_same_whenever_somebody_looks(output):
    looked_at, left_alone = ring(), ring()
    for stream, data, look in output:
        looked_at.feed(stream, data)
        left_alone.feed(stream, data)
        if look:
            looked_at.since(0)
    assert looked_at.since(0) == left_alone.since(0)
    for stream in (LogStream.STDOUT, LogStream.STDERR):
        written = b"".join(data for of, data, _ in output if of is stream)
        texts = [line.text for line in left_alone.since(0) if line.stream is stream]
        assert texts == LineSplitter().feed(written)


@given(
    st.integers(1, 5),
    st.lists(st.integers(1, 30), max_size=20),
    st.lists(st.booleans(), min_size=20, max_size=20),
)
def test_output_that_nobody_looked_at_is_forgotten_as_lines_are(max_lines, cuts, looks):
    written = b"".join(b"line %d\n" % number for number in range(1, 60))
    log, position = ring(max_lines=max_lines), 0
    for cut, look in zip(cuts, looks, strict=False):
        log.feed(LogStream.STDERR, written[position : position + cut])
        position += cut
        if look:
            log.since(0)
    ended = written[:position].count(b"\n")
    expected = [f"line {number}" for number in range(1, ended + 1)][-max_lines:]
    assert [line.text for line in log.since(0)] == expected
    assert log.sequence == ended
    assert [line.sequence for line in log.since(0)] == list(range(1, ended + 1))[-max_lines:]


@pytest.mark.parametrize("unfinished", [b"x" * 300, b"y" * 299 + b"\n"])
def test_a_flood_of_long_lines_pushes_out_what_lines_of_their_kept_length_do(unfinished):
    """As much as is kept of them counts, not as much as was written."""
    log = ring(max_chars=3000)
    log.feed(LogStream.STDERR, b"why it ended\n")
    for _ in range(9):
        log.feed(LogStream.STDERR, unfinished)
    assert log.since(0)[0].text == "why it ended"
    for _ in range(99):
        log.feed(LogStream.STDERR, unfinished)
        assert sum(len(raw.data) for raw in log._raw) < 3300
    log.feed(LogStream.STDERR, b"\nlast\n")
    assert log.since(0)[-1].text == "last"
    assert log.since(0)[-1].sequence == log.sequence
    if unfinished.endswith(b"x"):  # one line, cut
        assert [len(line.text) for line in log.since(0)] == [12, 2000, 4]


def test_empty_lines_push_out_nothing():
    log = ring(max_lines=2)
    log.feed(LogStream.STDERR, b"one\ntwo\n")
    for _ in range(9):
        log.feed(LogStream.STDERR, b"\n\n\n\n")
    assert [line.text for line in log.since(0)] == ["one", "two"]


def test_what_is_kept_for_later_is_bounded():
    log = ring(max_chars=1000)
    for _ in range(100):
        log.feed(LogStream.STDERR, b"x" * 300)
    assert sum(len(raw.data) for raw in log._raw) < 1300
    log.feed(LogStream.STDERR, b"\nnext\n")
    assert [line.text for line in log.since(0)] == ["next"]
