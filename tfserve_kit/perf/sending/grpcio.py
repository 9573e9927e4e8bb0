"""gRPC over grpcio: with TLS, and to compare our own client with."""

import queue
import time
from base64 import b64decode
from collections.abc import Callable, Sequence
from itertools import starmap
from typing import Any

from tfserve_kit.clients.options import read_pem
from tfserve_kit.errors import ServerUnreachable
from tfserve_kit.perf import samples
from tfserve_kit.perf.load import Load, Payload
from tfserve_kit.perf.sending.driving import Finished
from tfserve_kit.perf.sending.judging import Judges

_SECOND_NS = 1_000_000_000


class GrpcioPool:
    """Sends gRPC requests; see `Pool`. When the first byte of an answer came is not known.

    Args:
        load: where to send, over how many channels.
        payloads: what to send.
        now_ns: a monotonic clock in nanoseconds.
    """

    replicas = None

    def __init__(
        self, load: Load, payloads: Sequence[Payload], now_ns: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self.notes: dict[int, str] = {}
        self.judges = Judges(payloads, is_rest=False)
        self.sends_at_once = True
        self._where = "{}:{}".format(*load.address)
        self._channels = [_channel(load, self._where, each) for each in range(load.connections)]
        self._payloads = [
            (payload.path, payload.body, tuple(starmap(_metadatum, payload.headers)))
            for payload in payloads
        ]
        self._calls = [
            {path: channel.unary_unary(path) for path, *_ in self._payloads}
            for channel in self._channels
        ]
        self._timeout_s, self._now_ns = load.timeout_s, now_ns
        self._futures: dict[int, Any] = {}
        self._ended: queue.SimpleQueue[tuple[int, int, Any]] = queue.SimpleQueue()

    def open(self, timeout_s: float) -> None:
        """Connect; see `Pool.open`."""
        import grpc

        for channel in self._channels:
            try:
                grpc.channel_ready_future(channel).result(timeout_s)
            except grpc.FutureTimeoutError as error:
                raise ServerUnreachable(
                    f"no model server answers at {self._where}",
                    remedy="start one with `tfkit serve`, or give its address with --url",
                ) from error

    def start(self, keys: Sequence[int]) -> None:
        """Take requests and send them; see `Pool.start`."""
        for key in keys:
            path, body, headers = self._payloads[key % len(self._payloads)]
            call = self._calls[key % len(self._calls)][path]
            future = call.future(body, timeout=self._timeout_s, metadata=headers or None)
            self._futures[key] = future
            future.add_done_callback(
                lambda done, key=key: self._ended.put((key, self._now_ns(), done))
            )

    def flush(self) -> None:
        """Do nothing: `start` has sent already."""

    def wait(self, timeout_s: float) -> list[Finished]:
        """Return what ended; see `Pool.wait`."""
        found: list[Finished] = []
        try:
            key, done_ns, future = (
                self._ended.get(timeout=timeout_s) if timeout_s > 0 else (self._ended.get_nowait())
            )
            while True:
                if self._futures.pop(key, None) is not None:
                    found.append(self._read(key, done_ns, future))
                key, done_ns, future = self._ended.get_nowait()
        except queue.Empty:
            return found

    def _read(self, key: int, done_ns: int, future: Any) -> Finished:
        status: int = future.code().value[0]
        size, text = 0, future.details() or ""
        if status == samples.OK:
            body = future.result()
            size, judge = len(body), self.judges.judge
            if judge is None or not (status := judge(key, body)):
                return key, status, done_ns, done_ns, size
            text = self.judges.why
        self.notes.setdefault(status, text)
        return key, status, done_ns, done_ns, size

    def cancel(self, keys: set[int]) -> None:
        """Cancel calls; see `Pool.cancel`."""
        for future in [self._futures.pop(key) for key in keys if key in self._futures]:
            future.cancel()

    def close(self) -> None:
        """Close the channels."""
        for channel in self._channels:
            channel.close()


def _metadatum(name: bytes, value: bytes) -> tuple[str, str | bytes]:
    """Return a header as grpcio wants it: bytes that it makes base64 of itself, or text."""
    if name.endswith(b"-bin"):
        return name.decode(), b64decode(value)
    return name.decode(), value.decode()


def _channel(load: Load, where: str, number: int) -> Any:
    import grpc

    options: list[tuple[str, Any]] = [
        ("grpc.max_receive_message_length", load.options.max_answer_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.enable_http_proxy", 0),
        ("grpc.enable_retries", 0),
        # Channels with the same arguments would share one connection.
        ("grpc.use_local_subchannel_pool", 1),
        ("tfkit.channel", number),
    ]
    if not load.is_secure:
        return grpc.insecure_channel(where, options)
    files = load.options
    if files.server_name:
        options.append(("grpc.ssl_target_name_override", files.server_name))
    credentials = grpc.ssl_channel_credentials(
        read_pem(files.ca_file), read_pem(files.key_file), read_pem(files.cert_file)
    )
    return grpc.secure_channel(where, credentials, options)
