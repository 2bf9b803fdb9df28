"""config.toml.example and the code say the same, in both directions."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import msgspec
import pytest

from llmd.config import NOT_YET, load
from llmd.config.schema import ARRAYS, defaults, tables
from llmd.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

EXAMPLE = Path(__file__).parents[2] / "config.toml.example"
TEXT = EXAMPLE.read_text()
SETTING = re.compile(r"^#(?=[a-z\[])", re.MULTILINE)
UNCOMMENTED = SETTING.sub("", TEXT)
DOCUMENT = tomllib.loads(UNCOMMENTED)
GROUPS = {**tables(), **ARRAYS}
# what has no default, or is more telling with another value
ILLUSTRATED = {
    "api_keys.name",
    "api_keys.key",
    "api_keys.key_sha256",
    "models.name",
    "models.path",
    "models.hf",
    "models.aliases",
}


def documented(group: str) -> dict:
    held = DOCUMENT[group]
    if isinstance(held, dict):
        return held
    return {key: value for entry in reversed(held) for key, value in entry.items()}


@pytest.mark.parametrize("group", GROUPS)
def test_every_key_is_documented_and_every_documented_key_exists(group):
    assert documented(group).keys() == defaults(GROUPS[group]).keys()


def test_no_other_group_is_documented():
    assert DOCUMENT.keys() == {*GROUPS, "generation"}


@pytest.mark.parametrize("group", GROUPS)
def test_documented_values_are_the_defaults(group):
    for key, value in documented(group).items():
        if f"{group}.{key}" not in ILLUSTRATED:
            default = msgspec.to_builtins(defaults(GROUPS[group])[key])
            assert value == (list(default) if isinstance(default, tuple) else default), key


def _comments() -> dict[str, str]:
    """Return group.key -> the comment above its line (or above the lines right before it)."""
    found, group, comment, fresh = {}, "", "", True
    for line in TEXT.splitlines():
        header = re.match(r"^#?\[+(\w+)\]+$", line)
        setting = re.match(r"^#?(\w+) = ", line)
        if header:
            group, comment, fresh = header[1], "", True
        elif setting:
            found.setdefault(f"{group}.{setting[1]}", comment + line.partition("  # ")[2])
            fresh = True
        elif line.startswith("# "):
            comment = line[2:] if fresh else f"{comment} {line[2:]}"
            fresh = False
        elif not line:
            comment, fresh = "", True
    return found


def test_every_key_says_what_it_does():
    silent = [key for key, comment in _comments().items() if len(comment) < 15]
    assert not silent


def test_what_is_not_supported_yet_says_so():
    said = {key for key, comment in _comments().items() if "(not supported yet)" in comment}
    assert said == NOT_YET


def test_the_example_changes_nothing_as_it_is():
    assert load(EXAMPLE, env={}).config == load(_empty(), env={}).config


def _empty() -> Path:
    return Path("/dev/null")


def test_the_example_loads_once_uncommented(tmp_path):
    file = tmp_path / "config.toml"
    file.write_text(UNCOMMENTED.replace("change-me", "a-key-of-my-own"))
    config = load(file, env={}).config
    assert [key.name for key in config.api_keys] == ["alice", "bob"]
    assert [model.name for model in config.models] == ["qwen3-32b", ""]


def test_its_placeholder_is_no_key(tmp_path):
    file = tmp_path / "config.toml"
    file.write_text(UNCOMMENTED)
    with pytest.raises(ConfigError) as caught:
        load(file, env={})
    assert len(caught.value.faults) == 1
    assert "change-me" in caught.value.faults[0]
