"""One event loop in one thread for all connections, and the ports that they come in by."""

import asyncio
import contextlib
import ctypes
import logging
import math
import os
import resource
import socket
import ssl
import struct
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Coroutine, Iterable
from pathlib import Path
from typing import Any

from tfserve_kit.embedded.limits import RESERVED_DESCRIPTORS, usable_processors
from tfserve_kit.embedded.settings import Tls

try:
    from uvloop import new_event_loop
except ImportError:  # there is no wheel of it here
    from asyncio import new_event_loop

_log = logging.getLogger(__name__)

_BACKLOG = 1024
_ACCEPT_AGAIN_S = 0.1
# Nanoseconds that a thread was at work, and that it could have been.
_SCHEDULED = "/proc/thread-self/schedstat"
_LOOK_AGAIN_S = 0.005
_SO_ATTACH_FILTER = 26
# How long a loop stays awake for what arrives next, and if how much of it arrived so soon, of late.
AWAKE_S = 150e-6
_MOST = 0.5
_WEIGHT = 1 / 8
_PROCESSORS = usable_processors()
# From malloc.h, M_TRIM_THRESHOLD: what is kept at most, for each thread; and M_MMAP_THRESHOLD: what
# is larger, such as the weights of models, always goes back.
_KEPT = {-1: 16 << 20, -3: 4 << 20}
# How long handshakes may take to end: of TCP when the server ends, of TLS at any time.
_HANDSHAKE_S = 0.02
_TLS_HANDSHAKE_S = 20.0


def allow_many_connections() -> None:
    """Let this process open as many descriptors as the system allows."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with contextlib.suppress(ValueError, OSError):  # macOS promises more than it gives
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def keep_freed_memory() -> None:
    """Let this process keep some of the memory that it frees for what it takes next.

    By itself glibc gives the memory of every large message back to the system, which has to fill it
    with zeros again, page by page, for the next one.
    """
    with contextlib.suppress(AttributeError, OSError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        for option, size_bytes in _KEPT.items():
            mallopt(option, size_bytes)


def most_connections() -> int:
    """Return how many connections leave enough descriptors for everything else."""
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return descriptors - min(RESERVED_DESCRIPTORS, descriptors // 2)


class Lookout:
    """Says whether it pays to stay awake for what arrives next.

    A thread that sleeps takes long to wake, and finds nothing at hand in the processor's caches: a
    client that asks one thing after the other waits for that twice as long as for its answer. So
    as long as most things arrive soon after the one before, that moment is waited out awake.

    Attributes:
        share: a moving share of what arrived soon.
    """

    __slots__ = ("_rested_s", "share")

    def __init__(self) -> None:
        self.share, self._rested_s = 0.0, -math.inf

    def note_work(self, now_s: float) -> None:
        """Take into account that there is something to do."""
        is_soon = now_s - self._rested_s < AWAKE_S
        self.share += (is_soon - self.share) * _WEIGHT

    def awake_until_s(self, now_s: float) -> float:
        """Return until when to stay awake, as there is nothing to do any more; now for not."""
        self._rested_s = now_s
        return now_s + AWAKE_S if self.share > _MOST else now_s


class EventLoop:
    """An event loop in a thread of its own, for several servers.

    Attributes:
        loop: the loop itself.
        connections: those of each server, and those that are to become some.
        lookout: says whether it stays awake, see `stay_awake`.
    """

    def __init__(self) -> None:
        self.lookout = Lookout()
        self._awake_until_s = 0.0
        self._is_awake = False
        self.loop: asyncio.AbstractEventLoop = new_event_loop()
        self.connections: list[Collection[object]] = []
        self._thread = threading.Thread(target=self._run, name="front", daemon=True)
        self._posted: deque[Callable[[], object]] = deque()
        self._is_woken = False
        self._waited_ns: int | None = None

    def start(self) -> None:
        """Let it run; idempotent."""
        if not self._thread.is_alive():
            self._thread.start()

    def has_room(self) -> bool:
        """Say whether another connection may come; while not, they wait in the system."""
        return sum(map(len, self.connections)) < most_connections()

    def post(self, calls: Iterable[Callable[[], object]]) -> None:
        """Have something quick called in the loop, which is woken once for all; from any thread.

        What comes after its end is let go.
        """
        self._posted.extend(calls)
        if not self._is_woken:
            self._is_woken = True
            try:
                self.loop.call_soon_threadsafe(self._take_up)
            except RuntimeError:
                self._let_go()

    def stay_awake(self) -> None:
        """Look for what arrives without sleeping for a moment, if it pays; for its thread.

        Whoever asks is on one of the other processors, so it takes one that is idle.
        """
        now_s = time.perf_counter()
        self._awake_until_s = self.lookout.awake_until_s(now_s)
        if self._awake_until_s > now_s and not self._is_awake and _PROCESSORS > 1:
            self._is_awake = True
            self.loop.call_soon(self._look_again)

    def _look_again(self) -> None:
        self._is_awake = time.perf_counter() < self._awake_until_s
        if self._is_awake:
            self.loop.call_soon(self._look_again)

    def _take_up(self) -> None:
        """Call what was posted."""
        self._is_woken = False
        posted = self._posted
        while posted:
            try:
                posted.popleft()()
            except Exception:  # noqa: BLE001 (the others must be called)
                _log.exception("an answer was lost")

    def _let_go(self) -> None:
        self._is_woken = False
        self._posted.clear()

    def do(self, work: Coroutine[Any, Any, object]) -> None:
        """Do something in the loop, and wait until it is done; it must run."""
        asyncio.run_coroutine_threadsafe(work, self.loop).result()

    async def until(self, is_so: Callable[[], object], end_s: float) -> None:
        """Wait until something is so, but no longer than the loop's clock says; for its thread."""
        while not is_so() and self.loop.time() < end_s:
            await asyncio.sleep(_LOOK_AGAIN_S)

    def kept_waiting_s(self) -> float:
        """Return how long others had the processor, though the loop could have gone on.

        That is since it was last asked; for the loop's thread. 0 where the system does not tell.
        """
        try:
            with open(_SCHEDULED, "rb") as file:  # noqa: PTH123 (a third of the time)
                waited_ns = int(file.read().split()[1])
        except (OSError, ValueError, IndexError):
            return 0.0
        before_ns, self._waited_ns = self._waited_ns, waited_ns
        return 0.0 if before_ns is None else (waited_ns - before_ns) / 1e9

    def stop(self) -> None:
        """End it; idempotent."""
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join()
        elif not self.loop.is_closed():
            self.loop.close()
            self._let_go()

    def _run(self) -> None:
        self.kept_waiting_s()
        self.loop.run_forever()
        self.loop.close()
        self._let_go()


class Listener:
    """A socket that connections come in by. Lives in the event loop once it is opened.

    Args:
        front: the event loop.
        listener: the socket, which listens.
        protocol: returns what talks over a new connection.
        tls: certificates; None for plain text.
    """

    def __init__(
        self,
        front: EventLoop,
        listener: socket.socket,
        protocol: Callable[[], asyncio.BaseProtocol],
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._loop, self._has_room = front.loop, front.has_room
        self._socket = listener
        self._protocol = protocol
        self._tls = tls
        self._handshakes: set[asyncio.Task[object]] = set()
        front.connections.append(self._handshakes)
        self._accepting: asyncio.Task[None] | None = None
        listener.setblocking(False)
        if listener.family != socket.AF_UNIX:
            # Connections inherit it: clients that are cut off from the network go one day.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def open(self) -> None:
        """Take up connections from now on."""
        self._accepting = self._loop.create_task(self._accept())

    async def _accept(self) -> None:
        while True:
            try:
                if self._has_room():
                    client, _ = await self._loop.sock_accept(self._socket)
                    # Who has been let in stays, should accepting end just now.
                    await asyncio.shield(self._take_up(client))
                    continue
            except (OSError, MemoryError):  # no descriptor left, or the client has already gone
                pass
            await asyncio.sleep(_ACCEPT_AGAIN_S)

    async def _take_up(self, client: socket.socket) -> None:
        if self._tls is None:
            await self._loop.connect_accepted_socket(self._protocol, client)
            return
        task = self._loop.create_task(self._shake_hands(client))  # nobody waits for it
        self._handshakes.add(task)
        task.add_done_callback(self._handshakes.discard)

    async def _shake_hands(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError, TimeoutError, EOFError):  # what is said is not TLS
            await self._loop.connect_accepted_socket(
                self._protocol, client, ssl=self._tls, ssl_handshake_timeout=_TLS_HANDSHAKE_S
            )

    async def close_gently(self) -> None:
        """Let in who has knocked, and nobody else any more."""
        if self._accepting is None:
            self.close()
            return
        _refuse_handshakes(self._socket)
        await asyncio.sleep(_HANDSHAKE_S)
        self._accepting.cancel()
        await asyncio.wait([self._accepting])
        with contextlib.suppress(OSError):  # there are no more, or no descriptor is left
            while True:
                client, _ = self._socket.accept()
                client.setblocking(False)
                await self._take_up(client)
        self.close()

    def close(self) -> None:
        """Listen no more; idempotent."""
        path = "" if self._socket.fileno() < 0 else self._socket.getsockname()
        self._socket.close()
        if isinstance(path, str) and path:
            Path(path).unlink(missing_ok=True)


def listening(host: str, port: int) -> socket.socket:
    """Return a TCP socket that listens.

    Raises:
        OSError: it is taken, or there is no such address.
        OverflowError: the number is not a port's.
    """
    if not 0 <= port < 1 << 16:
        raise OverflowError(f"{port} is not a port")
    address = host.strip("[]")
    if ":" not in address:
        return socket.create_server((address, port), backlog=_BACKLOG)
    return socket.create_server(
        (address, port),
        family=socket.AF_INET6,
        backlog=_BACKLOG,
        dualstack_ipv6=socket.has_dualstack_ipv6(),
    )


def listening_at(path: str) -> socket.socket:
    """Return a UNIX socket that listens; one that nobody listens on any more is replaced.

    Raises:
        OSError: it is taken, or cannot be made.
    """
    listener = socket.socket(socket.AF_UNIX)
    try:
        if _is_abandoned(path):
            Path(path).unlink()
        listener.bind(path)
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def _is_abandoned(path: str) -> bool:
    if not Path(path).is_socket():
        return False
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return True
    return False


def tls_context(tls: Tls, protocol: str) -> ssl.SSLContext:
    """Return what makes a server speak TLS.

    Args:
        tls: certificates.
        protocol: what is spoken over it, by its name for ALPN.

    Raises:
        OSError: a certificate cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols([protocol])
    with tempfile.TemporaryDirectory() as folder:  # it reads files alone; nobody else may
        names = ("cert.pem", "key.pem")
        for name, content in zip(names, (tls.server_cert, tls.server_key), strict=True):
            (Path(folder) / name).write_bytes(content)
        context.load_cert_chain(*(os.fspath(Path(folder) / name) for name in names))
    if tls.custom_ca:
        context.load_verify_locations(cadata=tls.custom_ca.decode("ascii", "replace"))
    if tls.client_verify:
        if not tls.custom_ca:
            raise ssl.SSLError("clients cannot be verified without a custom_ca")
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _refuse_handshakes(listener: socket.socket) -> None:
    """Let no connection begin any more, while those that have begun can still be accepted.

    What waits in a listening socket that is closed is reset, though its client has perhaps sent
    its request already. Linux can be told to drop just the packets that begin a connection (with
    the flag SYN, in byte 13 of a TCP header); other systems have to do without.
    """
    program = b"".join(
        struct.pack("HBBI", *instruction)
        for instruction in (
            (0x30, 0, 0, 13),  # load the byte
            (0x45, 0, 1, 0x02),  # is SYN among its flags?
            (0x06, 0, 0, 0),  # drop the packet
            (0x06, 0, 0, 0xFFFFFFFF),  # or keep all of it
        )
    )
    memory = ctypes.create_string_buffer(program)
    option = struct.pack("HP", len(program) // 8, ctypes.addressof(memory))
    if sys.platform == "linux" and listener.family != socket.AF_UNIX:
        with contextlib.suppress(OSError):
            listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, option)
