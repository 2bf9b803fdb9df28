"""What a worker says of its load, believed within bounds."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmd.workers.loadreport import fraction, is_report, program_files, speaks

MARK = "cmd_child_to_router:state:"


def line(value, *, stages=("text_model",), current="text_model", state="loading"):
    payload = {"stages": list(stages), "current": current, "value": value}
    return MARK + json.dumps({"state": state, "payload": payload})


@pytest.mark.parametrize("value", [0.0, 0.25, 1])
def test_one_file_is_the_whole_load(value):
    assert fraction(line(value)) == value


def test_what_is_loaded_beside_the_model_counts_a_tenth():
    stages = ["text_model", "spec_model", "mmproj_model"]
    assert fraction(line(0.5, stages=stages)) == pytest.approx(0.45)
    assert fraction(line(0.0, stages=stages, current="spec_model")) == pytest.approx(0.9)
    assert fraction(line(1.0, stages=stages, current="mmproj_model")) == pytest.approx(1.0)
    assert fraction(line(0.5, stages=["one", "two"], current="two")) == pytest.approx(0.75)


@pytest.mark.parametrize(
    "text",
    [
        line(1.5),
        line(-0.1),
        line(0.5, current="other"),
        line(0.5, stages=[]),
        line(0.5, state="ready"),
        MARK,
        MARK + "{",
        MARK + "null",
        MARK + '{"state":"loading","payload":{"value":NaN}}',
        MARK + '{"state":"loading","payload":{"stages":["a"],"current":"a","value":1e999}}',
        MARK + "[" * 20_000,
        MARK + '{"state":"ready","payload":{"id":"…',
    ],
)
def test_what_is_no_report_of_progress_says_nothing(text):
    assert is_report(text)
    assert fraction(text) is None


@given(st.text())
def test_whatever_a_worker_writes_is_survived(text):
    found = fraction(MARK + text)
    assert found is None or 0 <= found <= 1


def test_the_protocol_is_found_in_the_program_or_in_its_library(tmp_path):
    program = tmp_path / "bin" / "llama-server"
    program.parent.mkdir()
    program.write_bytes(b"\x7fELF")
    assert not speaks(program_files(program))
    library = tmp_path / "lib" / "libllama-server.so.1"
    library.parent.mkdir()
    library.write_bytes(b"..." + MARK.encode())
    assert program_files(program) == [program, library]
    assert speaks(program_files(program))
    library.unlink()
    program.write_bytes(b"\x7fELF" + MARK.encode())
    link = tmp_path / "llama-server"
    link.symlink_to(program)
    assert speaks(program_files(link))


def test_a_file_that_cannot_be_read_does_without(tmp_path):
    empty = tmp_path / "empty"
    empty.touch()
    assert not speaks([empty, tmp_path, tmp_path / "gone"])
