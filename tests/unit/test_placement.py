"""What fits, and what goes for it."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from llmd.core.placement import Resident, Room, choose_evictions, keep_value, shortfall


def resident(name, *, size=1, load_s=10.0, idle_s=0.0, busy=False, pinned=False) -> Resident:
    return Resident(name, size, load_s, idle_s, busy, pinned)


def test_what_is_missing_is_told_in_places_and_bytes():
    assert shortfall(Room(), [5, 5], 99) == (0, 0)
    assert shortfall(Room(max_loaded=2), [5, 5], 99) == (1, 0)
    assert shortfall(Room(memory_bytes=12), [5, 5], 4) == (0, 2)
    assert shortfall(Room(max_loaded=3, memory_bytes=14), [5, 5], 4) == (0, 0)


def test_the_long_idle_goes_before_the_recent():
    long, recent = resident("long", idle_s=600), resident("recent", idle_s=6)
    assert choose_evictions([recent, long], 1, 0) == ("long",)


def test_the_cheap_to_load_goes_before_the_costly_but_not_for_ever():
    cheap, costly = resident("cheap", load_s=2, idle_s=10), resident("costly", load_s=60, idle_s=10)
    assert choose_evictions([cheap, costly], 1, 0) == ("cheap",)
    costly = resident("costly", load_s=60, idle_s=3600)
    assert keep_value(costly) < keep_value(cheap)
    assert choose_evictions([cheap, costly], 1, 0) == ("costly",)


def test_idle_before_busy_before_pinned():
    residents = [
        resident("pinned", idle_s=9999, pinned=True),
        resident("busy", load_s=0.1, busy=True),
        resident("idle", load_s=99),
    ]
    assert choose_evictions(residents, 1, 0) == ("idle",)
    assert choose_evictions(residents, 2, 0) == ("idle", "busy")


def test_nobody_goes_in_vain():
    small = resident("small", size=1, idle_s=99)
    large = resident("large", size=8, idle_s=9)
    assert choose_evictions([small, large], 1, 8) == ("large",)
    assert choose_evictions([small, large], 1, 9) == ("small", "large")
    assert choose_evictions([small, large], 0, 10) is None
    assert choose_evictions([small, large], 0, 0) == ()


@given(
    st.lists(
        st.tuples(st.integers(0, 9), st.floats(0, 99), st.floats(0, 999), st.booleans()), max_size=7
    ),
    st.integers(0, 4),
    st.integers(0, 30),
)
@settings(max_examples=150, derandomize=True, deadline=None, database=None)
def test_what_goes_is_enough_and_not_one_too_many(found, places, size):
    residents = {
        str(n): resident(str(n), size=s, load_s=load, idle_s=idle, busy=busy)
        for n, (s, load, idle, busy) in enumerate(found)
    }
    chosen = choose_evictions(list(residents.values()), places, size)
    if chosen is None:
        assert len(residents) < places or sum(r.memory_bytes for r in residents.values()) < size
        return
    freed = sum(residents[name].memory_bytes for name in chosen)
    assert len(chosen) >= places
    assert freed >= size
    for name in chosen:
        assert len(chosen) - 1 < places or freed - residents[name].memory_bytes < size
