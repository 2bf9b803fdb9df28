"""`llmd check`: what a config resolves to, and every fault with its line."""

from __future__ import annotations

import io

import pytest

from llmd.check import report
from llmd.cli import main
from llmd.config.template import starter
from llmd.errors import ConfigError
from llmd.models.demo import write_demo_models
from llmd.workers.embedded_flags import by_name
from llmd.workers.engine import Engine, EngineKind

GIB = 1 << 30


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    write_demo_models(folder)
    return folder


class Checked:
    def __init__(self, status, out, err):
        self.status, self.out, self.err = status, out, err


@pytest.fixture
def check(tmp_path, models):
    def check(text, *, flags=None, memory_bytes=8 * GIB, gpu=None, find=None):
        file = tmp_path / "config.toml"
        file.write_text(text.replace("MODELS", str(models)))
        file.chmod(0o600)
        out, err = io.StringIO(), io.StringIO()
        known = frozenset(by_name()) if flags is None else flags
        engine = Engine(("/bin/llama-server",), EngineKind.PATH, "b1234", known, gpu=gpu)
        status = report(
            file,
            env={"HOME": "/h", "RUNTIME_DIRECTORY": "/run/llmd"},
            out=out,
            err=err,
            find=find or (lambda _binary: engine),
            memory_bytes=memory_bytes,
        )
        return Checked(status, out.getvalue(), err.getvalue().replace(f"{file}:", "").splitlines())

    return check


def test_a_sound_config_says_what_it_resolves_to(check, tmp_path):
    checked = check(starter("k", "MODELS"))
    assert checked.status == 0
    assert checked.err == []
    for told in (
        f"config   {tmp_path}/config.toml",
        "listens  http://127.0.0.1:7860",
        "keys     1 (1 admin)",
        "state    /h/.local/state/llmd",
        "runtime  /run/llmd",
        "engine   path, b1234: /bin/llama-server",
        "memory   8.0 GiB",
        "models   2",
        "demo-small  0.4 MiB F32, 4096 tokens for each of 4 requests, needs",
    ):
        assert told in checked.out
    assert "DOES NOT FIT" not in checked.out


def test_open_mode_is_said(check):
    assert "keys     none: every caller is an admin" in check("[llama]\nmodels_dir='MODELS'").out


def test_every_fault_of_every_room_comes_with_its_line(check):
    checked = check(
        "[server]\n"
        "host = '0.0.0.0'\n"
        "tls_cert = '/nope.pem'\n"
        "tls_key = '/nope.key'\n"
        "[scheduler]\n"
        "default_model = 'dmeo-small'\n"
        "[worker]\n"
        "preload = [\n"
        "  'demo',\n"
        "  'nobody']\n"
        "[[models]]\n"
        "name = 'demo'\n"
        "path = 'MODELS/demo-small.gguf'\n"
        "tensor_split = '1,1'\n"
        "[[models]]\n"
        "path = '/gone/qwen2.5.gguf'\n",
        flags=frozenset({"--model", "-hf", "--host"}),
    )
    assert checked.status == 1
    starts = [
        "llmd: 3: server.tls_cert: /nope.pem cannot be read: No such file or directory",
        "llmd: 4: server.tls_key: /nope.key cannot be read: No such file or directory",
        'llmd: 2: server.host: "0.0.0.0" can be reached',
        "llmd: 16: models[1].path: /gone/qwen2.5.gguf: No such file",
        'llmd: 6: scheduler.default_model: "dmeo-small" is no model',
        'llmd: 10: worker.preload[1]: "nobody" is no model',
        "llmd: 14: models[0].tensor_split: this llama-server (b1234) does not know",
    ]
    assert len(checked.err) == len(starts)
    for told, start in zip(checked.err, starts, strict=True):
        assert told.startswith(start)
    assert "qwen2.5  cannot be loaded" in checked.out


def test_faults_of_the_file_hide_none_of_the_other_rooms(check):
    def find(_binary):
        raise ConfigError(["llama.binary: no llama-server found"])

    checked = check(
        "[server]\n"
        "prot = 1\n"
        "tls_cert = '/nope.pem'\n"
        "[scheduler]\n"
        "default_model = 'nobody'\n"
        "max_delay_sec = -1\n"
        "[llama]\n"
        "binary = 'auto'\n"
        "[[models]]\n"
        "name = 'twin'\n"
        "path = '/gone/one.gguf'\n"
        "aliases = ['other', 'both']\n"
        "[[models]]\n"
        "name = 'twin'\n"
        "path = '/gone/two.gguf'\n"
        "[[models]]\n"
        "name = 'neither'\n"
        "[[models]]\n"
        "path = '/gone/three.gguf'\n"
        "aliases = ['both']\n"
        "paralel = 2\n"
        "[[api_keys]]\n"
        "name = 'a'\n"
        "key_sha256 = 'no digest'\n"
        "models = ['neither', 'nothing']\n",
        find=find,
    )
    assert checked.status == 1
    assert checked.out == ""
    starts = [
        "llmd: 2: server.prot: unknown key; did you mean port?",
        "llmd: 3: server.tls_cert: needs server.tls_key",
        "llmd: 6: scheduler.max_delay_sec: ",
        "llmd: 14: models[1].name: the same name",
        "llmd: 16: models[2]: needs path or hf",
        "llmd: 20: models[3].aliases[0]: the same name",
        "llmd: 21: models[3].paralel: unknown key; did you mean parallel?",
        "llmd: 24: api_keys[0].key_sha256: must be 64",
        "llmd: 8: llama.binary: no llama-server found",
        "llmd: 11: models[0].path: /gone/one.gguf: No such file",
        "llmd: 19: models[3].path: /gone/three.gguf: No such file",
        'llmd: 5: scheduler.default_model: "nobody" is no model',
        'llmd: 25: api_keys[0].models[1]: "nothing" is no model',
    ]
    assert len(checked.err) == len(starts)
    for told, start in zip(checked.err, starts, strict=True):
        assert told.startswith(start)


def test_every_fault_of_an_entry_is_told_at_once_with_its_line(check):
    checked = check(
        "[[models]]\n"
        "name = 'm.1'\n"
        "path = 'MODELS/demo-small.gguf'\n"
        "[[models]]\n"
        "name = 'm'\n"
        "path = 'MODELS/demo-small.gguf'\n"
        "mmproj = '/no/eyes.gguf'\n"
        "draft = '/no/draft.gguf'\n"
        "lora = [\n"
        "  'MODELS/demo-small.gguf',\n"
        "  '/no/lora.gguf']\n"
        "tensor_split = '1,1'\n"
        "args = ['--port', '1']\n",
        flags=frozenset(by_name()) - {"--tensor-split", "-ts"},
    )
    assert checked.status == 1
    starts = [
        "llmd: 8: models[1].draft: /no/draft.gguf: no such file",
        "llmd: 11: models[1].lora[1]: /no/lora.gguf: no such file",
        "llmd: 7: models[1].mmproj: /no/eyes.gguf: No such file",
        "llmd: 12: models[1].tensor_split: this llama-server (b1234) does not know",
        "llmd: 13: models[1].args: --port is not yours to set",
    ]
    assert len(checked.err) == len(starts)
    for told, start in zip(checked.err, starts, strict=True):
        assert told.startswith(start)


def test_a_faulty_list_of_models_is_one_fault(check):
    assert len(check("models = 3\n").err) == 1
    assert len(check("[llama]\nmodels_dir = 3\n").err) == 1


def test_names_that_are_nearly_a_models_are_guessed(check):
    text = "[llama]\nmodels_dir = 'MODELS'\n[[api_keys]]\nname = 'a'\nkey = 'k'\nmodels = "
    assert check(text + "['demo-small', 'demo-large.gguf']").status == 0
    assert check(text + "['demo-smal']").err == [
        'llmd: 6: api_keys[0].models[0]: "demo-smal" is no model; did you mean "demo-small"?'
    ]


def test_a_model_that_does_not_fit_is_warned_about(check):
    checked = check("[llama]\nmodels_dir = 'MODELS'", memory_bytes=1 << 20)
    assert checked.status == 0
    assert checked.out.count("DOES NOT FIT") == 2
    assert checked.err[0].startswith("llmd: warning: demo-large needs about")


def test_the_boxs_memory_says_nothing_about_a_gpu(check):
    checked = check("[llama]\nmodels_dir = 'MODELS'", memory_bytes=1 << 20, gpu=True)
    assert checked.err == []
    assert "path, b1234, with GPU" in checked.out


def test_repositories_are_not_asked(check):
    checked = check("[[models]]\nhf = 'org/Some-GGUF:Q8_0'")
    assert checked.status == 0
    assert "Some-Q8_0  org/Some-GGUF:Q8_0, fetched when it is first loaded" in checked.out


def test_no_engine_and_no_models_are_faults(check):
    def find(_binary):
        raise ConfigError(["llama.binary: no llama-server found"])

    checked = check("[llama]\nbinary = 'auto'", find=find)
    assert checked.status == 1
    assert checked.err[0] == "llmd: 2: llama.binary: no llama-server found"
    assert "there are no models" in checked.err[1]


def test_missing_shards_are_a_fault_wherever_the_model_was_found(check, tmp_path):
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "m-00002-of-00002.gguf").write_bytes(b"")
    checked = check(f"[llama]\nmodels_dir = '{folder}'")
    assert checked.status == 1
    (told,) = checked.err
    assert told.startswith("llmd: 2: llama.models_dir: ")
    assert told.endswith("shards are missing: m-00001-of-00002.gguf")


def test_files_are_warned_about_and_cannot_steer_the_terminal(check, tmp_path):
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "evil\x1b[2J.gguf").write_bytes(b"no gguf")
    checked = check(f"[llama]\nmodels_dir = '{folder}'")
    assert checked.status == 0
    assert "\x1b" not in checked.out + "".join(checked.err)
    assert any("evil" in line for line in checked.err)


def test_the_program_tells_faults_of_the_file_itself(tmp_path, capsys):
    file = tmp_path / "config.toml"
    file.write_text("[server]\nport = -1\nprot = 1\n")
    assert main(["check", "--config", str(file)]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count(f"llmd: {file}:") == 2
