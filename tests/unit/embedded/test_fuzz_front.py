"""The front against all that clients might do: the gRPC machine in every state, live servers at
every byte. An ordinary run tries some; with TFKIT_TORTURE=1 by the ten thousand.
"""

import logging
import os
import random
import socket
import time
from contextlib import suppress

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.torture.attackers import frame
from tests.unit.embedded import test_http2, test_http_request
from tests.unit.embedded.flows import flowing
from tests.unit.embedded.test_http2 import END_HEADERS, END_STREAM, MAGIC, block, message
from tests.unit.embedded.test_http_transport import EchoSurface, serving
from tfserve_kit.embedded.grpc_protocol import GrpcLimits, GrpcSession
from tfserve_kit.embedded.grpc_transport import GrpcServer, Ports
from tfserve_kit.embedded.http2 import Http2Limits
from tfserve_kit.embedded.lanes import Lanes
from tfserve_kit.embedded.ledger import Ledger
from tfserve_kit.embedded.status import Code

LONG = bool(os.environ.get("TFKIT_TORTURE"))
CONVERSATIONS = 20_000 if LONG else 200
PATIENCE_S = 30.0
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
SIZES = st.sampled_from([0, 1, 5, 100, 16_379, 16_384, 70_000, 200_000])
NUMBERS = st.integers(0, 30)


class GrpcMachine(RuleBasedStateMachine):
    """A client that does anything, and keeps its own books of windows and answers."""

    def __init__(self):
        super().__init__()
        self.ledger = Ledger(1 << 30)
        limits = GrpcLimits(Http2Limits(most_streams=20), most_message_bytes=150_000)
        self.server = GrpcSession(self.ledger, "client", limits)
        self.now_s, self.next, self.left = 0.0, 1, b""
        self.open, self.calls, self.watches, self.met, self.ended = set(), [], [], set(), set()
        # What the client has granted and the server has used; a stream's window by its number.
        self.initial, self.window, self.windows, self.used = 65_535, 65_535, {}, {}

    # The client

    def send(self, data):
        calls = self.server.receive(data, self.now_s)
        for call in calls:
            assert call.number not in self.met, "handed out twice"
            assert not call.is_gone and not call.is_answered
            self.met.add(call.number)
        self.calls += calls

    @initialize(window=st.sampled_from([None, 0, 1, 1000, 1 << 20]))
    def begin(self, window):
        self.send(MAGIC + frame(SETTINGS, 0, 0))
        if window is not None:
            self.change_window(window)
        self.take(1 << 20)
        self.send(frame(SETTINGS, 1, 0))

    @rule(
        size=SIZES, whole=st.booleans(), ends=st.booleans(), path=st.sampled_from([b"/a/b", b"x"])
    )
    def call(self, size, whole, ends, path):
        number, self.next = self.next, self.next + 2
        self.windows[number] = self.initial
        self.open.add(number)
        self.send(frame(HEADERS, END_HEADERS, number, block(path=path)))
        if whole:
            self.pieces(number, message(bytes(size)), ends=ends)

    @rule(number=NUMBERS, size=SIZES, ends=st.booleans())
    def data(self, number, size, ends):
        self.pieces(2 * number + 1, bytes(size), ends=ends)

    def pieces(self, number, content, *, ends):
        pieces = [content[at : at + 16_384] for at in range(0, len(content), 16_384)] or [b""]
        for piece in pieces:
            self.send(frame(DATA, END_STREAM * (ends and piece is pieces[-1]), number, piece))

    @rule(number=NUMBERS)
    def reset(self, number):
        self.send(frame(RST_STREAM, 0, 2 * number + 1, b"\0\0\0\x08"))

    @rule(number=NUMBERS, increment=st.sampled_from([1, 100, 65_535]))
    def grant(self, number, increment):
        number = 2 * number + 1
        if number in self.windows:
            self.windows[number] += increment
        self.send(frame(WINDOW_UPDATE, 0, number, increment.to_bytes(4, "big")))

    @rule(increment=st.sampled_from([1, 1000, 1 << 20]))
    def grant_all(self, increment):
        self.window += increment
        self.send(frame(WINDOW_UPDATE, 0, 0, increment.to_bytes(4, "big")))

    @rule(size=st.sampled_from([0, 1, 1000, 65_535, 1 << 20]))
    def change_window(self, size):
        for number in self.windows:
            self.windows[number] += size - self.initial
        self.initial = size
        self.send(frame(SETTINGS, 0, 0, b"\0\4" + size.to_bytes(4, "big")))

    @rule(number=NUMBERS, kind=st.sampled_from([2, 5, 9, 10, 250]), content=st.binary(max_size=20))
    def other(self, number, kind, content):
        self.send(frame(kind, 0, number, content))

    @rule(content=st.binary(min_size=1, max_size=40))
    def junk(self, content):
        self.send(content)

    @rule()
    def ping(self):
        self.now_s += 400
        self.send(frame(PING, 0, 0, b"12345678"))

    @rule()
    def leave(self):
        self.server.end()

    # The server

    @precondition(lambda self: self.calls)
    @rule(data=st.data(), size=SIZES, code=st.sampled_from([Code.OK, Code.OK, Code.INTERNAL]))
    def answer(self, data, size, code):
        call = self.calls.pop(data.draw(st.integers(0, len(self.calls) - 1)))
        self.server.answer(call, code, "é\n", bytes(size))

    @precondition(lambda self: self.calls)
    @rule(size=SIZES)
    def watch(self, size):
        call = self.calls.pop()
        self.server.begin(call, bytes(size))
        self.watches.append(call)

    @precondition(lambda self: self.watches)
    @rule()
    def unwatch(self):
        self.server.finish(self.watches.pop(), Code.OK)

    @rule()
    def announce(self):
        self.server.announce_end()

    @rule()
    def finish(self):
        self.server.end_after_calls()

    @rule(most_bytes=st.sampled_from([10, 1000, 1 << 20]))
    def take(self, most_bytes):
        self.left += self.server.take(most_bytes)
        while len(self.left) >= 9 + int.from_bytes(self.left[:3], "big"):
            size = int.from_bytes(self.left[:3], "big")
            head, payload, self.left = self.left[:9], self.left[9 : 9 + size], self.left[9 + size :]
            self.hear(head[3], head[4], int.from_bytes(head[5:], "big"), payload)

    def hear(self, kind, flags, number, payload):
        assert kind in {DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE}
        if kind in {DATA, HEADERS}:
            assert number in self.open, "an answer that nobody has asked for"
            assert number not in self.ended, "more than an answer"
        if kind == HEADERS and flags & END_STREAM:
            self.ended.add(number)
        if kind == DATA:
            assert not flags & END_STREAM, "trailers come last"
            self.window -= len(payload)
            self.windows[number] -= len(payload)
            if payload:
                assert self.window >= 0 and self.windows[number] >= 0, "no window was granted"

    @invariant()
    def nothing_is_left_of_calls_that_have_ended(self):
        if self.server.is_over:
            assert not self.server.streams
        if not self.server.streams:
            assert self.ledger.held_bytes == 0


GrpcMachine.TestCase.settings = settings(
    deadline=None,
    max_examples=2000 if LONG else 40,
    stateful_step_count=60 if LONG else 30,
)
TestGrpcMachine = GrpcMachine.TestCase


# Conversations with live servers, recorded in the tables of rules, and changed at any byte


def grpc_conversations():
    for parameters in test_http2.rows():
        sent, _ = parameters.values
        content = b"".join(each for each in sent if isinstance(each, bytes))
        yield test_http2.MAGIC + test_http2.settings() + content[:100_000]


def rest_conversations():
    for _, _, sent, *_ in (*test_http_request.ANSWERED, *test_http_request.REFUSED):
        yield sent + test_http_request.GET


def changed(content, others, dice):
    """Return a conversation with a few changes: of bits and bytes, of order, of length."""
    content = bytearray(content)
    for _ in range(dice.choice([0, 1, 1, 1, 2, 5, 20])):
        at = dice.randrange(len(content) + 1)
        size = dice.choice([1, 1, 2, 4, 9, 50])
        change = dice.randrange(6)
        if change == 0 and at < len(content):
            content[at] ^= 1 << dice.randrange(8)
        elif change == 1:
            content[at : at + size] = dice.randbytes(size)
        elif change == 2:
            del content[at : at + size]
        elif change == 3:
            content[at:at] = content[at : at + size] * dice.choice([1, 2, 100])
        elif change == 4:
            other = dice.choice(others)
            content[at:at] = other[dice.randrange(len(other)) :]
        else:
            del content[at:]
    return bytes(content)


def grpc_server():
    return GrpcServer(
        flowing(test_http2.Surface()), Lanes(2), Ledger(1 << 30), Ports("127.0.0.1:0")
    )


def rest_server():
    surface = EchoSurface()
    surface.go.set()
    return serving(surface, threads=2)


@pytest.mark.parametrize(
    ("made", "conversations", "probe"),
    [
        (grpc_server, grpc_conversations, MAGIC + test_http2.settings() + test_http2.call()),
        (rest_server, rest_conversations, test_http_request.GET),
    ],
    ids=["gRPC", "REST"],
)
def test_conversation_that_is_changed_at_any_byte_harms_nobody(made, conversations, probe, caplog):
    caplog.set_level(logging.WARNING)
    dice, known, server = random.Random(os.environ.get("TFKIT_SEED", "1")), [], made()
    known.extend(conversations())
    server.start()

    def open_from(address):
        return socket.create_connection(("127.0.0.1", server.port), PATIENCE_S, (address, 0))

    for number in range(CONVERSATIONS):
        # From many addresses, as a client that wastes the server's time has to rest.
        with open_from(f"127.0.{number % 200 + 1}.{number % 250 + 1}") as client:
            with suppress(OSError):
                client.sendall(changed(dice.choice(known), known, dice))
                if number % 3 == 0:
                    client.shutdown(socket.SHUT_WR)
                client.settimeout(0.001)
                client.recv(1 << 16)
            if number % 50:
                continue
            with open_from("127.0.0.1") as good:
                good.sendall(probe)
                heard = b""
                while b"/a" not in heard:
                    heard += good.recv(1 << 16)
                    assert heard
    end_s = time.monotonic() + PATIENCE_S
    while server._shared.connections or server._shared.ledger.held_bytes:
        assert time.monotonic() < end_s, "a connection or its memory is left"
        time.sleep(0.01)
    server.stop(1)
    assert not caplog.records
