"""The command line: what a line means, how it goes on, what it would hit, what was answered."""

from __future__ import annotations

import pytest

from llmd.admin import protocol as p
from llmd.admin.grammar import UsageError
from llmtui import answers
from llmtui.command import History, completed, must_ask, understood, whole_id
from llmtui.rows import Look
from llmtui.screens.carry import hits
from llmtui.state import State

NOW = 1000.0
NAMES = {
    "MODEL": ["qwen3-32b", "qwen3-8b", "gem ma"],
    "ID": ["r-1", "r-2"],
    "KEY": ["alice"],
    "TOPIC": list(p.TOPICS),
}


@pytest.mark.parametrize(
    ("text", "line", "found"),
    [
        ("sw", "switch ", ["switch"]),
        ("st", "st", ["status", "stop"]),
        ("switch q", "switch qwen3-", ["qwen3-32b", "qwen3-8b"]),
        ("switch g", "switch g", []),  # its name needs quotes
        ("switch '", "switch 'gem ma' ", ["'gem ma'"]),
        ("switch --fo", "switch --force ", ["--force"]),
        ("switch qwen3-8b --from qwen3-3", "switch qwen3-8b --from qwen3-32b ", ["qwen3-32b"]),
        ("cancel --key ", "cancel --key alice ", ["alice"]),
        ("cancel r-1 r", "cancel r-1 r-2 ", ["r-2"]),
        ("why", "why ", ["why"]),
        ("nope x", "nope x", []),
        ("switch --soc", "switch --soc", []),
    ],
)
def test_a_word_is_completed(text, line, found):
    assert completed(text, NAMES) == (line, found)


def test_completion_of_nothing_lists_the_commands():
    _, found = completed("", NAMES)
    assert {"switch", "why", "quit", "help"} <= set(found)
    assert "completion" not in found


def test_lines_are_those_of_llmctl():
    words = understood("llmctl switch m --dry-run")
    assert (words.name, words.text) == ("switch", "switch m --dry-run")
    assert words.options.make(words.options) == p.Switch(model="m", dry_run=True)
    assert understood("q").name == "quit"
    assert "usage: llmctl switch" in understood("switch --help").help
    assert understood("  ").name == ""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("swich m", "no such command: swich; switch?"),
        ("switch", "switch to which model?"),
        ("cancel", "name requests"),
        ("cancel 'r-1", "No closing quotation"),
        ("status --socket /x", "this screen talks to its own daemon"),
        ("completion bash", "for shells"),
        ("why", "required"),
        ("--json", "say a command"),
    ],
)
def test_what_is_no_command_says_why(text, words):
    with pytest.raises(UsageError, match=words.replace("?", r"\?")):
        understood(text)


@pytest.mark.parametrize(
    ("part", "whole"),
    [
        ("r-8f21c04a", "r-8f21c04a"), ("1c04a", "r-8f21c04a"), ("8f21", "r-8f21c04a"),
        ("r-8f3", "r-8f30c04b"), ("8f", "8f"), ("", ""), ("zz", "zz"), ("r-9", "r-9"),
    ],
)  # fmt: skip
def test_a_part_of_an_id_means_the_one_row_that_it_fits(part, whole):
    assert whole_id(part, ["r-8f21c04a", "r-8f30c04b", "r-9", "r-99"]) == whole


def test_the_history_keeps_what_is_being_typed():
    history = History()
    for line in ("one", "two", "one"):
        history.add(line)
    assert history.step(-1, "dra") == "one"
    assert history.step(-1, "one") == "two"
    assert history.step(-1, "two") == "two"
    assert history.step(1, "two") == "one"
    assert history.step(1, "one") == "dra"


STATE = State(
    workers={
        "busy": p.Worker(
            model="busy", state="ready", running=2, queued={"normal": 3}, memory_bytes=1
        ),
        "idle": p.Worker(model="idle", state="ready"),
    },
    totals=p.Totals(queued=1),
    requests={"r": p.Request(id="r", state="queued", received_at=NOW)},
)


def test_what_hits_others_is_asked_first():
    asked = [
        p.Unload(model="idle"), p.Unload(model="busy"), p.Restart(model="busy"), p.Stop(),
        p.Drain(reject_queued=True),
    ]  # fmt: skip
    at_once = [
        p.Switch(model="idle", dry_run=True), p.Unload(model="no"), p.Drain(), p.Resume(),
        p.Load(model="idle"), p.GetStatus(), p.Reset(model="busy"),
    ]  # fmt: skip
    assert all(must_ask(command, STATE) for command in asked)
    assert not any(must_ask(command, STATE) for command in at_once)


def test_and_says_whom_it_hits():
    assert hits(p.Stop(), STATE) == [
        "Unloads busy.",
        "1 queued are turned away; 0 running may finish.",
    ]


def test_short_answers_are_sentences():
    assert answers.sentence(p.Cancelled(cancelled=("a",), unknown=("b",))) == (
        "cancelled 1, 1 unknown"
    )
    assert answers.sentence(p.Acted(model="m", state="draining", running=2)) == (
        "m is draining: 2 running, 0 queued"
    )
    assert answers.sentence(p.Plan(model="m", loaded=False, fits=True)) == "loading m"
    plan = p.Plan(model="m", loaded=False, fits=False, reason="no memory")
    assert answers.sentence(plan) == "m does not fit: no memory"
    assert answers.refused(plan)
    assert "closed" in answers.sentence(p.Admission(admission_open=False))
    assert "turned away" in answers.sentence(p.Stopped(refused=2))
    assert answers.sentence(p.GetQueue()) == ""


LONG = [
    p.Models(models=(p.Model(name="m\x1b[31m", state="ready", fault="x" * 200),)),
    p.Requests(requests=(p.Request(id="r", state="queued", received_at=NOW),), total=2),
    p.Status(
        daemon=p.Daemon(
            version="1", pid=1, host="h", started_at=NOW, state="ok", admission_open=True,
            generation=1,
        ),
        totals=p.Totals(),
        workers=tuple(STATE.workers.values()),
    ),
    p.Queue(
        admission_open=False, queued=1, queued_tokens=9, max_queued=0, max_queued_tokens=0,
        by_class={"normal": 1}, models=(p.QueueModel(model="m", running=1),),
        keys=(p.QueueKey(key="alice", queued=1),),
    ),
    p.Plan(
        model="m", loaded=False, fits=True, dry_run=True, load_s=3.0, command="llmctl switch m",
        evict=(p.Eviction(model="n", running=1),),
    ),
    p.Version(version="1", protocol=1, engine="e"),
]  # fmt: skip


@pytest.mark.parametrize("answer", LONG, ids=lambda answer: type(answer).__name__)
@pytest.mark.parametrize("width", [50, 110])
def test_long_answers_are_lines_of_the_width(answer, width):
    for made in (answers.lines(answer, width, NOW, Look()), answers.as_json(answer, width)):
        text = ["".join(part for part, _ in line) for line in made]
        assert text
        assert max(map(len, text)) <= width
        assert "\x1b" not in "".join(text)
