"""The file with keys of one's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmtui.app import main
from llmtui.bindings import KEYS, bindings
from llmtui.keymap import KeymapError, check_keymap, keymap_path, read_keymap, template
from llmtui.screen import scopes

README = Path(__file__).parents[2] / "README.md"


def checked(**keys):
    return check_keymap({"keys": keys}, scopes())


def test_it_stands_in_the_configuration_directory():
    assert keymap_path({"XDG_CONFIG_HOME": "/etc/x"}) == Path("/etc/x/llmd/tui.toml")
    home = Path.home() / ".config/llmd/tui.toml"
    assert keymap_path({}) == keymap_path({"XDG_CONFIG_HOME": "not/absolute"}) == home


def test_keys_are_written_as_people_write_them():
    keymap, faults = checked(help="f1", cancel="X", down=["n", "Down"], sort="<", mark="ctrl++")
    assert faults == []
    assert keymap == {
        "help": "f1",
        "cancel": "X",
        "down": "n,down",
        "sort": "less_than_sign",
        "mark": "ctrl+plus",
    }


def test_what_is_wrong_is_told_all_at_once():
    keymap, faults = check_keymap(
        {
            "keys": {"cancell": "x", "up": 3, "help": "nonsense", "switch": "x", "quit": "ctrl+c"},
            "colours": {},
        },
        scopes(),
    )
    assert keymap == {"switch": "x", "quit": "ctrl+c"}
    text = "\n".join(faults)
    for words in (
        "unknown table or key 'colours'",
        "keys.cancell: no such id; cancel?",
        "keys.up: must be a key, or a list of keys",
        "keys.help: no such key: 'nonsense'",
        "the key 'x' is both switch and cancel",
        "the key '^c' is both leaving, always and quit",
    ):
        assert words in text


def test_a_key_may_change_its_owner():
    keymap, faults = checked(cancel="s", switch="x")
    assert (keymap, faults) == ({"cancel": "s", "switch": "x"}, [])


def test_keys_of_windows_have_names_with_a_dot():
    keymap, faults = check_keymap({"keys": {"logs": "L"}}, scopes())
    assert (keymap, faults) == ({"logs": "L"}, [])
    keymap, faults = check_keymap({"keys": {"logs.wrap": "W", "window": {"down": "n"}}}, scopes())
    assert keymap == {"logs.wrap": "W", "window.down": "n"}
    assert "the key 'n' is both logs.next and window.down" in faults


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"keys = 3", "[keys] must be a table"),
        (b"[keys\n", "is no TOML"),
        (b"\xff\xfe", "is not UTF-8"),
        (b"#" * 70_000, "is larger than"),
    ],
)
def test_a_file_that_is_none(tmp_path, text, words):
    path = tmp_path / "tui.toml"
    path.write_bytes(text)
    with pytest.raises(KeymapError, match=r"tui\.toml") as caught:
        read_keymap(path, scopes)
    assert words in caught.value.faults[0]


def test_no_file_changes_nothing(tmp_path):
    assert read_keymap(tmp_path / "none.toml", scopes) == {}


def test_what_is_printed_is_a_file_that_changes_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert main(["--keys"]) == 0
    path = tmp_path / "llmd" / "tui.toml"
    path.parent.mkdir()
    path.write_text(capsys.readouterr().out)
    kept = {b.id: b.key for scope in scopes() for b in scope if b.id}
    assert read_keymap(path, scopes) == kept
    assert len(template([bindings()], {})) == len(KEYS) + 1


def test_llmtui_does_not_start_with_a_bad_file(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    path = tmp_path / "llmd" / "tui.toml"
    path.parent.mkdir()
    path.write_text('[keys]\nnonsense = "x"\n')
    for stream in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(f"sys.{stream}.isatty", lambda: True, raising=False)
    assert main(["--demo"]) == 2
    assert "keys.nonsense: no such id" in capsys.readouterr().err


def test_the_readme_names_each_id():
    text = README.read_text(encoding="utf-8")
    assert [key.id for key in KEYS if f"`{key.id}`" not in text] == []
