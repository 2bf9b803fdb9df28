"""The keys: one table, from which come the bindings, the help and the line at the bottom."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import zip_longest

from textual.binding import Binding, BindingType
from textual.keys import format_key

from llmtui.rows import Line


@dataclass(frozen=True)
class Key:
    """What one key does.

    Attributes:
        id: Its name in `tui.toml`; never changes.
        keys: As Textual calls them, with commas between.
        action: As Textual calls it.
        about: What it does, in a few words.
        word: For the line at the bottom; "" = not shown there.
        writes: It acts, so a read-only link dims it.
    """

    id: str
    keys: str
    action: str
    about: str
    word: str = ""
    writes: bool = False


SECTIONS: Mapping[str, tuple[Key, ...]] = {
    "Find": (
        Key("help", "question_mark", "help", "all keys", "help"),
        Key("filter", "slash", "filter", "filters this table; !word: without it", "filter"),
        Key("command", "colon", "command", "a command, as llmctl knows it", "cmd"),
        Key("palette", "ctrl+p", "command_palette", "finds anything by its name"),
        Key("sort", "o", "sort", "sorts: a letter says by what", "sort"),
        Key("invert", "I", "invert", "sorts the other way round"),
        Key("clear", "escape", "clear", "ends filter, faults and marks"),
    ),
    "Look": (
        Key("detail", "enter,d", "detail", "all about this row, with why", "detail"),
        Key("logs", "l", "logs", "its worker's log", "log"),
        Key("events", "e", "events", "what the daemon did, and for whom", "events"),
        Key("faults", "z", "faults", "only what is wrong", "faults"),
    ),
    "Act": (
        Key("switch", "s", "switch", "switches to this model: the plan first", "switch", True),
        Key("cancel", "x", "cancel", "cancels this request, or the marked", "cancel", True),
        Key("stop", "S", "stop", "unloads this model", "unload", True),
        Key("mark", "space", "mark", "marks a request", "mark"),
        Key("copy_id", "y", "copy(False)", "copies the id", "copy"),
        Key("copy_command", "Y", "copy(True)", "copies the llmctl line"),
    ),
    "Move": (
        Key("down", "j,down", "move(1)", "down"),
        Key("up", "k,up", "move(-1)", "up"),
        Key("page_down", "pagedown,ctrl+d", "move(10)", "ten rows down"),
        Key("page_up", "pageup,ctrl+u", "move(-10)", "ten rows up"),
        Key("first", "g,home", "move(-1000000)", "the first row"),
        Key("last", "G,end", "move(1000000)", "the last row"),
        Key("other", "tab", "other", "the next table"),
        Key("workers", "1", "panel('workers')", "the workers"),
        Key("requests", "2", "panel('requests')", "the requests"),
    ),
    "View": (
        Key("pause", "p", "pause", "holds the screen still", "pause"),
        Key("follow", "F", "follow", "keeps to the request that started last"),
        Key("faster", "plus,equals_sign", "rate(1)", "draws more often"),
        Key("slower", "minus", "rate(-1)", "draws less often"),
        Key("wide", "w", "wide", "gives names and reasons more room"),
        Key("redraw", "ctrl+l", "redraw_all", "draws the whole screen anew"),
        Key("quit", "q", "quit_now", "leaves", "quit"),
    ),
}
KEYS = tuple(key for keys in SECTIONS.values() for key in keys)

_FOOTER = (  # in this order, as far as they fit
    "help", "filter", "command", "detail", "logs", "switch", "cancel", "stop", "mark", "sort",
    "pause", "faults", "events", "copy_id", "quit",
)  # fmt: skip
_SHOWN = {"enter": "ent", "space": "spc", "escape": "esc", "pageup": "pgup", "pagedown": "pgdn"}
_COLUMN = 53
_PLAIN = {"down": "down", "up": "up", "left": "left", "right": "right", "tab": "tab"}


def bindings() -> list[BindingType]:
    """Return the keys as Textual wants them.

    All have priority, so that they are handled by the app in the order in which they come: others
    go through the queue of the widget that has the focus when they arrive, and in a burst that is
    not the one that the key before has chosen. `Board.check_action` keeps them to the board.
    """
    made: list[BindingType] = [Binding("ctrl+c", "leave", show=False, priority=True)]
    made += [Binding(key.keys, key.action, id=key.id, show=False, priority=True) for key in KEYS]
    return made


_ACTIONS = frozenset(key.action.partition("(")[0] for key in KEYS)


def of_board(action: str) -> bool:
    """Return whether an action is that of a key of the board."""
    return action in _ACTIONS


def spelt(key: str, *, ascii_only: bool = False) -> str:
    """Return a key as a person reads it: `question_mark` is `?`."""
    if key in _SHOWN or (ascii_only and key in _PLAIN):
        return _SHOWN.get(key, key)
    if key.startswith("ctrl+"):
        return "^" + key[5:]
    text = format_key(key)
    return text if text.isascii() or not ascii_only else key


def keys_of(key: Key, keymap: Mapping[str, str]) -> list[str]:
    """Return the keys that do something, `keymap` (by id) taken into account."""
    return keymap.get(key.id, key.keys).split(",")


def footer_line(keymap: Mapping[str, str], width: int, *, can_write: bool) -> Line:
    """Return the line at the bottom: the keys that fit, the way out always among them."""
    known = {key.id: key for key in KEYS}
    keys = [(spelt(keys_of(known[name], keymap)[0]), known[name]) for name in _FOOTER]
    gap = 2 if sum(len(text) + len(key.word) + 3 for text, key in keys) <= width else 1
    *keys, last = keys
    left = width - len(last[0]) - len(last[1].word) - 1 - gap
    line: Line = []
    for text, key in [*keys, last]:
        taken = gap + len(text) + 1 + len(key.word)
        if key is not last[1] and left < taken:
            continue
        style = "dim" if key.writes and not can_write else "accent"
        line += [(" " * gap, ""), (text, style), (" " + key.word, "dim")]
        left -= taken
    return line


def help_lines(keymap: Mapping[str, str], width: int, *, ascii_only: bool = False) -> list[Line]:
    """Return all keys by section, in two columns where `width` has room for them."""
    blocks: list[list[Line]] = []
    for title, keys in SECTIONS.items():
        block: list[Line] = [[(title, "head")]]
        for key in keys:
            names = " ".join(spelt(k, ascii_only=ascii_only) for k in keys_of(key, keymap))
            block.append([(f"  {names:<9} ", "accent"), (key.about, "")])
        blocks.append([*block, []])
    if width < 96:
        return [line for block in blocks for line in block][:-1]
    left = [line for block in blocks[:3] for line in block]
    right = [line for block in blocks[3:] for line in block]
    pairs: Iterable[tuple[Line, Line]] = zip_longest(left[:-1], right[:-1], fillvalue=[])
    return [[*a, (" " * (_COLUMN - sum(len(text) for text, _ in a)), ""), *b] for a, b in pairs]
