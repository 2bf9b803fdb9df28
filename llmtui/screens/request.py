"""A request's detail: who, what, each step with its time, live while it is open."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from contextlib import aclosing
from typing import ClassVar

from msgspec.structs import replace
from textual import work
from textual.binding import Binding, BindingType

from llmd.admin import protocol as p
from llmd.admin.calls import AdminError, Refused
from llmd.admin.framing import clean
from llmtui.form import fit
from llmtui.rows import Line
from llmtui.screens.cancel import Cancel
from llmtui.screens.confirm import command_lines
from llmtui.screens.desk import Desk
from llmtui.screens.flow import LABEL, told
from llmtui.screens.loglines import level_of
from llmtui.screens.logs import Logs
from llmtui.screens.story import clock, head_lines, steps_of, sum_lines, way_lines
from llmtui.screens.window import Hint, Window
from llmtui.state import shown_at

_ASK_S = 1.0


class RequestDetail(Window[None]):
    """Shows a request until it is left; the daemon is asked again as the request moves.

    Args:
        desk: What it works with.
        request: Its id.
        story: What is known of it already.
    """

    wide: ClassVar[int] = 100
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("x", "cancel", show=False, id="request.cancel"),
        Binding("l", "logs", show=False, id="request.logs"),
        Binding("y", "copy(False)", show=False, id="request.copy_id"),
        Binding("Y", "copy(True)", show=False, id="request.copy_command"),
        Binding("v", "body", show=False, id="request.body"),
        Binding("q,enter,d", "leave", show=False, id="request.back"),
    ]

    def __init__(self, desk: Desk, request: str, story: p.Story | None = None) -> None:
        super().__init__(desk)
        self._request = request
        self._story = story
        self._body = False
        self._last: p.LogLine | None = None
        self._trouble = ""
        self._said = ""
        self._asked: p.Request | None = None
        self._asked_at = 0.0

    def on_mount(self) -> None:
        """Begin to ask."""
        self._ask()

    # --- asking -----------------------------------------------------------------------------

    @property
    def row(self) -> p.Request | None:
        """The request as it was heard last."""
        live = self.desk.state().requests.get(self._request)
        known = self._story.request if self._story else None
        return known if live is None or (known is not None and known.ended) else live

    def repaint(self) -> None:
        """Draw, and ask for the story when the request has moved since."""
        row = self.desk.state().requests.get(self._request)
        settled = self._story is not None and self._story.request.ended
        if not settled and self.desk.now() - self._asked_at >= _ASK_S and row != self._asked:
            self._ask()
        super().repaint()

    @work(exclusive=True, group="story")
    async def _ask(self) -> None:
        self._asked_at = self.desk.now()
        self._asked = self.desk.state().requests.get(self._request)
        try:
            self._story = await self.desk.source().why(self._request)
            self._trouble = ""
        except Refused as error:
            self._trouble = clean(str(error))
        except AdminError as error:
            self._trouble = clean(str(error))
            self._asked_at = self.desk.now()
        if self._story is not None and self._last is None and self._story.request.worker_pid:
            self._listen(self._story.request.model)
        super().repaint()

    @work(exclusive=True, group="log")
    async def _listen(self, model: str) -> None:
        """Keep the last line that the worker said."""
        try:
            async with aclosing(self.desk.source().follow(model, lines=1)) as lines:  # type: ignore[type-var]
                async for line in lines:
                    self._last = line
        except AdminError:
            return  # the link says so itself

    # --- drawing ----------------------------------------------------------------------------

    def heading(self) -> str:
        """Return the id, the state, and how far it is."""
        row = self.row
        state = "" if row is None else row.state.upper().replace("_", " ")
        if row is not None and row.state == "queued" and row.position:
            state += f" #{row.position}"
        if row is not None and row.progress and not row.ended:
            state += f" {row.progress:.0%}"
        stale = "" if self.desk.live else "   STALE"
        return f"Request {clean(self._request)}   {state}{stale}"

    def lines(self, width: int) -> list[Line]:
        """Return the whole of it."""
        row, now = self.row, shown_at(self.desk.state(), self.desk.now())
        if row is None or self._story is None:
            return told(self._trouble or "asking the daemon ...", width, style="dim")
        story = replace(self._story, request=row)
        lines = head_lines(row, width, body=self._body)
        lines += [[], *way_lines(steps_of(story, now, self.look), now, width), []]
        lines += sum_lines(story, now, width)
        if self._last is not None:
            text = f"{clock(self._last.at)} {level_of(clean(self._last.text))[1]}"
            lines.append([("log     ", "dim"), (fit(text, width - LABEL), "dim")])
        if self._trouble:
            lines += told(self._trouble, width, style="bad", label="but")
        return [*lines, [], *command_lines(self._command, width)]

    @property
    def _command(self) -> str:
        return f"llmctl why {shlex.quote(clean(self._request))}"

    def hints(self) -> Sequence[Hint]:
        """Return the keys."""
        row = self.row
        over = row is None or row.ended
        return (
            ("request.cancel", "x", "cancel", self.desk.can_write() and not over),
            ("request.logs", "l", "logs", row is not None and bool(row.model)),
            ("request.body", "v", "body", True),
            ("request.copy_id", "y", "copy id", True),
            ("request.copy_command", "Y", "copy llmctl", True),
            ("window.back", "esc", "back", True),
        )

    def aside(self) -> str:
        """Return what was done last."""
        return self.desk.holds(self._said)

    # --- keys -------------------------------------------------------------------------------

    def action_body(self) -> None:
        """Show the body, or say why there is none."""
        self._body = not self._body
        self.repaint()

    def action_copy(self, whole: bool) -> None:
        """Copy the id, or the `llmctl` line."""
        text = self._command if whole else clean(self._request)
        self.app.copy_to_clipboard(text)
        self._said = f"copied: {text}"
        self.repaint()

    def action_cancel(self) -> None:
        """Ask whether to cancel it."""
        row = self.row
        if row is None or row.ended:
            self._said = "it has ended"
        elif self.desk.refusal:
            self._said = self.desk.refusal
        else:
            self.app.push_screen(Cancel(self.desk, [row]))
        self.repaint()

    def action_logs(self) -> None:
        """Show its worker's log."""
        row = self.row
        if row is not None and row.model:
            self.app.push_screen(Logs(self.desk, row.model))
