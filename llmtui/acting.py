"""What opens over the board, and what acts on the daemon."""

from __future__ import annotations

import shlex

from textual import on, work

from llmd.admin import protocol as p
from llmd.admin.calls import AdminError
from llmtui.finding import Finding
from llmtui.rows import short_id
from llmtui.screens.detail import story_lines, worker_lines
from llmtui.screens.dialogs import Dialog, Help, Question, plan_buttons, plan_lines
from llmtui.screens.logs import FIRST, Logs
from llmtui.state import RUNNING
from llmtui.widgets.table import Table


class Acting(Finding):
    """The board with the keys that look closer, or act."""

    def action_copy(self, whole: bool) -> None:
        """Copy the id under the cursor, or the `llmctl` line about it."""
        table = self.table
        key = table.cursor_key
        if not key:
            return
        verb = "why" if table.id == "requests" else "switch"
        text = f"llmctl {verb} {shlex.quote(key)}" if whole else key
        self.copy_to_clipboard(text)
        self.say(f"copied: {text}", "accent")

    def _model(self) -> str:
        """Return the model that the cursor is about."""
        table = self.table
        if table.id == "workers":
            return table.cursor_key or ""
        request = self.shown.requests.get(table.cursor_key or "")
        return request.model if request else ""

    @on(Table.Chosen)
    def chosen(self) -> None:
        """Open what was clicked."""
        self.action_detail()

    @work(exclusive=True, group="detail")
    async def action_detail(self) -> None:
        """Show all about the row under the cursor."""
        key = self.table.cursor_key
        if not key:
            return
        if self.table.id == "workers":
            worker = self.shown.workers.get(key)
            if worker is not None:
                lines = worker_lines(worker, self.now)
                self.push_screen(Help(f"Worker {key}", [*lines, "", "esc back"]))
            return
        try:
            story = await self.link.source.why(key)
        except AdminError as error:
            self.say(str(error), "bad")
            return
        title = f"Request {key}  {story.request.state.upper()}"
        lines = [*story_lines(story, self.clock()), "", f"= llmctl why {shlex.quote(key)}"]
        self.push_screen(Help(title, lines))

    def action_logs(self) -> None:
        """Show the log of the model's worker."""
        model = self._model()
        if not model:
            return
        try:
            source = self.link.source
        except AdminError as error:
            self.say(str(error), "bad")
            return
        colours = self.query_one("#requests", Table).colours
        self.push_screen(Logs(model, lambda: source.follow(model, lines=FIRST), colours))

    # --- acting -----------------------------------------------------------------------------

    def _may_act(self) -> bool:
        if self.can_write:
            return True
        live = self.link.state.link == "live"
        self.say("read-only" if live else "not connected: actions are off", "warn")
        return False

    @work(exclusive=True, group="action")
    async def action_cancel(self) -> None:
        """Cancel the marked requests, or the one under the cursor, once that is confirmed."""
        table = self.query_one("#requests", Table)
        if not self._may_act() or (self.table is not table and not table.marked):
            return
        here = table.cursor_key
        ids = tuple(sorted(table.marked)) or ((here,) if here else ())
        hit = [self.shown.requests[i] for i in ids if i in self.shown.requests]
        hit = [request for request in hit if not request.ended]
        if not hit:
            return
        ids = tuple(request.id for request in hit)
        if await self.push_screen_wait(_cancel_question(hit)) != "yes":
            return
        try:
            done = await self.link.source.cancel(*ids)
        except AdminError as error:
            self.say(str(error), "bad")
            return
        table.marked.clear()
        over = len(done.ended) + len(done.unknown)
        more = f", {over} had ended" if over else ""
        wait = f", {len(done.pending)} still ending" if done.pending else ""
        self.say(f"cancelled {len(done.cancelled)}{wait}{more}", "accent")

    @work(exclusive=True, group="action")
    async def action_switch(self) -> None:
        """Show the plan of a switch to the model under the cursor; carry it out if told to."""
        model = self._model()
        if not model or not self._may_act():
            return
        try:
            plan = await self.link.source.switch(model, dry_run=True)
            lines, buttons = plan_lines(plan, self.look), plan_buttons(plan)
            choice = await self.push_screen_wait(Dialog(f"Switch to {model}", lines, buttons))
            if choice is None:
                return
            evict = () if choice == "add" else tuple(e.model for e in plan.evict)
            await self.link.source.switch(
                model,
                evict=evict,
                add=choice == "add",
                force=choice == "force",
                if_gen=plan.generation,
            )
        except AdminError as error:
            self.say(str(error), "bad")
            return
        self.say(f"switching to {model}", "accent")

    @work(exclusive=True, group="action")
    async def action_stop(self) -> None:
        """Unload the model under the cursor; one that serves must be named."""
        model, generation = self._model(), self.shown.generation
        worker = self.shown.workers.get(model)
        if worker is None or worker.state == "off" or not self._may_act():
            return
        serves = worker.running + worker.waiting
        lines = [
            f"{worker.running} running: they may finish; {worker.waiting} queued.",
            f"frees {worker.memory_bytes / 2**30:.1f}G",
            f"= llmctl unload {shlex.quote(model)}",
        ]
        buttons = [("cancel", " Cancel "), ("yes", " Unload ")]
        title = f"Unload {model}"
        if serves:
            lines.append("It serves: type its name to go on.")
        question = Dialog(title, lines, buttons, type_this=model if serves else "")
        if await self.push_screen_wait(question) != "yes":
            return
        try:
            await self.link.source.unload(model, if_gen=generation)
        except AdminError as error:
            self.say(str(error), "bad")
            return
        self.say(f"unloading {model}", "accent")


def _cancel_question(hit: list[p.Request]) -> Dialog:
    running = sum(request.state in RUNNING for request in hit)
    ids = " ".join(shlex.quote(request.id) for request in hit[:3])
    more = " ..." if len(hit) > 3 else ""
    buttons = [("cancel", " Keep "), ("yes", " Cancel them " if len(hit) > 1 else " Cancel it ")]
    lines = [f"= llmctl cancel {ids}{more}"]
    if len(hit) == 1 and not running:
        lines.insert(0, "It waits in the queue.   y cancels it, esc keeps it.")
        return Question(f"Cancel {short_id(hit[0].id)}?", lines, buttons)
    lines.insert(0, f"{running} running, {len(hit) - running} waiting")
    return Dialog(f"Cancel {len(hit)} request{'s' if len(hit) > 1 else ''}?", lines, buttons)
