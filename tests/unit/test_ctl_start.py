"""How llmctl starts: with no more than a command needs, and so that nobody else notices.

A process is asked what it has imported: that is the same on every machine, and time is not.
"""

from __future__ import annotations

import gc
import re
import socket
import subprocess
import sys
import threading

import msgspec
import pytest

from llmd.admin import protocol as p
from llmd.ctl import main, not_installed

PY311 = sys.version_info >= (3, 11)
_ADDRESS = re.compile("0x[0-9a-f]+")

WHY = p.Why(at=1.0, rule="slots_busy", position=1, detail="both slots are busy")
REQUEST = p.Request(id="r-1", state="queued", model="m", received_at=1.0, position=1, why=WHY)
ANSWERS = {
    "status": p.Status(
        daemon=p.Daemon(
            version="0",
            pid=1,
            host="h",
            started_at=0,
            state="ok",
            admission_open=True,
            generation=0,
        ),
        totals=p.Totals(),
        workers=(p.Worker(model="m", state="ready", slots=2, queued={"normal": 1}),),
    ),
    "requests": p.Requests(requests=(REQUEST,), total=1),
    "queue": p.Queue(
        admission_open=True,
        queued=1,
        queued_tokens=7,
        max_queued=9,
        max_queued_tokens=0,
        by_class={"normal": 1},
        models=(p.QueueModel(model="m"),),
        keys=(p.QueueKey(key="k"),),
    ),
    "why": p.Story(request=REQUEST, steps=(WHY,)),
}
DAILY = [["status"], ["requests"], ["queue"], ["why", "r-1"]]

FOREIGN = {
    "trio", "textual", "rich", "httpx", "quart", "hypercorn",
}  # fmt: skip
"""Packages that other programs of ours need."""

UNUSED = {
    "asyncio", "difflib", "argparse", "logging", "llmd.admin.grammar", "llmd.admin.server",
    "pathlib", "urllib.parse", "llmd.config", "llmd.core", "llmd.ctl.completion",
}  # fmt: skip
"""What a command that people type all day does without."""

if PY311:  # below, msgspec takes from the one what `typing` has not, and uuid loads the other
    UNUSED |= {"typing_extensions", "inspect", "subprocess"}


def python(code: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        check=False, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def imported_by(*words: str) -> set[str]:
    """Return what an llmctl has imported at its end that said these words and was answered."""
    code = (
        "import sys\n"
        "from llmd.ctl import main\n"
        "status = main(sys.argv[1:])\n"
        "print(*sys.modules, file=sys.stderr)\n"
        "sys.exit(status)"
    )
    done = python(code, *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    return set(done.stderr.split())


@pytest.fixture
def daemon(tmp_path):
    """Answers one question, and is the path of its socket."""
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()

        def answer():
            peer, _ = listener.accept()
            with peer, peer.makefile("rb") as lines:
                asked = msgspec.json.decode(next(lines))
                result = msgspec.Raw(msgspec.json.encode(ANSWERS[asked["type"]]))
                peer.sendall(msgspec.json.encode(p.Ok(id=asked["id"], result=result)) + b"\n")

        answering = threading.Thread(target=answer, daemon=True)
        answering.start()
        yield path
        answering.join(10)


@pytest.mark.parametrize("words", DAILY, ids=lambda words: words[0])
def test_the_commands_of_every_day_import_no_more_than_they_need(words, daemon):
    modules = imported_by("--socket", daemon, *words)
    assert modules & (FOREIGN | UNUSED) == set()


# --- garbage ---------------------------------------------------------------------------------


def test_a_process_of_its_own_keeps_what_it_imported_from_the_collector():
    code = (
        "import gc\n"
        "from llmd.ctl import main\n"
        "assert main() == 3\n"
        "assert gc.isenabled()\n"
        "assert gc.get_freeze_count() > 1000"
    )
    done = python(code, "--socket", "/none", "status")
    assert done.returncode == 0, done.stderr


def test_within_another_program_the_collector_is_left_alone():
    before = gc.isenabled(), gc.get_freeze_count()
    assert main(["--socket", "/none", "status"]) == 3
    assert (gc.isenabled(), gc.get_freeze_count()) == before


# --- msgspec without typing_extensions -----------------------------------------------------


def test_only_while_it_starts_is_a_module_not_to_be_found():
    code = (
        "import sys\n"
        "from llmd.ctl import main\n"
        "before = set(sys.modules)\n"
        "assert 'msgspec' not in before\n"
        "main(['--socket', '/none', 'status'])\n"
        "assert 'msgspec' in sys.modules\n"
        "assert None not in sys.modules.values()\n"
        "import typing_extensions\n"
        "assert typing_extensions.TypedDict"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "first", ["msgspec", "typing_extensions", "llmd.client", "llmd.ctl.program"]
)
def test_what_is_imported_already_stays(first):
    code = (
        f"import sys, {first}\n"
        "before = dict(sys.modules)\n"
        "from llmd.ctl import main\n"
        "assert main(['--socket', '/none', 'status']) == 3\n"
        "assert all(sys.modules[name] is module for name, module in before.items())\n"
        "import typing_extensions"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not PY311, reason="there msgspec takes what typing has not")
def test_msgspec_understands_the_same_without_it():
    """What llmctl sends and reads is what the other programs do, which have it."""
    code = (
        "import sys\n"
        "if sys.argv[1:]:\n"
        "    from llmd.ctl import main\n"
        "    main(['--socket', '/none', 'status'])\n"
        "import msgspec\n"
        "assert ('typing_extensions' in sys.modules) is not bool(sys.argv[1:])\n"
        "from llmd.admin import protocol as p\n"
        "print(msgspec.inspect.multi_type_info([p.AnyCommand, p.AnyMessage, p.Status, p.Story]))"
    )
    with_it, without = python(code), python(code, "llmctl")
    assert with_it.returncode == without.returncode == 0, with_it.stderr + without.stderr
    assert with_it.stdout
    assert _ADDRESS.sub("", with_it.stdout) == _ADDRESS.sub("", without.stdout)


@pytest.mark.parametrize("module", ["llmd.client", "llmd.daemon", "llmtui.link"])
def test_nobody_else_goes_without_it(module):
    done = python(f"import sys, {module}; sys.exit('typing_extensions' not in sys.modules)")
    assert done.returncode == 0, done.stderr


def test_a_block_without_a_module(monkeypatch):
    monkeypatch.delitem(sys.modules, "sched", raising=False)
    with pytest.raises(ModuleNotFoundError), not_installed("sched"):
        import sched
    assert "sched" not in sys.modules
    import sched

    with not_installed("sched"):
        import sched as again
    assert sys.modules["sched"] is sched is again


def test_a_block_keeps_what_is_put_in_a_modules_place(monkeypatch):
    monkeypatch.delitem(sys.modules, "sched", raising=False)
    with not_installed("sched"):
        monkeypatch.setitem(sys.modules, "sched", socket)
    assert sys.modules["sched"] is socket
