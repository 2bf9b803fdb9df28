"""Models that operators have fetched without an entry: from a hub on loopback, on real engines."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import threading
from contextlib import contextmanager

import pytest
from daemon_rig import KEYS, running
from test_llmctl import llmctl

from llmd.check import report
from llmd.workers.embedded_flags import by_name
from llmd.workers.engine import Engine, EngineKind

pytestmark = pytest.mark.system

REPO = "tests/Demo-GGUF"
REFERENCE = f"{REPO}:Q8_0"
NAME = "Demo-Q8_0"
COMMIT = "c" * 40


@contextmanager
def hub(model):
    """Serve one repository with one file as Hugging Face does; yields its address."""
    data = model.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    file = {"type": "file", "path": "demo-Q8_0.gguf", "oid": "0" * 40, "size": len(data)}
    file["lfs"] = {"oid": digest, "size": len(data)}
    answers = {
        f"/api/models/{REPO}/refs": {"branches": [{"name": "main", "targetCommit": COMMIT}]},
        f"/api/models/{REPO}/tree/{COMMIT}": [file],
        f"/api/models/{REPO}/tree/main": [file],
        f"/{REPO}/resolve/{COMMIT}/demo-Q8_0.gguf": data,
    }

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            answer = answers.get(self.path.partition("?")[0])
            if answer is None:
                self.send_error(404)
                return
            body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", f'"{digest}"')
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
async def llmd(runtime_dir, real_engine, demo_models, demo_small, tmp_path, monkeypatch):
    with hub(demo_small) as address:
        monkeypatch.setenv("MODEL_ENDPOINT", address)
        for name in ("HF_HOME", "HF_HUB_CACHE", "LLAMA_CACHE"):
            monkeypatch.setenv(name, str(tmp_path / "cache"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        models = [demo_models / "demo-large.gguf"]
        groups = {
            "llama": {"hf_allow": ["tests/*"]},
            "scheduler": {"min_residency_sec": 0, "max_delay_sec": 0},
        }
        async with running(runtime_dir, real_engine, models, api_keys=KEYS, **groups) as llmd:
            yield llmd


async def test_an_admin_loads_a_repository_and_then_it_is_a_model_like_others(llmd):
    body = {"model": REFERENCE, "wait": True}
    switched = await llmd.call("POST", "/switch-model", body, key="sk-root")
    assert (switched.status, switched.json["model"]) == (200, NAME)
    for name in (NAME, REFERENCE, "Demo-GGUF:Q8_0"):
        answer = await llmd.chat(model=name, key="sk-alice", max_tokens=2)
        assert (answer.status, answer.json["model"]) == (200, NAME)
    listed = (await llmd.call("GET", "/v1/models", key="sk-alice")).json["data"]
    assert {model["id"] for model in listed} == {NAME, "demo-large"}
    page = (await llmd.call("GET", "/metrics", key="sk-root")).body.decode()
    assert f'llmd_worker_state{{model="{NAME}",state="ready"}} 1.0' in page
    large = {"model": "demo-large", "wait": True}
    assert (await llmd.call("POST", "/switch-model", large, key="sk-root")).status == 200
    again = await llmd.chat(model=NAME, key="sk-alice", max_tokens=1)  # as any model is
    assert again.status == 200


@pytest.mark.parametrize("reference", ["tests/None-GGUF:Q8_0", f"{REPO}:Q2_K"])
async def test_what_cannot_be_fetched_is_a_failed_model_with_the_reason(llmd, reference):
    failed = await llmd.call("POST", f"/v1/models/{reference}/load", {"wait": True}, key="sk-root")
    assert (failed.status, failed.code) == (503, "model_failed")
    assert failed.headers["x-should-retry"] == "false"
    assert "could not be fetched" in failed.json["error"]["message"]
    assert reference.partition(":")[0] in failed.json["error"]["message"]
    [model] = (await llmd.call("GET", "/v1/models/failed", key="sk-alice")).json["data"]
    assert (
        reference
        in (await llmd.call("GET", f"/v1/models/{model['id']}", key="sk-root")).json["aliases"]
    )
    refused = await llmd.chat(model=reference, key="sk-alice")
    assert (refused.status, refused.code) == (503, "model_failed")
    assert (await llmd.chat(model="demo-large", key="sk-alice", max_tokens=1)).status == 200


async def test_llmctl_loads_one_too(llmd, runtime_dir):
    llmd.socket = runtime_dir / "admin.sock"
    status, _, err = await llmctl(llmd, "switch", REFERENCE, "--wait")
    assert (status, err) == (0, "")
    status, _, err = await llmctl(llmd, "load", "other/Demo-GGUF:Q8_0")
    assert status == 1
    assert "hf_allow" in err
    assert (await llmd.chat(model=NAME, key="sk-alice", max_tokens=1)).status == 200


def checked(tmp_path, address, *references):
    """Return the status, the output and the complaints of `llmd check --online`."""
    file = tmp_path / "config.toml"
    file.write_text("".join(f'[[models]]\nhf = "{name}"\n' for name in references))
    out, err = io.StringIO(), io.StringIO()
    engine = Engine(("/bin/llama-server",), EngineKind.PATH, "b1", frozenset(by_name()))
    env = {"HOME": str(tmp_path), "RUNTIME_DIRECTORY": str(tmp_path), "MODEL_ENDPOINT": address}
    status = report(file, env=env, out=out, err=err, find=lambda _binary: engine, online=True)
    return status, out.getvalue(), err.getvalue().replace(f"{file}:", "")


def test_check_asks_the_hub_what_would_be_fetched(demo_small, tmp_path):
    with hub(demo_small) as address:
        status, out, err = checked(tmp_path, address, REFERENCE)
        assert (status, err) == (0, "")
        size = f"{demo_small.stat().st_size / (1 << 20):.1f} MiB"
        assert f"{REFERENCE}, fetched when it is first loaded; {size}\n" in out
        gone = ("tests/None-GGUF:Q8_0", f"{REPO}:Q2_K")
        status, out, err = checked(tmp_path, address, *gone)
    assert status == 1
    assert "2: models[0].hf: there is no repository tests/None-GGUF" in err
    assert f"4: models[1].hf: {REPO} has no Q2_K; it has Q8_0" in err
    status, out, err = checked(tmp_path, address, REFERENCE)  # nobody listens there any more
    assert (status, "the hub cannot be asked" in out) == (0, True)
    assert "warning: Demo-Q8_0: http://127.0.0.1" in err
