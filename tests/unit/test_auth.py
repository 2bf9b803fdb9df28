"""Keys, open mode, and where requests may come from."""

from __future__ import annotations

import contextlib
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmd.api.auth import ANONYMOUS, Authenticator, Principal, may_use_model, require_admin
from llmd.api.origin import (
    OpenModeGuard,
    TrustedProxies,
    address_group,
    is_loopback,
    listen_allowed,
)
from llmd.config import ApiKey, Config, RateLimit, Server
from llmd.core.lifecycle import Priority
from llmd.core.ratelimit import Limits
from llmd.errors import ConfigError, InvalidApiKey, PermissionDenied

ALICE = ApiKey(name="alice", key="alice-key-123")
ROOT = ApiKey(name="root", key_sha256=hashlib.sha256(b"root-key").hexdigest().upper(), role="admin")
CONFIG = Config(api_keys=(ALICE, ROOT))


def bearer(key: str, scheme: str = "Bearer") -> list[tuple[bytes, bytes]]:
    return [(b"host", b"x"), (b"authorization", f"{scheme} {key}".encode())]


def test_keys_arrive_in_either_header():
    auth = Authenticator(CONFIG)
    assert not auth.open
    for headers in (
        bearer("alice-key-123"),
        bearer("alice-key-123", "bEARER"),
        bearer("  alice-key-123 "),
        [(b"x-api-key", b"alice-key-123")],
        [*bearer("alice-key-123"), (b"x-api-key", b"alice-key-123")],
        [*bearer("dXNlcjpwdw==", "Basic"), (b"x-api-key", b"alice-key-123")],
        [(b"authorization", b"Bearer "), (b"x-api-key", b"alice-key-123")],
        [*bearer("alice-key-123"), (b"x-api-key", b"")],
    ):
        assert auth.authenticate(headers).name == "alice"
    assert auth.authenticate(bearer("root-key")).name == "root"


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"authorization", b"")],
        [(b"authorization", b"Bearer")],
        [(b"authorization", b"alice-key-123")],
        [(b"authorization", b"Basic alice-key-123")],
        [(b"x-api-key", b"")],
        bearer("alice-key-12"),
        bearer("alice-key-1234"),
        bearer("ALICE-KEY-123"),
        bearer("x" * 100_000),
        [(b"authorization", b"Bearer \xff\xfe\x00")],
        [*bearer("alice-key-123"), (b"x-api-key", b"root-key")],
        [*bearer("alice-key-123"), *bearer("root-key")],
        bearer(hashlib.sha256(b"alice-key-123").hexdigest()),
    ],
)
def test_all_else_is_turned_away_without_echoing_it(headers):
    auth = Authenticator(CONFIG)
    with pytest.raises(InvalidApiKey) as caught:
        auth.authenticate(headers)
    assert caught.value.status == 401
    assert "alice" not in caught.value.message
    assert "root" not in caught.value.message


def test_no_plain_key_stays_in_memory_of_the_authenticator():
    auth = Authenticator(CONFIG)
    auth.authenticate(bearer("alice-key-123"))

    def walk(thing, depth=0):
        yield repr(thing)
        if depth < 5:
            slots = getattr(type(thing), "__slots__", ())
            parts = [getattr(thing, s) for s in slots if hasattr(thing, s)]
            parts += list(vars(thing).values()) if hasattr(thing, "__dict__") else []
            parts += [*thing, *thing.values()] if isinstance(thing, dict) else []
            for part in parts:
                yield from walk(part, depth + 1)

    assert not any("alice-key-123" in text for text in walk(auth))


def test_a_principal_carries_rights_and_limits():
    config = Config(
        api_keys=(
            ApiKey(
                name="ci", key="k1", priority="low", weight=2.5, models=("a",),
                requests_per_minute=0, concurrent_requests=3,
            ),
            ApiKey(name="boss", key="k2", role="admin", estimated_tokens_per_minute=5),
        ),
        rate_limit=RateLimit(requests_per_minute=7, estimated_tokens_per_minute=70),
    )  # fmt: skip
    auth = Authenticator(config)
    assert auth.authenticate(bearer("k1")) == Principal(
        name="ci", account="ci", user="ci", role="user", priority=Priority.LOW, weight=2.5,
        models=("a",), limits=Limits(0, 70), concurrency=3,
        fingerprint="6a..d0",
    )  # fmt: skip
    boss = auth.authenticate(bearer("k2"))
    assert (boss.priority, boss.limits, boss.concurrency) == (Priority.HIGH, Limits(7, 5), 0)
    assert boss.admin
    assert not boss.anonymous
    assert auth.has_key("ci")
    assert not auth.has_key("k1")


@pytest.mark.parametrize(
    ("cap", "wanted", "got"),
    [
        ("high", "high", "high"), ("high", "low", "low"), ("high", None, "normal"),
        ("normal", "high", "normal"), ("normal", None, "normal"), ("normal", "low", "low"),
        ("low", "high", "low"), ("low", None, "low"),
    ],
)  # fmt: skip
def test_classes_are_capped(cap, wanted, got):
    config = Config(api_keys=(ApiKey(name="k", key="k", priority=cap),))
    principal = Authenticator(config).authenticate(bearer("k"))
    assert principal.capped(Priority(wanted) if wanted else None) is Priority(got)


def test_keys_expire():
    key = ApiKey(name="guest", key="guest-key", expires="2030-01-01T00:00:00Z")
    now = [key.expires_at - 1]
    auth = Authenticator(Config(api_keys=(key,)), now_wall=lambda: now[0])
    assert auth.authenticate(bearer("guest-key")).name == "guest"
    now[0] += 1
    with pytest.raises(InvalidApiKey):
        auth.authenticate(bearer("guest-key"))
    assert not auth.open


def test_models_and_roles():
    auth = Authenticator(Config(api_keys=(ApiKey(name="k", key="k", models=("a", "chat")), ROOT)))
    user, admin = auth.authenticate(bearer("k")), auth.authenticate(bearer("root-key"))
    assert may_use_model(user, "a")
    assert not may_use_model(user, "b")
    assert may_use_model(user, "b", ("chat",))
    assert may_use_model(admin, "b")
    require_admin(admin)
    with pytest.raises(PermissionDenied):
        require_admin(user)


# --- slowing down --------------------------------------------------------------------------


def test_repeated_failures_are_slowed_more_and_more_up_to_a_bound():
    auth = Authenticator(CONFIG)
    delays = [auth.delay_s("10.0.0.1", 100.0) for _ in range(2000)]
    assert delays[:5] == [0.0] * 5
    assert delays[5] > 0
    assert delays == sorted(delays)
    assert max(delays) == 2.0
    assert auth.delay_s("10.0.0.2", 100.0) == 0.0
    assert auth.delay_s("10.0.0.1", 161.0) == 0.0


def test_addresses_of_one_ipv6_network_fail_together_and_the_table_is_bounded():
    auth = Authenticator(CONFIG)
    delays = [auth.delay_s(f"2001:db8::{i:x}", 0.0) for i in range(10)]
    assert delays[-1] > 0
    for i in range(10_000):
        auth.delay_s(f"10.{i >> 16}.{i >> 8 & 255}.{i & 255}", 0.0)
    assert len(auth._failures._seen) <= 4096


# --- open mode -----------------------------------------------------------------------------


def test_without_keys_everybody_on_loopback_is_an_admin():
    auth = Authenticator(Config())
    assert auth.open
    anybody = auth.authenticate([(b"host", b"localhost:7860"), (b"x-api-key", b"whatever")])
    assert anybody.name == anybody.account == ANONYMOUS
    assert anybody.anonymous
    assert anybody.limits.unlimited
    require_admin(anybody)


def test_anonymous_limits_hold_per_client_address():
    config = Config(rate_limit=RateLimit(anonymous=True, concurrent_requests=2))
    auth = Authenticator(config)
    host = [(b"host", b"localhost")]
    one, two = auth.authenticate(host, "10.0.0.1"), auth.authenticate(host, "10.0.0.2")
    assert (one.account, two.account) == ("10.0.0.1", "10.0.0.2")
    assert one.name == two.name == ANONYMOUS
    assert (one.limits, one.concurrency) == (Limits(60, 100000), 2)


def test_open_mode_ends_with_the_first_key_and_never_comes_back():
    auth = Authenticator(Config())
    auth.reload(CONFIG)
    assert not auth.open
    with pytest.raises(InvalidApiKey):
        auth.authenticate([(b"host", b"localhost")])
    auth.reload(Config())
    assert not auth.open
    with pytest.raises(InvalidApiKey):
        auth.authenticate(bearer("alice-key-123"))


def test_it_does_not_open_when_some_place_for_keys_could_not_be_read():
    auth = Authenticator(Config(), may_open=False)
    assert not auth.open
    with pytest.raises(InvalidApiKey):
        auth.authenticate([(b"host", b"localhost")])


def test_reload_takes_and_gives_keys_at_once():
    auth = Authenticator(CONFIG)
    auth.reload(Config(api_keys=(ROOT,)))
    with pytest.raises(InvalidApiKey):
        auth.authenticate(bearer("alice-key-123"))
    assert auth.authenticate(bearer("root-key")).admin


LOCAL = OpenModeGuard("127.0.0.1", ["https://chat.example.org"])
WIDE = OpenModeGuard("0.0.0.0", ["https://chat.example.org"])


def headers(host: str | None, origin: str | None = None) -> list[tuple[bytes, bytes]]:
    pairs = [(b"host", host), (b"origin", origin)]
    return [(name, value.encode("latin-1")) for name, value in pairs if value is not None]


@pytest.mark.parametrize(
    ("guard", "host", "origin"),
    [
        (LOCAL, "localhost", None),
        (LOCAL, "LocalHost:7860", None),
        (LOCAL, "localhost.:7860", None),
        (LOCAL, "127.0.0.1:7860", None),
        (LOCAL, "127.3.2.1", None),
        (LOCAL, "[::1]:7860", None),
        (LOCAL, None, None),  # HTTP/1.0, so no browser
        (LOCAL, "localhost:7860", "http://localhost:7860"),
        (LOCAL, "localhost:7860", "http://127.0.0.1:3000"),
        (LOCAL, "localhost:7860", "http://[::1]:3000"),
        (LOCAL, "localhost:7860", "https://chat.example.org"),
        (WIDE, "gpu01:7860", None),
        (WIDE, "gpu01:7860", "http://gpu01:7860"),
        (WIDE, "gpu01", "http://gpu01:80"),
        (WIDE, "gpu01:443", "https://GPU01"),
        (WIDE, "gpu01:7860", "https://chat.example.org"),
        (OpenModeGuard("0.0.0.0", ["*"]), "gpu01", "https://anything.example"),
        (OpenModeGuard("::1", []), "[::1]:7860", "http://[::1]:7860"),
    ],
)
def test_own_pages_and_programs_come_in(guard, host, origin):
    guard.check(headers(host, origin))


@pytest.mark.parametrize(
    ("guard", "host", "origin"),
    [
        (LOCAL, "evil.example", None),
        (LOCAL, "evil.example:7860", None),
        (LOCAL, "localhost.evil.example", None),
        (LOCAL, "127.0.0.1.evil.example", None),
        (LOCAL, "127.0.0.1@evil.example", None),
        (LOCAL, "localhost:evil", None),
        (LOCAL, "[::1", None),
        (LOCAL, "[::1]x", None),
        (LOCAL, "", None),
        (LOCAL, "10.0.0.1", None),
        (LOCAL, "localhost", "https://evil.example"),
        (LOCAL, "localhost", "null"),
        (LOCAL, "localhost", ""),
        (LOCAL, "localhost", "chrome-extension://localhost"),
        (LOCAL, "localhost", "http://localhost.evil.example"),
        (LOCAL, "localhost", "http://chat.example.org"),
        (WIDE, "gpu01:7860", "http://evil.example"),
        (WIDE, "gpu01:7860", "http://gpu01:8080"),
        (WIDE, "gpu01:7860", "http://gpu01"),
        (WIDE, "gpu01:7860", "null"),
        (WIDE, None, "http://gpu01"),
        (WIDE, "", "http://"),
    ],
)
def test_other_sites_stay_out(guard, host, origin):
    with pytest.raises(PermissionDenied):
        guard.check(headers(host, origin))


@pytest.mark.parametrize("twice", ["host", "origin"])
def test_two_of_a_kind_are_refused(twice):
    pairs = headers("localhost", "http://localhost")
    with pytest.raises(PermissionDenied):
        LOCAL.check([*pairs, *[pair for pair in pairs if pair[0].decode() == twice]])


@given(st.binary(max_size=40), st.none() | st.binary(max_size=40))
def test_the_guard_stands_any_bytes(host, origin):
    pairs = [(b"host", host)] + ([(b"origin", origin)] if origin is not None else [])
    for guard in (LOCAL, WIDE):
        with contextlib.suppress(PermissionDenied):
            guard.check(pairs)


def test_the_guard_is_on_in_open_mode_only():
    stranger = [(b"host", b"evil.example"), *bearer("alice-key-123")[1:]]
    with pytest.raises(PermissionDenied):
        Authenticator(Config()).authenticate(stranger)
    assert Authenticator(CONFIG).authenticate(stranger).name == "alice"
    wide = Authenticator(Config(server=Server(host="0.0.0.0")))
    assert wide.authenticate([(b"host", b"gpu01")]).anonymous


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True), ("localhost", True), ("::1", True), ("[::1]", True),
        ("::ffff:127.0.0.1", True), ("127.9.9.9", True), ("0.0.0.0", False), ("::", False),
        ("", False), ("192.168.1.2", False), ("gpu01", False), ("localhost.example", False),
    ],
)  # fmt: skip
def test_loopback(host, local):
    assert is_loopback(host) is local
    listen_allowed(host, has_keys=True, allow_open=False)
    listen_allowed(host, has_keys=False, allow_open=True)
    if local:
        listen_allowed(host, has_keys=False, allow_open=False)
    else:
        with pytest.raises(ConfigError, match="llmd init.*allow_open"):
            listen_allowed(host, has_keys=False, allow_open=False)


# --- addresses -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("10.0.0.9", [], "10.0.0.9"),
        ("10.0.0.9", ["1.2.3.4"], "1.2.3.4"),
        ("10.0.0.9", ["6.6.6.6, 1.2.3.4"], "1.2.3.4"),
        ("10.0.0.9", ["6.6.6.6", "1.2.3.4, 10.1.1.1"], "1.2.3.4"),
        ("10.0.0.9", ["1.2.3.4:5555"], "1.2.3.4"),
        ("10.0.0.9", ["[2001:db8::1]:5555"], "2001:db8::1"),
        ("10.0.0.9", ["junk"], "10.0.0.9"),
        ("10.0.0.9", ["1.2.3.4, junk, 10.2.2.2"], "10.2.2.2"),
        ("10.0.0.9", [", ,"], "10.0.0.9"),
        ("::ffff:10.0.0.9", ["1.2.3.4"], "1.2.3.4"),
        ("8.8.8.8", ["1.2.3.4"], "8.8.8.8"),
        ("", ["1.2.3.4"], ""),
    ],
)
def test_only_trusted_proxies_are_believed(peer, forwarded, client):
    pairs = [(b"x-forwarded-for", value.encode()) for value in forwarded]
    assert TrustedProxies(["10.0.0.0/8"]).client(peer, pairs) == client
    assert TrustedProxies([]).client(peer, pairs) == peer


@given(st.binary(max_size=80))
def test_proxies_may_send_any_bytes(value):
    TrustedProxies(["10.0.0.0/8", "::/0"]).client("10.0.0.1", [(b"x-forwarded-for", value)])


@pytest.mark.parametrize(
    ("address", "group"),
    [
        ("10.0.0.1", "10.0.0.1"), ("2001:db8::1:2", "2001:db8::/64"), ("::1", "::/64"),
        ("::ffff:10.0.0.1", "10.0.0.1"), ("fe80::1%eth0", "fe80::/64"), ("", ""), ("a:b", "a:b"),
    ],
)  # fmt: skip
def test_one_client_is_one_group(address, group):
    assert address_group(address) == group
