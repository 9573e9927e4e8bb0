"""Turns: how many requests are worked on at once, and who is next.

A request asks for a turn when all of it has arrived, never before, so that nobody's slowness takes
a turn from others. Predictions, reloads and everything else (status, metadata, health, metrics)
have lanes of their own: status is told while every model computes.

Within a lane requests are kept apart by group: the client and what it asks for. While turns are
left anybody gets one. Beyond that half as many again are there for groups that hold less than an
equal share, and a turn that ends goes to the group that holds the fewest: requests that take long,
however many, do not keep others waiting that would be quick. Those that wait are counted as the
bytes are in the ledger: a group may be at most four times what is still free.
"""

import threading
from collections.abc import Callable, Hashable

from tfserve_kit.embedded.ledger import TIMES_WHAT_IS_FREE
from tfserve_kit.embedded.limits import MOST_WAITING
from tfserve_kit.embedded.status import Code, ServingError

Group = Hashable

# All but predictions take a moment, and a reload that waits gives way to the next one.
_FEW = 4
_FEW_WAITING = 128


class _Party:
    """What one group has in a lane."""

    __slots__ = ("held", "waiting")

    def __init__(self) -> None:
        self.held = 0
        self.waiting: dict[Turn, None] = {}  # the oldest first


class Lane:
    """A number of turns. Thread-safe.

    Args:
        turns: how many at once, besides half as many for groups that are behind.
        most_waiting: how many requests may wait for one.

    Attributes:
        most_turns: how many at once, those for groups that are behind included.
        waiting: how many requests wait for one now.
    """

    def __init__(self, turns: int, most_waiting: int = MOST_WAITING) -> None:
        self._turns = turns
        self.most_turns = turns + turns // 2
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
            if turn.has_come:
                turn.has_come = False
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
        turn.has_come = True
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
    """One request's place in a lane; see `Lane.enter`."""

    __slots__ = ("_lane", "begin", "group", "has_come")

    def __init__(self, lane: Lane, group: Group, begin: Callable[["Turn"], object]) -> None:
        self._lane, self.group, self.begin = lane, group, begin
        self.has_come = False

    def end(self) -> None:
        """Let the next one have it, or wait for it no longer; idempotent."""
        self._lane.end(self)


class Lanes:
    """The lanes of one protocol.

    Args:
        threads: predictions at the same time.
    """

    def __init__(self, threads: int) -> None:
        self.predictions = Lane(threads)
        self.reloads = Lane(_FEW, _FEW_WAITING)
        self.others = Lane(_FEW, _FEW_WAITING)
