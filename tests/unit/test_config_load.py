"""Loading settings: order of precedence, every fault at once, where each of them is."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmd.config import ApiKey, Config, ModelConfig, Server, load, runtime_dir, state_dir
from llmd.config.schema import defaults
from llmd.errors import ConfigError

SHA = hashlib.sha256(b"secret").hexdigest()


@pytest.fixture
def write(tmp_path):
    def write(text: str, mode: int = 0o600) -> Path:
        file = tmp_path / "config.toml"
        file.write_text(text)
        file.chmod(mode)
        return file

    return write


@pytest.fixture
def faults(write):
    def faults(text: str = "", env: dict[str, str] | None = None, **more) -> list[str]:
        file = write(text)
        with pytest.raises(ConfigError) as caught:
            load(file, env=env or {}, **more)
        return [fault.replace(f"{file}:", "") for fault in caught.value.faults]

    return faults


# --- where it comes from -------------------------------------------------------------------


def test_nothing_at_all_is_the_defaults(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("llmd.config.places.SYSTEM_CONFIG", tmp_path / "none")
    loaded = load(env={"HOME": str(tmp_path)})
    assert loaded.config == Config()
    assert loaded.path is None


def test_the_first_file_that_exists_is_read(tmp_path, monkeypatch):
    work, home = tmp_path / "work", tmp_path / "home"
    work.mkdir()
    monkeypatch.chdir(work)
    places = [
        tmp_path / "etc.toml",
        home / ".config" / "llmd" / "config.toml",
        work / "config.toml",
        tmp_path / "variable.toml",
        tmp_path / "flag.toml",
    ]
    monkeypatch.setattr("llmd.config.places.SYSTEM_CONFIG", places[0])
    env = {"HOME": str(home)}
    for port, place in enumerate(places, 1):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(f"[server]\nport = {port}\n")
        if place.name == "variable.toml":
            env["LLMD_CONFIG"] = str(place)
        flag = place if place.name == "flag.toml" else None
        loaded = load(flag, env=env)
        assert loaded.config.server.port == port
        assert loaded.path is not None
        assert loaded.path.absolute() == place


@pytest.mark.parametrize("env", [{}, {"LLMD_CONFIG": "/nonexistent/b.toml"}])
def test_a_named_file_that_is_not_there_is_a_fault(env):
    path = None if env else Path("/nonexistent/a.toml")
    with pytest.raises(ConfigError, match=r"/nonexistent/[ab]\.toml: cannot be read"):
        load(path, env=env)


def test_variables_win_over_the_file_and_flags_over_both(write):
    file = write("[server]\nport = 1\nhost = 'a'\ndocs = true\n")
    env = {"LLMD_SERVER_PORT": "2", "LLMD_SERVER_HOST": "b"}
    overrides = {"server.port": 3, "server.host": None}
    server = load(file, env=env, overrides=overrides).config.server
    assert (server.port, server.host, server.docs) == (3, "b", True)


@pytest.mark.parametrize(
    ("variable", "text", "group", "value"),
    [
        ("LLMD_SERVER_PORT", "9000", "server", 9000),
        ("LLMD_SERVER_DOCS", "No", "server", False),
        ("LLMD_QUEUE_MAX_SHARE", "0.25", "queue", 0.25),
        ("LLMD_RATE_LIMIT_REQUESTS_PER_MINUTE", "7", "rate_limit", 7),
        ("LLMD_SCHEDULER_UNKNOWN_MODEL", "default", "scheduler", "default"),
        ("LLMD_WORKER_PRELOAD", "a, b,", "worker", ("a", "b")),
        ("LLMD_WORKER_PRELOAD", '["a,b", "c"]', "worker", ("a,b", "c")),
        ("LLMD_WORKER_PRELOAD", "", "worker", ()),
        ("LLMD_SCHEDULER_DEFAULT_MODEL", "[x", "scheduler", "[x"),
    ],
)
def test_variables_are_read_as_their_key_wants(write, variable, text, group, value):
    config = load(write(""), env={variable: text}).config
    key = variable.removeprefix(f"LLMD_{group}_".upper()).lower()
    assert getattr(getattr(config, group), key) == value


def test_generation_takes_any_field(write):
    env = {
        "LLMD_GENERATION_TEMPERATURE": "0.5",
        "LLMD_GENERATION_STOP": '["a"]',
        "LLMD_GENERATION_USER": "me",
    }
    config = load(write("[generation]\ntop_k = 3\n"), env=env).config
    assert config.generation == {"top_k": 3, "temperature": 0.5, "stop": ["a"], "user": "me"}


def test_a_variable_cannot_smuggle_further_keys_in(faults):
    (fault,) = faults(env={"LLMD_WORKER_PRELOAD": '["a"]\n[server]\nport = 1'})
    assert fault.startswith("LLMD_WORKER_PRELOAD: worker.preload: must be a list")


def test_models_of_flags_come_besides_the_files(write):
    file = write("[[models]]\npath = 'a.gguf'\n")
    overrides = {"models": [{"path": "b.gguf"}, {"hf": "org/Repo-GGUF:Q8_0"}]}
    config = load(file, env={}, overrides=overrides).config
    assert config.models[2].hf == "org/Repo-GGUF:Q8_0"
    assert config.models[2].name == ""  # the catalog names it
    assert config.models[0].path == str(file.parent / "a.gguf")
    assert config.models[1].path == str(Path.cwd() / "b.gguf")


def test_a_sound_config_still_knows_its_lines(write):
    file = write("[server]\nport = 1\n[[models]]\npath = 'a'\n")
    where = load(file, env={"LLMD_LOG_LEVEL": "info"}, overrides={"server.host": "::1"}).where
    assert where(("models", 0, "path")) == f"{file}:4"
    assert where(("models", 0, "draft")) == f"{file}:3"
    assert where(("log", "level")) == "LLMD_LOG_LEVEL"
    assert where(("server", "host")) == "command line"
    assert where(("queue", "max_size")) == ""


def test_relative_paths_start_at_the_file_and_tilde_at_home(write, tmp_path):
    file = write(
        "[llama]\nmodels_dir = 'm'\nbinary = 'llama-server'\n"
        "[[models]]\npath = '~/x-00001-of-00002.gguf'\nlora = ['a', '/b']\n"
    )
    config = load(file, env={"HOME": "/home/me"}).config
    assert config.llama.models_dir == str(tmp_path / "m")
    assert config.llama.binary == "llama-server"
    assert config.models[0].path == "/home/me/x-00001-of-00002.gguf"
    assert config.models[0].lora == (str(tmp_path / "a"), "/b")


# --- faults --------------------------------------------------------------------------------


def test_all_faults_are_told_at_once_in_the_order_of_the_file(faults):
    told = faults(
        "[server]\nport = 70000\nprot = 1\n[queue]\nmax_share = 2\n[[models]]\nname = 'x'\n",
        env={"LLMD_LOG_LEVEL": "loud", "LLMD_SERVER_HOTS": "x"},
        overrides={"server.host": ""},
    )
    assert told == [
        "2: server.port: must be a whole number from 0 to 65535, not 70000",
        "3: server.prot: unknown key; did you mean port?",
        "5: queue.max_share: must be a number from 0 to 1, not 2",
        "6: models[0]: needs path or hf",
        'command line: server.host: must be a string that is not empty, not ""',
        'LLMD_LOG_LEVEL: log.level: must be one of "debug", "error", "info", "warning", not "loud"',
        "LLMD_SERVER_HOTS: unknown variable; did you mean LLMD_SERVER_HOST?",
    ]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        # shape
        ("port = 1", "1: port: unknown; did you mean server.port?"),
        ("[servre]", "1: servre: unknown; did you mean server?"),
        ("server = 1", "1: server: must be a table; write [server]"),
        ("[models]\npath = 'x'", "1: models: must be an array of tables; write [[models]]"),
        ("models = [1]", "1: models[0]: must be a table; write [[models]]"),
        (
            "[server]\nenabled = true",
            "2: server.enabled: unknown key; did you mean streaming.enabl",
        ),
        (
            "[[models]]\npath='x'\ncontext = 1",
            "3: models[0].context: unknown key; did you mean con",
        ),
        # types and ranges
        ("[server]\nport = '1'", '2: server.port: must be a whole number from 0 to 65535, not "1"'),
        (
            "[server]\nport = true",
            "2: server.port: must be a whole number from 0 to 65535, not tru",
        ),
        ("[server]\nport = 1.0", "2: server.port: must be a whole number from 0 to 65535, not 1.0"),
        ("[server]\ndocs = 1", "2: server.docs: must be true or false, not 1"),
        (
            "[queue]\nmax_size = -1",
            "2: queue.max_size: must be a whole number of at least 0, not -",
        ),
        ("[scheduler]\naging_sec = inf", "2: scheduler.aging_sec: must be a finite number"),
        ("[scheduler]\naging_sec = nan", "2: scheduler.aging_sec: must be a finite number"),
        ("[worker]\npreload = 'a'", "2: worker.preload: must be a list, each item a string, not"),
        (
            "[worker]\npreload = [1]",
            "2: worker.preload: must be a list, each item a string, not one",
        ),
        (
            "[llama]\nmodels_dir = 'a\\u0000'".replace("'", '"'),
            "2: llama.models_dir: must not cont",
        ),
        ("[log]\nlevel = 'INFO'", "2: log.level: must be one of"),
        # [server]
        ("[server]\ntls_cert = 'x'", "2: server.tls_cert: needs server.tls_key as well"),
        ("[server]\ntls_key = 'x'", "2: server.tls_key: needs server.tls_cert as well"),
        (
            "[server]\ntrusted_proxies = [\n'10.0.0.0/8',\n'me']",
            '4: server.trusted_proxies[1]: "me',
        ),
        ("[server]\ncors_origins = ['https://a/b']", "2: server.cors_origins[0]:"),
        # others
        ("[limits]\nblocked_patterns = ['a', '(?=b)']", "2: limits.blocked_patterns[1]: is no RE2"),
        ("[queue]\nmax_size = 10", "1: queue.admin_quota: 10 leaves users none of the 10 places"),
        ("[generation]\nstream = true", "2: generation.stream: is the request's own"),
        ("[generation]\nseed = 1979-05-27", "2: generation.seed: has no counterpart in JSON"),
        ("[generation]\nx = { y = [nan] }", "2: generation.x: must be a finite number"),
    ],
)
def test_each_fault_says_where_and_what(faults, text, fault):
    (told,) = faults(text)
    assert told.startswith(fault)


@pytest.mark.parametrize(
    ("entry", "fault"),
    [
        ("key = 'k'", "1: api_keys[0].name: is required"),
        ("name = ''\nkey = 'k'", "2: api_keys[0].name: must be a string that is not empty"),
        ("name = 'a'", "1: api_keys[0]: needs key or key_sha256"),
        ("name = 'a'\nkey = 'change-me'", '3: api_keys[0].key: "change-me" is no secret'),
        ("name = 'a'\nkey = 'Change-Me '", '3: api_keys[0].key: "change-me" is no secret'),
        (
            f"name = 'a'\nkey_sha256 = '{hashlib.sha256(b'change-me').hexdigest()}'",
            '3: api_keys[0].key_sha256: is the digest of "change-me"',
        ),
        (f"name = 'a'\nkey = 'k'\nkey_sha256 = '{SHA}'", "3: api_keys[0].key: and key_sha256 excl"),
        ("name = 'a'\nkey_sha256 = 'abc'", "3: api_keys[0].key_sha256: must be 64 hexadecimal"),
        ("name = 'a'\nkey = 'clé'", "3: api_keys[0].key: must be ASCII without spaces"),
        ("name = 'a\\n'\nkey = 'k'".replace("'", '"'), "2: api_keys[0].name: must be printable"),
        ("name = 'a'\nkey = 'k'\nrole = 'root'", "4: api_keys[0].role: must be one of"),
        ("name = 'a'\nkey = 'k'\nweight = 0", "4: api_keys[0].weight: must be a number above 0"),
        ("name = 'a'\nkey = 'k'\nexpires = '2027-01-31'", "4: api_keys[0].expires: must be an RFC"),
        ("name = 'a'\nkey = 'k'\nexpires = 2027-01-31", "4: api_keys[0].expires: must be an RFC"),
        ("name = 'a'\nkey = 'k'\nexpires = 2027-01-31T01:02:03", "4: api_keys[0].expires: must be"),
        (
            "name = 'a'\nkey = 'k'\nrequests_per_minute = -2",
            "4: api_keys[0].requests_per_minute: m",
        ),
        (
            "name = 'a'\nkey = 'k'\n[[api_keys]]\nname = 'a'\nkey = 'l'",
            "5: api_keys[1].name: the same name as api_keys[0].name",
        ),
        (
            f"name = 'a'\nkey = 'secret'\n[[api_keys]]\nname = 'b'\nkey_sha256 = '{SHA.upper()}'",
            "6: api_keys[1].key_sha256: the same key as api_keys[0].key",
        ),
    ],
)
def test_faults_of_keys(faults, entry, fault):
    (told,) = faults(f"[[api_keys]]\n{entry}\n")
    assert told.startswith(fault)


@pytest.mark.parametrize(
    ("entry", "fault"),
    [
        ("name = 'm'", "1: models[0]: needs path or hf"),
        ("path = 'm.gguf'\nhf = 'a/b'", "3: models[0].hf: and path exclude each other"),
        ("hf = '../b'", "2: models[0].hf: must be REPO or REPO:QUANT"),
        ("hf = 'a'", "2: models[0].hf: must be REPO or REPO:QUANT"),
        ("path = 'm'\nname = 'a,b'", "3: models[0].name: must not contain a comma"),
        ("path = 'm'\ncontext_size = 0", "3: models[0].context_size: must be a whole number of at"),
        ("path = 'm'\ncontext_size = 'big'", "3: models[0].context_size: must be a whole number"),
        ("path = 'm'\ngpu_layers = -2", "3: models[0].gpu_layers: must be a whole number of at le"),
        ("path = 'm'\nidle_timeout_sec = -0.5", "3: models[0].idle_timeout_sec: must be -1, or"),
        ("path = 'm'\ntensor_split = 'x'", "3: models[0].tensor_split: must be proportions"),
        ("path = 'm'\ncache_type_k = '--x'", "3: models[0].cache_type_k: must be a type"),
        ("path = 'm'\nflash_attention = true", "3: models[0].flash_attention: must be one of"),
        ("path = 'm'\nenv = { 'A=B' = 'c' }", "3: models[0].env.A=B: is no name for an env"),
        ("path = 'm'\nenv = { A = 1 }", "3: models[0].env: must be a table, each value a string"),
        ("path = 'm'\ngeneration.model = 'x'", "3: models[0].generation.model: is the request's"),
        (
            "path = 'm'\nname = 'x'\n[[models]]\npath = 'o'\naliases = ['y', 'x']",
            "6: models[1].aliases[1]: the same name as models[0].name",
        ),
    ],
)
def test_faults_of_models(faults, entry, fault):
    (told,) = faults(f"[[models]]\n{entry}\n")
    assert told.startswith(fault)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[store]\nlog_prompts = true", "2: store.log_prompts: not supported yet"),
        ("[llama]\nhf_allow = ['ggml-org']", "2: llama.hf_allow[0]:"),
        ("[llama]\nhf_allow = ['*', 'a b/*']", "2: llama.hf_allow[1]:"),
        ("[worker]\ngpu_devices = [0]", "2: worker.gpu_devices: not supported yet"),
        (
            "[[api_keys]]\nname = 'a'\nkey = 'k'\ntokens_per_day = 5",
            "4: api_keys[0].tokens_per_day: not supported yet",
        ),
        (
            "[[models]]\npath = '/m.gguf'\nreranking = true",
            "3: models[0].reranking: not supported yet",
        ),
    ],
)
def test_what_is_not_built_yet_is_refused(faults, text, fault):
    (told,) = faults(text)
    assert told.startswith(fault)


def test_what_is_not_built_yet_may_stand_at_its_default(write):
    text = "[store]\ndatabase = ''\n[worker]\ngpu_devices = []\nvram_multiplier = 1.1\n"
    assert load(write(text), env={}).config == Config()


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[server\n", "1: is not TOML"),
        ("a = 1\n\nb = [", "3: is not TOML"),
        ("[server]\nport = 1\nport = 2\n", "3: is not TOML"),
        ("a = " + "[" * 5000, ""),
    ],
)
def test_what_is_no_toml_says_where(faults, text, fault):
    told = faults(text, env={"LLMD_X": "1"})
    assert told[0].startswith(fault)
    assert told[1].startswith("LLMD_X: unknown variable")


def test_bytes_that_are_no_text_say_where(tmp_path):
    file = tmp_path / "config.toml"
    file.write_bytes(b"[server]\nhost = '\xff'\n")
    with pytest.raises(ConfigError, match=r"config\.toml:2: is not UTF-8"):
        load(file, env={})


def test_keys_and_models_are_not_set_by_variables(faults):
    (told,) = faults(env={"LLMD_API_KEYS_KEY": "hunter2"})
    assert "config file only" in told
    assert "hunter2" not in told


WORDS = ["server", "port", "generation", "models", "api_keys", "name", "path", "key", "env", "a.b"]
VALUES = [
    "1", "-1", "nan", "1e400", "0x" + "f" * 5000, "9" * 5000, "true", "''", "'change-me'", "'a/b'",
    "1979-05-27", "07:32:00", "1979-05-27T07:32:00Z", "[]", "[1, 'a']", "[[]]", "[{}]", "{}",
    "{ a = nan }", "{ name = 'x', path = 'y' }", '"\\u0000\\n"',
]  # fmt: skip
lines = st.one_of(
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=3).map(".".join).map("[{}]".format),
    st.sampled_from(["[[models]]", "[[api_keys]]", "[generation." + "a." * 200 + "a]"]),
    st.tuples(
        st.sampled_from([*WORDS, *defaults(Server), *defaults(ApiKey), *defaults(ModelConfig)]),
        st.sampled_from(VALUES),
    ).map(" = ".join),
)


@settings(deadline=None)
@given(st.lists(lines, max_size=8).map("\n".join))
def test_whatever_a_file_says_it_is_settings_or_faults(text):
    with TemporaryDirectory() as folder:
        file = Path(folder, "config.toml")
        file.write_text(text)
        with suppress(ConfigError):
            load(file, env={})


# --- secrets -------------------------------------------------------------------------------


def test_no_fault_shows_a_key(faults):
    text = "[[api_keys]]\nname='a'\nkey='hunter2 x'\n[[api_keys]]\nname='b'\nkey=['hunter2']\n"
    text += "[[api_keys]]\nname='c'\nkey_sha256='hunter2'\n[[api_keys]]\nname='d'\nkey=72727\n"
    told = "\n".join(faults(text))
    assert "hunter2" not in told
    assert "72727" not in told


def test_plain_keys_are_not_kept(write):
    config = load(write("[[api_keys]]\nname = 'a'\nkey = 'secret'\n"), env={}).config
    (key,) = config.api_keys
    assert key.key == ""
    assert key.key_sha256 == SHA
    assert key.digest == hashlib.sha256(b"secret").digest()
    assert SHA not in repr(config)


@pytest.mark.parametrize(
    ("mode", "entry", "warned"),
    [
        (0o600, "key = 'k'", False),
        (0o640, "key = 'k'", True),
        (0o604, "key = 'k'", True),
        (0o644, f"key_sha256 = '{SHA}'", False),
    ],
)
def test_plain_keys_that_others_may_read_are_warned_about(write, mode, entry, warned):
    file = write(f"[[api_keys]]\nname = 'a'\n{entry}\n", mode)
    warnings = load(file, env={}).warnings
    assert any(f"chmod 600 {file}" in warning for warning in warnings) == warned


def test_expires_is_a_moment(write):
    text = (
        "[[api_keys]]\nname = 'a'\nkey = 'k'\nexpires = '1970-01-01T01:00:00.25+01:00'\n"
        "[[api_keys]]\nname = 'b'\nkey = 'l'\nexpires = 1970-01-01T00:00:01Z\n"
        "[[api_keys]]\nname = 'c'\nkey = 'm'\n"
    )
    keys = load(write(text), env={}).config.api_keys
    assert [key.expires_at for key in keys] == [0.25, 1.0, None]


# --- the structs ---------------------------------------------------------------------------


def test_settings_cannot_be_changed():
    with pytest.raises(AttributeError):
        Config().server.port = 1
    assert ModelConfig(path="/a").generation is not ModelConfig(path="/a").generation


# --- places --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env", "state", "runtime"),
    [
        ({}, "/h/.local/state/llmd", "/h/.local/state/llmd"),
        ({"XDG_STATE_HOME": "/s"}, "/s/llmd", "/s/llmd"),
        ({"XDG_STATE_HOME": "rel"}, "/h/.local/state/llmd", "/h/.local/state/llmd"),
        ({"XDG_RUNTIME_DIR": "/r"}, "/h/.local/state/llmd", "/r/llmd"),
        ({"HOME": "/", "XDG_RUNTIME_DIR": "/"}, "/.local/state/llmd", "/llmd"),
        (
            {
                "STATE_DIRECTORY": "/v/l:/v/m",
                "RUNTIME_DIRECTORY": "/run/l",
                "XDG_RUNTIME_DIR": "/r",
            },
            "/v/l",
            "/run/l",
        ),
    ],
)
def test_directories(env, state, runtime):
    env = {"HOME": "/h", **env}
    assert state_dir(env) == Path(state)
    assert runtime_dir(env) == Path(runtime)
