"""The line at the bottom into which a filter or a command is typed."""

from __future__ import annotations

from collections.abc import Callable

from textual import events
from textual.containers import Horizontal
from textual.widgets import Input, Static

_STEPS = {"tab": 0, "up": -1, "down": 1, "ctrl+p": -1, "ctrl+n": 1}


class Prompt(Input):
    """A field that is there only while it is used.

    It handles its keys itself and at once. As bindings they would go through the app's queue, and
    in a burst a letter that follows would be there before them.

    Args:
        id: Its name.
        done: Called with what was typed, or None when it was left.
        more: Called with the field when more is wanted: the rest of a word (0), or what was typed
            before (-1) or after (1).
    """

    def __init__(
        self,
        *,
        id: str,  # noqa: A002
        done: Callable[[str | None], None],
        more: Callable[[Prompt, int], None] | None = None,
    ) -> None:
        super().__init__(id=id, compact=True, select_on_focus=False)
        self._done = done
        self._more = more

    def open(self, value: str, hint: str) -> None:
        """Show it, ready to type.

        Args:
            value: What stands in it.
            hint: What is shown while nothing does.
        """
        self.placeholder = hint
        self._show(True)
        with self.prevent(Input.Changed):
            self.value = value
        self.cursor_position = len(value)
        # at once, and not through the queue as `focus` has it: the next key may be there already
        self.screen.set_focus(self)

    @property
    def used(self) -> bool:
        """Whether it is on the screen."""
        return isinstance(self.parent, PromptLine) and bool(self.parent.display)

    def _show(self, there: bool) -> None:
        if isinstance(self.parent, PromptLine):
            self.parent.display = there

    def on_key(self, event: events.Key) -> None:
        """End, or ask for more."""
        if not self.used:
            pass  # the rest of a burst, after its end
        elif event.key in ("enter", "escape"):
            self._show(False)
            self._done(self.value if event.key == "enter" else None)
        elif event.key in _STEPS:
            if self._more is not None:
                self._more(self, _STEPS[event.key])
        else:
            return
        event.stop()
        event.prevent_default()


class PromptLine(Horizontal):
    """A prompt behind the sign that says what is typed; there only while it is used.

    Args:
        sign: One character.
        prompt: The field.
    """

    DEFAULT_CSS = """
    PromptLine { height: 1; width: 100%; background: $surface; display: none; }
    PromptLine .sign { width: 3; padding: 0 1; color: $primary; text-style: bold; }
    PromptLine Prompt { height: 1; width: 1fr; border: none; padding: 0; background: $surface; }
    """

    def __init__(self, sign: str, prompt: Prompt) -> None:
        super().__init__(Static(sign, classes="sign", markup=False), prompt)
