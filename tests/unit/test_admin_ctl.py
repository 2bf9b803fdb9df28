"""llmctl without a daemon: its grammar, its tables, its completion."""

from __future__ import annotations

import io
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmd import ctl, places
from llmd.admin import protocol as p
from llmd.admin import units
from llmd.admin.calls import AdminError, BadReply, Codec
from llmd.admin.grammar import SHELLS, UsageError, build_parser, line_of, parse, parse_quickly
from llmd.admin.plain import BARE, parse_plainly
from llmd.ctl import program, render, tables
from llmd.ctl.completion import script
from llmd.ctl.tables import Style


def command(*words: str) -> p.Command:
    options = parse(words)
    return options.make(options)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("status",), p.GetStatus()),
        (("switch", "a"), p.Switch(model="a")),
        (
            ("switch", "a", "--from", "b", "--from", "c", "--drain", "2.5", "--if-gen", "7"),
            p.Switch(model="a", evict=("b", "c"), drain_s=2.5, if_gen=7),
        ),
        (("switch", "a", "--dry-run", "--force"), p.Switch(model="a", dry_run=True, force=True)),
        (("load", "a", "--wait"), p.Load(model="a", wait=True)),
        (("unload", "a", "--force"), p.Unload(model="a", force=True)),
        (("restart", "a"), p.Restart(model="a")),
        (("reset", "a"), p.Reset(model="a")),
        (("cancel", "r-1", "r-2"), p.Cancel(requests=("r-1", "r-2"))),
        (("cancel", "--all"), p.Cancel(all=True)),
        (("cancel", "--model", "m", "--key", "k"), p.Cancel(model="m", key="k")),
        (("stop",), p.Stop()),
        (("drain", "--reject-queued"), p.Drain(reject_queued=True)),
        (("resume",), p.Resume()),
        (("requests", "--state", "queued", "-a"), p.GetRequests(state="queued", ended=True)),
        (("logs", "m", "-f", "-n", "5"), p.Logs(model="m", follow=True, lines=5)),
        (("watch", "workers"), p.Subscribe(topics=("workers",))),
        (("why", "r-1"), p.GetWhy(request="r-1")),
    ],
)
def test_words_become_commands(words, expected):
    assert command(*words) == expected


# argparse knows no way to say a name that is "--"
NAMES = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=12).filter(
    "--".__ne__
) | st.sampled_from(["-x", "--x", "--from", "a b", "it's", "$(id)", "hf/a:Q4"])


@given(
    st.builds(p.Load, model=NAMES, if_gen=st.none() | st.integers(), wait=st.booleans())
    | st.builds(
        p.Switch,
        model=NAMES,
        evict=st.lists(NAMES, max_size=3).map(tuple),
        add=st.booleans(),
        drain_s=st.none() | st.floats(0, 86400),
        force=st.booleans(),
        if_gen=st.none() | st.integers(),
        dry_run=st.booleans(),
        wait=st.booleans(),
    )
)
def test_the_line_of_a_command_says_the_same_command(wanted):
    words = shlex.split(line_of(wanted))
    assert words[0] == "llmctl"
    options = parse_quickly(words[1:])
    said = options.make(options)
    if isinstance(wanted, p.Switch):  # the order of what goes means nothing; force leaves no time
        assert sorted(said.evict) == sorted(wanted.evict)
        drain_s = None if wanted.force else wanted.drain_s
        wanted = msgspec.structs.replace(wanted, evict=said.evict, drain_s=drain_s)
    assert said == wanted


@pytest.mark.parametrize(
    "words",
    [
        ["nonsense"],
        ["load"],
        ["cancel"],
        ["cancel", "r-1", "--all"],
        ["switch", "a", "--drain", "-1"],
        ["switch", "a", "--dr"],
        ["logs", "m", "-n", "x"],
        ["completion", "tcsh"],
        ["watch", "workers", "zz"],
    ],
)
def test_wrong_usage_is_told(words, capsys):
    with pytest.raises(UsageError):
        parse(words)
    assert ctl.main(words) == program.USAGE
    assert "usage: llmctl" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["statsu"], "there is no command 'statsu'; did you mean 'status'?"),
        (["frobnicate"], "there is no command 'frobnicate'\n"),
        (["switch", "m", "--dryrun"], "'--dryrun' is not understood; did you mean '--dry-run'?"),
        (["watch", "worker"], "there is no topic 'worker'; did you mean 'workers'?"),
        (["load", "a", "b"], "'b' is not understood\n"),
        (["--jsn", "status"], "'--jsn' is not understood; did you mean '--json'?"),
    ],
)
def test_a_slip_of_the_finger_gets_a_guess(words, told, capsys):
    assert ctl.main(words) == program.USAGE
    err = capsys.readouterr().err
    assert told in err
    assert "usage: llmctl" in err


@pytest.mark.parametrize(
    "words",
    [
        ["--socket", "status", "queue"],  # the first word that looks like a command is none
        ["--socket", "S", "--json", "queue"],
        ["queue", "--socket", "S"],
    ],
)
def test_building_one_commands_parser_only_is_not_seen(words):
    assert parse_quickly(words).name == "queue"
    assert vars(parse_quickly(words)).keys() == vars(parse(words)).keys()


WORDS = st.lists(
    st.sampled_from(
        [*BARE, "why", "--json", "--socket", "S", "r-1", "", "-1", "--", "-h", "-a", "--socket=S"]
        + ["--limit", "a b", "-x y", "stop", "--ended", "--jso"]
    ),
    max_size=6,
)


@given(WORDS)
def test_a_plain_line_means_what_the_grammar_says(words):
    plain = parse_plainly(words)
    if plain is not None:
        said = parse(words)
        assert (plain.name, plain.json, plain.socket) == (said.name, said.json, said.socket)
        assert plain.make(plain) == said.make(said)


@pytest.mark.parametrize(
    ("words", "plain"),
    [
        *((name, True) for name in BARE),
        ("why r-1", True),
        ("--socket S --json why r-1", True),
        ("why --json r-1 --socket S", True),
        ("", False),
        ("why", False),
        ("why r-1 r-2", False),
        ("status r-1", False),
        ("requests -a", False),
        ("status --socket", False),
        ("status --socket -S", False),
        ("status --help", False),
        ("-- status", False),
        ("watch", False),
    ],
)
def test_which_lines_are_plain(words, plain):
    assert (parse_plainly(words.split()) is not None) is plain


def test_help_names_all_commands_whatever_stands_before_it(capsys):
    for words in (["-h"], ["--socket", "S", "--help"]):
        with pytest.raises(SystemExit):
            parse_quickly(words)
        assert "restart " in capsys.readouterr().out


def test_flags_for_all_may_stand_before_or_after_the_command():
    for words in (["--json", "--socket", "S", "status"], ["status", "--json", "--socket", "S"]):
        options = parse(words)
        assert (options.json, options.socket) == (True, "S")
    assert parse(["status"]).json is False


def test_without_a_daemon_it_says_so(tmp_path, capsys):
    path = tmp_path / "no.sock"
    assert ctl.main(["--socket", str(path), "status"]) == program.UNREACHABLE
    assert f"no llmd is running; tried {path} (not there)" in capsys.readouterr().err
    assert ctl.main(["--json", "--socket", str(path), "status"]) == program.UNREACHABLE
    error = json.loads(capsys.readouterr().err)["error"]
    assert error["code"] == "unreachable"


def test_it_says_every_place_where_it_looked(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("LLMD_SOCKET", raising=False)
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    monkeypatch.setattr(places, "SYSTEM_SOCKET", str(tmp_path / "system.sock"))
    with socket.socket(socket.AF_UNIX) as dead:
        monkeypatch.chdir(tmp_path)
        dead.bind("admin.sock")
    assert ctl.main(["status"]) == program.UNREACHABLE
    err = capsys.readouterr().err
    assert f"{tmp_path / 'admin.sock'} (nobody listens), {tmp_path / 'system.sock'}" in err
    assert "--socket or $LLMD_SOCKET" in err


def test_the_places_of_the_socket(tmp_path, monkeypatch):
    own, system = str(tmp_path / "admin.sock"), places.SYSTEM_SOCKET
    env = {"RUNTIME_DIRECTORY": str(tmp_path)}
    assert places.find_sockets(None, env) == (own, system)
    for same in ("/run/llmd", "/run/llmd/", "/run//./llmd"):
        assert places.find_sockets("", {"RUNTIME_DIRECTORY": same}) == (system,)
    assert places.find_sockets(tmp_path / "admin.sock", {}) == (own,)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert places.find_sockets("~/admin.sock", {}) == (own,)
    assert places.find_sockets(None, {**env, "LLMD_SOCKET": "/s"}) == ("/s",)
    assert places.find_sockets("/x", {**env, "LLMD_SOCKET": "/s"}) == ("/x",)


def test_what_is_not_built_yet_is_refused_and_not_in_the_help(capsys):
    for name in p.NOT_BUILT:
        assert ctl.main([name, "list"]) == program.REFUSED
        assert f"{name} is not supported yet" in capsys.readouterr().err
        assert f"\n    {name} " not in build_parser().format_help()
    assert ctl.main(["--json", "--socket", "S", "users", "list"]) == program.REFUSED
    assert json.loads(capsys.readouterr().err)["error"]["code"] == "not_supported"


def test_switch_without_a_name_needs_a_terminal(capsys):
    assert ctl.main(["switch"]) == program.USAGE
    assert "needs the name" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "status", "code"),
    [
        (("swich", "a"), 2, "usage"),
        (("switch", "a", "--drain", "x"), 2, "usage"),
        (("cancel",), 2, "usage"),
        (("unload", "a", "--drain", "3", "--force"), 2, "usage"),
        ((), 2, "usage"),
        (("version", "--socket", "/nope"), 3, "unreachable"),
        (("status", "--socket", "/nope"), 3, "unreachable"),
        (("watch", "--socket", "/nope"), 3, "unreachable"),
        (("users",), 1, "not_supported"),
    ],
)
def test_with_json_every_error_is_json_and_alone(words, status, code, capsys):
    assert ctl.main(["--json", *words]) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert json.loads(err)["error"]["code"] == code


def shell(line: str, **env: str) -> tuple[int, str]:
    """Return the exit status of a shell's line, with `llmctl` in it, and what it said."""
    llmctl = f"{shlex.quote(sys.executable)} -c 'from llmd.ctl import main; exit(main())'"
    done = subprocess.run(
        ["sh", "-c", line.replace("llmctl", llmctl)],
        capture_output=True, text=True, check=False, timeout=60, env={**os.environ, **env},
    )  # fmt: skip
    return done.returncode, done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("command", ["completion zsh", "version --socket /nope"])
def test_an_output_that_takes_nothing_is_told(command):
    status, said = shell(f"llmctl {command} >/dev/full")
    last = said.splitlines()[-1]
    assert (status, last) == (1, "llmctl: the output cannot be written: No space left on device")
    assert "Traceback" not in said


def test_without_an_output_nothing_is_begun():
    assert shell("llmctl completion zsh >&-") == (1, "llmctl: there is no output to write to\n")
    assert shell("llmctl nope 2>&-")[0] == 2


def test_what_an_encoding_has_not_is_replaced():
    queue = p.Queue(
        admission_open=True,
        queued=0,
        queued_tokens=0,
        max_queued=0,
        max_queued_tokens=0,
        by_class={},
    )
    model = p.Model(name="mé", state="off")
    for as_json, answer in ((False, queue), (True, p.Models(models=(model,)))):
        raw = io.BytesIO()
        out = io.TextIOWrapper(raw, encoding="ascii")
        program._Output(out, Style(), json=as_json).show(answer)
        line = raw.getvalue().decode("ascii").splitlines()[0]
        assert json.loads(line)["name"] == "mé" if as_json else line.startswith("queued 0/-")


@pytest.mark.parametrize(
    ("end", "why"),
    [
        ({"state": "done", "status": 200}, "done"),
        ({"state": "abandoned", "status": 499, "cancel_cause": "client_gone"}, "client gone"),
        ({"state": "cancelled", "status": 499, "cancel_cause": "owner"}, "cancelled by owner"),
        ({"state": "cancelled", "cancelled_by": "root (uid 0, pid 1)"},
         "cancelled by root (uid 0, pid 1)"),
        ({"state": "timed_out", "status": 504, "cancel_cause": "timeout"}, "timeout"),
        ({"state": "refused", "status": 429, "reason": "too many"}, "too many"),
    ],
)  # fmt: skip
def test_a_request_that_ended_says_in_words_how(end, why):
    request = p.Request(id="r-1", received_at=1000.0, ended_at=1001.0, **end)
    lines = render.requests(p.Requests(requests=(request,), total=1), Style(), 1010.0)
    assert lines[-1].endswith(f"  {why}")


# --- looks ---------------------------------------------------------------------------------


def test_tables_are_aligned_and_fit():
    rows = [["ready", "a", "1"], ["off", "long-name-of-a-model", "1000"]]
    lines = tables.table(("STATE", "MODEL", "N"), rows, Style(), right="N")
    assert lines == [
        "STATE  MODEL                    N",
        "ready  a                        1",
        "off    long-name-of-a-model  1000",
    ]
    for width in range(12, 40):
        lines = tables.table(
            ("STATE", "MODEL", "NOTE"), [["ready", "漢字" * 9, "x" * 50]], Style(width)
        )
        assert all(tables.cells(line) <= width for line in lines)


def test_a_narrow_terminal_does_without_columns_before_names_become_illegible():
    columns, row = ("STATE", "MODEL", "MEM", "NOTE"), ["ready", "qwen3-32b-q4", "24.1G", "n" * 30]

    def shown(width):
        lines = tables.table(columns, [row], Style(width), spare="MEM NOTE")
        assert all(tables.cells(line) <= width for line in lines)
        return [line.split() for line in lines]

    assert shown(80) == [list(columns), row]
    assert shown(40)[1] == ["ready", "qwen3-32b-q4", "24.1G", "n" * 11 + "…"]
    assert shown(35)[0] == ["STATE", "MODEL", "NOTE"]
    assert shown(20) == [["STATE", "MODEL"], ["ready", "qwen3-32b-q4"]]
    assert shown(12)[1] == ["ready", "qwen…"]


def test_colour_changes_no_letter():
    rows = [["ready", "a"]]
    plain = tables.table(("STATE", "MODEL"), rows, Style())
    coloured = tables.table(("STATE", "MODEL"), rows, Style(colour=True))
    assert "\x1b[32mready\x1b[0m" in coloured[1]
    import re

    assert [re.sub(r"\x1b\[\d+m", "", line) for line in coloured] == plain


class Screen:
    def __init__(self, tty):
        self._tty = tty

    def isatty(self):
        return self._tty

    def fileno(self):
        raise OSError("no descriptor")


def test_colours_are_for_terminals_that_want_them():
    assert program.style(Screen(tty=True), {}).colour
    assert not program.style(Screen(tty=False), {}).colour
    assert not program.style(Screen(tty=True), {"NO_COLOR": "1"}).colour
    assert not program.style(Screen(tty=True), {"TERM": "dumb"}).colour


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (0.42, "0.4s"), (14, "14s"), (192, "3m12s"), (7500, "2h05m"), (273600, "3d04h")],
)
def test_durations_are_short(seconds, text):
    assert units.span(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "-"), (812, "812B"), (25_800_000_000, "24.0G"), (1 << 50, "1024.0T")],
)
def test_sizes_are_short(count, text):
    assert tables.held(count) == text


def test_a_story_names_each_step_its_rule_and_who_was_ahead():
    request = p.Request(
        id="r-1",
        state="done",
        model="m",
        received_at=1000.0,
        queued_at=1000.1,
        granted_at=1005.0,
        first_token_at=1006.0,
        ended_at=1009.0,
        status=200,
    )
    steps = (
        p.Why(at=1000.2, rule="behind", blockers=("r-0",), position=2, detail="1 ahead"),
        p.Why(at=1005.0, rule="granted", detail="first of 1"),
    )
    lines = render.story(p.Story(request=request, steps=steps), Style(), 1010.0)
    tails = [line.partition("+")[2].strip() for line in lines[3:]]
    assert tails == [
        "0.000s  received",
        "0.200s  waits, #2 in line: 1 ahead  [behind, by r-0]",
        "5.000s  granted: first of 1",
        "6.000s  first token",
        "9.000s  done 200",
    ]


def test_a_story_names_its_key_and_what_that_met():
    request = p.Request(
        id="r-1", state="done", key="alice", fingerprint="3a..f1", temperature=0.70, received_at=1.0
    )
    lines = render.story(p.Story(request=request, steps=(), limited=3), Style(), 1010.0)
    assert "key alice (3a..f1)" in lines[0]
    assert lines[1].endswith("temperature 0.7")
    assert "3 times" in lines[2]


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (p.Acted(model="m", state="off", action="unload"), "m is unloaded"),
        (
            p.Acted(model="m", state="draining", action="unload", running=3, queued=1),
            "m is being unloaded (now draining, 3 running may finish, 1 queued)",
        ),
        (
            p.Acted(model="m", state="stopping", action="restart", running=1, force=True),
            "m restarts (now stopping, 1 running was cancelled)",
        ),
        (p.Acted(model="m", state="off", action="reset"), "m may be tried again"),
        (p.Cancelled(), "there is nothing to cancel"),
        (p.Cancelled(cancelled=("a", "b")), "cancelled 2: a, b"),
        (p.Cancelled(ended=("a",)), "had ended before: a"),
        (
            p.Stopped(unload=("m", "n"), running=2, refused=1),
            "unloading m, n; 2 running may finish, 1 queued turned away",
        ),
        (p.Admission(admission_open=True, running=1), "admission open: 1 running, 0 queued"),
        (
            p.Admission(admission_open=False, queued=2),
            "admission paused: 0 running may finish, 2 queued are held; llmctl resume opens it",
        ),
    ],
)
def test_an_action_says_what_it_hit(answer, told):
    assert render.text(answer, Style(), 0.0) == [told]


PLAN = p.Plan(
    model="a",
    loaded=False,
    fits=True,
    evict=(p.Eviction(model="b", running=2, queued=1, memory_bytes=20 << 30, service_s=12.0),),
    queued=1,
    load_s=14.0,
    load_measured=True,
    auto_switch=True,
    memory_bytes=24 << 30,
    held_bytes=20 << 30,
    limit_bytes=64 << 30,
    generation=41,
    dry_run=True,
    command="llmctl switch a --if-gen 41",
)


@pytest.mark.parametrize("name", ["m\udcff", "m" * (4 << 20)])
def test_a_command_that_no_line_can_hold_is_an_error_of_the_client(name):
    with pytest.raises(AdminError, match="the command "):
        Codec().line(p.Load(model=name))


def test_a_plan_is_told_plainly():
    assert render.plan(PLAN, Style()) == [
        "plan: load a in place of b; nothing is done yet",
        "  evicts b: frees 20.0G, 2 running (12s each), 1 queued",
        "  what runs there may finish first",
        "  what is queued there waits until it is loaded again",
        "  memory: 20.0G held now, 24.0G of 64.0G afterwards",
        "  load: about 14s; 1 request waits for it",
        "  do it: llmctl switch a --if-gen 41",
    ]


def test_a_plan_names_what_is_planned_for_where_workers_may_still_grow():
    idle = p.Eviction(model="b", memory_bytes=105 << 20, now_bytes=46 << 20)
    plan = msgspec.structs.replace(
        PLAN, evict=(idle,), held_bytes=105 << 20, now_bytes=46 << 20, queued=0
    )
    told = render.plan(plan, Style())
    assert told[1] == "  evicts b: frees 105M planned for (46M held now), idle, 0 queued"
    assert told[2] == "  memory: 105M planned for (46M held now), 24.0G of 64.0G afterwards"


def test_a_plan_says_what_it_waits_for_that_goes_already():
    going = p.Eviction(model="b", running=2, memory_bytes=20 << 30, left_s=5.0)
    gone = p.Eviction(model="a", memory_bytes=1 << 30, left_s=0.0)
    told = render.plan(msgspec.structs.replace(PLAN, evict=(), going=(going, gone)), Style())
    assert told[1:5] == [
        "  waits for b, which drains already: frees 20.0G, 2 running, about 5.0s",
        "  waits for its old process, which is going already: frees 1.0G",
        "  memory: 20.0G held now, 24.0G of 64.0G afterwards",
        "  load: about 14s from then on; 1 request waits for it",
    ]
    unknown = msgspec.structs.replace(going, left_s=None)
    told = render.plan(msgspec.structs.replace(PLAN, going=(unknown,)), Style())
    assert told[1].endswith("2 running, nobody knows how long")


@pytest.mark.parametrize(
    ("other", "line"),
    [
        ({"force": True}, "  what runs there is cancelled at once"),
        ({"drain_s": 30.0}, "  what still runs there after 30s is cancelled"),
        ({"auto_switch": False}, "  what is queued there is refused"),
        ({"load_s": None, "queued": 0}, "  load: never measured"),
        (
            {"load_measured": False, "queued": 2},
            "  load: about 14s, a guess: it was never measured; 2 requests wait for it",
        ),
        ({"state": "ready", "dry_run": False}, "a is ready in place of b"),
        ({"loaded": True, "evict": (), "state": "ready"}, "a is loaded already (ready)"),
        ({"loaded": True, "evict": (), "state": "loading"}, "a is on its way already (loading)"),
        ({"held_bytes": 0, "evict": ()}, "  memory: nothing held now, 24.0G of 64.0G afterwards"),
        (
            {"memory_bytes": None},
            "  memory: 20.0G held now of 64.0G; the size of a is not known until it is fetched, "
            "nor whether it fits",
        ),
    ],
)
def test_what_a_plan_says_of_each_turn(other, line):
    assert line in render.plan(msgspec.structs.replace(PLAN, **other), Style())


def test_a_plan_that_does_not_fit_says_why():
    plan = p.Plan(model="m", loaded=False, fits=False, reason="no room", dry_run=True)
    assert render.plan(plan, Style())[-1].strip() == "does NOT fit: no room"


@pytest.mark.parametrize("shell", SHELLS)
def test_completion_names_every_command_and_is_sound(shell, tmp_path):
    text = script(build_parser(), shell)
    for name in ("switch", "cancel", "why", "--dry-run" if shell != "fish" else "dry-run"):
        assert name in text
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    file = tmp_path / "completion"
    file.write_text(text)
    checked = subprocess.run([shell, "-n", str(file)], check=False, timeout=60)
    assert checked.returncode == 0


def test_requests_are_listed_as_they_run_and_stand_in_line():
    def request(name, state, position=0):
        return p.Request(id=name, state=state, position=position, received_at=1000.0)

    rows = (
        request("e", "done"),
        request("q2", "queued", 2),
        request("q?", "queued"),
        request("new", "received"),
        request("r1", "prefill"),
        request("q1", "queued", 1),
        request("r2", "decode"),
    )
    lines = render.requests(p.Requests(requests=rows, total=7), Style(), 1010.0)
    assert [line.split()[0] for line in lines[1:]] == ["r1", "r2", "q1", "q2", "q?", "new", "e"]


def test_a_worker_without_slots_has_no_rate():
    off = p.Worker(model="a", state="off", queued={"normal": 1})
    idle = p.Worker(model="b", state="ready", slots=2)
    head, *rows = [line.split() for line in render.workers([off, idle], Style(), 0.0)]
    assert [row[head.index("T/S")] for row in rows] == ["-", "0"]


def test_a_request_in_its_prompt_says_how_far_it_is():
    request = p.Request(id="r-1", state="prefill", received_at=1000.0, progress=0.438)
    lines = render.requests(p.Requests(requests=(request,), total=1), Style(), 1010.0)
    assert lines[-1].rstrip().endswith("44% of the prompt read")


@pytest.mark.parametrize(
    "line",
    [
        b'{"type":"ok","id":1,"result":{"a":[]},"new":1}',
        b'{"type":"failure","id":1,"code":"c","message":"m\\u001b[1m"}',
        b'{"type":"lagged","id":1,"seq":1,"missed":2}',
        b'{"type":"ended","id":1}',
        b'{"type":"ok","id":[]}',
        b'{"type":"nope"}',
        b'{"type":"ok"',
        b'"\xff"',
        b"",
    ],
)
def test_who_expects_an_answer_reads_what_everybody_reads(line):
    def said(read):
        try:
            return read(line)
        except BadReply as error:
            return str(error)

    assert said(Codec().answer) == said(Codec().message)
