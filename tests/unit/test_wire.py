"""HTTP/1.1 on llhttp says what h11 says, and refuses what nobody may act on."""

from __future__ import annotations

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmd.api.wire import END, MAX_HEAD_BYTES, NEED_DATA, BadRequest, Head, Wire

HOST = b"Host: box\r\n"


def told(wire, body=b""):
    """Return what a wire tells of the request that it is at, its body in one piece."""
    found = []
    while (event := wire.next_event()) is not NEED_DATA:
        if isinstance(event, Head):
            found.append((event.method, event.target, event.headers, event.http_version))
        elif event is END:
            found += [body, END]
        else:
            body += event
    return found if wire.their_state is not h11.SEND_BODY else [*found, body]


def answer(wire, *, last=False):
    sent = wire.response(200, [(b"content-length", b"0")], last=last)
    return sent + wire.end()


def all_told(pieces):
    """Serve one request after the other; returns what was told of each, and the refusal if any."""
    wire, found = Wire(), []
    for piece in pieces:
        wire.receive_data(piece)
        while True:
            body = found.pop() if wire.their_state is h11.SEND_BODY else b""
            try:
                found += told(wire, body)
            except BadRequest as refused:
                return [*found, refused.status]
            if wire.their_state is not h11.DONE:
                break
            answer(wire)
            wire.start_next_cycle()
    return found


def all_told_by_h11(pieces):
    connection, found, body = h11.Connection(h11.SERVER), [], b""
    in_body = False
    for piece in pieces:
        if connection.their_state in (h11.MUST_CLOSE, h11.CLOSED):
            break
        connection.receive_data(piece)
        while True:
            try:
                event = connection.next_event()
            except h11.RemoteProtocolError as error:
                return [*found, error.error_status_hint]
            if isinstance(event, h11.Request):
                headers = list(event.headers)
                found.append((event.method, event.target, headers, event.http_version))
                body, in_body = b"", True
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                found += [body, END]
                in_body = False
                connection.send(h11.Response(status_code=200, headers=[(b"content-length", b"0")]))
                connection.send(h11.EndOfMessage())
                if connection.our_state is not h11.DONE:
                    return found
                connection.start_next_cycle()
            else:
                break
    return [*found, body] if in_body else found


BODIES = st.binary(max_size=40)
NAMES = st.sampled_from([b"Accept", b"X-A", b"x-b", b"Authorization", b"User-Agent"])
VALUES = st.sampled_from([b"", b"a", b"a b", b"  padded \t", b"\xc3\xbc", b"Bearer sk-1"])


def chunked(body, size):
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


@st.composite
def requests(draw):
    method = draw(st.sampled_from([b"GET", b"POST", b"HEAD", b"PUT", b"DELETE", b"OPTIONS"]))
    target = draw(st.sampled_from([b"/", b"/v1/models?a=b", b"/%20x", b"//x", b"http://box/x"]))
    version = draw(st.sampled_from([b"1.1", b"1.1", b"1.1", b"1.0"]))
    headers = draw(st.lists(st.tuples(NAMES, VALUES), max_size=4))
    lines = [HOST] + [b"%b:%b\r\n" % header for header in headers]
    body, framing = draw(BODIES), draw(st.sampled_from(["none", "length", "chunked"]))
    if framing == "length":
        lines.append(b"Content-Length: %d\r\n" % len(body))
    elif framing == "chunked" and version == b"1.1":
        lines.append(b"Transfer-Encoding: chunked\r\n")
        body = chunked(body, draw(st.integers(1, 20)))
    else:
        body = b""
    lines += draw(
        st.sampled_from(
            [
                [],
                [],
                [b"Connection: close\r\n"],
                [b"Connection: keep-alive\r\n"],
                [b"Expect: 100-continue\r\n"],
            ]
        )
    )
    draw(st.randoms(use_true_random=False)).shuffle(lines)
    return b"%b %b HTTP/%b\r\n%b\r\n%b" % (method, target, version, b"".join(lines), body)


def cut(data, places):
    ends = sorted({place % (len(data) + 1) for place in places} | {0, len(data)})
    return [data[start:end] for start, end in zip(ends, ends[1:], strict=False)]


@given(st.lists(requests(), min_size=1, max_size=3).map(b"".join), st.lists(st.integers(0, 999)))
def test_requests_mean_what_h11_says_however_they_are_cut(data, places):
    pieces = cut(data, places)
    assert all_told(pieces) == all_told_by_h11(pieces)


@given(
    requests(),
    st.lists(st.tuples(st.integers(0, 999), st.sampled_from(b"\0\r\n :;,x1\x7f\xff")), max_size=3),
    st.lists(st.integers(0, 999), max_size=4),
)
def test_what_both_take_means_the_same_to_both(data, flips, places):
    spoilt = bytearray(data)
    for place, value in flips:
        spoilt[place % len(spoilt)] = value
    pieces = cut(bytes(spoilt), places)
    ours, theirs = all_told(pieces), all_told_by_h11(pieces)
    for mine, other in zip(ours, theirs, strict=False):
        if isinstance(mine, int) or isinstance(other, int):
            return  # one of them is stricter
        assert mine == other


@given(st.binary(max_size=200), st.lists(st.integers(0, 999), max_size=4))
def test_rubbish_is_refused_or_waited_for(data, places):
    for found in all_told(cut(data, places)):
        assert found not in range(100, 400)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 400),  # no host
        (b"GET / HTTP/1.1\r\n" + HOST + HOST + b"\r\n", 400),
        (b"GET / HTTP/1.9\r\n" + HOST + b"\r\n", 505),
        (b"GET / HTTP/2.0\r\n" + HOST + b"\r\n", 505),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"BREW / HTTP/1.1\r\n" + HOST + b"\r\n", 501),
        (b"GET / HTTP/1.1\r\n" + HOST + b"\r\nBREW / HTTP/1.1\r\n", 400),  # not the first's method
        (b"\x16\x03\x01\x02\x00\x01\x00", 400),
        (b"GET /\xff HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"GET x HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"GET / HTTP/1.1\r\nA : b\r\n" + HOST + b"\r\n", 400),
        (b"GET / HTTP/1.1\r\nA: b\r\n c\r\n" + HOST + b"\r\n", 400),
        (b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: gzip\r\n\r\n", 501),
        (b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: gzip, chunked\r\n\r\n", 501),
        (b"POST / HTTP/1.0\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n", 400),
        (
            b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\nContent-Length: 1\r\n",
            400,
        ),
        (
            b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n",
            400,
        ),
        (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\nContent-Length: 2\r\n", 400),
        (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: -1\r\n", 400),
        (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 99999999999999999999999\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + b"A: " + b"x" * MAX_HEAD_BYTES + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\n" + HOST + b"A: " + b"x" * MAX_HEAD_BYTES, 431),
        (b"GET /" + b"x" * MAX_HEAD_BYTES, 431),
    ],
)
def test_what_is_refused(data, status):
    assert all_told([data])[-1] == status


def test_two_framings_are_named():
    wire = Wire()
    wire.receive_data(
        b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    with pytest.raises(BadRequest, match="exclude each other"):
        wire.next_event()


OFFER = b"Connection: Upgrade, keep-alive\r\nUpgrade: h2c\r\n"


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_another_protocol_is_not_spoken_and_the_body_is_read(size):
    data = (
        b"POST /a HTTP/1.1\r\n" + HOST + OFFER + b"Content-Length: 3\r\n\r\nabc"
        b"PUT /b HTTP/1.1\r\n" + HOST + OFFER + b"Transfer-Encoding: chunked\r\n\r\n"
        b"2\r\nde\r\n0\r\n\r\n"
        b"CONNECT c:1 HTTP/1.1\r\n" + HOST + b"\r\n"
        b"GET /d HTTP/1.1\r\n" + HOST + b"\r\n"
    )
    found = all_told([data[at : at + size] for at in range(0, len(data), size)])
    heads = [each[:2] for each in found if isinstance(each, tuple)]
    assert heads == [(b"POST", b"/a"), (b"PUT", b"/b"), (b"CONNECT", b"c:1"), (b"GET", b"/d")]
    assert [each for each in found if isinstance(each, bytes)] == [b"abc", b"de", b"", b""]


@pytest.mark.parametrize("headers", [b"Connection: keep-alive\r\n", OFFER, b""])
def test_http_1_0_ends_with_its_answer_whatever_it_asks_for(headers):
    """A client that is told nothing of a connection that stays waits for its end."""
    wire = asked(version=b"1.0", headers=headers)
    assert wire.their_state is h11.MUST_CLOSE
    assert b"Connection: close" in answer(wire)
    assert wire.our_state is h11.MUST_CLOSE


def test_thousands_of_offers_in_one_piece():
    one = b"GET / HTTP/1.1\r\nHost: b\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"
    assert len(all_told([one * 3000])) == 3 * 3000


def test_what_comes_early_waits_for_its_turn():
    wire = Wire()
    wire.receive_data(b"GET /1 HTTP/1.1\r\n" + HOST + b"\r\nGET /2 HTTP/1.1\r\n" + HOST)
    assert wire.their_state is not h11.DONE
    assert len(told(wire)) == 3
    assert wire.their_state is h11.DONE
    assert wire.holds_more
    answer(wire)
    wire.start_next_cycle()
    assert told(wire) == []
    assert wire.holds_more  # a part of a head
    wire.receive_data(b"\r\nrubbish\0")
    assert told(wire)[0][1] == b"/2"
    answer(wire)
    wire.start_next_cycle()
    with pytest.raises(BadRequest):
        wire.next_event()


def test_trailers_are_dropped_and_bounded():
    head = b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"
    found = all_told([head + b"1\r\na\r\n0\r\nX-Late: b\r\n\r\n"])
    assert found[0][2] == [(b"host", b"box"), (b"transfer-encoding", b"chunked")]
    assert found[1:] == [b"a", END]
    endless = [head, b"0\r\n", *[b"X-Late: " + b"b" * 1000 + b"\r\n"] * 70]
    assert all_told(endless)[-1] == 400
    assert all_told([head, b"1;", *[b"x" * 1000] * 70])[-1] == 400


def test_who_waits_for_leave_waits_until_told_or_answered():
    head = b"POST / HTTP/1.1\r\n" + HOST + b"Expect: 100-Continue\r\nContent-Length: 1\r\n\r\n"
    wire = Wire()
    wire.receive_data(head)
    wire.next_event()
    assert wire.they_are_waiting_for_100_continue
    assert wire.go_on() == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert not wire.they_are_waiting_for_100_continue
    impatient = Wire()
    impatient.receive_data(head + b"x")
    impatient.next_event()
    impatient.next_event()
    assert not impatient.they_are_waiting_for_100_continue


# --- answers -------------------------------------------------------------------------------


def asked(method=b"GET", version=b"1.1", headers=b"", body=b""):
    wire = Wire()
    wire.receive_data(b"%b / HTTP/%b\r\n%b%b\r\n%b" % (method, version, HOST, headers, body))
    told(wire)
    return wire


def read(method, data):
    """Return an answer as h11's client reads it: status, headers, body, whether it stays open."""
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method=method, target="/", headers=[("host", "box")]))
    client.send(h11.EndOfMessage())
    client.receive_data(data)
    response, body = client.next_event(), b""
    while isinstance(event := client.next_event(), h11.Data):
        body += bytes(event.data)
    if event is h11.NEED_DATA:  # its end is the connection's
        client.receive_data(b"")
        event = client.next_event()
    assert isinstance(event, h11.EndOfMessage)
    stays = client.their_state is h11.DONE
    return response.status_code, dict(response.headers.raw_items()), body, stays


@pytest.mark.parametrize(
    ("status", "length", "method", "version", "asks", "last", "stays"),
    [
        (200, True, b"GET", b"1.1", b"", False, True),
        (200, False, b"GET", b"1.1", b"", False, True),
        (200, True, b"GET", b"1.1", b"", True, False),
        (200, True, b"GET", b"1.1", b"Connection: close\r\n", False, False),
        (200, True, b"GET", b"1.0", b"", False, False),
        (200, False, b"GET", b"1.0", b"", False, False),
        (200, True, b"HEAD", b"1.1", b"", False, True),
        (200, False, b"HEAD", b"1.1", b"", False, True),
        (204, False, b"GET", b"1.1", b"", False, True),
        (404, True, b"GET", b"1.1", b"", False, True),
    ],
)
def test_an_answer_is_what_a_client_reads(status, length, method, version, asks, last, stays):
    wire = asked(method, version, asks)
    bodiless = method == b"HEAD" or status == 204
    headers = [(b"x-a", b"b")] + ([(b"content-length", b"5")] if length else [])
    sent = wire.response(status, headers, last=last)
    if not bodiless:
        sent += wire.body(b"abc") + wire.body(b"") + wire.body(b"de")
    sent += wire.end()
    got_status, got_headers, body, stays_open = read(method.decode(), sent)
    assert (got_status, got_headers[b"x-a"]) == (status, b"b")
    assert body == (b"" if bodiless else b"abcde")
    assert stays_open is stays
    assert wire.our_state is (h11.DONE if stays else h11.MUST_CLOSE)
    if stays:
        assert b"Connection" not in got_headers


def test_an_answer_before_its_requests_body_is_the_last():
    wire = asked(b"POST", headers=b"Content-Length: 9\r\n", body=b"abc")
    assert b"Connection: close" in answer(wire)


def test_an_application_may_end_the_connection():
    wire = asked()
    sent = wire.response(200, [(b"content-length", b"0"), (b"connection", b"close")], last=True)
    assert sent.lower().count(b"connection: close") == 1
    wire.end()
    assert wire.our_state is h11.MUST_CLOSE


@pytest.mark.parametrize("value", [b"a\r\nSet-Cookie: b", b"a\nb", b"a\rb"])
def test_a_header_that_would_be_two_is_not_sent_and_another_answer_may_be(value):
    wire = asked()
    with pytest.raises(ValueError, match="line end"):
        wire.response(200, [(b"x", value)], last=False)
    _, _, body, stays = read("GET", answer(wire))
    assert (body, stays) == (b"", True)
    assert not wire.chunked


def test_an_answer_that_is_no_answer_is_not_sent():
    wire = asked()
    wire.response(200, [(b"content-length", b"1")], last=False)
    with pytest.raises(ValueError, match="longer"):
        wire.body(b"ab")
    wire = asked()
    wire.response(200, [(b"content-length", b"1")], last=False)
    with pytest.raises(ValueError, match="shorter"):
        wire.end()
