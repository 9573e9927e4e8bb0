"""HTTP/1.1 on a TCP port: an event loop for the connections, worker threads for the answers."""

import asyncio
import contextlib
import resource
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

from tfserve_kit.embedded.http_connection import Connection, Shared, Surface
from tfserve_kit.embedded.status import ServingError, invalid

_BACKLOG = 1024
# Loading models takes descriptors too, and must not fail because clients have them all.
_RESERVED_DESCRIPTORS = 512
_ACCEPT_AGAIN_S = 0.1


def allow_many_connections() -> None:
    """Let this process open as many descriptors as the system allows."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with contextlib.suppress(ValueError, OSError):  # macOS promises more than it gives
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class HttpTransport:
    """An HTTP server with an event loop in a thread of its own.

    Args:
        surface: (method, target, body, call) -> Reply; called in a worker thread.
        host: address to listen on.
        port: TCP port; 0 asks the system for a free one.
        threads: requests answered at the same time.
        timeout_s: how long an answer may take before the client gets an error, in seconds.
        patience_s: how long a request that has begun may take to arrive, and an answer to be
            taken, without getting on, in seconds; `timeout_s` if that is longer. Between requests
            a connection may stay as long as it likes.
    """

    def __init__(
        self,
        surface: Surface,
        host: str,
        port: int,
        threads: int,
        *,
        timeout_s: float = 30.0,
        patience_s: float = 60.0,
    ) -> None:
        self._workers = ThreadPoolExecutor(threads, "rest")
        self._loop = asyncio.new_event_loop()
        self._shared = Shared(
            surface, self._workers, self._loop, timeout_s, max(timeout_s, patience_s)
        )
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)
        try:
            self._socket = socket.create_server((host, port), backlog=_BACKLOG)
        except (OSError, OverflowError) as error:  # taken, or no port number at all
            self._loop.close()
            self._workers.shutdown()
            raise _unusable(host, port) from error
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
            self._workers.shutdown()
            return
        asyncio.run_coroutine_threadsafe(self._drain(grace_s), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._workers.shutdown(wait=False, cancel_futures=True)

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
        connections = self._shared.connections
        end_s = self._loop.time() + grace_s
        await asyncio.sleep(0.01)  # who has just come is let in, and what they sent is read
        self._accepting.cancel()
        await asyncio.wait([self._accepting])
        self._socket.close()
        for connection in list(connections):
            connection.finish()
        while connections and self._loop.time() < end_s:  # until all answers are sent
            await asyncio.sleep(0.01)
        for connection in list(connections):
            connection.abort()
        await asyncio.sleep(0)  # lets the transports say goodbye


def _most_connections() -> int:
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return descriptors - min(_RESERVED_DESCRIPTORS, descriptors // 2)


def _unusable(host: str, port: int) -> ServingError:
    return invalid(f"cannot listen for REST on {host}:{port}")
