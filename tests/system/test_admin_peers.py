"""Real peers of other users at the admin socket: what the kernel says of them decides."""

from __future__ import annotations

import grp
import json
import os
import subprocess
import sys

import pytest
import trio
from daemon_rig import running

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else"),
]

STRANGER = 65534
GROUP = next((g for g in grp.getgrall() if g.gr_gid not in (0, STRANGER)), None)
MANY = list(range(100_000, 100_400))  # more than Python's own getsockopt has room for

_BECOME = """
import difflib, locale, os, shutil, socket, sys, unicodedata
import llmd.ctl.program, llmd.ctl.render
from llmd.admin.grammar import parse
from llmd.ctl import main
parse(["status"])
os.setgroups({groups})
os.setgid({gid})
os.setuid({uid})
"""
_BY_HAND = """
with socket.socket(socket.AF_UNIX) as sock:
    sock.connect(sys.argv[1])
    sock.sendall(sys.stdin.buffer.read())
    sock.shutdown(socket.SHUT_WR)
    print(sock.makefile().read(), end="")
"""
_LLMCTL = "sys.exit(main(['--socket', *sys.argv[1:]]))"

WRITES = [
    {"type": "switch", "model": "demo-small"},
    {"type": "load", "model": "demo-small"},
    {"type": "unload", "model": "demo-small"},
    {"type": "restart", "model": "demo-small"},
    {"type": "reset", "model": "demo-small"},
    {"type": "cancel", "all": True},
    {"type": "stop"},
    {"type": "drain"},
    {"type": "resume"},
]
READS = [
    {"type": "hello"},
    {"type": "status"},
    {"type": "models"},
    {"type": "requests"},
    {"type": "queue"},
    {"type": "version"},
    {"type": "logs", "model": "demo-small"},
]


async def as_user(code, *arguments, uid=STRANGER, gid=STRANGER, groups=(), said=b""):
    """Run code as another user; the interpreter is loaded before, since he may not read it."""
    head = _BECOME.format(groups=list(groups), gid=gid, uid=uid)
    return await trio.run_process(
        [sys.executable, "-c", head + code, *arguments],
        stdin=said,
        capture_stdout=True,
        capture_stderr=True,
        check=False,
    )


async def by_hand(daemon, *commands, **who):
    """Say lines, return the answers, or what went wrong."""
    said = b"".join(json.dumps({**c, "id": n}).encode() + b"\n" for n, c in enumerate(commands))
    done = await as_user(_BY_HAND, str(daemon.daemon.admin.path), said=said, **who)
    if done.returncode:
        return done.stderr.decode().splitlines()[-1].partition(":")[0]
    return [json.loads(line) for line in done.stdout.splitlines()]


async def llmctl(daemon, *words, **who):
    done = await as_user(_LLMCTL, str(daemon.daemon.admin.path), *words, **who)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.fixture
def serve(runtime_dir, fake_engine, demo_models):
    def serve(**server):
        return running(runtime_dir, fake_engine, [demo_models / "demo-small.gguf"], server=server)

    return serve


@pytest.fixture
def group():
    if GROUP is None:
        pytest.skip("there is no group")
    return GROUP


async def test_a_stranger_is_refused(serve):
    async with serve() as daemon:
        assert await by_hand(daemon, {"type": "status"}) == "PermissionError"
        status, out, err = await llmctl(daemon, "status")
        assert (status, out) == (3, "")
        assert "this user may not use" in err
        assert "server.admin_group" in err


async def test_one_who_gets_past_the_files_mode_is_refused_and_logged(serve, caplog):
    async with serve() as daemon:
        path = daemon.daemon.admin.path
        path.parent.chmod(0o711)
        path.chmod(0o666)
        [answer] = await by_hand(daemon, {"type": "status"})
        assert (answer["type"], answer["code"]) == ("failure", "permission_denied")
        status, _, err = await llmctl(daemon, "drain")
        assert status == 1
        assert "may not use the admin socket" in err
        fields = [r.__dict__.get("llmd_fields", {}) for r in caplog.records]
        refused = [f for f in fields if f.get("uid") == STRANGER]
        assert len(refused) == 2
        assert all(f["pid"] > 0 for f in refused)


async def test_with_admin_read_all_a_stranger_reads_and_changes_nothing(serve):
    async with serve(admin_read_all=True) as daemon:
        answers = await by_hand(daemon, *READS)
        assert [answer["type"] for answer in answers] == ["ok"] * len(READS)
        assert answers[0]["result"]["access"] == "read"
        answers = await by_hand(daemon, *WRITES)
        assert {answer["code"] for answer in answers} == {"permission_denied"}
        status, out, _ = await llmctl(daemon, "status")
        assert status == 0
        assert "llmd " in out
        status, _, err = await llmctl(daemon, "switch", "demo-small")
        assert status == 1
        assert "only look" in err
        assert daemon.services.scheduler.state.generation == 0


@pytest.mark.parametrize("how", ["supplementary", "primary", "one of very many"])
async def test_a_member_of_admin_group_writes(serve, group, caplog, how):
    """The runtime directory was private: it is opened for them to pass, and no further."""
    gid = group.gr_gid
    who = {
        "supplementary": {"groups": [gid]},
        "primary": {"gid": gid},
        "one of very many": {"groups": [*MANY, gid]},
    }[how]
    caplog.set_level("INFO", "llmd")
    async with serve(admin_group=group.gr_name) as daemon:
        hello, drained, resumed = await by_hand(
            daemon, {"type": "hello"}, {"type": "drain"}, {"type": "resume"}, **who
        )
        assert hello["result"]["access"] == "write"
        assert not drained["result"]["admission_open"]
        assert resumed["result"]["admission_open"]
        noted = [
            r.__dict__["llmd_fields"] for r in caplog.records if r.getMessage() == "operator: drain"
        ]
        assert [note["uid"] for note in noted] == [STRANGER]
        assert noted[0]["pid"] not in (0, os.getpid())
        status, out, _ = await llmctl(daemon, "switch", "demo-small", "--wait", **who)
        assert status == 0
        assert "demo-small" in out
        assert await by_hand(daemon, {"type": "status"}) == "PermissionError"  # no member


async def test_members_write_and_others_read_when_both_are_set(serve, group):
    async with serve(admin_group=group.gr_name, admin_read_all=True) as daemon:
        for groups, code in (([], "permission_denied"), ([group.gr_gid], None)):
            status, drained, _ = await by_hand(
                daemon, {"type": "status"}, {"type": "drain"}, {"type": "resume"}, groups=groups
            )
            assert status["type"] == "ok"
            assert drained.get("code") == code


async def test_a_member_who_cannot_reach_the_socket_is_told_of_at_start(
    serve, group, runtime_dir, caplog
):
    closed = runtime_dir / "closed"
    closed.mkdir(mode=0o700)
    async with serve(admin_group=group.gr_name, admin_socket=str(closed / "a.sock")) as daemon:
        [warning] = [r.getMessage() for r in caplog.records if "cannot reach" in r.getMessage()]
        member = {"groups": [group.gr_gid]}
        assert await by_hand(daemon, {"type": "status"}, **member) == "PermissionError"
        fix = warning.rpartition("let them pass: ")[2]
        subprocess.run(["sh", "-c", fix], check=True)
        [answer] = await by_hand(daemon, {"type": "status"}, **member)
        assert answer["type"] == "ok"
