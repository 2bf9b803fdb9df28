"""Which of a repository's files would be fetched, by llama.cpp's own rule."""

from __future__ import annotations

import pytest

from llmd.models.hub import Found, Missing, choose

FILES = [
    ("README.md", 9),
    ("mmproj-Q8_0.gguf", 7),
    ("imatrix_Q8_0.gguf", 6),
    ("model-Q4_K_M.gguf", 4),
    ("big/model-q8_0-00001-of-00002.gguf", 80),
    ("big/model-q8_0-00002-of-00002.gguf", 8),
]


@pytest.mark.parametrize(
    ("quant", "found"),
    [
        ("Q4_K_M", Found(4, 1)),
        ("q4_k_m", Found(4, 1)),
        ("Q8_0", Found(88, 2)),
        ("", Found(4, 1)),
    ],
)
def test_the_quantisation_is_found_in_the_files_name(quant, found):
    assert choose("o/r", quant, FILES) == found


def test_without_a_usual_quantisation_the_first_model_counts():
    assert choose("o/r", "", [("b-F16.gguf", 2), ("a-F16.gguf", 1)]) == Found(2, 1)


@pytest.mark.parametrize(
    ("quant", "files", "told"),
    [
        ("Q2_K", FILES, "o/r has no Q2_K; it has Q4_K_M, Q8_0"),
        ("Q8", FILES, "o/r has no Q8; it has Q4_K_M, Q8_0"),
        (".*", FILES, "has no"),
        ("Q8_0", [("README.md", 9), ("mmproj-Q8_0.gguf", 7)], "o/r has no GGUF file"),
        ("Q8_0", [("plain.gguf", 7)], "it has no quantised file"),
    ],
)
def test_what_is_not_there_is_said_with_what_is(quant, files, told):
    with pytest.raises(Missing) as caught:
        choose("o/r", quant, files)
    assert told in str(caught.value)
