"""What a worker tells of a completion on its way: its id, to steer it by, and its progress."""

from __future__ import annotations

import pytest
from daemon_rig import KEYS, running

pytestmark = pytest.mark.system

CONTROL = "/v1/chat/completions/control"
THINKING = """\
{%- for m in messages -%}<|im_start|>{{ m.role }}
{% if m.role == "assistant" and m.reasoning_content %}<think>
{{ m.reasoning_content }}
</think>

{% endif %}{{ m.content }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant
<think>
{% endif -%}
"""


@pytest.fixture
async def llmd(runtime_dir, real_engine, demo_models, tmp_path):
    template = tmp_path / "thinking.jinja"
    template.write_text(THINKING)
    entry = {
        "name": "m",
        "path": str(demo_models / "demo-large.gguf"),
        "context_size": 8192,
        "args": ["--chat-template-file", str(template)],
    }
    async with running(runtime_dir, real_engine, [entry], api_keys=KEYS) as llmd:
        yield llmd


async def test_an_owner_ends_the_reasoning_of_a_completion_that_runs(llmd):
    fields = {"max_tokens": 4000, "stream": True, "reasoning_control": True}
    request = llmd.chat_bytes(**fields).replace(
        b"Host: 127.0.0.1", b"Host: 127.0.0.1\r\nAuthorization: Bearer sk-alice"
    )
    stream = await llmd.connect()
    await stream.send_all(request)
    await llmd.until_states("decode")
    [record] = [handle.record for handle in llmd.handles()]
    assert record.completion_id.startswith("chatcmpl-")
    order = {"id": record.completion_id, "action": "reasoning_end"}
    assert (await llmd.call("POST", CONTROL, order, key="sk-bob")).status == 404
    ended = await llmd.call("POST", CONTROL, order, key="sk-alice")
    assert (ended.status, ended.json) == (200, {"success": True})
    got = b""
    while b'"content":"' not in got:  # the answer proper, which 4000 tokens never reach alone
        data = await stream.receive_some()
        assert data
        got += bytes(data)
    assert record.completion_id.encode() in got
    assert b'"reasoning_content":"' in got
    await stream.aclose()
    await llmd.until(lambda: not llmd.handles())
    over = await llmd.call("POST", CONTROL, order, key="sk-alice")
    assert over.json == {"success": False, "message": "no active completion for this id"}
    llmd.assert_nothing_left()


@pytest.mark.parametrize("stream", [True, False])
async def test_how_far_a_long_prompt_is_can_be_seen(llmd, stream):
    prompt = "the fox runs " * 500
    answer = await llmd.chat(prompt, key="sk-alice", max_tokens=3, stream=stream)
    assert answer.status == 200
    record = llmd.last()
    assert record.prefill_total_tokens == record.prompt_tokens
    assert record.prefill_tokens == record.prefill_total_tokens > 1000
    assert b"prompt_progress" not in answer.body
    shown = (await llmd.call("GET", f"/requests/{record.id}", key="sk-alice")).json
    assert shown["prefill_tokens"] == record.prompt_tokens
    assert shown["max_tokens"] == 3


async def test_the_tokens_of_an_abandoned_stream_are_counted(llmd):
    stream = await llmd.connect()
    request = llmd.chat_bytes("the fox runs " * 150, max_tokens=5000, stream=True)
    await stream.send_all(
        request.replace(b"Host: 127.0.0.1", b"Host: 127.0.0.1\r\nAuthorization: Bearer sk-alice")
    )
    await llmd.until_states("decode")
    await stream.receive_some()
    await stream.aclose()
    await llmd.until(lambda: not llmd.handles())
    record = llmd.last()
    assert record.outcome == "abandoned"
    prompt, completion, _ = record.served_tokens
    page = (await llmd.call("GET", "/metrics", key="sk-root")).body.decode()
    assert f'llmd_tokens_total{{kind="prompt",model="m"}} {prompt}.0' in page
    assert f'llmd_tokens_total{{kind="completion",model="m"}} {completion}.0' in page
    assert prompt > 300
    assert completion >= 1


async def test_a_limit_that_the_config_set_is_told_as_the_requests(
    runtime_dir, fake_engine, demo_small
):
    generation = {"max_tokens": 3}
    async with running(runtime_dir, fake_engine, [demo_small], generation=generation) as llmd:
        answer = await llmd.chat()
        assert answer.json["usage"]["completion_tokens"] == 3
        assert (await llmd.call("GET", "/requests")).json["data"][0]["max_tokens"] == 3
