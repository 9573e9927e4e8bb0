"""HTTP/1.1 on a TCP port: an event loop for the connections, worker threads for the answers."""

import asyncio
import contextlib
import ctypes
import resource
import socket
import struct
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

from tfserve_kit.embedded.http_connection import Connection, Shared, Surface
from tfserve_kit.embedded.lanes import Lanes
from tfserve_kit.embedded.ledger import Ledger
from tfserve_kit.embedded.limits import PATIENCE_S
from tfserve_kit.embedded.status import invalid

_BACKLOG = 1024
# Loading models takes descriptors too, and must not fail because clients have them all.
_RESERVED_DESCRIPTORS = 512
_ACCEPT_AGAIN_S = 0.1
_SO_ATTACH_FILTER = 26
# How long handshakes may take to end, and how long a client that has an answer may ask once more.
_HANDSHAKE_S = 0.02
_ANOTHER_REQUEST_S = 0.2


def allow_many_connections() -> None:
    """Let this process open as many descriptors as the system allows."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with contextlib.suppress(ValueError, OSError):  # macOS promises more than it gives
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class HttpTransport:
    """An HTTP server with an event loop in a thread of its own.

    Args:
        surface: (method, target, body, call) -> Reply; called in a worker thread.
        ledger: what clients make the server hold.
        address: where to listen, and the TCP port; 0 asks the system for a free one.
        threads: predictions computed at the same time.
        timeout_s: how long an answer may take before the client gets an error, in seconds.
        patience_s: how long a request that has begun may take to arrive, and an answer to be
            taken, without getting on, in seconds; `timeout_s` if that is longer. Between requests
            a connection may stay as long as it likes.
    """

    def __init__(
        self,
        surface: Surface,
        ledger: Ledger,
        address: tuple[str, int],
        threads: int,
        *,
        timeout_s: float = 30.0,
        patience_s: float = PATIENCE_S,
    ) -> None:
        lanes = Lanes(threads)
        self._workers = {
            lane: ThreadPoolExecutor(lane.most_turns, f"rest_{name}")
            for name, lane in (("predict", lanes.predictions), ("other", lanes.others))
        }
        self._loop = asyncio.new_event_loop()
        patience_s = max(timeout_s, patience_s)
        self._shared = Shared(
            surface, lanes, self._workers, self._loop, ledger, timeout_s, patience_s
        )
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)
        try:
            self._socket = socket.create_server(address, backlog=_BACKLOG)
        except (OSError, OverflowError) as error:  # taken, or no port number at all
            self._loop.close()
            self._end_workers()
            raise invalid(f"cannot listen for REST on {address[0]}:{address[1]}") from error
        self._socket.setblocking(False)
        # Connections inherit it: clients that are cut off from the network go one day.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self.port: int = self._socket.getsockname()[1]

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self, grace_s: float) -> None:
        """Refuse new connections, wait up to `grace_s` seconds for answers, then close all."""
        if not self._thread.is_alive():
            self._socket.close()
            self._loop.close()
            self._end_workers()
            return
        asyncio.run_coroutine_threadsafe(self._drain(grace_s), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._end_workers()

    def _end_workers(self) -> None:
        for workers in self._workers.values():
            workers.shutdown(wait=False, cancel_futures=True)

    def _run(self) -> None:
        self._accepting = self._loop.create_task(self._accept())
        self._loop.run_forever()
        self._loop.close()

    async def _accept(self) -> None:
        """Take up connections; while there are too many, further ones wait in the system."""
        most = _most_connections()
        while True:
            try:
                if len(self._shared.connections) < most:
                    client, _ = await self._loop.sock_accept(self._socket)
                    await self._loop.connect_accepted_socket(self._connection, client)
                    continue
            except (OSError, MemoryError):  # no descriptor left, or the client has already gone
                pass
            await asyncio.sleep(_ACCEPT_AGAIN_S)

    def _connection(self) -> Connection:
        return Connection(self._shared)

    async def _drain(self, grace_s: float) -> None:
        """Let in who has knocked, answer what is asked, and tell everybody to come no more."""
        connections = self._shared.connections
        end_s = self._loop.time() + grace_s
        self._shared.is_draining = True
        _refuse_handshakes(self._socket)
        await asyncio.sleep(_HANDSHAKE_S)
        self._accepting.cancel()
        await asyncio.wait([self._accepting])
        await self._accept_rest()
        self._socket.close()
        await self._until_empty(min(end_s, self._loop.time() + _ANOTHER_REQUEST_S))
        for connection in list(connections):
            connection.finish()
        await self._until_empty(end_s)
        for connection in list(connections):
            connection.abort()
        await asyncio.sleep(0)  # lets the transports say goodbye

    async def _accept_rest(self) -> None:
        with contextlib.suppress(OSError):  # there are no more, or no descriptor is left
            while True:
                client, _ = self._socket.accept()
                client.setblocking(False)
                await self._loop.connect_accepted_socket(self._connection, client)

    async def _until_empty(self, end_s: float) -> None:
        while self._shared.connections and self._loop.time() < end_s:
            await asyncio.sleep(0.01)


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
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, option)


def _most_connections() -> int:
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return descriptors - min(_RESERVED_DESCRIPTORS, descriptors // 2)
