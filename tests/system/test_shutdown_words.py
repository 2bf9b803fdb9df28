"""What the log and those who waited are told at the end."""

from __future__ import annotations

import logging
import signal

import pytest
from daemon_rig import read_answer, running

pytestmark = pytest.mark.system


async def test_the_end_counts_what_runs_and_what_waits_apart(
    runtime_dir, fake_engine, demo_small, caplog
):
    entry = {"name": "m", "path": str(demo_small), "parallel": 1}
    with caplog.at_level(logging.INFO, "llmd"):
        async with running(runtime_dir, fake_engine, [entry]) as llmd:
            runner = await llmd.open_chat("[[token 0.02]]", stream=True, max_tokens=100)
            await llmd.until_states("decode")
            queued = [await llmd.open_chat() for _ in range(2)]
            await llmd.until_states("decode", "queued", "queued")
            signal.raise_signal(signal.SIGTERM)
            for stream in queued:
                answer = await read_answer(stream)
                assert (answer.status, answer.code) == (503, "shutting_down")
                message = answer.json["error"]["message"]
                assert "shutting down and this request was still queued" in message
            assert (await read_answer(runner)).events[-1] == "[DONE]"
            reasons = [r.reason for r in llmd.services.registry.records() if r.status == 503]
            assert len(reasons) == 2
            assert all("shutting down" in reason for reason in reasons)
    (line,) = (record for record in caplog.records if record.getMessage() == "draining")
    assert (line.llmd_fields["running"], line.llmd_fields["queued"]) == (1, 2)


async def test_a_daemon_without_any_model_says_so(runtime_dir, fake_engine, tmp_path, caplog):
    folder = tmp_path / "empty"
    folder.mkdir()
    llama = {"models_dir": str(folder)}
    with caplog.at_level(logging.INFO, "llmd"):
        async with running(runtime_dir, fake_engine, [], llama=llama) as llmd:
            assert (await llmd.call("GET", "/v1/models")).json["data"] == []
    told = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert any(f"there is no GGUF file in {folder}" in text for text in told), told
