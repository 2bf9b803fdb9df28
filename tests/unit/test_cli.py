"""The program `llmd`: flags, exit statuses, and what `init` writes."""

from __future__ import annotations

import hashlib
import re
import stat
import subprocess
import sys
import types
from pathlib import Path

import pytest

from llmd import __version__
from llmd.cli import main
from llmd.config import Loaded, load
from llmd.errors import ConfigError


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Keep the tests off the real home, config and variables."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("LLMD_CONFIG", raising=False)
    monkeypatch.setattr("llmd.config.places.SYSTEM_CONFIG", tmp_path / "none.toml")


@pytest.fixture
def daemon(monkeypatch):
    """Stand in for the daemon; `calls` is what it was started with."""
    module = types.ModuleType("llmd.programs")
    module.calls = []

    def run_serve(loaded):
        module.calls.append(loaded)
        return 0

    def run_demo(loaded):
        module.calls.append(loaded)
        return 0

    module.run_serve, module.run_demo = run_serve, run_demo
    monkeypatch.setitem(sys.modules, "llmd.programs", module)
    return module


def test_serve_takes_the_flags_over_the_config(daemon, tmp_path):
    file = tmp_path / "my.toml"
    file.write_text("[server]\nport = 1\nhost = '::1'\n[[models]]\npath = '/m/first.gguf'\n")
    (tmp_path / "d").mkdir()
    (tmp_path / "x.gguf").touch()
    words = ["serve", "--config", str(file), "--port", "9", "--models-dir", "d"]
    assert main([*words, "--model", "x.gguf", "--model", "hf:org/Repo:Q4_0"]) == 0
    (loaded,) = daemon.calls
    assert isinstance(loaded, Loaded)
    assert loaded.path == file
    assert (loaded.config.server.host, loaded.config.server.port) == ("::1", 9)
    assert loaded.config.llama.models_dir == str(tmp_path / "d")
    assert [(m.path, m.hf) for m in loaded.config.models] == [
        ("/m/first.gguf", ""),
        (str(tmp_path / "x.gguf"), ""),
        ("", "org/Repo:Q4_0"),
    ]


def test_serve_refuses_a_faulty_config(daemon, tmp_path, capsys):
    file = tmp_path / "my.toml"
    file.write_text("[server]\nport = -1\n\nprot = 1\n")
    assert main(["serve", "--config", str(file), "--model", "hf:nonsense"]) == 1
    told = capsys.readouterr().err
    for fault in (f"{file}:2: server.port", f"{file}:4: server.prot", "command line: models[0].hf"):
        assert fault in told
    assert not daemon.calls


def test_demo_says_where_it_cannot_write(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    assert main(["demo"]) == 1
    said = capsys.readouterr().err
    assert f"cannot be written to {tmp_path / 'file' / 'llmd' / 'demo'}: Not a directory" in said


@pytest.mark.parametrize(
    ("words", "env", "address"),
    [
        ([], {}, ("127.0.0.1", 7860)),
        (["--host", "::1", "--port", "0"], {}, ("::1", 0)),
        ([], {"PORT": "9001", "HOST": "127.0.0.2"}, ("127.0.0.2", 9001)),
        (["--port", "0"], {"PORT": "9001", "HOST": "127.0.0.2"}, ("127.0.0.2", 0)),
    ],
)
def test_demo_takes_variables_and_flags_over_them(daemon, monkeypatch, words, env, address):
    for key, value in env.items():
        monkeypatch.setenv(f"LLMD_SERVER_{key}", value)
    monkeypatch.setenv("LLMD_QUEUE_MAX_SIZE", "42")
    monkeypatch.setenv("LLMD_LLAMA_MODELS_DIR", "/models")
    Path("config.toml").write_text("[server]\nport = 1\n")  # the demo has no config
    assert main(["demo", *words]) == 0
    (loaded,) = daemon.calls
    assert (loaded.config.server.host, loaded.config.server.port) == address
    assert loaded.config.queue.max_size == 42
    assert loaded.config.llama.models_dir == ""


def test_demo_refuses_faulty_variables(daemon, monkeypatch, capsys):
    monkeypatch.setenv("LLMD_SERVER_PORT", "many")
    assert main(["demo"]) == 1
    assert "LLMD_SERVER_PORT: server.port" in capsys.readouterr().err
    assert not daemon.calls


def test_serve_refuses_paths_on_the_command_line_that_cannot_be(daemon, tmp_path, capsys):
    (tmp_path / "here.gguf").touch()
    words = ["--model", "gone.gguf", "--model", str(tmp_path), "--model", "here.gguf"]
    assert main(["serve", *words, "--model", "hf:org/Repo:Q4_0", "--models-dir", "nowhere"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        f"llmd: command line: --model: {tmp_path}/gone.gguf does not exist",
        f"llmd: command line: --model: {tmp_path} is no file",
        f"llmd: command line: --models-dir: {tmp_path}/nowhere does not exist",
    ]
    assert main(["serve", "--models-dir", "here.gguf"]) == 1
    assert "here.gguf is no directory" in capsys.readouterr().err
    assert not daemon.calls


def test_serve_says_where_what_the_daemon_refuses_stands(daemon, tmp_path, monkeypatch, capsys):
    def refuse(_loaded):
        raise ConfigError(["server.tls_cert: it is bad", "server.port: so too", "no engine"])

    daemon.run_serve = refuse
    file = tmp_path / "my.toml"
    file.write_text("[server]\n\ntls_cert = 'a'\ntls_key = 'b'\n")
    monkeypatch.setenv("LLMD_SERVER_PORT", "9000")
    assert main(["serve", "--config", str(file)]) == 1
    assert capsys.readouterr().err.splitlines() == [
        f"llmd: {file}:3: server.tls_cert: it is bad",
        "llmd: LLMD_SERVER_PORT: server.port: so too",
        "llmd: no engine",
    ]


def test_serve_lets_the_configs_own_paths_be(daemon, tmp_path):
    """A disk that is not mounted yet costs one model, and the log says so."""
    file = tmp_path / "my.toml"
    file.write_text("[llama]\nmodels_dir = '/gone'\n[[models]]\npath = '/gone/too.gguf'\n")
    assert main(["serve", "--config", str(file)]) == 0
    assert len(daemon.calls) == 1


def test_engine_hands_every_flag_on(monkeypatch):
    module = types.ModuleType("llmd.workers.embedded")
    module.main = lambda argv: 40 + len(argv)
    monkeypatch.setitem(sys.modules, "llmd.workers.embedded", module)
    monkeypatch.setattr("llmd.workers.embedded", module, raising=False)
    assert main(["engine", "--help", "-c", "4096", "--version"]) == 44


def test_version(capsys):
    assert main(["version"]) == 0
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"llmd {__version__}\n" * 2


@pytest.mark.parametrize(
    "words",
    [
        ["nonsense"],
        ["scan", "."],
        ["serve", "--nonsense"],
        ["serve", "--port", "x"],
        ["serve", "--model", ""],
        ["serve", "--conf", "abbreviated.toml"],
        ["serve", "surplus"],
    ],
)
def test_wrong_usage_ends_with_2(words, capsys):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert "usage: llmd" in capsys.readouterr().err


def test_no_command_is_wrong_usage_too(capsys):
    assert main([]) == 2
    assert "serve" in capsys.readouterr().err


def test_help_lists_what_there_is_and_imports_little():
    code = (
        "import sys\nfrom llmd.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "heavy = {'trio', 'quart', 'httpx', 'hypercorn', 'msgspec', 'gguf', 'numpy', 'textual'}\n"
        "print('heavy:', sorted(heavy & set(sys.modules)))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60
    )
    assert "heavy: []" in done.stdout, done
    listed = set(re.findall(r"^    (\w+) ", done.stdout, re.MULTILINE))
    assert listed == {"serve", "demo", "init", "check", "engine", "version"}


# --- init ----------------------------------------------------------------------------------


def test_init_writes_a_private_config_with_a_key_shown_once(tmp_path, capsys):
    models = tmp_path / 'a "quoted" \\ dir\x7f é'
    models.mkdir()
    file = tmp_path / "new" / "config.toml"
    assert main(["init", "--output", str(file), "--models-dir", str(models)]) == 0
    told = capsys.readouterr().out
    (key,) = re.findall(r"sk-llmd-[\w-]{43}", told)
    text = file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert key not in text
    loaded = load(file, env={})
    assert loaded.warnings == ()
    assert loaded.config.llama.models_dir == str(models)
    (admin,) = loaded.config.api_keys
    assert (admin.name, admin.role) == ("admin", "admin")
    assert admin.digest == hashlib.sha256(key.encode()).digest()
    assert f"llmd serve --config {file}" in told


@pytest.mark.parametrize(("uid", "place"), [(1000, ".config/llmd/config.toml"), (0, "none.toml")])
def test_init_chooses_a_place_where_serve_looks(monkeypatch, tmp_path, capsys, uid, place):
    monkeypatch.setattr("os.geteuid", lambda: uid)
    assert main(["init"]) == 0
    assert load(env={"HOME": str(tmp_path)}).path == tmp_path / place
    assert "--config" not in capsys.readouterr().out


def test_init_never_overwrites_unless_forced(tmp_path, capsys):
    file = tmp_path / "config.toml"
    file.write_text("mine")
    file.chmod(0o644)
    assert main(["init", "--output", str(file)]) == 1
    assert file.read_text() == "mine"
    assert "--force" in capsys.readouterr().err
    assert main(["init", "--output", str(file), "--force"]) == 0
    assert "[[api_keys]]" in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [file]


def test_init_makes_a_new_key_each_time(tmp_path):
    texts = set()
    for name in "ab":
        assert main(["init", "--output", str(tmp_path / name)]) == 0
        texts.add((tmp_path / name).read_text())
    assert len(texts) == 2


def test_init_says_why_it_cannot_write(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["init", "--output", str(tmp_path / "file" / "config.toml")]) == 1
    assert "cannot write" in capsys.readouterr().err
    assert main(["init", "--models-dir", str(tmp_path / "nowhere")]) == 1
    assert "no directory" in capsys.readouterr().err


def test_the_template_explains_itself():
    from llmd.config.template import starter

    groups = re.split(r"^\[", starter("k", ""), flags=re.MULTILINE)
    assert all("#" in group for group in groups[1:])
    assert Path("config.toml.example").name in groups[0]
