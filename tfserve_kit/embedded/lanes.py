"""Turns: how many requests are worked on at once, and who is next.

A request asks for a turn when all of it has arrived, never before, so that nobody's slowness takes
a turn from others. Predictions, reloads and everything else (status, metadata, health, metrics)
have lanes of their own: status is told while every model computes.

Within a lane requests are kept apart by group: the client and what it asks for. While turns are
left anybody gets one. Beyond that half as many again are there for groups that hold less than an
equal share, and a turn that ends goes to the group that holds the fewest: requests that take long,
however many, do not keep others waiting that would be quick. Those that wait are counted as the
bytes are in the ledger: a group may be at most four times what is still free.

Those that compute for long need a processor besides, which is a turn of one more lane: more of them
than there are processors would end no sooner, and keep the event loop from its own. The groups are
kinds of calls there, and each may have its equal share at any time, one turn at least, so no model
waits for another.
"""

import os
import sys
import threading
from collections.abc import Callable, Hashable
from contextlib import suppress

from tfserve_kit.embedded.ledger import TIMES_WHAT_IS_FREE
from tfserve_kit.embedded.limits import MOST_WAITING, usable_processors
from tfserve_kit.embedded.status import Code, ServingError

Group = Hashable

# All but predictions take a moment, and a reload that waits gives way to the next one.
_FEW = 4
_FEW_WAITING = 128
# How much less than others a thread that computes asks of the processors.
_NICENESS = 5


def give_way() -> None:
    """Let the system prefer other threads to this one, where each has a priority of its own.

    That is so on Linux, which needs no permission for it. Threads that this one starts have the
    same priority, so it counts from that of the process.
    """
    if sys.platform == "linux":
        niceness = os.getpriority(os.PRIO_PROCESS, os.getpid()) + _NICENESS
        with suppress(OSError):  # it is lower already
            os.setpriority(os.PRIO_PROCESS, 0, niceness)


class _Party:
    """What one group has in a lane."""

    __slots__ = ("held", "waiting")

    def __init__(self) -> None:
        self.held = 0
        self.waiting: dict[Turn, None] = {}  # the oldest first


class Lane:
    """A number of turns. Thread-safe.

    Args:
        turns: how many at once, besides those for groups that are behind.
        most_waiting: how many requests may wait for one.
        most_turns: how many at once, those for groups that are behind included; half as many again
            if left out.

    Attributes:
        most_turns: how many at once, those for groups that are behind included.
        waiting: how many requests wait for one now.
    """

    def __init__(
        self, turns: int, most_waiting: int = MOST_WAITING, most_turns: int | None = None
    ) -> None:
        self._turns = turns
        self.most_turns = turns + turns // 2 if most_turns is None else most_turns
        self._most_waiting = most_waiting
        self._taken = self.waiting = 0
        self._lock = threading.Lock()
        self._parties: dict[Group, _Party] = {}  # the last served comes last

    def enter(self, group: Group, begin: Callable[["Turn"], object]) -> "Turn":
        """Ask for a turn.

        Args:
            group: whom it counts for.
            begin: called with the turn when it has come: now, or later by whoever ends another.
                It must be quick and must not raise.

        Returns:
            The turn; whether it has come or not, `Turn.end` it.

        Raises:
            ServingError: UNAVAILABLE, too many requests of the group are waiting.
        """
        turn = Turn(self, group, begin)
        with self._lock:
            party = self._parties.get(group)
            if party is None:
                party = self._parties[group] = _Party()
            has_come = not party.waiting and self._may_take(party)
            if has_come:
                self._take(turn, party)
            else:
                self._queue(turn, party)
        if has_come:
            begin(turn)
        return turn

    def end(self, turn: "Turn") -> None:
        """See `Turn.end`."""
        with self._lock:
            party = self._parties.get(turn.group)
            if party is None:
                return
            if turn.is_held:
                turn.is_held = False
                party.held -= 1
                self._taken -= 1
            elif turn in party.waiting:
                del party.waiting[turn]
                self.waiting -= 1
            self._forget_if_done(turn.group, party)
            following = self._next() if self.waiting else None
        if following:
            following.begin(following)

    def _may_take(self, party: _Party) -> bool:
        if self._taken < self._turns:
            return True
        is_behind = party.held * len(self._parties) < self._turns
        return is_behind and self._taken < self.most_turns

    def _take(self, turn: "Turn", party: _Party) -> None:
        turn.has_come = turn.is_held = True
        party.held += 1
        self._taken += 1
        if len(self._parties) > 1:
            self._parties[turn.group] = self._parties.pop(turn.group)

    def _next(self) -> "Turn | None":
        """Give a turn to the group that holds the fewest, of several to the one served least."""
        waiting = [party for party in self._parties.values() if party.waiting]
        party = min(waiting, key=lambda party: party.held, default=None)
        if party is None or not self._may_take(party):
            return None
        turn = next(iter(party.waiting))
        del party.waiting[turn]
        self.waiting -= 1
        self._take(turn, party)
        return turn

    def _queue(self, turn: "Turn", party: _Party) -> None:
        """Let a turn wait; whoever has most waiting is refused, so that others may."""
        free = self._most_waiting - self.waiting - 1
        if len(party.waiting) + 1 > TIMES_WHAT_IS_FREE * free:
            self._forget_if_done(turn.group, party)
            text = f"Too many requests are waiting: {self.waiting}; repeat the request later"
            raise ServingError(Code.UNAVAILABLE, text)
        party.waiting[turn] = None
        self.waiting += 1

    def _forget_if_done(self, group: Group, party: _Party) -> None:
        if not party.held and not party.waiting:
            del self._parties[group]


class Turn:
    """One request's place in a lane; see `Lane.enter`.

    Attributes:
        group: whom it counts for.
        begin: called when it comes.
        has_come: whether it has, at any time.
        is_held: whether it has, and has not ended.
    """

    __slots__ = ("_lane", "begin", "group", "has_come", "is_held")

    def __init__(self, lane: Lane, group: Group, begin: Callable[["Turn"], object]) -> None:
        self._lane, self.group, self.begin = lane, group, begin
        self.has_come = self.is_held = False

    def end(self) -> None:
        """Let the next one have it, or wait for it no longer; idempotent."""
        self._lane.end(self)


def processors(count: int = 0) -> Lane:
    """Return the lane of requests that compute for long; it refuses none.

    Args:
        count: how many processors there are; those that this process may use, unless positive.
    """
    return Lane(count if count > 0 else usable_processors(), sys.maxsize, sys.maxsize)


class Lanes:
    """The lanes of one protocol.

    Args:
        threads: predictions at the same time.
        long: the lane of those that compute for long, shared by protocols; None for its own.
    """

    def __init__(self, threads: int, long: Lane | None = None) -> None:
        self.predictions = Lane(threads)
        self.long = long or processors()
        self.reloads = Lane(_FEW, _FEW_WAITING)
        self.others = Lane(_FEW, _FEW_WAITING)
