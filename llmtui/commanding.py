"""The command line, in `llmctl`'s own grammar, and the palette that finds anything by its name."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import msgspec
from textual import work
from textual.command import CommandPalette
from textual.screen import Screen

from llmd.admin import protocol as p
from llmd.admin.calls import AdminError
from llmd.admin.grammar import UsageError
from llmtui import answers, screens
from llmtui.acting import Acting
from llmtui.command import History, Words, completed, must_ask, understood, whole_id
from llmtui.palette import Everything
from llmtui.rows import Line
from llmtui.state import client_of
from llmtui.widgets.prompt import Prompt

_HINT = "a command as llmctl knows it; tab completes, ↑ shows older ones"


class Commanding(Acting):
    """The board with the keys that take words."""

    _history: History

    def action_command(self) -> None:
        """Ask for a command."""
        if not hasattr(self, "_history"):
            self._history = History()
        hint = _HINT.replace("↑", "up") if self.look.ascii_only else _HINT
        self.main.query_one("#command", Prompt).open("", hint)

    def action_command_palette(self) -> None:
        """Show everything that can be done, to be found by its name."""
        self.push_screen(CommandPalette([Everything], placeholder="keys, models, requests"))

    def more_words(self, field: Prompt, step: int) -> None:
        """Complete what is typed, or show what was typed before; see `Prompt`."""
        if step:
            field.value = self._history.step(step, field.value)
            field.cursor_position = len(field.value)
            return
        place = field.cursor_position
        line, found = completed(field.value[:place], self._names())
        field.value = line + field.value[place:]
        field.cursor_position = len(line)
        if len(found) > 1:
            self.say("  ".join(found), "dim")

    def _names(self) -> dict[str, list[str]]:
        requests = self.link.state.requests.values()
        return {
            "MODEL": list(self.link.state.workers),
            "ID": [request.id for request in requests if not request.ended],
            "KEY": [request.key for request in requests if request.key],
            "TOPIC": list(p.TOPICS),
        }

    def commanded(self, text: str | None) -> None:
        """Carry out a command, once it is confirmed where it does harm; see `Board`."""
        self.focus_table(self._focused)
        text = (text or "").strip()
        self._history.add(text)
        self.redraw()
        try:
            words = understood(text)
        except UsageError as error:
            usage = " ".join(error.usage.split())
            self.say(f"{error}" + (f"   {usage}" if usage else ""), "bad")
            return
        self.run_words(words)

    # --- what a command does ----------------------------------------------------------------

    def run_words(self, words: Words) -> None:
        """Do what a line says: here where this screen has it, else by asking the daemon."""
        options = words.options
        if words.help:
            text = words.help.splitlines()
            self.push_screen(
                screens.Help(self.desk, lambda _width: [[(line, "")] for line in text], "Help")
            )
        elif words.name == "quit":
            self.exit(0)
        elif words.name == "help":
            self.call_later(self.run_action, "help")
        elif options is not None and not self._shown_here(words.name, options):
            self._ask_for(words, options)

    def _shown_here(self, name: str, options: Namespace) -> bool:
        """Open what this screen shows better than words would."""
        if options.json:
            return False
        if name == "why":
            self.push_screen(screens.RequestDetail(self.desk, self._whole(options.request)))
        elif name == "logs":
            self.push_screen(screens.Logs(self.desk, options.model))
        elif name == "watch":
            if not self.board("events").display:
                self.action_events()
        else:
            return False
        return True

    def _ask_for(self, words: Words, options: Namespace) -> None:
        asked: p.Command[Any] = options.make(options)
        if asked.writes and self.desk.refusal and not getattr(asked, "dry_run", False):
            self.say(self.desk.refusal, "warn")
            return
        if isinstance(asked, p.Cancel):
            asked = msgspec.structs.replace(asked, requests=tuple(map(self._whole, asked.requests)))
        window = self._window(asked)
        if window is not None:
            self.push_screen(window)
            return
        if getattr(asked, "if_gen", 0) is None:  # on what was seen, and on nothing else
            asked = msgspec.structs.replace(asked, if_gen=self.link.state.generation)
        if must_ask(asked, self.link.state):
            self.push_screen(screens.Carry(self.desk, asked, words.text))
        else:
            self._call(asked, words.text, as_json=options.json)

    def _window(self, asked: p.Command[Any]) -> Screen[bool] | None:
        """Return the window that a key opens for the same, with what was typed chosen in it."""
        if isinstance(asked, p.Cancel):
            hit = self._hit(asked)
            return screens.Cancel(self.desk, hit) if hit else None
        if isinstance(asked, p.Switch) and not asked.dry_run:
            return screens.Switch(
                self.desk,
                asked.model,
                evict=asked.evict,
                add=asked.add,
                drain_s=asked.drain_s,
                force=asked.force,
                if_gen=asked.if_gen,
            )
        if isinstance(asked, p.Unload | p.Restart) and must_ask(asked, self.link.state):
            return screens.Unload(
                self.desk,
                asked.model,
                restart=isinstance(asked, p.Restart),
                drain_s=asked.drain_s or 0.0,
                force=asked.force,
                if_gen=asked.if_gen,
            )
        return None

    def _whole(self, name: str) -> str:
        """Return the id of the one request on the screen that a part of an id means."""
        return whole_id(name, self.link.state.requests)

    def _hit(self, asked: p.Cancel) -> list[p.Request]:
        """Return the live requests that a cancel is about."""
        named = {asked.request, *asked.requests} - {""}
        return [
            request
            for request in self.link.state.requests.values()
            if not request.ended
            and (
                request.id in named
                if named
                else asked.all
                or (
                    asked.model in ("", request.model)
                    and asked.key in ("", request.key, client_of(request))
                )
            )
        ]

    @work(group="command")
    async def _call(self, asked: p.Command[Any], text: str, *, as_json: bool) -> None:
        try:
            answer = await self.link.source.call(asked)
        except AdminError as error:
            self.say(str(error), "bad")
            return
        self._answer(answer, text, as_json=as_json)

    def _answer(self, answer: object, text: str, *, as_json: bool) -> None:
        said = "" if as_json else answers.sentence(answer)
        if said:
            self.say(said, "warn" if answers.refused(answer) else "accent")
            return
        now = self.clock()

        def shown(width: int) -> list[Line]:
            if as_json:
                return answers.as_json(answer, width)
            return answers.lines(answer, width, now, self.look)

        self.push_screen(screens.Help(self.desk, shown, f"llmctl {text}"))
