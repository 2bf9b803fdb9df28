"""Each key of `[queue]`, `[scheduler]` and `[limits]` reaches who decides by it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from llmd.api.schema import SchemaLimits
from llmd.config import Config, Limits, QueueSettings, SchedulerSettings
from llmd.config import WorkerSettings as WorkerConfig
from llmd.core.settings import PolicySettings
from llmd.fleet import Fleet
from llmd.models.catalog import Catalog
from llmd.workers.engine import Engine, EngineKind

QUEUE = {
    "max_size": 7,
    "max_size_per_model": 6,
    "max_tokens": 5,
    "admin_quota": 4,
    "max_share": 0.3,
}
SCHEDULER = {
    "auto_switch": False,
    "max_delay_sec": 11.0,
    "max_drain_sec": 12.0,
    "min_residency_sec": 13.0,
    "aging_sec": 14.0,
}
ELSEWHERE = {  # each with a test of what it does, in tests/system/test_config_keys.py
    "default_model",
    "unknown_model",
    "retry_on_worker_death",
}
TEXT = {
    "max_messages": 21,
    "max_message_bytes": 22,
    "max_content_bytes": 23,
    "blocked_patterns": ("secret",),
}
WHEN_SERVED = {"default_max_tokens", "max_tokens_per_request", "request_timeout_sec"}


def settings_of(config):
    engine = Engine(("llama-server",), EngineKind.PATH, "1", frozenset())
    fleet = Fleet(engine, Catalog.load(), config, Path("/run/llmd"), memory_bytes=99)
    return fleet.policy_settings()


def keys_of(struct):
    return {field.name for field in msgspec.structs.fields(struct)}


def test_the_queue_and_the_scheduler_are_carried_over():
    config = Config(
        queue=QueueSettings(**QUEUE),
        scheduler=SchedulerSettings(**SCHEDULER),
        worker=WorkerConfig(max_loaded=3),
    )
    expected = PolicySettings(**QUEUE, **SCHEDULER, max_loaded=3, memory_bytes=99)
    assert settings_of(config) == expected


@pytest.mark.parametrize(
    ("group", "key"), [("queue", k) for k in QUEUE] + [("scheduler", k) for k in SCHEDULER]
)
def test_each_key_reaches_its_own_setting(group, key):
    struct, value = (
        (QueueSettings, QUEUE[key]) if group == "queue" else (SchedulerSettings, SCHEDULER[key])
    )
    changed = settings_of(Config(**{group: struct(**{key: value})}))
    usual = settings_of(Config())
    differing = {n for n in PolicySettings.__slots__ if getattr(changed, n) != getattr(usual, n)}
    assert differing == {key}
    assert getattr(changed, key) == value


def test_the_limits_of_texts_are_carried_over():
    limits = SchemaLimits.of(Limits(**TEXT))
    assert (limits.max_messages, limits.max_message_bytes, limits.max_content_bytes) == (21, 22, 23)
    (pattern,) = limits.blocked
    assert pattern.search("a secret")


def test_no_key_is_forgotten_here():
    assert keys_of(QueueSettings) == set(QUEUE)
    assert keys_of(SchedulerSettings) == set(SCHEDULER) | ELSEWHERE
    assert keys_of(Limits) == set(TEXT) | WHEN_SERVED


def test_the_defaults_agree():
    own = {name: getattr(PolicySettings(), name) for name in (*QUEUE, *SCHEDULER, "max_loaded")}
    carried = settings_of(Config())
    assert {name: getattr(carried, name) for name in own} == own
