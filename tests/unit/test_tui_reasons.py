"""Why one waits, in the few words of a row: from the very sentences that the scheduler says."""

from __future__ import annotations

import pytest
from policy_box import Box, FakeWorker

from llmd.admin import protocol as p
from llmd.core.events import Admission, Rule, UnloadRequested
from llmd.core.policy import ModelInfo, PolicySettings, explain
from llmtui.columns import request_columns
from llmtui.form import Look
from llmtui.reasons import phrase, word
from llmtui.widths import Widths

NOW = 1000.0
ROOM = 20  # cells of WHY at 120 columns, beside names as long as those of the demo
SAID = (
    ("slots_busy", "4/4 slots busy", "4/4 slots busy", "slots"),
    ("slots_busy", "1/2 slots busy, it takes 2", "1/2 busy, takes 2", "slots"),
    ("behind", "12 ahead, 4/4 slots busy", "12 ahead, 4/4 busy", "behind"),
    ("behind", "more than 512 ahead, 4/4 slots busy", "512+ ahead, 4/4 busy", "behind"),
    ("key_concurrency", "its key runs 4 of 4 requests at once", "key at 4/4 conc.", "key"),
    (
        "key_concurrency",
        "its key runs as many requests as it may; its model is not loaded for it yet",
        "key at its limit",
        "key",
    ),
    ("model_loading", "loading, ~62%, about 25 s left", "loading model ~62%", "load"),
    ("model_loading", "loading", "loading model", "load"),
    ("model_backoff", "its worker died (exit 139); next try in 24 s", "crashed", "crash"),
    (
        "model_not_loaded",
        "held back for gemma, at most 12 s more before room is made",
        "held by gemma, 12s",
        "held",
    ),
    ("model_not_loaded", "held back for gemma", "held by gemma", "held"),
    (
        "model_not_loaded",
        "its model is not loaded, at most 9 s more before room is made",
        "not loaded, max 9s",
        "held",
    ),
    ("draining_other", "room is being made: gemma (2 running)", "drains gemma (2)", "drain"),
    ("min_residency", "gemma was loaded a moment ago", "just came: gemma", "held"),
    (
        "context_reload",
        "needs 8000 tokens of context, loaded are 4096",
        "needs 8.0k context",
        "reload",
    ),
    (
        "context_reload",
        "reloads with a larger context, 1 still run there",
        "reloads, 1 still run",
        "reload",
    ),
    ("admission_closed", "an operator has paused admission", "admission paused", "closed"),
    ("yielding", "gives way to gemma, 1 still run there", "yields to gemma", "yields"),
    (
        "yielding",
        "its model is being unloaded, 1 still run there",
        "unloads, 1 still run",
        "yields",
    ),
    (
        "yielding",
        "its model serves only a higher class before it must go",
        "higher class first",
        "yields",
    ),
    ("worker_died", "its worker died before it had said anything", "its worker died", "died"),
)


@pytest.mark.parametrize(("rule", "detail", "short", "least"), SAID)
def test_a_row_says_it_in_a_phrase_or_a_word(rule, detail, short, least):
    why = p.Why(at=NOW, rule=rule, detail=detail)
    assert phrase(why, "qwen", None, NOW) == short
    assert word(why) == least
    assert len(short) <= ROOM
    assert len(least) <= 6


def test_every_rule_that_one_waits_by_has_its_words():
    waits = {
        Rule.SLOTS_BUSY, Rule.BEHIND, Rule.KEY_CONCURRENCY, Rule.MODEL_LOADING, Rule.MODEL_BACKOFF,
        Rule.MODEL_NOT_LOADED, Rule.DRAINING_OTHER, Rule.MIN_RESIDENCY, Rule.CONTEXT_RELOAD,
        Rule.ADMISSION_CLOSED, Rule.YIELDING, Rule.WORKER_DIED,
    }  # fmt: skip
    assert {rule for rule, *_ in SAID} == {rule.value for rule in waits}


def test_the_demo_has_room_for_a_phrase_at_120_columns():
    shown = request_columns(115, Look(), Widths(workers=15, models=15, clients=7))
    assert {column.name: column.width for column in shown}["why"] >= ROOM


def said(box, name):
    """Return what the scheduler says of a request, and what a row makes of it."""
    why = explain(box.state, name, box.now)
    told = p.Why(at=why.at, rule=why.rule.value, blockers=why.blockers, detail=why.detail)
    return why.detail, phrase(told, "small", None, box.now)


def box_of(*ready, **settings):
    models = [ModelInfo("small", load_s=10.0), ModelInfo("large", load_s=10.0)]
    box = Box(
        PolicySettings(max_size=0, **settings), models, {"small": FakeWorker(slots=2, load_s=10.0)}
    )
    for name in ready:
        box.preload(name)
    return box


def test_the_scheduler_still_says_what_is_shortened():
    box = box_of("small")
    for name in "abcd":
        box.ask(name, "small", service_s=9.0)
    assert said(box, "c") == ("2/2 slots busy", "2/2 slots busy")
    assert said(box, "d") == ("1 ahead, 2/2 slots busy", "1 ahead, 2/2 busy")
    box.post(UnloadRequested("small", drain_s=60.0))
    assert said(box, "c")[1] == "unloads, 2 still run"
    box.post(Admission(False))
    assert said(box, "c")[1] == "admission paused"


def test_the_scheduler_still_says_who_holds_a_request_back():
    box = box_of("large", max_delay_sec=30.0)
    box.ask("long", "large", service_s=40.0)
    box.ask("s", "small", service_s=5.0)
    assert said(box, "s")[1] == "just came: large"
    box.run(10)
    assert said(box, "s")[1] == "held by large, 20s"
    box.run(31)
    assert said(box, "s")[1] == "drains large (1)"
    box.ask("l", "large")
    assert said(box, "l")[1] == "yields to small"
    box.run(42)
    assert said(box, "s")[1].startswith("loading model")


def test_a_load_and_a_crash_are_told_by_the_worker_itself():
    loading = p.Why(at=NOW, rule="model_loading", detail="loading, 40%, about 9 s left")
    worker = p.Worker(model="m", state="loading", load_progress=0.62, load_s=40.0)
    assert phrase(loading, "m", worker, NOW) == "loading model 62%"
    guessed = p.Worker(model="m", state="loading", load_progress=0.62, note="~62%, ETA 9s")
    assert phrase(loading, "m", guessed, NOW) == "loading model ~62%"
    timed = p.Worker(model="m", state="loading", since_at=NOW - 8, load_s=40.0)
    assert phrase(loading, "m", timed, NOW) == "loading model ~20%"
    unknown = p.Worker(model="m", state="loading", since_at=NOW - 8)
    assert phrase(p.Why(at=NOW, rule="model_loading"), "m", unknown, NOW) == "loading model"
    crashed = p.Worker(model="m", state="backoff", retry_at=NOW + 24)
    why = p.Why(at=NOW, rule="model_backoff", detail="its worker died (exit 1); next try in 30 s")
    assert phrase(why, "m", crashed, NOW) == "crashed, again in 24s"


def test_a_sentence_that_is_not_known_is_kept_but_for_the_name_of_the_row():
    why = p.Why(at=NOW, rule="new_rule", detail="waits: gemma-3 for gemma-3b, and gemma-3")
    assert phrase(why, "gemma-3", None, NOW) == "waits: for gemma-3b, and"
    assert phrase(p.Why(at=NOW, rule="new_rule"), "m", None, NOW) == "new rule"
    assert phrase(p.Why(at=NOW, rule="behind", detail="odd"), "m", None, NOW) == "odd"
