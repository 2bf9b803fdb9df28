"""The keys: one table, from which come the bindings, the help and the line at the bottom."""

from __future__ import annotations

from dataclasses import dataclass

from textual.binding import Binding, BindingType


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

    @property
    def shown(self) -> str:
        """Its first key as a person reads it."""
        first = self.keys.split(",")[0]
        return _SHOWN.get(first, first)


_SHOWN = {"question_mark": "?", "slash": "/", "escape": "esc"}

KEYS = (
    Key("help", "question_mark", "help", "shows the keys", "help"),
    Key("filter", "slash", "filter", "filters; !word for those without it", "filter"),
    Key("detail", "enter,d", "detail", "all about this row, with why", "detail"),
    Key("logs", "l", "logs", "its worker's log", "log"),
    Key("switch", "s", "switch", "switches to this model: the plan first", "switch", True),
    Key("cancel", "x", "cancel", "cancels the marked requests, or this one", "cancel", True),
    Key("stop", "S", "stop", "unloads this model", "unload", True),
    Key("mark", "space", "mark", "marks a request", "mark"),
    Key("sort", "o", "sort", "sorts by the next column", "sort"),
    Key("pause", "p", "pause", "holds the screen still", "pause"),
    Key("faults", "z", "faults", "shows only what is wrong", "faults"),
    Key("quit", "q", "quit_now", "leaves", "quit"),
    Key("down", "j,down", "move(1)", "down"),
    Key("up", "k,up", "move(-1)", "up"),
    Key("page_down", "pagedown,ctrl+d", "move(10)", "ten rows down"),
    Key("page_up", "pageup,ctrl+u", "move(-10)", "ten rows up"),
    Key("first", "g,home", "move(-1000000)", "the first row"),
    Key("last", "G,end", "move(1000000)", "the last row"),
    Key("other", "tab", "other", "the other table"),
    Key("workers", "1", "panel('workers')", "the workers"),
    Key("requests", "2", "panel('requests')", "the requests"),
    Key("clear", "escape", "clear", "ends the filter and the marks"),
    Key("invert", "I", "invert", "inverts the order"),
    Key("wide", "w", "wide", "gives names and reasons more room"),
    Key("copy_id", "y", "copy(False)", "copies the id"),
    Key("copy_command", "Y", "copy(True)", "copies the llmctl line"),
)

HELP = """\
j k ↓ ↑      move             tab 1 2     the other table
g G          first, last      enter d     detail, with why
/            filter, !word inverts        esc  clears it
o            sort by the next column      I    inverts
z            faults only      p           pause
space        mark a request   w           wide columns
y            copy the id      Y           copy the llmctl line

x            cancel the marked requests, or this one
s            switch to this model: shows the plan first
S            unload this model
l            its worker's log
q            quit"""


def bindings() -> list[BindingType]:
    """Return the keys as Textual wants them."""
    made: list[BindingType] = [Binding("ctrl+c", "quit_now", show=False, priority=True)]
    made += [Binding(key.keys, key.action, id=key.id, show=False) for key in KEYS]
    return made
