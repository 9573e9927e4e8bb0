"""Which replica of a fleet takes the next request, and which are left out for now.

Rules over outcomes and time, without input or output; `fleet.py` sends, `perf/` measures by them.
"""

import random
import threading
from collections.abc import Callable, Collection, Iterable
from typing import Any

from tfserve_kit.clock import Clock

# A replica that owes answers and gives none for so long is asked whether it lives.
QUIET_S = 0.2
# So long it may take to say so.
PROBE_S = 0.5
# The longest pause before the first question to a replica that was left out; it doubles.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 1.0


class Member:
    """One server of a fleet, as a rotation sees it.

    Attributes:
        url: its address.
        transport: what sends to it.
        outstanding: requests that it owes an answer.
        owes: a caller gave up waiting for it, and nothing has come since.
        quiet_since_s: when it last answered, or was asked while it owed nothing.
        failures: how often it failed since its last answer.
        retry_at_s: when to probe it, where it is left out; None while it is in rotation.
        asked: whether a probe is on its way.
    """

    def __init__(self, url: str, transport: Any = None) -> None:
        self.url, self.transport = url, transport
        self.outstanding, self.owes, self.asked = 0, False, False
        self.failures, self.quiet_since_s = 0, 0.0
        self.retry_at_s: float | None = None

    @property
    def is_out(self) -> bool:
        """Whether it is left out for now."""
        return self.retry_at_s is not None


class Rotation:
    """Spreads requests over replicas by least outstanding requests. Thread-safe.

    A replica that fails is left out at once, and asked again after pauses that grow until one of
    its real answers has come. If all are left out, requests try them nevertheless. One that is
    silent is left out unless it is the last.

    Args:
        urls: addresses of the replicas.
        clock: what time is measured with.
        connect: given an address, returns what sends to it.
        chance: returns a number from 0 up to 1: which of equals is taken; and pauses are cut by up
            to half by it, so that many clients do not come back at once.
    """

    def __init__(
        self,
        urls: Iterable[str],
        clock: Clock,
        connect: Callable[[str], Any] = lambda _: None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._clock, self._connect, self._chance = clock, connect, chance
        self._lock = threading.Lock()
        self._next = 0
        self.replicas = [Member(url, connect(url)) for url in dict.fromkeys(urls)]

    def take(self, tried: Collection[Member] = ()) -> Member:
        """Return the replica for a request, which is outstanding from now on.

        Args:
            tried: replicas that have failed the same request; taken only where there is no other.

        Raises:
            IndexError: there are no replicas.
        """
        with self._lock:
            count = len(self.replicas)
            # By chance, or each second request of two replicas would go to the same one.
            self._next += 1 + int(self._chance() * count)
            best, least = None, (True, True, 0)
            for place in range(self._next, self._next + count):
                each = self.replicas[place % count]
                rank = (each.retry_at_s is not None, each in tried, each.outstanding)
                if best is None or rank < least:
                    best, least = each, rank
            if best is None:
                raise IndexError("a fleet without replicas")
            if not _is_waited_for(best):
                best.quiet_since_s = self._clock.now_s()
            best.outstanding += 1
            return best

    def gave(self, replica: Member, *, is_alive: bool | None) -> None:
        """Note what came of a request that was outstanding.

        Args:
            replica: the one that it was sent to.
            is_alive: whether it answered, if only to refuse; False if it cannot be reached or broke
                off, None if the caller stopped waiting.
        """
        with self._lock:
            replica.outstanding -= 1
            if is_alive:
                replica.failures, replica.retry_at_s, replica.owes = 0, None, False
                replica.quiet_since_s = self._clock.now_s()
            elif is_alive is None:
                replica.owes = True
            elif replica.retry_at_s is None:
                self._leave_out(replica)

    def to_ask(self) -> list[Member]:
        """Return the replicas that are to be probed now; each is noted as being so.

        Those are the ones left out whose pause is over, and those that owe answers and are silent.
        """
        now_s = self._clock.now_s()
        with self._lock:
            found = [each for each in self.replicas if not each.asked and _is_due(each, now_s)]
            for each in found:
                each.asked = True
            return found

    def told(self, replica: Member, *, is_alive: bool, asked_s: float) -> bool:
        """Note what came of a probe; return whether the replica is left out for being silent.

        Args:
            replica: the one asked.
            is_alive: whether it answered.
            asked_s: when it was asked, by the clock.
        """
        with self._lock:
            replica.asked = False
            if is_alive:
                # The pauses go on growing until a request is answered: probes may be all it can.
                replica.retry_at_s, replica.owes = None, False
                replica.quiet_since_s = self._clock.now_s()
                return False
            is_in = replica.retry_at_s is None
            if is_in and (not _is_waited_for(replica) or replica.quiet_since_s > asked_s):
                return False  # it has answered something else meanwhile
            if is_in and all(each.is_out for each in self.replicas if each is not replica):
                return False  # there is none that its calls could go to: they wait
            self._leave_out(replica)
            return is_in

    def update(self, urls: Iterable[str]) -> list[Member]:
        """Have just these replicas from now on; known ones stay. Return those that are gone."""
        with self._lock:
            known = {each.url: each for each in self.replicas}
            self.replicas = [
                known.pop(url) if url in known else Member(url, self._connect(url))
                for url in dict.fromkeys(urls)
            ]
            return list(known.values())

    def begin_anew(self) -> None:
        """Forget, in a forked child, what the parent has outstanding."""
        self._lock = threading.Lock()
        for each in self.replicas:
            each.outstanding, each.asked, each.owes = 0, False, False

    def _leave_out(self, replica: Member) -> None:
        pause_s = min(FIRST_PAUSE_S * 2.0 ** min(replica.failures, 10), LONGEST_PAUSE_S)
        replica.failures += 1
        replica.owes = False
        replica.retry_at_s = self._clock.now_s() + pause_s * (1 - self._chance() / 2)


def _is_due(replica: Member, now_s: float) -> bool:
    if replica.retry_at_s is not None:
        return now_s >= replica.retry_at_s
    return _is_waited_for(replica) and now_s - replica.quiet_since_s >= QUIET_S


def _is_waited_for(replica: Member) -> bool:
    return replica.outstanding > 0 or replica.owes
