"""The gRPC client as a state machine: hand-made frames in, answers and bytes out."""

import random
import struct

import hpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfserve_kit.perf.samples import UNREADABLE_ANSWER
from tfserve_kit.perf.sending import frames
from tfserve_kit.perf.sending.frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    MAX_CONCURRENT_STREAMS,
    MAX_FRAME_SIZE,
    PADDED,
    PING,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    ProtocolError,
    frame,
)
from tfserve_kit.perf.sending.http2 import _Http2Connection, _Request

HEAD = [(":status", "200"), ("content-type", "application/grpc")]
GOOD = [("grpc-status", "0"), ("grpc-message", "")]
PATH = "/tensorflow.serving.PredictionService/Predict"


class Server:
    """Writes what a server would, and reads what the client has sent."""

    def __init__(self, **values):
        self.encoder, self.decoder = hpack.Encoder(), hpack.Decoder()
        self.client = _Http2Connection()
        self.seen = b""
        self.now_ns = 1000
        names = {"streams": MAX_CONCURRENT_STREAMS, "window": INITIAL_WINDOW_SIZE,
                 "frame": MAX_FRAME_SIZE}  # fmt: skip
        self.say(frames.settings({names[name]: value for name, value in values.items()}))

    def say(self, *parts):
        self.now_ns += 1
        return self.client.receive(b"".join(parts), self.now_ns)

    def heard(self):
        """Return the client's new frames: (type, flags, stream, payload)."""
        data = b"".join(bytes(each) for each in self.client.outgoing())
        if not self.seen:
            assert data.startswith(frames.PREFACE)
            data = data[len(frames.PREFACE) :]
        self.seen += data
        found = []
        while data:
            high, low, kind, flags, stream = struct.unpack_from(">BHBBI", data)
            end = 9 + (high << 16 | low)
            assert len(data) >= end
            found.append((kind, flags, stream, data[9:end]))
            data = data[end:]
        return found

    def headers(self, stream, pairs, flags=END_HEADERS):
        return frame(HEADERS, flags, stream, self.encoder.encode(pairs))

    def answer(self, stream, body=b"yes", head=HEAD, end=GOOD):
        return (
            self.headers(stream, head)
            + frame(DATA, 0, stream, message(body))
            + self.headers(stream, end, END_HEADERS | END_STREAM)
        )


def message(body):
    return struct.pack(">BI", 0, len(body)) + body


def request(body=b"ask", headers=()):
    return _Request(frames.encoded("h:1", PATH, headers), body)


def started(count=1, body=b"ask", **values):
    server = Server(**values)
    for key in range(count):
        server.client.start(key, request(body))
    server.heard()
    return server


def kinds(heard):
    return [kind for kind, *_ in heard]


class TestOpening:
    def test_begins_with_the_preface_settings_and_a_wide_window(self):
        first, second, *_ = Server().heard()
        assert first[:3] == (SETTINGS, 0, 0)
        assert dict(frames.read_settings(first[3]))[frames.ENABLE_PUSH] == 0
        assert second[:3] == (WINDOW_UPDATE, 0, 0)

    def test_requests_wait_for_the_settings_which_are_acknowledged(self):
        client = _Http2Connection()
        assert client.room() == 0 and not client.is_greeted
        client.receive(frames.settings({MAX_CONCURRENT_STREAMS: 7}), 1)
        assert client.room() == 7 and client.is_greeted
        assert bytes(client.outgoing()[-1]) == frame(SETTINGS, ACK, 0)

    @pytest.mark.parametrize("first", [
        b"HTTP/1.1 400 Bad Request\r\n\r\n", frame(PING, 0, 0, b"12345678"), frame(HEADERS, 4, 1),
    ])  # fmt: skip
    def test_a_server_that_begins_otherwise_is_none(self, first):
        with pytest.raises(ProtocolError):
            _Http2Connection().receive(first, 1)


class TestRequests:
    def test_headers_and_message_arrive_as_they_were_meant(self):
        server = Server()
        for key in range(3):
            server.client.start(key, request(headers=((b"te", b"trailers"), (b"x-id", b"7" * 200))))
        sent = [each for each in server.heard() if each[0] in {HEADERS, DATA}]
        assert [stream for _, _, stream, _ in sent] == [1, 1, 3, 3, 5, 5]
        for head, body in zip(sent[::2], sent[1::2], strict=True):
            assert head[1] == END_HEADERS and body[1] == END_STREAM
            assert body[3] == message(b"ask")
            pairs = server.decoder.decode(head[3])
            assert pairs == [
                (":method", "POST"), (":scheme", "http"), (":authority", "h:1"), (":path", PATH),
                ("te", "trailers"), ("x-id", "7" * 200),
            ]  # fmt: skip

    def test_a_header_block_larger_than_a_frame_goes_on_in_continuations(self):
        server = Server()
        server.client.start(0, request(headers=((b"x", b"v" * 40_000),)))
        sent = [each for each in server.heard() if each[0] in {HEADERS, CONTINUATION}]
        assert [each[1] for each in sent] == [0, 0, END_HEADERS]
        assert server.decoder.decode(b"".join(each[3] for each in sent))[-1] == ("x", "v" * 40_000)

    def test_a_body_is_cut_into_frames_and_stops_where_the_windows_end(self):
        server = Server(window=100_000)
        server.client.start(0, request(b"b" * 150_000))
        first = [each for each in server.heard() if each[0] == DATA]
        assert max(len(each[3]) for each in first) == 16_384
        assert sum(len(each[3]) for each in first) == 65_535  # the connection's window
        server.say(frames.window_update(0, 1_000_000))
        second = server.heard()
        assert sum(len(each[3]) for each in first + second) == 100_000  # the stream's
        server.say(frames.window_update(1, 1_000_000))
        third = server.heard()
        assert b"".join(each[3] for each in first + second + third) == message(b"b" * 150_000)
        assert third[-1][1] == END_STREAM and not any(each[1] for each in first + second)

    def test_a_larger_frame_is_used_where_the_server_takes_it(self):
        server = Server(frame=100_000, window=1 << 20)
        server.say(frames.window_update(0, 1 << 20))
        server.client.start(0, request())
        server.heard()
        server.client.start(1, request(b"b" * 90_000))
        assert [len(each[3]) for each in server.heard() if each[0] == DATA] == [90_005]

    def test_a_change_of_the_first_window_concerns_what_is_under_way(self):
        server = Server(window=10)
        server.client.start(0, request(b"b" * 95))
        server.heard()
        server.say(frames.settings({INITIAL_WINDOW_SIZE: 4}))
        assert DATA not in kinds(server.heard())  # 6 bytes more than allowed are out already
        server.say(frames.settings({INITIAL_WINDOW_SIZE: 1000}))
        heard = server.heard()
        assert kinds(heard) == [SETTINGS, DATA]  # no use of it before the server knows
        assert len(heard[1][3]) == 90

    def test_a_stream_that_is_shut_blocks_no_other(self):
        server = Server(window=10)
        server.client.start(0, request(b"b" * 95))
        server.client.start(1, request(b"b" * 3))
        sent = [each for each in server.heard() if each[0] == DATA and each[2] == 3]
        assert [each[3] for each in sent] == [message(b"b" * 3)]

    def test_room_is_what_the_server_grants_less_what_is_in_flight(self):
        server = started(2, streams=3)
        assert server.client.room() == 1
        server.say(server.answer(1))
        assert server.client.room() == 2
        server.say(frames.settings({MAX_CONCURRENT_STREAMS: 0}))
        assert server.client.room() == 0

    def test_the_last_stream_id_ends_the_connection(self):
        server = Server()
        server.client._next_id = (1 << 31) - 3
        assert server.client.room() == 2 and not server.client.is_spent
        server.client.start(0, request())
        server.client.start(1, request())
        assert server.client.room() == 0 and server.client.is_spent


class TestAnswers:
    def test_an_answer_has_times_size_and_status(self):
        server = started()
        assert server.say(server.headers(1, HEAD)) == []
        began_ns = server.now_ns
        assert server.say(frame(DATA, 0, 1, message(b"yes"))) == []
        end = server.headers(1, GOOD, END_HEADERS | END_STREAM)
        assert server.say(end) == [(0, 0, began_ns, server.now_ns, 3)]
        assert server.client.in_flight == 0

    def test_answers_that_repeat_are_told_apart_by_their_streams(self):
        server = started(4)
        for stream in (1, 3):
            server.say(server.answer(stream))  # fills both tables
        found = server.say(server.answer(7, b"longer"), server.answer(5))
        assert [(key, status, size) for key, status, _, _, size in found] == [(3, 0, 6), (2, 0, 3)]

    @pytest.mark.parametrize("cut", [1, 2, 3, 7, 10, 64])
    def test_it_does_not_matter_in_which_pieces_bytes_come(self, cut):
        whole, pieces = started(9), started(9)
        for server in (whole, pieces):
            server.say(server.answer(1))
            server.say(server.answer(3))
        rest = [
            (5, b"", HEAD, GOOD),
            (7, b"x" * 300, HEAD, GOOD),
            (9, b"x", HEAD, [("grpc-status", "5"), ("grpc-message", "no%20model")]),
            (11, b"x", [*HEAD, ("x-new", "1")], GOOD),
            (13, b"x", HEAD, GOOD),
        ]
        data = b"".join(whole.answer(*each) for each in rest)
        expected = [each[:2] + each[4:] for each in whole.say(data)]
        data = b"".join(pieces.answer(*each) for each in rest)
        found = [
            each[:2] + each[4:]
            for at in range(0, len(data), cut)
            for each in pieces.say(data[at : at + cut])
        ]
        assert found == expected
        assert [status for _, status, _ in found] == [0, 0, 5, 0, 0]
        assert pieces.client.messages == whole.client.messages == {5: "no model"}

    def test_trailers_alone_are_an_error_with_its_text(self):
        server = started()
        only = [(":status", "200"), ("grpc-status", "3"), ("grpc-message", "bad %E2%82%AC")]
        ((_, status, *_),) = server.say(server.headers(1, only, END_HEADERS | END_STREAM))
        assert status == 3 and server.client.messages == {3: "bad €"}

    @pytest.mark.parametrize(("head", "body", "end", "status"), [
        (HEAD, message(b"yes"), [("grpc-status", "14")], 14),
        (HEAD, message(b"yes"), [("grpc-status", "99")], 2),
        (HEAD, message(b"yes"), [("grpc-status", "no")], 2),
        (HEAD, message(b"yes"), [("x", "y")], UNREADABLE_ANSWER),
        (HEAD, b"", GOOD, UNREADABLE_ANSWER),
        (HEAD, message(b"yes")[:-1], GOOD, UNREADABLE_ANSWER),
        (HEAD, message(b"yes") + b"!", GOOD, UNREADABLE_ANSWER),
        (HEAD, b"\0\0", GOOD, UNREADABLE_ANSWER),
        ([(":status", "503")], b"", [("x", "y")], 14),
        ([(":status", "404")], b"<html>", [("x", "y")], 12),
        ([(":status", "418")], b"", [("x", "y")], 2),
    ])  # fmt: skip
    def test_statuses(self, head, body, end, status):
        for repeated in range(3):  # the first fills the tables, the others go the quick way
            server = started(2)
            for stream in (1, 3)[:repeated]:
                server.say(server.answer(stream))
            server.client.start(9, request())
            stream = server.client._next_id - 2
            ((key, found, *_),) = server.say(
                server.headers(stream, head) + frame(DATA, 0, stream, body)
                + server.headers(stream, end, END_HEADERS | END_STREAM)
            )  # fmt: skip
            assert (key, found) == (9, status)

    def test_a_message_without_trailers_is_unreadable(self):
        server = started()
        data = server.headers(1, HEAD) + frame(DATA, END_STREAM, 1, message(b"yes"))
        assert [each[1] for each in server.say(data)] == [UNREADABLE_ANSWER]

    def test_what_only_announces_an_answer_is_none(self):
        server = started()
        assert server.say(server.headers(1, [(":status", "103"), ("link", "x")])) == []
        assert [each[1] for each in server.say(server.answer(1))] == [0]

    def test_padding_and_priority_are_no_part_of_an_answer(self):
        server = started()
        block = server.encoder.encode(HEAD)
        padded = bytes([4]) + b"\0\0\0\0\x10" + block + b"\0" * 4
        found = server.say(
            frame(HEADERS, END_HEADERS | PADDED | PRIORITY, 1, padded),
            frame(DATA, PADDED, 1, bytes([2]) + message(b"yes") + b"\0\0"),
            server.headers(1, GOOD, END_HEADERS | END_STREAM),
        )
        assert [(each[1], each[4]) for each in found] == [(0, 3)]

    def test_headers_may_go_on_in_continuations(self):
        server = started()
        head, end = server.encoder.encode(HEAD), server.encoder.encode(GOOD)
        found = server.say(
            frame(HEADERS, 0, 1, head[:1]),
            frame(CONTINUATION, 0, 1, head[1:2]),
            frame(CONTINUATION, END_HEADERS, 1, head[2:]),
            frame(DATA, 0, 1, message(b"yes")),
            frame(HEADERS, END_STREAM, 1, end[:1]),
            frame(CONTINUATION, END_HEADERS, 1, end[1:]),
        )
        assert [each[1] for each in found] == [0]

    def test_large_answers_are_let_in_bit_by_bit_and_not_kept(self):
        server = started()
        server.say(server.headers(1, HEAD))
        size = 40 << 20
        server.say(frame(DATA, 0, 1, struct.pack(">BI", 0, size)))
        for _ in range(size >> 14):
            server.say(frame(DATA, 0, 1, bytes(1 << 14)))
        granted = [each for each in server.heard() if each[0] == WINDOW_UPDATE and each[2] == 1]
        assert sum(frames.number(each[3]) for each in granted) > size - (1 << 24)
        ((_, status, _, _, received),) = server.say(
            server.headers(1, GOOD, END_HEADERS | END_STREAM)
        )
        assert (status, received) == (0, size)

    def test_the_connection_s_window_is_kept_open_even_by_what_nobody_waits_for(self):
        server = started()
        server.client.cancel({0})
        server.heard()
        server.client._unread = (1 << 29) - 10
        server.say(frame(DATA, 0, 1, b"late answer"))
        assert [each[:3] for each in server.heard()] == [(WINDOW_UPDATE, 0, 0)]

    @pytest.mark.parametrize(("code", "status"), [(8, 1), (11, 8), (12, 7), (2, 13), (0, 13)])
    def test_a_reset_ends_the_request(self, code, status):
        server = started(2)
        assert [each[:2] for each in server.say(frames.reset(3, code))] == [(1, status)]
        assert server.client.in_flight == 1

    def test_a_request_that_is_refused_unseen_is_handed_back(self):
        server = started(2)
        assert server.say(frames.reset(3, frames.REFUSED_STREAM)) == []
        assert server.client.refused == [1] and server.client.in_flight == 1
        assert not server.client.is_spent

    def test_an_answer_before_the_request_was_sent_in_full_ends_the_sending(self):
        server = started(body=b"b" * 200_000)
        assert [each[1] for each in server.say(server.answer(1))] == [0]
        assert [each[:3] for each in server.heard()] == [(RST_STREAM, 0, 1)]
        server.say(frames.window_update(0, 1 << 20))
        assert server.heard() == []

    def test_a_table_that_changes_changes_what_blocks_mean(self):
        server = started(6)
        fail = [("grpc-status", "8"), ("grpc-message", "")]
        statuses = []
        for stream, end in zip(range(1, 13, 2), [GOOD, GOOD, fail, fail, GOOD, GOOD], strict=True):
            statuses += [each[1] for each in server.say(server.answer(stream, end=end))]
        assert statuses == [0, 0, 8, 8, 0, 0]

    def test_a_table_with_entries_that_move_is_followed(self):
        server = started(400)
        source = random.Random(1)
        for stream in range(1, 801, 2):
            status = source.choice([0, 0, 0, 5, 14])
            end = [("grpc-status", str(status)), ("x-trace", str(source.randrange(40)))]
            data = server.answer(stream, head=[*HEAD, ("x", "y" * source.randrange(90))], end=end)
            assert [each[1] for each in server.say(data)] == [status]


class TestConnections:
    def test_pings_are_answered_and_answers_to_pings_are_not(self):
        server = started()
        server.say(frame(PING, 0, 0, b"12345678"), frame(PING, ACK, 0, b"87654321"))
        assert server.heard() == [(PING, ACK, 0, b"12345678")]

    def test_frames_nobody_knows_are_ignored(self):
        server = started()
        server.say(frame(0x42, 0xFF, 9, b"anything"), frame(2, 0, 1, b"\0\0\0\0\1"))
        assert [each[1] for each in server.say(server.answer(1))] == [0]

    def test_a_goodbye_hands_back_what_the_server_will_not_answer(self):
        server = started(3)
        server.say(frame(GOAWAY, 0, 0, struct.pack(">II", 3, 0) + b"why"))
        assert server.client.refused == [2]
        assert server.client.is_spent and server.client.room() == 0
        assert [each[0] for each in server.say(server.answer(1), server.answer(3))] == [0, 1]
        assert server.client.in_flight == 0

    def test_a_cancelled_request_is_reset_and_its_late_answer_ignored(self):
        server = started(2)
        server.client.cancel({0})
        assert server.heard() == [(RST_STREAM, 0, 1, struct.pack(">I", frames.CANCEL))]
        found = server.say(server.answer(1), server.answer(3))
        assert [each[0] for each in found] == [1]

    def test_what_is_unanswered_at_the_end_is_told_once(self):
        server = started(3)
        server.say(server.answer(3))
        assert server.client.unanswered() == [0, 2]
        assert server.client.unanswered() == []

    def test_a_server_that_pings_and_does_not_read_is_cut_off(self):
        server = started()
        pings = frame(PING, 0, 0, b"12345678") * 20_000
        with pytest.raises(ProtocolError, match="does not read"):
            server.say(pings)

    @pytest.mark.parametrize("endless", [b"x" * 16_000, b""])
    def test_headers_without_end_are_cut_off(self, endless):
        server = started()
        server.say(frame(HEADERS, 0, 1, b"\x88"))
        more = frame(CONTINUATION, 0, 1, endless) * 200
        with pytest.raises(ProtocolError, match="headers"):
            server.say(more)

    @pytest.mark.parametrize("wrong", [
        frame(PUSH_PROMISE, 4, 1, b"\0\0\0\2"),
        frame(SETTINGS, 0, 0, b"12345"),
        frame(SETTINGS, ACK, 0, b"123456"),
        frame(SETTINGS, 0, 1),
        frames.settings({INITIAL_WINDOW_SIZE: 1 << 31}),
        frames.settings({MAX_FRAME_SIZE: 100}),
        frame(PING, 0, 0, b"123"),
        frame(PING, 0, 1, b"12345678"),
        frame(GOAWAY, 0, 0, b"123"),
        frame(GOAWAY, 0, 1, b"12345678"),
        frame(WINDOW_UPDATE, 0, 0, b"\0\0\0\0"),
        frame(WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff"),
        frame(WINDOW_UPDATE, 0, 0, b"1"),
        frame(WINDOW_UPDATE, 0, 1, b"\0\0\0\0"),
        frame(RST_STREAM, 0, 1, b"1"),
        frame(RST_STREAM, 0, 9, b"\0\0\0\0"),
        frame(DATA, 0, 0, b"x"),
        frame(DATA, 0, 2, b"x"),
        frame(HEADERS, END_HEADERS, 9, b"\x88"),
        frame(HEADERS, END_HEADERS, 1, b"\xff\xff\xff\xff\xff\xff"),
        frame(HEADERS, END_HEADERS, 1, b"\x08\x03abc"),
        frame(HEADERS, END_HEADERS | PADDED, 1, b"\x05abc"),
        frame(HEADERS, END_HEADERS | PRIORITY, 1, b"abc"),
        frame(CONTINUATION, END_HEADERS, 1, b"\x88"),
        frame(HEADERS, 0, 1, b"\x88") + frame(DATA, 0, 1),
        frame(HEADERS, 0, 1, b"\x88") + frame(CONTINUATION, END_HEADERS, 3, b""),
        frame(DATA, 0, 1, bytes(16_385)),
    ])  # fmt: skip
    def test_what_breaks_the_protocol_is_refused(self, wrong):
        server = started()
        with pytest.raises(ProtocolError):
            server.say(wrong)

    @pytest.mark.parametrize("wrong", [
        frame(DATA, 0, 1, b"x"),
        frame(HEADERS, END_HEADERS, 1, b"\x00\x01a\x01b"),
        frame(HEADERS, END_HEADERS, 1, b"\x88") + frame(HEADERS, END_HEADERS, 1, b"\x88"),
    ])  # fmt: skip
    def test_an_answer_that_is_none_ends_its_request_alone(self, wrong):
        server = started(2)
        assert [each[:2] for each in server.say(wrong)] == [(0, UNREADABLE_ANSWER)]
        assert (RST_STREAM, 0, 1) in [each[:3] for each in server.heard()]
        assert [each[:2] for each in server.say(server.answer(3))] == [(1, 0)]


def _some_frames():
    payload = st.one_of(
        st.binary(max_size=40),
        st.lists(st.sampled_from([b"\x88", b"\x20", b"\x40\x01a\x01b", b"\xbe", b"\x00\x00\x01x"]))
        .map(b"".join),
        st.builds(message, st.binary(max_size=20)),
    )  # fmt: skip
    return st.builds(
        frame,
        st.integers(0, 10),
        st.sampled_from([0, 1, 4, 5, 8, 12, 13, 0x20, 0x2D, 0xFF]),
        st.sampled_from([0, 0, 1, 1, 1, 3, 5, 2, 7]),
        payload,
    )


class TestHostility:
    @settings(max_examples=400, deadline=None)
    @given(st.lists(st.one_of(_some_frames(), st.binary(max_size=30)), max_size=12))
    def test_nothing_but_a_protocol_error_is_raised_and_no_request_is_lost(self, parts):
        server = started(3, body=b"b" * 70_000)
        answered = []
        try:
            for part in parts:
                answered += [each[0] for each in server.say(part)]
        except ProtocolError:
            answered += [each[0] for each in server.client._answers]
        left = [*answered, *server.client.refused, *server.client.unanswered()]
        assert sorted(left) == [0, 1, 2]

    def test_random_bytes_and_damaged_answers_raise_nothing_else(self):
        source = random.Random(5)
        for _ in range(300):
            server = started(20)
            data = bytearray(b"".join(server.answer(stream) for stream in range(1, 41, 2)))
            for _ in range(source.randrange(1, 6)):
                data[source.randrange(len(data))] = source.randrange(256)
            try:
                found = server.say(bytes(data))
            except ProtocolError:
                continue
            keys = [each[0] for each in found]
            assert len(keys) == len(set(keys))

    def test_a_frame_that_never_ends_takes_no_more_memory_than_a_frame(self):
        server = started()
        server.say(frames.start(16_384, DATA, 0) + (1).to_bytes(4, "big"))
        for _ in range(16):
            server.say(bytes(1000))
        assert len(server.client._rest) <= 16_393


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["a", "b", ":status", "grpc-status", "x" * 200]),
                          st.text("01", max_size=3), st.booleans()), max_size=6),
       st.booleans())  # fmt: skip
def test_blocks_that_leave_the_table_are_those_that_hpack_says_leave_it(pairs, huffman):
    encoder, decoder = hpack.Encoder(), hpack.Decoder()
    for _ in range(2):
        block = encoder.encode([hpack.NeverIndexedHeaderTuple(n, v) if never else (n, v)
                                for n, v, never in pairs], huffman=huffman)  # fmt: skip
        before = list(decoder.header_table.dynamic_entries)
        decoder.decode(block)
        if frames.leaves_table(block):
            assert list(decoder.header_table.dynamic_entries) == before
        else:
            assert list(decoder.header_table.dynamic_entries) != before


@given(st.binary(min_size=1, max_size=300), st.binary(max_size=300), st.text("abc/", max_size=300))
def test_request_headers_are_what_a_decoder_reads(name, value, path):
    block = frames.encoded("h", path, ((name, value),))
    pairs = hpack.Decoder().decode(frames.NO_TABLE + block, raw=True)
    assert pairs[-1] == (name, value) and pairs[3] == (b":path", path.encode())
    assert frames.leaves_table(block)
