"""The admin socket as such: its file, its peers at their worst, and subscriptions."""

from __future__ import annotations

import os
import socket
import stat
import traceback
from collections import deque
from functools import partial

import pytest
import trio
from admin_rig import RIGHTS, Peer, admin
from test_api_control import FOR_EVER, running

from llmd.admin.commands import Actor, Commands
from llmd.admin.connection import Connection
from llmd.admin.framing import MAX_LINE_BYTES
from llmd.admin.peercred import Peer as Credentials
from llmd.admin.peercred import Rights, peer_of
from llmd.admin.protocol import GetQueue
from llmd.admin.server import MAX_CONNECTIONS, READERS_SHARE, WRITERS_PLACES
from llmd.admin.socketfile import SocketFile
from llmd.errors import ConfigError
from llmd.netio import SocketStream
from llmd.operations import Operations

ALL = ["requests", "workers", "queue", "log"]


@pytest.fixture
async def desk(demo_models, autojump_clock):
    async with admin(demo_models) as found:
        yield found


# --- what peers may send -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "code", "id_"),
    [
        (b"{", "invalid_request", None),
        (b"[1]", "invalid_request", None),
        (b'{"id":1}', "invalid_request", 1),
        (b'{"type":"status","id":2,"more":1}', "invalid_request", 2),
        (b'{"type":"switch","id":3}', "invalid_request", 3),
        (b'{"type":"switch","id":3,"model":"m","drain_s":-1}', "invalid_request", 3),
        (b'{"type":"logs","id":3,"model":"m","lines":"x"}', "invalid_request", 3),
        (b'{"type":"dance","id":4}', "unknown_command", 4),
        (b'{"type":"users","id":5}', "not_supported", 5),
        (b'{"type":"reload","id":5}', "not_supported", 5),
        (b'{"type":"subscribe","id":6,"topics":["gossip"]}', "invalid_request", 6),
        (b'{"type":"unsubscribe","id":7,"subscription":1}', "not_found", 7),
        (b'{"type":"why","id":8,"request":"' + b"x" * 5000 + b'"}', "invalid_request", 8),
        (b"\xff\xfe", "invalid_request", None),
        (b'{"type":"why","id":7,"request":"\xff"}', "invalid_request", 7),
        (b'{"type":"why","id":7,"re\xff":"x"}', "invalid_request", 7),
        (b'{"type":"wh\xff","id":7}', "invalid_request", None),
        (b"[" * 100_000, "invalid_request", None),
        (b"x" * (MAX_LINE_BYTES + 1), "line_too_long", None),
    ],
)
async def test_what_is_no_command_is_refused_and_the_connection_goes_on(desk, line, code, id_):
    peer = desk.peer()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.send, line + b"\n")
        answer = await peer.hear()
    assert (answer["type"], answer["code"], answer.get("id")) == ("failure", code, id_)
    assert (await peer.ask(type="version", id=9))["id"] == 9


async def test_a_slip_gets_a_guess(desk):
    answer = await desk.peer().ask(type="swich", id=1)
    assert answer["message"] == "there is no command 'swich'; did you mean 'switch'?"


async def test_a_half_closed_peer_gets_all_its_answers(desk):
    peer = desk.peer()
    await peer.send(b'{"type":"status","id":1}\n\n{"type":"queue","id":2}\n')
    await peer.say(type="switch", id=3, model="demo-small", wait=True)
    await peer.stream.send_eof()
    answers = [await peer.hear() for _ in range(3)]
    assert [answer["id"] for answer in answers] == [1, 2, 3]
    assert answers[2]["result"]["state"] == "ready"
    assert await peer.hear() is None


async def test_half_a_line_is_refused(desk):
    peer = desk.peer()
    await peer.send(b'{"type":"status","id":1}')
    await peer.stream.send_eof()
    assert (await peer.hear())["code"] == "incomplete_line"
    assert await peer.hear() is None


async def test_many_commands_in_one_piece_are_answered_in_their_order(desk):
    peer = desk.peer()
    await peer.send(b"".join(b'{"type":"hello","id":%d}\n' % n for n in range(200)))
    assert [(await peer.hear())["id"] for _ in range(200)] == list(range(200))


async def test_a_flood_of_commands_leaves_others_their_turn(desk):
    flood, other = desk.peer(), desk.peer()
    await other.ask(type="version", id=0)
    heard = 0

    async def drink():
        nonlocal heard
        while (await flood.hear())["id"] != "last":
            heard += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(drink)
        many = b'{"type":"status","id":1}\n' * 2000
        nursery.start_soon(flood.send, many + b'{"type":"version","id":"last"}\n')
        while not heard:
            await trio.lowlevel.checkpoint()
        before = heard
        await other.ask(type="version", id=1)
        assert heard - before < 100


async def test_a_peer_that_leaves_in_the_middle_harms_nobody(desk):
    gone = desk.peer()
    await gone.say(type="subscribe", id=1)
    await gone.say(type="switch", id=2, model="demo-small", wait=True)
    gone.stream.close()
    other = desk.peer()
    while desk.rig.state("demo-small") != "ready":
        await desk.rig.scheduler.moved()
    assert (await other.ask(type="status", id=1))["type"] == "ok"


async def test_a_fault_costs_one_connection_is_logged_and_nobody_elses(desk, monkeypatch, caplog):
    def fault(*_):
        raise ZeroDivisionError("by design")

    unlucky, other = desk.peer(), desk.peer()
    await other.ask(type="version", id=0)
    monkeypatch.setitem(desk.server._commands._handlers, GetQueue, fault)
    assert await unlucky.ask(type="queue", id=1) is None
    assert (await other.ask(type="version", id=1))["id"] == 1
    assert len(desk.server._streams) == 1
    [record] = [r for r in caplog.records if r.levelname == "ERROR"]
    assert f"pid {os.getpid()}) crashed; this is a fault in llmd" in record.getMessage()
    assert "ZeroDivisionError: by design" in "".join(traceback.format_exception(*record.exc_info))


async def test_a_fault_in_what_a_command_left_behind_costs_no_daemon(desk, monkeypatch, caplog):
    async def fault(*_, **__):
        raise ZeroDivisionError("by design")

    peer = desk.peer()
    await peer.ask(type="switch", id=1, model="demo-small", wait=True)
    monkeypatch.setattr(Operations, "restart", fault)
    assert (await peer.ask(type="restart", id=2, model="demo-small"))["type"] == "ok"
    assert (await peer.ask(type="version", id=3))["id"] == 3
    assert "this is a fault in llmd" in caplog.text


async def test_one_connection_cannot_have_everything_under_way(desk):
    peer = desk.peer()
    for number in range(64):
        await peer.say(type="logs", id=number, model="demo-small", follow=True)
        assert (await peer.hear())["type"] == "ok"
    refused = await peer.ask(type="logs", id=99, model="demo-small", follow=True)
    assert refused["code"] == "rate_limit_exceeded"


async def test_a_peer_that_reads_nothing_is_dropped_and_slows_nobody(demo_models, autojump_clock):
    async with admin(demo_models, server={"send_timeout_s": 5}) as desk:
        stuck = desk.peer()
        flood = b'{"type":"models","id":1}\n' * 2000

        async def push():
            while True:
                await stuck.send(flood)

        async def dropped():
            with pytest.raises(trio.BrokenResourceError):
                await push()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(dropped)
            other = desk.peer()
            for number in range(50):
                assert (await other.ask(type="status", id=number))["id"] == number


async def test_many_clients_are_served_at_once_and_one_too_many_is_told(desk):
    peers = [desk.peer() for _ in range(MAX_CONNECTIONS)]
    async with trio.open_nursery() as nursery:
        for peer in peers:
            nursery.start_soon(partial(peer.ask, type="status", id=1))
    refused = desk.peer()
    await refused.say(type="status", id=1)
    assert (await refused.hear())["code"] == "too_many"
    assert await refused.hear() is None
    refused.stream.close()
    for peer in peers[:3]:
        peer.stream.close()
    while len(desk.server._streams) >= MAX_CONNECTIONS:
        await trio.sleep(0.01)
    assert (await desk.peer().ask(type="status", id=2))["id"] == 2


async def test_who_is_turned_away_cannot_keep_the_door_busy(desk, autojump_clock):
    peers = [desk.peer() for _ in range(MAX_CONNECTIONS)]
    for peer in peers:
        await peer.ask(type="version", id=1)
    pushy = [desk.peer() for _ in range(100)]  # they read nothing, and never leave
    while len(desk.server._streams) < MAX_CONNECTIONS:
        await trio.sleep(0.01)
    assert (await peers[0].ask(type="status", id=2))["id"] == 2
    heard = [await peer.hear() for peer in pushy]
    assert all(message is None or message["code"] == "too_many" for message in heard)
    await trio.sleep(3)
    assert desk.server._turning_away == 0


@pytest.fixture
async def crowd(demo_models, monkeypatch):
    """Return a desk for everybody, and what connects to it as a user of that uid."""
    uids = deque()

    def peer_of(_sock):
        return Credentials(1, uids.popleft(), 1, frozenset())

    monkeypatch.setattr("llmd.admin.server.peer_of", peer_of)
    async with admin(demo_models, rights=Rights(os.geteuid(), None, read_all=True)) as desk:

        async def connect(uid):
            uids.append(uid)
            peer = desk.peer()
            while uids:
                await trio.lowlevel.checkpoint()
            return peer

        yield desk, connect


async def test_those_who_may_only_look_leave_places_for_those_who_may_act(crowd):
    _desk, connect = crowd
    most = MAX_CONNECTIONS - WRITERS_PLACES
    silent = [await connect(50_000 + number // READERS_SHARE) for number in range(most)]
    refused = await connect(60_000)
    told = await refused.hear()
    assert (told["code"], "kept for those who may act" in told["message"]) == ("too_many", True)
    for _ in range(WRITERS_PLACES):
        assert (await (await connect(0)).ask(type="hello", id=1))["result"]["access"] == "write"
    assert (await (await connect(0)).hear())["message"].startswith(f"{MAX_CONNECTIONS} clients")
    assert len(silent) == most


async def test_one_user_who_may_only_look_leaves_places_for_others(crowd):
    desk, connect = crowd
    silent = [await connect(65_534) for _ in range(READERS_SHARE)]
    told = await (await connect(65_534)).hear()
    assert told["code"] == "too_many"
    assert f"has {READERS_SHARE} connections already" in told["message"]
    assert (await (await connect(65_533)).ask(type="status", id=1))["type"] == "ok"
    for peer in silent:
        peer.stream.close()
    while desk.server._readers[65_534]:
        await trio.lowlevel.checkpoint()
    assert (await (await connect(65_534)).ask(type="status", id=1))["type"] == "ok"


# --- rights --------------------------------------------------------------------------------


async def test_who_may_only_read_changes_nothing(desk):
    theirs, ours = socket.socketpair(socket.AF_UNIX)
    commands: Commands = desk.server._commands
    connection = Connection(
        SocketStream(ours),
        Actor(Credentials(1, 1000, 1000, frozenset()), "read"),
        commands=commands,
        hub=desk.server._hub,
        log_of=lambda _model: None,
        moved=desk.rig.scheduler.moved,
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.serve)
        peer = Peer(theirs)
        assert (await peer.ask(type="hello", id=0))["result"]["access"] == "read"
        assert (await peer.ask(type="status", id=1))["type"] == "ok"
        plan = await peer.ask(type="switch", id=1, model="demo-small", dry_run=True)
        assert plan["result"]["dry_run"]
        repository = await peer.ask(type="switch", id=1, model="o/m-GGUF:Q8_0", dry_run=True)
        assert repository["result"]["model"] == "o/m-GGUF:Q8_0"  # a look takes nothing in
        assert desk.rig.services.operations.catalog.resolve("o/m-GGUF:Q8_0") is None
        writes = [
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
        for write in writes:
            assert (await peer.ask(**write, id=2))["code"] == "permission_denied"
        peer.stream.close()
    ours.close()
    assert desk.rig.state("demo-small") == "off"


def test_the_kernel_says_who_connected():
    one, other = socket.socketpair(socket.AF_UNIX)
    with one, other:
        peer = peer_of(one)
    assert (peer.pid, peer.uid, peer.gid) == (os.getpid(), os.geteuid(), os.getegid())
    assert peer.groups == frozenset(os.getgroups())


# --- the file ------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # for a path that is short enough
    return tmp_path.__class__("run") / "admin.sock"


@pytest.mark.parametrize(
    ("rights", "mode"),
    [
        (Rights(os.geteuid()), 0o600),
        (Rights(os.geteuid(), os.getegid()), 0o660),
        (Rights(os.geteuid(), None, read_all=True), 0o666),
    ],
)
def test_the_file_is_open_to_those_who_may_use_it(path, rights, mode):
    file = SocketFile(path, rights)
    file.open()
    assert stat.S_IMODE(path.stat().st_mode) == mode
    file.close()
    assert not path.exists()


def test_a_second_daemon_is_refused_and_the_first_is_left_alone(path):
    first = SocketFile(path, RIGHTS)
    first.open()
    second = SocketFile(path, RIGHTS)
    with pytest.raises(ConfigError, match="another llmd is running"):
        second.open()
    path.unlink()
    with pytest.raises(ConfigError, match="another llmd is running"):
        second.open()
    first.close()
    second.open()
    second.close()


def test_somebody_elses_listener_is_left_alone(path):
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.bind(str(path))
        stranger.listen()
        with pytest.raises(ConfigError, match="another llmd is running"):
            SocketFile(path, RIGHTS).open()
        assert path.exists()


def test_a_stale_socket_is_reclaimed(path):
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    file = SocketFile(path, RIGHTS)
    file.open()
    file.close()


def test_what_is_no_socket_is_never_removed(path):
    path.parent.mkdir()
    path.write_text("precious")
    with pytest.raises(ConfigError, match="is no socket"):
        SocketFile(path, RIGHTS).open()
    assert path.read_text() == "precious"


def test_a_path_too_long_for_a_socket_is_told(tmp_path):
    with pytest.raises(ConfigError, match="107 bytes"):
        SocketFile(tmp_path / ("x" * 120), RIGHTS).open()


async def test_a_deleted_file_is_made_anew_and_old_connections_go_on(desk, autojump_clock):
    old = desk.peer()
    await old.ask(type="version", id=1)
    desk.path.unlink()
    while not desk.path.exists():
        await trio.sleep(1)
    assert (await old.ask(type="version", id=2))["id"] == 2
    assert (await desk.peer().ask(type="version", id=3))["id"] == 3


def _text(path):
    path.write_text("precious")


def _folder(path):
    path.mkdir()


def _link(path):
    path.symlink_to("/dev/null")


def _dead_socket(path):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))


@pytest.mark.parametrize("come", [_text, _folder, _link, _dead_socket])
async def test_a_replaced_file_is_made_anew_and_what_came_is_kept_and_told(
    desk, autojump_clock, caplog, come
):
    old = desk.peer()
    await old.ask(type="version", id=1)
    desk.path.unlink()
    come(desk.path)
    found = desk.path.lstat().st_ino
    while "made anew" not in caplog.text:
        await trio.sleep(1)
    assert (await old.ask(type="version", id=2))["id"] == 2
    assert (await desk.peer().ask(type="version", id=3))["id"] == 3
    aside = desk.path.with_name("admin.sock.found")
    if come is _dead_socket:
        assert not os.path.lexists(aside)
    else:
        assert aside.lstat().st_ino == found
    [record] = [r for r in caplog.records if "made anew" in r.getMessage()]
    assert "in its place, and is" in record.__dict__["llmd_fields"]["reason"]


async def test_what_replaces_the_file_again_and_again_stays_and_is_told_once(
    desk, autojump_clock, caplog
):
    for text in ("first", "second"):
        await trio.sleep(5)
        desk.path.unlink()
        desk.path.write_text(text)
    await trio.sleep(20)
    assert desk.path.read_text() == "second"
    assert desk.path.with_name("admin.sock.found").read_text() == "first"
    told = [r for r in caplog.records if "cannot be made anew" in r.getMessage()]
    assert len(told) == 1
    desk.path.unlink()
    await trio.sleep(5)
    assert (await desk.peer().ask(type="version", id=1))["id"] == 1


async def test_somebody_elses_listener_in_its_place_stays(desk, autojump_clock, caplog):
    desk.path.unlink()
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.bind(str(desk.path))
        stranger.listen()
        await trio.sleep(20)
        assert "cannot be made anew" in caplog.text
        stranger.accept()[0].close()
    await trio.sleep(5)  # it has gone, and its file is nobody's
    assert (await desk.peer().ask(type="version", id=1))["id"] == 1


# --- subscriptions -------------------------------------------------------------------------


async def test_a_snapshot_comes_first_then_numbered_events(desk):
    watcher, actor = desk.peer(), desk.peer()
    snapshot = await watcher.ask(type="subscribe", id=5, topics=["workers", "requests"])
    assert (snapshot["type"], snapshot["id"]) == ("snapshot", 5)
    assert {"demo-small", "demo-large"} <= {worker["model"] for worker in snapshot["workers"]}
    assert snapshot["requests"] == []
    assert "queue" not in snapshot
    await actor.say(type="switch", id=1, model="demo-small")
    sequence, states = snapshot["seq"], []
    while "ready" not in states:
        event = await watcher.hear()
        assert (event["type"], event["id"]) == ("event", 5)
        assert event["seq"] > sequence
        sequence = event["seq"]
        states += [w["state"] for w in event.get("workers", ()) if w["model"] == "demo-small"]


async def test_a_request_is_told_from_its_place_in_the_queue_to_its_end(desk):
    watcher, actor = desk.peer(), desk.peer()
    await actor.ask(type="switch", id=1, model="demo-small", wait=True)
    await watcher.ask(type="subscribe", id=1, topics=["requests"])
    body = {"model": "demo-large", "messages": [{"role": "user", "content": "hi"}]}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(desk.rig.ask, "POST", "/v1/chat/completions", body)
        event = await watcher.until(lambda m: m.get("requests"))
        [row] = event["requests"]
        assert (row["state"], row["position"], row["why"]["rule"]) == (
            "queued", 1, "min_residency",
        )  # fmt: skip
        await actor.ask(type="cancel", id=2, request=row["id"])
        gone = await watcher.until(lambda m: m.get("requests"))
        assert [(r["id"], r["state"]) for r in gone["requests"]] == [(row["id"], "cancelled")]


async def test_without_any_change_there_is_a_sign_of_life(desk, autojump_clock):
    watcher = desk.peer()
    await watcher.ask(type="subscribe", id=1, topics=["queue"])
    assert (await watcher.hear())["type"] == "event"
    assert (await watcher.hear())["type"] == "event"


async def test_a_fault_at_a_look_is_logged_and_those_who_watch_start_over(
    desk, monkeypatch, caplog, autojump_clock
):
    def fault(*_):
        raise ZeroDivisionError("by design")

    watcher, actor = desk.peer(), desk.peer()
    await watcher.ask(type="subscribe", id=1, topics=["workers"])
    views = desk.server._hub._views
    with monkeypatch.context() as patched:
        patched.setattr(views, "totals", fault)
        assert (await watcher.hear())["type"] == "lagged"
    assert (await watcher.hear())["type"] == "snapshot"
    await actor.ask(type="switch", id=1, model="demo-small", wait=True)
    await watcher.until(lambda m: any(w["state"] == "ready" for w in m.get("workers", ())))
    [record] = [r for r in caplog.records if r.levelname == "ERROR"]
    assert "this is a fault in llmd" in record.getMessage()


async def test_what_is_decided_counts_before_workers_have_got_that_far(demo_models, autojump_clock):
    async with admin(demo_models, **FOR_EVER) as desk, trio.open_nursery() as nursery:
        peer = desk.peer()
        await peer.ask(type="switch", id=1, model="demo-small", wait=True)
        await running(desk.rig, nursery)
        await peer.ask(type="switch", id=2, model="demo-large")
        told = await peer.ask(type="status", id=3)
        states = {w["model"]: w["state"] for w in told["result"]["workers"]}
        assert states == {"demo-small": "draining", "demo-large": "starting"}
        nursery.cancel_scope.cancel()


async def test_a_subscription_ends_when_asked_to(desk):
    peer = desk.peer()
    await peer.ask(type="subscribe", id=1)
    await peer.say(type="unsubscribe", id=2, subscription=1)
    kinds = [(await peer.hear())["type"] for _ in range(2)]
    assert sorted(kinds) == ["ended", "ok"]
    assert (await peer.ask(type="version", id=3))["id"] == 3
    assert len(desk.server._hub) == 0


async def test_two_subscriptions_of_one_id_cannot_be_told_apart(desk):
    peer = desk.peer()
    await peer.ask(type="subscribe", id=1)
    await peer.say(type="subscribe", id=1)
    refused = await peer.until(lambda m: m["type"] == "failure")
    assert refused["code"] == "invalid_request"


async def test_a_slow_subscriber_is_told_that_it_lagged_and_gets_a_fresh_snapshot(
    demo_models, autojump_clock
):
    async with admin(demo_models) as desk:
        slow = desk.peer()
        first = await slow.ask(type="subscribe", id=1)
        [stream] = desk.server._streams
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        actor = desk.peer()
        for number in range(100):  # each is a change, and far more than what is kept for it
            await actor.ask(type="drain" if number % 2 else "resume", id=number)
            await trio.sleep(0.3)
        lagged = await slow.until(lambda m: m["type"] == "lagged")
        assert lagged["missed"] > 0
        snapshot = await slow.hear()
        assert snapshot["type"] == "snapshot"
        assert snapshot["seq"] > first["seq"]
        event = await slow.hear()
        assert event["seq"] > snapshot["seq"]
        await actor.ask(type="resume", id=1)


async def test_the_log_topic_tells_what_operators_did(desk, caplog):
    caplog.set_level("INFO", "llmd")
    watcher, actor = desk.peer(), desk.peer()
    await watcher.ask(type="subscribe", id=1, topics=["log"])
    await actor.ask(type="drain", id=1)
    event = await watcher.until(lambda m: m.get("log"))
    assert event["log"][0]["text"].startswith("operator: drain user=")
    await actor.ask(type="resume", id=2)


async def test_a_log_can_be_followed_over_the_death_of_nobody(desk):
    peer, actor = desk.peer(), desk.peer()
    await actor.ask(type="switch", id=1, model="demo-small", wait=True)
    ring = desk.rig.supervisor.worker("demo-small").log
    from llmd.workers.logring import LogStream

    ring.append(LogStream.STDERR, "before")
    answer = await peer.ask(type="logs", id=4, model="demo-small", lines=1, follow=True)
    assert [line["text"] for line in answer["result"]["lines"]] == ["before"]
    ring.append(LogStream.STDERR, "after")
    lines = await peer.hear()
    assert (lines["type"], lines["id"]) == ("lines", 4)
    assert [line["text"] for line in lines["lines"]] == ["after"]
    for number in range(3000):
        ring.append(LogStream.STDERR, f"line {number}")
    more = await peer.hear()
    assert more["missed"] == 2000


@pytest.mark.parametrize("flood", [b"x" * 65536, b" \n" * 65536])
async def test_a_flood_that_leaves_no_line_to_tell_ends_no_follower(desk, flood):
    peer, actor = desk.peer(), desk.peer()
    await actor.ask(type="switch", id=1, model="demo-small", wait=True)
    ring = desk.rig.supervisor.worker("demo-small").log
    from llmd.workers.logring import LogStream

    await peer.ask(type="logs", id=4, model="demo-small", lines=1, follow=True)
    ring.feed(LogStream.STDERR, b"one\n")
    for _ in range(20):
        ring.feed(LogStream.STDERR, flood)
    await trio.sleep(1)
    ring.feed(LogStream.STDERR, b"\nlast\n")
    texts = []
    while "last" not in texts:
        lines = await peer.hear()
        assert lines["type"] == "lines"
        texts += [line["text"] for line in lines["lines"]]


async def test_hostile_text_comes_out_harmless(desk):
    peer, actor = desk.peer(), desk.peer()
    await actor.ask(type="switch", id=1, model="demo-small", wait=True)
    from llmd.workers.logring import LogStream

    ring = desk.rig.supervisor.worker("demo-small").log
    ring.append(LogStream.STDERR, "a\x1b[31mb\x9b0mc\u202ed\x07\ne")
    answer = await peer.ask(type="logs", id=1, model="demo-small", lines=1)
    assert answer["result"]["lines"][0]["text"] == "ab0mcd e"
