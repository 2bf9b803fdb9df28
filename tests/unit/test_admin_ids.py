"""Which request a part of an id means."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmd.admin.ids import whole_ids
from llmd.errors import InvalidRequest

IDS = ["r-1111aaaa82b0d7e4", "r-2222bbbb82b0ffff", "mine-4711", "82b0d7e4x"]


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("r-1111aaaa82b0d7e4", "r-1111aaaa82b0d7e4"),
        ("aa82b0d7e4", "r-1111aaaa82b0d7e4"),
        ("ffff", "r-2222bbbb82b0ffff"),
        ("2222", "r-2222bbbb82b0ffff"),
        ("r-2222", "r-2222bbbb82b0ffff"),
        ("r-2222bbb…", "r-2222bbbb82b0ffff"),
        ("4711", "mine-4711"),
        ("mine", "mine-4711"),
        ("711", "711"),  # too short
        ("r-11", "r-11"),
        ("aaaa82b0", "aaaa82b0"),  # of the middle, which no table shows
        ("nope-nope", "nope-nope"),
        ("", ""),
        ("…", "…"),
    ],
)
def test_a_part_means_the_one_it_fits(said, meant):
    assert whole_ids([said], IDS) == [meant]


def test_a_part_of_several_is_refused_and_names_them():
    with pytest.raises(InvalidRequest, match=r"any of r-1111aaaa82b0d7e4, 82b0d7e4x; say more"):
        whole_ids(["ffff", "82b0d7e4"], IDS)
    with pytest.raises(InvalidRequest, match="and 15 more"):
        whole_ids(["same"], [f"same-{number}" for number in range(20)])


def test_an_id_said_whole_means_itself_whatever_it_is_a_part_of():
    assert whole_ids(["82b0d7e4"], [*IDS[:1], "82b0d7e4"]) == ["82b0d7e4"]


@given(st.lists(st.text("ab1-r", min_size=1, max_size=8), unique=True), st.text("ab1-r"))
def test_never_another_one_than_the_only_one(ids, said):
    try:
        [meant] = whole_ids([said], ids)
    except InvalidRequest:
        return
    if meant != said:
        bare = [name.removeprefix("r-") for name in ids]
        fits = {
            name
            for name, rest in zip(ids, bare, strict=True)
            if name.endswith(said) or name.startswith(said) or rest.startswith(said)
        }
        assert fits == {meant}
