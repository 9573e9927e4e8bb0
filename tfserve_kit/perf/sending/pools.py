"""Pools of connections that requests are sent over: what each is, grpcio's, and that of a fleet.

Those of our own clients are in `http1` and `http2`. grpcio sends over TLS, and to compare our own
client with. To a fleet there is a pool for each server, and the clients' own rules say which takes
what.
"""

import queue
import select
import time
from array import array
from base64 import b64decode
from collections.abc import Sequence
from itertools import groupby, starmap
from typing import Any, Protocol

from tfserve_kit.clients.options import read_pem
from tfserve_kit.clients.rotation import Member, Rotation
from tfserve_kit.clock import Clock, SystemClock
from tfserve_kit.errors import ServerUnreachable
from tfserve_kit.perf import samples
from tfserve_kit.perf.load import Load, Payload, Tally
from tfserve_kit.perf.sending.judging import Judges

# After an attempt to connect has failed, the next one waits this long.
RETRY_NS = 100_000_000


# The end of a request: key, status of a sample, when the first byte of the answer came, when the
# last one did (both by `time.monotonic_ns`), and the length of its body or message. A plain tuple:
# tens of thousands are made in a second.
Finished = tuple[int, int, int, int, int]


class Pool(Protocol):
    """Connections that requests are sent over; used by one thread.

    Requests that have no connection yet, or whose connection takes no more at once, wait inside.
    Whatever happens, each request that was started is returned by `wait` once, unless it was
    cancelled before.
    """

    sends_at_once: bool  # whether `start` sends, rather than `flush`
    judges: Judges  # of what answers hold

    @property
    def notes(self) -> dict[int, str]:
        """What the server said with the first answer of each status but OK."""

    @property
    def replicas(self) -> "array[int] | None":
        """Of a fleet, which server each request went to, by key."""

    def open(self, timeout_s: float) -> None:
        """Connect, before the start; raises ServerUnreachable."""

    def start(self, keys: Sequence[int]) -> None:
        """Take requests; key modulo the number of payloads says which of them each sends."""

    def flush(self) -> None:
        """Hand over to the operating system what was started."""

    def wait(self, timeout_s: float) -> list[Finished]:
        """Return the requests that ended, as soon as there are any or the time is up."""

    def cancel(self, keys: set[int]) -> None:
        """Give requests up; what comes of them is ignored."""

    def close(self) -> None:
        """Close the connections."""


class GrpcioPool:
    """Sends gRPC requests; see `Pool`. When the first byte of an answer came is not known.

    Args:
        load: where to send, over how many channels.
        payloads: what to send.
    """

    replicas = None

    def __init__(self, load: Load, payloads: Sequence[Payload]) -> None:
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
        self._timeout_s = load.timeout_s
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
                lambda done, key=key: self._ended.put((key, time.monotonic_ns(), done))
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


_DEAD = frozenset({samples.UNAVAILABLE, samples.CONNECTION_LOST, samples.UNREADABLE_ANSWER})
_PAUSE_S = 0.0001


class FleetPool:
    """Sends each request to the server with the fewest outstanding ones; see `Pool`.

    A server that fails is left out for a moment, as by the clients; then the next request tries it,
    where they send a probe. No request is sent twice.

    Args:
        urls: of the servers.
        pools: of connections, one for each server.
        clock: what the moments are measured with.
    """

    def __init__(
        self, urls: Sequence[str], pools: Sequence[Pool], clock: Clock | None = None
    ) -> None:
        self._pools = list(pools)
        self._rotation = Rotation(urls, clock or SystemClock())
        self._place = {replica: at for at, replica in enumerate(self._rotation.replicas)}
        self._open: dict[int, Member] = {}
        self._urls = urls
        self._files: list[Any] = [pool for pool in pools if hasattr(pool, "fileno")]
        self.replicas = array("h")
        self.sends_at_once = self._pools[0].sends_at_once
        self.judges: Any = self  # whose tally is asked for

    @property
    def notes(self) -> dict[int, str]:
        """The first message of each status, and which server it is from."""
        return {
            status: f"{url}: {text}"
            for url, pool in reversed(list(zip(self._urls, self._pools, strict=True)))
            for status, text in pool.notes.items()
        }

    def tally(self) -> Tally:
        """Return what was counted of the answers of all."""
        found = Tally()
        for pool in self._pools:
            found.add(pool.judges.tally())
        return found

    def open(self, timeout_s: float) -> None:
        """Connect to all; see `Pool.open`."""
        for pool in self._pools:
            pool.open(timeout_s)

    def start(self, keys: Sequence[int]) -> None:
        """Take requests; see `Pool.start`."""
        for replica in self._rotation.to_ask():
            self._rotation.told(replica, is_alive=True, asked_s=0.0)
        for key in keys:
            replica = self._rotation.take()
            self._open[key] = replica
            self.replicas.append(self._place[replica])
        for at, group in groupby(
            sorted(keys, key=self.replicas.__getitem__), self.replicas.__getitem__
        ):
            self._pools[at].start(list(group))

    def flush(self) -> None:
        """Hand over what was started; see `Pool.flush`."""
        for pool in self._pools:
            pool.flush()

    def wait(self, timeout_s: float) -> list[Finished]:
        """Return what ended; see `Pool.wait`."""
        end_s = time.monotonic() + timeout_s
        while True:
            found = [each for pool in self._pools for each in pool.wait(0.0)]
            left_s = end_s - time.monotonic()
            if found or left_s <= 0:
                break
            if len(self._files) == len(self._pools):
                if not select.select(self._files, (), (), left_s)[0]:
                    break
            else:  # grpcio wakes nobody; it notes itself when an answer came
                time.sleep(min(left_s, _PAUSE_S))
        for key, status, *_ in found:
            self._gave(key, is_alive=status not in _DEAD)
        return found

    def cancel(self, keys: set[int]) -> None:
        """Give requests up; see `Pool.cancel`."""
        for pool in self._pools:
            pool.cancel(keys)
        for key in keys:
            self._gave(key, is_alive=None)

    def close(self) -> None:
        """Close the connections."""
        for pool in self._pools:
            pool.close()

    def _gave(self, key: int, *, is_alive: bool | None) -> None:
        if (replica := self._open.pop(key, None)) is not None:
            self._rotation.gave(replica, is_alive=is_alive)
