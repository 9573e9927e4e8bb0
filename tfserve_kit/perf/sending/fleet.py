"""Sending to a fleet: a pool for each server, and the clients' own rules for which takes what."""

import select
import time
from array import array
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from tfserve_kit.clients.rotation import Replica, Rotation, Sign
from tfserve_kit.clock import Clock, SystemClock
from tfserve_kit.perf import samples
from tfserve_kit.perf.load import Tally
from tfserve_kit.perf.sending.driving import Finished, Pool

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
        self._open: dict[int, Replica] = {}
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
            self._gave(key, Sign.DEAD if status in _DEAD else Sign.ALIVE)
        return found

    def cancel(self, keys: set[int]) -> None:
        """Give requests up; see `Pool.cancel`."""
        for pool in self._pools:
            pool.cancel(keys)
        for key in keys:
            self._gave(key, Sign.NONE)

    def close(self) -> None:
        """Close the connections."""
        for pool in self._pools:
            pool.close()

    def _gave(self, key: int, sign: Sign) -> None:
        if (replica := self._open.pop(key, None)) is not None:
            self._rotation.gave(replica, sign)
