"""Lines of TOML keys: exact where TOML is devious, never lost on what tomllib accepts."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmd.config.locate import locate

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DEVIOUS = '''\
# [a] port = 1
top = 1

[a]
port = 2 # port = 3
text = """
port = 4
[b]
# """
"quoted key" = 1
'literal key'.under."dot.ted" = 2
quotes = """x"""""
after_quotes = 1

[[b]]
name = \'\'\'
[[b]]\'\'\'
list = [ # ]
  1, "]",
  [ 3,
    4 ],
  { x = 1, y = { z = "}" } },
]
[b.sub]
k = 1
[[b]]
[b.sub]
k = 2
[[b.deep]]
v = 1
[[b.deep]]
v = 1979-05-27 07:32:00Z
empty = ""
esc\u0061pe = 1
'''.replace("esc\u0061pe", '"esc\\u0061pe"')


@pytest.mark.parametrize(
    ("path", "start"),
    [
        (("top",), "top ="),
        (("a",), "[a]\nport"),
        (("a", "port"), "port = 2"),
        (("a", "text"), "text ="),
        (("a", "quoted key"), '"quoted key"'),
        (("a", "literal key", "under"), "'literal key'"),
        (("a", "literal key", "under", "dot.ted"), "'literal key'"),
        (("a", "after_quotes"), "after_quotes"),
        (("b", 0, "name"), "name ="),
        (("b", 0, "list", 1), '  1, "]"'),
        (("b", 0, "list", 2, 0), "  [ 3"),
        (("b", 0, "list", 2, 1), "    4 ]"),
        (("b", 0, "list", 3, "y", "z"), "  { x"),
        (("b", 0, "sub", "k"), "k = 1"),
        (("b", 1), "[[b]]\n[b.sub]"),
        (("b", 1, "sub", "k"), "k = 2"),
        (("b", 1, "deep", 1), "[[b.deep]]\nv = 1979"),
        (("b", 1, "deep", 1, "v"), "v = 1979"),
        (("b", 1, "deep", 1, "escape"), '"esc'),
    ],
)
def test_every_key_has_its_line(path, start):
    assert locate(DEVIOUS).line(path) == DEVIOUS[: DEVIOUS.index(start)].count("\n") + 1


def test_what_is_not_written_has_the_line_of_what_is_around_it():
    lines = locate("\n[a]\nb = 1\n[[c]]\n[[c]]\n")
    assert lines.line(("a", "missing")) == 2
    assert lines.line(("c", 1, "missing")) == 5
    assert lines.line(("missing",)) == 0


bare = st.text("abc-_1", min_size=1, max_size=3)
quoted = st.text("ab.\"'\\ #=[]{}\n\té", max_size=4)
strings = st.one_of(
    quoted.map(lambda s: '"' + _escaped(s) + '"'),
    quoted.map(lambda s: '"""\n' + _escaped(s).replace("\\n", "\n") + '"""'),
    st.text('ab."\\ #=[]{}', max_size=4).map(lambda s: f"'{s}'"),
    st.text('ab."\\ #=[]{}\n', max_size=6).map(lambda s: f"'''{s}'''"),
    st.sampled_from(['""""""""', '"""a"""""', "'''a'''''", '"""\\\n  a"""']),
)
scalars = strings | st.sampled_from(["1", "-1.5e3", "true", "1979-05-27 07:32:00", "0xff", "nan"])
keys = bare | quoted.map(lambda s: '"' + _escaped(s) + '"')
blank = st.sampled_from(["", " ", "\n", "# ]}'\"\n", "\t"])


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")


def _inline(pairs):
    return "{" + ", ".join(f"{key} = {value}" for key, value in pairs) + "}"


single_line = scalars.filter(lambda s: "\n" not in s)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(st.tuples(blank, inner, blank), max_size=3).map(
            lambda items: "[" + ",".join("".join(item) for item in items) + "]"
        ),
        st.lists(st.tuples(keys, single_line), max_size=2, unique_by=lambda p: p[0]).map(_inline),
    ),
    max_leaves=6,
)
headers = st.tuples(st.booleans(), st.lists(keys, min_size=1, max_size=2)).map(
    lambda h: f"[[{'.'.join(h[1])}]]" if h[0] else f"[ {' . '.join(h[1])} ]"
)
pairs = st.tuples(st.lists(keys, min_size=1, max_size=2).map(".".join), values).map(" = ".join)
documents = st.lists(headers | pairs | st.just("# x = [")).map("\n".join)


def _paths(value, at=()):
    if at:
        yield at
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, held in items:
        if isinstance(held, dict | list):
            yield from _paths(held, (*at, key))
        else:
            yield (*at, key)


@settings(deadline=None)
@given(documents)
def test_whatever_tomllib_reads_is_found(text):
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        locate(text)  # must not raise either
        return
    lines = locate(text)
    for path in _paths(document):
        assert path in lines, (path, text)


@settings(deadline=None)
@given(st.text())
def test_no_text_is_too_strange(text):
    locate(text)


def test_deep_nesting_ends():
    locate("a = " + "[" * 100_000)
