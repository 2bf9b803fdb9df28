"""Lines of the admin socket: however they are cut, and whatever is in them."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmd.admin import protocol as p
from llmd.admin.connection import Refused
from llmd.admin.connection import parse as parse_line
from llmd.admin.framing import LineSplitter, LineTooLong, clean, clean_line


@given(st.lists(st.binary(max_size=40)), st.lists(st.integers(1, 7)))
def test_lines_come_out_as_they_went_in_however_they_are_cut(lines, cuts):
    lines = [line.replace(b"\n", b"") for line in lines]
    data = b"".join(line + b"\n" for line in lines)
    splitter, found = LineSplitter(), []
    while data:
        size = cuts.pop() if cuts else len(data)
        found += splitter.feed(data[:size])
        data = data[size:]
    assert found == lines
    assert not splitter.partial


def test_a_line_too_long_is_told_once_and_skipped_to_its_end():
    splitter = LineSplitter(max_bytes=4)
    assert splitter.feed(b"1234\n") == [b"1234"]
    [told] = splitter.feed(b"12345")
    assert isinstance(told, LineTooLong)
    assert splitter.partial
    assert splitter.feed(b"6" * 100) == []
    assert splitter.feed(b"7\nok\n") == [b"ok"]
    assert not splitter.partial


def unsafe(text: str) -> list[str]:
    return [
        char
        for char in text
        if ord(char) < 32
        or 0x7F <= ord(char) <= 0x9F
        or char
        in "\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff"
    ]


@given(st.dictionaries(st.text(), st.text() | st.integers() | st.lists(st.text())))
def test_a_clean_line_is_json_of_the_same_shape_without_anything_unsafe(value):
    for encode in (msgspec.json.encode, lambda v: json.dumps(v).encode()):
        try:
            line = encode(value)
            msgspec.json.decode(line)
        except (UnicodeEncodeError, msgspec.DecodeError):  # lone surrogates
            continue
        cleaned = msgspec.json.decode(clean_line(line))
        flat = json.dumps(cleaned, ensure_ascii=False)
        assert not unsafe(flat)
        if not unsafe(json.dumps(value, ensure_ascii=False).encode().decode("unicode_escape")):
            assert len(cleaned) <= len(value)


def test_harmless_lines_are_not_touched():
    for value in ('é 漢 \\ " / \\u001b', "C:\\new\\u0041"):
        line = msgspec.json.encode(value)
        assert msgspec.json.decode(clean_line(line)) == value


def test_breaks_become_spaces_and_sequences_vanish():
    line = msgspec.json.encode("a\nb\tc\x1b[31mred\x1b[0m\x9b1m\u202e")
    assert msgspec.json.decode(clean_line(line)) == "a b cred1m"
    assert clean("a\nb\x1bc\u202e") == "a bc"


# --- the protocol --------------------------------------------------------------------------

decode = msgspec.json.Decoder(p.AnyCommand).decode


def test_the_daemon_is_strict_and_clients_are_lenient():
    assert decode(b'{"type":"status","id":2}') == p.GetStatus(id=2)
    with pytest.raises(msgspec.ValidationError):
        decode(b'{"type":"status","id":2,"new":1}')
    message = msgspec.json.Decoder(p.AnyMessage).decode(b'{"type":"ended","id":1,"new":[]}')
    assert message == p.Ended(id=1)
    why = msgspec.json.decode(b'{"at":1.0,"rule":"a_new_one","more":{}}', type=p.Why)
    assert why.rule == "a_new_one"


LINES = [
    b'{"type":"why","id":7,"request":"r-1"}',
    b'{"type":"switch","id":"a","model":"m","from":["b"],"drain_s":2.5,"dry_run":true}',
    b'{"type":"subscribe","id":3,"topics":["workers","requests"]}',
]
PIECES = [
    b"\xff",
    b"\xc3",
    b"\xed\xa0\x80",
    b"\\ud800",
    b"\x00",
    b'"',
    b"{",
    b"[" * 2000,
    b"9" * 5000,
]


@given(
    st.sampled_from(LINES),
    st.lists(st.tuples(st.integers(0, 90), st.integers(0, 3), st.sampled_from(PIECES)), max_size=3),
)
def test_whatever_is_in_a_line_is_a_command_or_a_failure_that_can_be_sent(line, changes):
    for place, removed, piece in changes:
        line = line[:place] + piece + line[place + removed :]
    answer: p.AnyCommand | p.Failure
    try:
        answer = parse_line(line)
    except Refused as refused:
        answer = refused.failure
    assert clean_line(msgspec.json.encode(answer)).decode()


def test_from_is_the_word_for_what_goes():
    command = decode(b'{"type":"switch","id":3,"model":"a","from":["b"]}')
    assert isinstance(command, p.Switch)
    assert command.evict == ("b",)
    assert b'"from":["b"]' in msgspec.json.encode(command)


def test_every_command_that_changes_something_says_so():
    kinds = p.AnyCommand.__args__
    assert {kind.__name__ for kind in kinds if kind.writes} == {
        "Switch", "Load", "Unload", "Restart", "Reset", "Cancel", "Stop", "Drain", "Resume",
    }  # fmt: skip
