"""What is known of an answer over HTTP/2 while it comes, and what it amounts to at its end."""

from tfserve_kit.perf import statuses
from tfserve_kit.perf.samples import UNREADABLE_ANSWER
from tfserve_kit.perf.sending import header_blocks
from tfserve_kit.perf.sending.http2_outbox import PREFIX

HTTP_OK = 200


class Stream:
    """An answer that has begun."""

    __slots__ = ("body", "expected", "first_ns", "http_status", "prefix", "received", "unread")

    def __init__(self, first_ns: int) -> None:
        self.first_ns = first_ns
        self.http_status = 0
        self.prefix = b""
        self.body = bytearray()  # with its prefix, where it is to be judged
        self.expected = -1  # bytes of the message with its prefix
        self.received = 0
        self.unread = 0  # bytes received since the server was last told to go on

    def keep(self, payload: bytes, most: int) -> str:
        """Keep a part of the answer until it is judged; return why that cannot be."""
        if self.received - PREFIX.size > most:
            return f"an answer of more than {most:,} bytes"
        if self.prefix[:1] == b"\1":
            return "a compressed answer, which nobody asked for"
        self.body += payload
        return ""


class Block:
    """Headers that go on in the next frame."""

    __slots__ = ("count", "end_stream", "parts", "stream_id")

    def __init__(self, stream_id: int, end_stream: int, start: bytes) -> None:
        self.stream_id = stream_id
        self.end_stream = end_stream
        self.parts = bytearray(start)
        self.count = 0  # frames may be empty, but not without end


def status_without_trailers(stream: Stream) -> int:
    """Return the status of a sample whose answer bears none."""
    if stream.http_status != HTTP_OK:
        return statuses.of_grpc_http(stream.http_status)
    return UNREADABLE_ANSWER


def stream_status(stream: Stream, meta: header_blocks.Meta) -> int:
    """Return the status of a sample whose answer has ended with these trailers."""
    if meta.grpc_status is None:
        return status_without_trailers(stream)
    if meta.grpc_status == statuses.OK and stream.received != stream.expected:
        return UNREADABLE_ANSWER
    return meta.grpc_status
