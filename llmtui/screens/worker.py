"""A worker's particulars, live while they are open."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from typing import ClassVar

from textual.binding import Binding, BindingType

from llmd.admin import protocol as p
from llmd.admin.framing import clean
from llmtui.form import bar, count, size, span
from llmtui.loading import load_left_s, load_percent, load_progress
from llmtui.rows import Line, Look, short_id
from llmtui.screens.confirm import command_lines
from llmtui.screens.desk import Desk
from llmtui.screens.flow import labelled, told
from llmtui.screens.logs import Logs
from llmtui.screens.story import short
from llmtui.screens.switch import Switch
from llmtui.screens.unload import Unload
from llmtui.screens.window import Hint, Window
from llmtui.state import RUNNING, client_of, shown_at

_STYLE = {
    "ready": "ok", "loading": "accent", "starting": "accent", "draining": "warn",
    "stopping": "warn", "backoff": "bad", "failed": "bad",
}  # fmt: skip
_BUSY = 4


def worker_lines(
    worker: p.Worker, requests: Sequence[p.Request], now: float, width: int, look: Look
) -> list[Line]:
    """Return what is known of a worker.

    Args:
        worker: It.
        requests: Those that run there.
        now: Unix seconds.
        width: Cells of a line.
        look: How things are drawn.
    """
    since = f"for {span(now - worker.since_at)}" if worker.since_at else ""
    lines = labelled(
        "state",
        [
            [(worker.state.upper(), _STYLE.get(worker.state, "dim"))],
            [(since, "dim")],
            [(f"pid {worker.pid}" if worker.pid else "", "dim")],
            [("pinned" if worker.pinned else "", "accent")],
            [("wanted: starts as soon as there is room" if worker.wanted else "", "accent")],
        ],
        width,
    )
    progress = load_progress(worker, now)
    if progress is not None:
        left, percent = load_left_s(worker, now), load_percent(worker, now)
        drawn = bar(progress, 20, ascii_only=look.ascii_only)
        ready = f"ready in {span(left)}" if left and left > 0 else "ready any moment"
        chunks: list[Line] = [
            [(drawn, "accent.bar"), (f" {percent}".rstrip(), "")],
            [("" if left is None else ready, "dim")],
        ]
        lines += labelled("load", chunks, width)
    if worker.slots:
        lines += _serving(worker, width, look)
    waiting: list[Line] = [[(f"{n} ", ""), (name, "dim")] for name, n in worker.queued.items() if n]
    if waiting:
        waiting.append([(f"{count(worker.queued_tokens)} tokens", "dim")])
        if worker.oldest_at:
            waiting.append([(f"oldest {span(now - worker.oldest_at)}", "dim")])
    lines += labelled("queue", waiting or [[("nobody waits", "dim")]], width)
    lines += _memory(worker, width)
    takes = f"a load takes {short(worker.load_s)}" if worker.load_s else ""
    life: list[Line] = [
        [(f"started {_times(worker.starts)}", "")],
        [(f"crashed {_times(worker.crashes)}", "bad" if worker.crashes else "dim")],
        [(takes, "dim")],
    ]
    lines += labelled("life", life if worker.starts else [[("never started", "dim")]], width)
    lines += _reasons(worker, now, width)
    for number, request in enumerate(requests[:_BUSY]):
        lines += labelled("" if number else "runs", [_request(request, now)], width)
    if len(requests) > _BUSY:
        lines += labelled("", [[(f"and {len(requests) - _BUSY} more", "dim")]], width)
    return lines


def _times(number: int) -> str:
    return {0: "never", 1: "once"}.get(number, f"{number} times")


def _serving(worker: p.Worker, width: int, look: Look) -> list[Line]:
    share = worker.slots_busy / worker.slots
    slots: Line = [
        (bar(share, 10, ascii_only=look.ascii_only), "ok.bar"),
        (f" {worker.slots_busy}/{worker.slots} busy", ""),
    ]
    context: Line = [(f"{count(worker.context_tokens)} tokens each", "dim")]
    lines = labelled("slots", [slots, context], width)
    if worker.kv_used is not None:
        drawn = bar(worker.kv_used, 10, ascii_only=look.ascii_only)
        lines += labelled(
            "context", [[(drawn, "ok.bar"), (f" {worker.kv_used:.0%} in use", "")]], width
        )
    first = worker.first_token_p95_s
    speed: list[Line] = [
        [(f"{worker.tokens_per_s:.0f} t/s", "")],
        [("TTFT p95 ", "dim"), ("-" if first is None else short(first), "")],
    ]
    return lines + labelled("speed", speed, width)


def _memory(worker: p.Worker, width: int) -> list[Line]:
    held = f"{size(worker.memory_bytes)} held" if worker.memory_bytes else ""
    expected = ""
    if worker.estimate_bytes and worker.estimate_bytes != worker.memory_bytes:
        expected = f"{size(worker.estimate_bytes)} expected"
    fits = {True: "fits now", False: "needs room", None: ""}[worker.fits]
    verdict: Line = [(fits, "ok" if worker.fits else "warn")]
    return labelled("memory", [[(held, "")], [(expected, "dim")], verdict], width)


def _reasons(worker: p.Worker, now: float, width: int) -> list[Line]:
    lines: list[Line] = []
    if worker.leaving:
        goes = worker.leaving.replace("_", " ")
        goes += f", for {worker.leaving_for}" if worker.leaving_for else ""
        lines += told(goes, width, style="warn", label="goes")
    bad = worker.state in ("backoff", "failed")
    if worker.reason:
        lines += told(worker.reason, width, style="bad" if bad else "", label="why")
    if worker.last_failure and worker.last_failure != worker.reason:
        lines += told(worker.last_failure, width, style="dim", label="failed")
    if worker.retry_at is not None and bad:
        lines += told(f"tries again in {span(worker.retry_at - now)}", width, label="next")
    return lines


def _request(request: p.Request, now: float) -> Line:
    rate = f"  {request.tokens_per_s:.0f} t/s" if request.tokens_per_s is not None else ""
    return [
        (f"{short_id(request.id)}  ", ""),
        (f"{request.state}  ", "dim"),
        (clean(client_of(request)), ""),
        (f"  {span(now - request.received_at)}{rate}", "dim"),
    ]


class WorkerDetail(Window[None]):
    """Shows a worker until it is left.

    Args:
        desk: What it works with.
        model: Whose.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("l", "logs", show=False, id="worker.logs"),
        Binding("s", "switch", show=False, id="worker.switch"),
        Binding("S", "unload", show=False, id="worker.unload"),
        Binding("y", "copy(False)", show=False, id="worker.copy_id"),
        Binding("Y", "copy(True)", show=False, id="worker.copy_command"),
        Binding("q,enter,d", "leave", show=False, id="worker.back"),
    ]

    def __init__(self, desk: Desk, model: str) -> None:
        super().__init__(desk)
        self._model = model
        self._said = ""

    @property
    def row(self) -> p.Worker | None:
        """The worker as it was heard last."""
        return self.desk.state().workers.get(self._model)

    def heading(self) -> str:
        """Return whose it is, and its state."""
        row = self.row
        stale = "" if self.desk.live else "   STALE"
        return f"Worker {clean(self._model)}   {row.state.upper() if row else ''}{stale}"

    def lines(self, width: int) -> list[Line]:
        """Return the whole of it."""
        state, row = self.desk.state(), self.row
        if row is None:
            return told("the daemon knows no such model", width, style="bad")
        runs = [
            request
            for request in state.requests.values()
            if request.model == self._model and request.state in RUNNING
        ]
        now = shown_at(state, self.desk.now())
        lines = worker_lines(row, runs, now, width, self.look)
        return [*lines, [], *command_lines(self._command, width)]

    @property
    def _command(self) -> str:
        return f"llmctl switch {shlex.quote(clean(self._model))}"

    def hints(self) -> Sequence[Hint]:
        """Return the keys."""
        row, may = self.row, self.desk.can_write()
        return (
            ("worker.logs", "l", "logs", True),
            ("worker.switch", "s", "switch", may),
            ("worker.unload", "S", "unload", may and row is not None and row.state != "off"),
            ("worker.copy_id", "y", "copy name", True),
            ("worker.copy_command", "Y", "copy llmctl", True),
            ("window.back", "esc", "back", True),
        )

    def aside(self) -> str:
        """Return what was done last."""
        return self.desk.holds(self._said)

    def action_copy(self, whole: bool) -> None:
        """Copy the name, or the `llmctl` line."""
        text = self._command if whole else clean(self._model)
        self.app.copy_to_clipboard(text)
        self._said = f"copied: {text}"
        self.repaint()

    def action_logs(self) -> None:
        """Show its log."""
        self.app.push_screen(Logs(self.desk, self._model))

    def action_switch(self) -> None:
        """Show the plan of a switch to it."""
        self._open(lambda: Switch(self.desk, self._model))

    def action_unload(self) -> None:
        """Ask whether to unload it."""
        if self.row is not None and self.row.state != "off":
            self._open(lambda: Unload(self.desk, self._model))

    def _open(self, make: Callable[[], Window[bool]]) -> None:
        self._said = self.desk.refusal
        if not self._said:
            self.app.push_screen(make())
        self.repaint()
