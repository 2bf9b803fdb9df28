"""What a request leaves behind: nothing that only a search for garbage would find."""

from __future__ import annotations

import gc

import pytest
from daemon_rig import running

from llmd.api.fit import Call
from llmd.api.schema.parsed import ParsedRequest

pytestmark = pytest.mark.system


@pytest.fixture
def garbage():
    """Collect nothing until the test does, and keep what was found."""
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        yield gc.garbage
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_prompt_is_freed_with_its_request(
    runtime_dir, fake_engine, demo_small, garbage, stream
):
    # a prompt may have 32 MiB; in a cycle of references it would stay until the next search
    limits = {"requests_per_minute": 1000, "estimated_tokens_per_minute": 1_000_000}
    keys = [{"name": "alice", "key": "sk-alice"}]
    async with running(
        runtime_dir, fake_engine, [demo_small], key="sk-alice", api_keys=keys, rate_limit=limits
    ) as llmd:
        for _ in range(3):
            answer = await llmd.chat("hello", stream=stream, max_tokens=3)
            assert answer.status == 200
        await llmd.until(lambda: not llmd.handles())
        gc.collect()
        held = [each for each in garbage if isinstance(each, Call | ParsedRequest)]
        assert held == []
