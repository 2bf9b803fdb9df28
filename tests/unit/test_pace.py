"""A fast stream is paused, a slow one and the beginning of a fast one never."""

from __future__ import annotations

from llmd.api.pace import FAST_GAP_S, FAST_READS, PAUSE_S, Pace


def test_the_first_reads_of_a_fast_stream_are_not_paused():
    pace = Pace()
    pauses = [pace.after_read(index * 0.0001, 1) for index in range(FAST_READS)]
    assert pauses == [0.0] * FAST_READS


def test_a_fast_stream_is_paused_and_stays_so_while_pauses_gather_events():
    pace = Pace()
    for index in range(FAST_READS + 1):
        pause = pace.after_read(index * 0.0001, 1)
    assert pause == PAUSE_S
    for index in range(5):
        assert pace.after_read(1 + index * 0.0031, 12) == PAUSE_S


def test_a_slow_stream_is_never_paused():
    pace = Pace()
    assert all(pace.after_read(index * FAST_GAP_S * 1.1, 1) == 0.0 for index in range(100))


def test_a_pause_that_gathers_nothing_is_the_last_one():
    pace = Pace()
    for index in range(FAST_READS + 1):
        pace.after_read(index * 0.0001, 1)
    assert pace.after_read(1.0, 1) == 0.0


def test_no_pause_exceeds_five_milliseconds():
    assert PAUSE_S <= 0.005
