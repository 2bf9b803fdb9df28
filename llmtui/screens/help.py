"""The keys, on one page or scrolled."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

from textual.binding import Binding, BindingType

from llmtui.bindings import spelt
from llmtui.rows import Line
from llmtui.screens.desk import Desk
from llmtui.screens.flow import flow
from llmtui.screens.window import Hint, Window

# by window: a binding's id, its keys as people read them unless it is bound otherwise, its use
_KEYS: Mapping[str, tuple[tuple[str, str, str], ...]] = {
    "all": (
        ("window.back", "esc", "back"), ("", "j k g G", "scroll"), ("", "tab enter", "buttons"),
    ),
    "logs": (
        ("logs.follow", "f", "follow"), ("logs.wrap", "w", "wrap"), ("logs.time", "t", "times"),
        ("logs.search", "/", "search"), ("", "n N", "matches"), ("", "1-5", "level"),
        ("logs.all", "0", "all levels"), ("logs.mark", "m", "marker"), ("logs.save", "^s", "save"),
        ("", "← →", "pan"),
    ),
    "request": (
        ("request.cancel", "x", "cancel"), ("request.logs", "l", "logs"),
        ("request.body", "v", "body"), ("request.copy_id", "y", "copy id"),
        ("request.copy_command", "Y", "copy llmctl line"),
    ),
    "worker": (
        ("worker.logs", "l", "logs"), ("worker.switch", "s", "switch"),
        ("worker.unload", "S", "unload"), ("worker.copy_id", "y", "copy name"),
    ),
    "switch": (
        ("switch.drain", "d", "drain, longer"), ("switch.cancel", "c", "cancel what runs"),
        ("switch.add", "a", "add beside"), ("switch.renew", "r", "fresh plan"),
    ),
    "unload": (
        ("unload.drain", "^d", "limit the drain"), ("unload.cancel", "^f", "cancel what runs"),
    ),
}  # fmt: skip


def window_lines(keymap: Mapping[str, str], width: int, *, ascii_only: bool = False) -> list[Line]:
    """Return the keys that work in windows, `keymap` (by binding id) taken into account."""
    lines: list[Line] = [[("In windows", "head")]]
    for window, keys in _KEYS.items():
        chunks: list[Line] = []
        for binding, usual, about in keys:
            own = keymap.get(binding, "").split(",")[0]
            shown = spelt(own, ascii_only=ascii_only) if own else usual
            chunks.append([(shown, "accent"), (f" {about}", "")])
        lines += flow(chunks, width, indent=12, gap=2, head=[(f"  {window}", "dim")])
    return lines


class Help(Window[None]):
    """Shows lines until it is left.

    Args:
        desk: What it works with.
        text: Makes the lines, as wide as asked for; one that begins without a space is a title.
        heading: What stands in the frame.
    """

    wide: ClassVar[int] = 110
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("question_mark,q,enter", "leave", show=False, id="help.back"),
    ]

    def __init__(
        self, desk: Desk, text: Callable[[int], Sequence[Line]], heading: str = "Keys"
    ) -> None:
        super().__init__(desk)
        self._text = text
        self._title = heading

    def heading(self) -> str:
        """Return what stands in the frame."""
        return self._title

    def lines(self, width: int) -> list[Line]:
        """Return the lines."""
        return list(self._text(width))

    def hints(self) -> Sequence[Hint]:
        """Return the keys."""
        return (("", "j k", "scroll", True), ("window.back", "esc", "back", True))
