"""gRPC without a socket: whatever way the bytes come, the same calls; whatever they are, an end."""

import gzip

import ngh2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.torture.attackers import begun
from tfserve_kit.embedded import grpc_protocol
from tfserve_kit.embedded.grpc_protocol import GrpcLimits, GrpcSession
from tfserve_kit.embedded.http2 import Http2Limits
from tfserve_kit.embedded.ledger import Ledger
from tfserve_kit.embedded.status import Code

PATH = "/a.B/C"
LIMITS = GrpcLimits()
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
MOST = 1 << 20


def framed(message, *, flag=0):
    return bytes([flag]) + len(message).to_bytes(4, "big") + message


def headers(path=PATH, *, method=b"POST", kind=b"application/grpc", **more):
    return [
        (b":method", method),
        (b":scheme", b"http"),
        (b":authority", b"a"),
        (b":path", path.encode()),
        (b"content-type", kind),
        (b"te", b"trailers"),
        *((name.replace("_", "-").encode(), value) for name, value in more.items()),
    ]


class Client:
    """A client's end, by the same library, and the server's."""

    def __init__(self, limits=LIMITS, ledger=None, config=None):
        self.ledger = ledger or Ledger(1 << 30)
        self.server = GrpcSession(self.ledger, "client", limits)
        self.http = ngh2.Connection(ngh2.Role.CLIENT, config)
        self.http.initiate_connection({ngh2.Setting.INITIAL_WINDOW_SIZE: 1 << 24})
        self.http.set_local_window_size(1 << 24)
        self.calls, self.said, self.now_s = [], {}, 0.0

    def call(self, message=b"x", **more):
        number = self.begin(**more)
        self.http.send_data(number, framed(message), end_stream=True)
        return number

    def begin(self, **more):
        return self.http.send_request(headers(**more))

    def talk(self, sizes=()):
        """Exchange bytes until both have said all, the client's in pieces of these sizes."""
        while True:
            sent = self.http.data_to_send()
            self.feed(sent, sizes)
            answer = self.server.take(MOST)
            if answer:
                self.hear(answer)
            if not sent and not answer:
                return self

    def feed(self, data, sizes=()):
        sizes = list(sizes)
        while data:
            size = max(1, sizes.pop(0)) if sizes else len(data)
            self.calls += self.server.receive(data[:size], self.now_s)
            data = data[size:]

    def hear(self, data):
        self.http.receive_data(data)
        for event in self.http.events():
            number = getattr(event, "stream_id", None)
            self.said.setdefault(number, []).append(event)

    def fields(self, number):
        """Return the headers and trailers of an answer."""
        found = {}
        for event in self.said.get(number, []):
            if isinstance(event, ngh2.ResponseReceived | ngh2.TrailersReceived):
                found |= dict(event.headers)
        return found

    def code(self, number):
        return Code(int(self.fields(number)[b"grpc-status"]))

    def body(self, number):
        events = self.said.get(number, [])
        return b"".join(event.data for event in events if isinstance(event, ngh2.DataReceived))

    def goodbye(self):
        """Return the code and text of the first GOAWAY, None without one."""
        for event in self.said.get(None, []):
            if isinstance(event, ngh2.GoAwayReceived):
                return event.error_code, event.debug_data
        return None


@pytest.fixture
def client():
    return Client()


def test_call_comes_with_its_path_and_message_and_gets_its_answer(client):
    number = client.call(b"question")
    client.talk()
    (stream,) = client.calls
    assert (stream.path, stream.message, stream.deadline_s) == (PATH, b"question", None)
    client.server.answer(stream, Code.OK, body=b"answer")
    client.talk()
    assert client.body(number) == framed(b"answer")
    assert client.fields(number) == {
        b":status": b"200",
        b"content-type": b"application/grpc",
        b"grpc-accept-encoding": b"identity, deflate, gzip",
        b"grpc-status": b"0",
    }
    assert not client.server.streams


@pytest.mark.parametrize("more", [b"", framed(b"another")], ids=["no more", "another message"])
@pytest.mark.parametrize("size", [1, 70_000], ids=["small", "in pieces"])
def test_end_that_comes_once_somebody_works_on_the_message_changes_nothing(client, size, more):
    number = client.begin()
    client.http.send_data(number, framed(b"x" * size))
    client.talk()
    (stream,) = client.calls
    message, stream.message = stream.message, None  # as whoever works on it does
    client.http.send_data(number, more, end_stream=True)
    client.talk()
    assert client.calls == [stream] and len(message) == size
    assert not stream.is_answered and stream.has_ended
    client.server.answer(stream, Code.OK, body=b"answer")
    client.talk()
    assert (client.code(number), client.body(number)) == (Code.OK, framed(b"answer"))


MESSAGES = st.lists(st.binary(max_size=40) | st.just(b"x" * 70_000), min_size=1, max_size=6)
SIZES = st.lists(st.integers(1, 60), max_size=60)


@settings(deadline=None, max_examples=150)
@given(MESSAGES, SIZES, st.lists(st.integers(1, 20), max_size=20), st.randoms())
def test_same_calls_however_bytes_are_cut_and_streams_are_mixed(messages, sizes, cuts, dice):
    client = Client()
    left = {}
    for message in messages:
        number = client.begin()
        data, pieces = framed(message), []
        for cut in cuts:
            pieces.append(data[:cut])
            data = data[cut:]
        left[number] = [*filter(None, pieces), data]
    expected = dict(zip(left, messages, strict=True))
    while left:
        number = dice.choice(list(left))
        piece = left[number].pop(0)
        client.http.send_data(number, piece, end_stream=not left[number])
        if not left[number]:
            del left[number]
        if dice.random() < 0.5:
            client.talk(sizes)
    client.talk(sizes)
    assert {stream.number: stream.message for stream in client.calls} == expected
    for stream in client.calls:
        client.server.answer(stream, Code.OK, body=stream.message)
    client.talk()
    assert {number: client.body(number)[5:] for number in expected} == expected
    assert client.ledger.held_bytes == 0
    assert not client.server.streams


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=300), st.integers(0, 400), SIZES)
def test_any_bytes_at_any_point_end_without_an_exception_and_hold_nothing(junk, at, sizes):
    client = Client()
    client.call(b"x" * 100)
    client.begin()
    client.http.send_data(client.begin(), framed(b"x" * 70_000)[:20_000])
    sent = client.http.data_to_send()
    client.feed(sent[:at] + junk + sent[at:], sizes)
    client.server.take(MOST)
    client.server.end()
    assert client.ledger.held_bytes == 0
    assert not client.server.streams
    assert client.server.receive(sent, 0.0) == []


@pytest.mark.parametrize(
    ("text", "timeout_s"),
    [
        (b"2H", 7200),
        (b"3M", 180),
        (b"10S", 10),
        (b"250m", 0.25),
        (b"99999999u", 99.999999),
        (b"0n", 0),
    ],
)
def test_timeout_is_a_deadline_from_when_the_call_began(client, text, timeout_s):
    client.now_s = 1000.0
    client.call(grpc_timeout=text)
    client.talk()
    assert client.calls[0].deadline_s == pytest.approx(1000 + timeout_s)


@pytest.mark.parametrize("text", [b"S", b"1", b"-1S", b"1.5S", b"123456789S", b"1x", b"\xb2S"])
def test_timeout_that_is_none_is_refused(client, text):
    number = client.call(grpc_timeout=text)
    client.talk()
    assert client.code(number) is Code.INTERNAL
    assert not client.calls


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ({"method": b"GET"}, b"405"),
        ({"kind": b"application/json"}, b"415"),
        ({"kind": b"application/grpc+proto"}, b"200"),
    ],
)
def test_what_is_no_call_is_refused_in_terms_of_http(client, given, status):
    number = client.call(**given)
    client.talk()
    for stream in client.calls:
        client.server.answer(stream, Code.OK)
    client.talk()
    assert client.fields(number)[b":status"] == status
    assert not client.server.streams


@pytest.mark.parametrize(
    ("sent", "encoding", "code"),
    [
        (b"", None, Code.UNIMPLEMENTED),
        (b"\0", None, Code.INTERNAL),
        (framed(b"xx")[:-1], None, Code.INTERNAL),
        (framed(b"x", flag=1), None, Code.INTERNAL),
        (framed(b"x", flag=1), b"identity", Code.INTERNAL),
        (framed(b"x", flag=2), b"gzip", Code.INTERNAL),
        (framed(b"x", flag=1), b"snappy", Code.UNIMPLEMENTED),
    ],
    ids=["nothing", "prefix", "cut", "no-encoding", "identity", "flag", "unknown"],
)
def test_message_that_is_none_is_refused(client, sent, encoding, code):
    number = client.begin(**({"grpc_encoding": encoding} if encoding else {}))
    client.http.send_data(number, sent, end_stream=True)
    client.talk()
    assert client.code(number) is code
    assert not client.calls
    assert not client.server.streams


def test_compressed_message_is_told_from_one_that_is_not(client):
    packed = gzip.compress(b"x" * 100)
    for flag in (0, 1):
        number = client.begin(grpc_encoding=b"gzip")
        client.http.send_data(number, framed(packed, flag=flag), end_stream=True)
    client.talk()
    assert [(call.message, call.is_compressed) for call in client.calls] == [
        (packed, False),
        (packed, True),
    ]


@pytest.mark.parametrize("whole", [True, False])
def test_message_over_the_limit_is_refused_before_it_comes(whole):
    client = Client(GrpcLimits(most_message_bytes=10))
    number = client.begin()
    client.http.send_data(number, framed(b"x" * 11)[: None if whole else 5])
    client.talk()
    assert client.code(number) is Code.RESOURCE_EXHAUSTED
    assert client.fields(number)[b"grpc-message"] == b"Received message larger than max (11 vs. 10)"
    assert not client.server.streams


def test_answer_over_the_limit_is_an_error():
    client = Client(GrpcLimits(most_answer_bytes=3))
    number = client.call()
    client.talk()
    client.server.answer(client.calls[0], Code.OK, body=b"four")
    client.talk()
    assert client.code(number) is Code.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(
    ("details", "sent"),
    [
        ("a b~", b"a b~"),
        ("100%\n", b"100%25%0A"),
        ("é", b"%C3%A9"),
        ("\udcff", b"%FF"),
        ("x" * 1025, b"x" * 1024 + b"...TRUNCATED"),
    ],
)
def test_details_are_percent_encoded(client, details, sent):
    number = client.call()
    client.talk()
    client.server.answer(client.calls[0], Code.NOT_FOUND, details)
    client.talk()
    assert client.fields(number)[b"grpc-message"] == sent
    assert client.code(number) is Code.NOT_FOUND


def test_call_is_made_when_its_message_is_whole_though_the_client_may_send_more(client):
    number = client.begin()
    client.http.send_data(number, framed(b"first") + framed(b"second"))
    client.talk()
    assert [call.message for call in client.calls] == [b"first"]
    client.server.answer(client.calls[0], Code.OK, body=b"answer")
    client.talk()
    # It has all of the answer, and is told that nobody listens any more.
    assert client.body(number) == framed(b"answer")
    assert client.code(number) is Code.OK
    assert any(isinstance(event, ngh2.StreamReset) for event in client.said[number])
    assert not client.server.streams


def test_client_that_cancels_is_noticed_and_its_answer_goes_nowhere(client):
    told = []
    number = client.call(b"x" * 100_000)
    client.talk()
    (stream,) = client.calls
    stream.is_working = True
    stream.on_gone(lambda: told.append("before"))
    client.http.reset_stream(number)
    client.talk()
    stream.on_gone(lambda: told.append("after"))
    assert told == ["before", "after"]
    assert stream.has_gone()
    assert client.server.take_gone() == [stream]
    assert client.ledger.held_bytes > 0  # as it is still worked with
    stream.is_working = False
    client.server.answer(stream, Code.OK, body=b"late")
    assert client.ledger.held_bytes == 0
    assert client.talk().body(number) == b""


def test_call_that_is_cancelled_with_the_same_breath_is_never_made(client):
    number = client.call()
    sent = client.http.data_to_send()
    client.http.reset_stream(number)
    client.feed(sent + client.http.data_to_send())
    assert client.calls == []


def test_message_without_room_is_refused_while_it_comes_and_others_are_taken():
    client = Client(ledger=Ledger(200_000))
    large = client.begin()
    client.http.send_data(large, b"\0" + (10**9).to_bytes(4, "big"))
    client.http.send_data(large, bytes(300_000))
    client.talk()
    assert client.code(large) is Code.RESOURCE_EXHAUSTED
    small = client.call(b"x" * 1000)
    client.talk()
    assert [call.number for call in client.calls] == [small]
    assert client.ledger.held_bytes == 0


def test_large_answer_is_held_until_it_is_taken():
    client = Client()
    client.http.update_settings({ngh2.Setting.INITIAL_WINDOW_SIZE: 1000})
    number = client.call()
    client.talk()
    (stream,) = client.calls
    stream.account.take(200_000, "the answer")
    client.server.answer(stream, Code.OK, body=bytes(200_000))
    for _ in range(3):
        client.server.take(MOST)
    assert client.ledger.held_bytes == 200_000
    assert client.server.unsent_bytes(stream) > 0
    client.server.reset(stream)
    client.server.take(MOST)
    assert client.ledger.held_bytes == 0
    assert number not in client.server.streams


def test_several_messages_and_an_end_are_an_answer_too(client):
    number = client.call()
    client.talk()
    (stream,) = client.calls
    client.server.begin(stream, b"one")
    client.talk()
    client.server.begin(stream, b"two")
    client.server.finish(stream, Code.UNAVAILABLE, "the end")
    client.talk()
    assert client.body(number) == framed(b"one") + framed(b"two")
    assert client.code(number) is Code.UNAVAILABLE


def test_end_is_announced_then_it_comes_once_all_calls_are_answered(client):
    first = client.call()
    client.talk()
    client.server.announce_end()
    client.server.ping(b"farewell")
    second = client.call() if client.http.can_send_request else None
    client.talk()
    assert client.server.pong == b"farewell"
    assert second is None or len(client.calls) == 2  # what was on its way is served
    client.server.end_after_calls()
    client.talk()
    assert not client.server.is_over
    for stream in client.calls:
        client.server.answer(stream, Code.OK)
    client.talk()
    assert client.code(first) is Code.OK
    assert client.server.is_over
    assert client.goodbye() == (0, b"")


# Clients that go too far


def flood(client, frames):
    """Send frames; return the code of the goodbye, or None."""
    client.talk()
    client.feed(frames)
    answer = client.server.take(1 << 24)
    if answer:
        client.hear(answer)
    return client.goodbye()


def frame(kind, flags, stream, payload=b""):
    head = len(payload).to_bytes(3, "big") + bytes([kind, flags])
    return head + stream.to_bytes(4, "big") + payload


def test_pings_too_close_together_end_the_connection_as_in_the_library(client):
    client.talk()
    for _ in range(3):
        client.feed(frame(6, 0, 0, b"12345678"))
    client.talk()
    assert client.goodbye() is None
    client.feed(frame(6, 0, 0, b"12345678"))
    client.hear(client.server.take(MOST))
    assert client.goodbye() == (ngh2.ErrorCode.ENHANCE_YOUR_CALM, b"too_many_pings")
    assert client.server.is_over


def test_pings_far_enough_apart_or_beside_answers_are_welcome(client):
    client.call()
    client.talk()
    for _ in range(20):
        client.now_s += 301
        client.feed(frame(6, 0, 0, b"12345678"))
    for _ in range(20):
        client.call()
        client.talk()
        client.server.answer(client.calls[-1], Code.OK)
        client.feed(frame(6, 0, 0, b"12345678"))
    client.talk()
    assert client.goodbye() is None


@pytest.mark.parametrize(
    "flooding",
    [frame(4, 0, 0), frame(8, 0, 0, b"\0\0\0\1")],
    ids=["settings", "windows"],
)
def test_frames_that_do_nothing_by_the_thousand_end_the_connection(client, flooding, monkeypatch):
    monkeypatch.setattr(grpc_protocol, "_MOST_IDLE_FRAMES", 500)
    client.call()
    client.talk()
    flood(client, flooding * 5000)
    assert client.server.is_over


def test_streams_that_are_reset_at_once_by_the_thousand_end_the_connection():
    client = Client(config=ngh2.Configuration(peer_max_concurrent_streams=1 << 30))
    made = 0
    for _ in range(30_000):
        number = client.call()
        sent = client.http.data_to_send()
        client.http.reset_stream(number)
        client.feed(sent + client.http.data_to_send())
        client.server.take(MOST)
        made = len(client.calls)
        if client.server.is_over:
            break
    assert client.server.is_over
    assert made == 0
    assert not client.server.streams


def test_headers_without_end_end_the_connection(client):
    client.talk()
    block = b"\x83\x86\x84" + b"\x00\x01a" + bytes([100]) + b"x" * 100
    flood(client, frame(1, 0, 1, block) + frame(9, 0, 1, b"") * 1000)
    assert client.server.is_over


def test_headers_that_become_large_end_the_connection():
    client = Client(GrpcLimits(Http2Limits(most_header_bytes=4096)))
    client.talk()
    name = b"\x40\x01a" + b"\x7f\x81\x1e" + b"x" * 4000  # remembered, then repeated by one byte
    flood(client, frame(1, 4, 1, b"\x83\x86\x84" + name + b"\xbe" * 1000))
    assert client.server.is_over
    assert not client.calls


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        PREFACE + frame(0, 0, 1, b"x"),
        PREFACE + frame(4, 0, 0) + frame(0, 0, 1, b"x"),
        PREFACE + frame(4, 0, 0) + frame(8, 0, 0, bytes(4)),
        PREFACE + frame(4, 0, 0) + frame(8, 0, 0, b"\x7f\xff\xff\xff"),
        PREFACE + frame(4, 0, 0) + frame(6, 0, 0, b"short"),
        PREFACE + frame(4, 0, 0, b"12345"),
        PREFACE + frame(4, 0, 0, b"\0\4\xff\xff\xff\xff"),
        PREFACE + frame(4, 0, 0) + frame(9, 4, 1, b"x"),
        PREFACE + frame(4, 0, 0) + frame(1, 5, 2, b"\x83"),
        PREFACE + frame(4, 0, 0) + frame(1, 5, 1, b"\xff\xff\xff\xff"),
        PREFACE + frame(4, 0, 0) + frame(5, 4, 1, b"\0\0\0\2\x83"),
        PREFACE + frame(4, 0, 0) + frame(3, 0, 1, bytes(4)),
        PREFACE + frame(4, 0, 0) + b"\0" + b"\xff" * 9,
    ],
    ids=[
        "http1", "no-settings", "data-idle-stream", "window-zero", "window-overflow", "ping-size",
        "settings-size", "window-setting", "continuation", "even-stream", "hpack", "push",
        "reset-idle-stream", "frame-size",
    ],
)  # fmt: skip
def test_breach_of_the_protocol_ends_the_connection(sent):
    server = GrpcSession(Ledger(1 << 30), "client", LIMITS)
    assert server.receive(sent, 0.0) == []
    server.take(MOST)
    server.take(MOST)
    assert server.is_over


@pytest.mark.parametrize(
    ("sent", "wasted"),
    [
        (frame(4, 0, 0), 1),
        (frame(6, 0, 0, b"12345678"), 1),
        (frame(8, 0, 0, b"\0\0\0\1"), 1),
        (frame(8, 0, 0, b"\0\1\0\0"), 0),
        (begun(1) + frame(0, 0, 1), 1),
        (begun(1) + frame(0, 0, 1, b"\0"), 1),
        (begun(1) + frame(0, 0, 1, bytes(100)), 0),
        (begun(1) + frame(3, 0, 1, bytes(4)), 2),
        (begun(1) + frame(0, 1, 1, framed(b"x")), 0),
        (begun(1) + frame(0, 1, 1, framed(b"x")) + frame(3, 0, 1, bytes(4)), 2),
        (b"\0" + b"\xff" * 9, 300),
    ],
    ids=[
        "settings", "ping", "small window", "large window", "empty data", "tiny data", "data",
        "call taken back", "call", "whole call taken back", "breach",
    ],
)  # fmt: skip
def test_what_does_nothing_for_a_call_is_counted(client, sent, wasted):
    client.talk()
    client.server.wasted = 0
    client.feed(sent)
    client.server.take(MOST)
    assert client.server.wasted == wasted


def test_whole_messages_make_up_for_what_was_wasted(client):
    client.talk()
    for number in range(1, 2000, 4):
        client.feed(begun(number) + frame(3, 0, number, bytes(4)))
        client.feed(begun(number + 2) + frame(0, 1, number + 2, framed(b"x")))
    assert client.server.wasted == 0


def test_memory_of_a_message_stays_in_proportion_to_what_has_arrived_of_it(client):
    number = client.begin()
    client.http.send_data(number, b"\0" + (1 << 28).to_bytes(4, "big"))
    arrived = 0
    for size in (1, 100, 16_384, 50_000, 200_000, 700_000):
        client.http.send_data(number, bytes(size))
        client.talk()
        arrived += size
        assert arrived <= client.ledger.held_bytes <= max(1 << 16, 4 * arrived)
    client.http.reset_stream(number)
    client.talk()
    assert client.ledger.held_bytes == 0


def test_message_of_less_than_a_megabyte_is_laid_out_once(client, monkeypatch):
    made = []
    monkeypatch.setattr(np, "empty", lambda *how, real=np.empty: made.append(how) or real(*how))
    number = client.begin()
    client.http.send_data(number, b"\0" + (600_000).to_bytes(4, "big"))
    for _ in range(60):
        client.http.send_data(number, bytes(10_000))
        client.talk()
    assert len(client.calls) == 1
    assert len(made) == 1


@pytest.mark.parametrize("size", [(1 << 16) + 1, 300_000, 1_200_000])
def test_large_message_arrives_as_it_was_sent_and_is_charged_once(client, size):
    sent = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    number = client.call(sent)
    client.talk()
    (stream,) = client.calls
    assert stream.message == sent
    assert np.frombuffer(stream.message, np.uint8).ctypes.data % 64 == -size % 64
    assert client.ledger.held_bytes == size
    client.server.answer(stream, Code.OK, body=b"")
    client.talk()
    assert client.code(number) is Code.OK
    assert client.ledger.held_bytes == 0
