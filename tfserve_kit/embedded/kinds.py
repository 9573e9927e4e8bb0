"""What is known of how long calls of a kind take, or batches: whether the event loop makes them."""

import math
from dataclasses import dataclass

# What is done on the spot: as short as this, by so many measurements; larger ones are never.
SHORT_S = 0.0004
MEASUREMENTS = 5
MOST_BYTES_ON_THE_SPOT = 1 << 20
# What computes for long: so much of the processor, in the mean.
LONG_S = 0.02
# What sends a kind of calls back to the threads: a mean on the spot; one call that takes so much of
# the processor, unless such calls are rare (Python collects garbage at times, and a virtual machine
# is stopped for a moment); or one that keeps the loop for so long. On a busy machine it may have
# been kept by others itself, so no call counts for more than a few short ones in the mean, and the
# time in which the system let others run is not its own: in a thread it would have to wait even
# longer.
TOO_LONG_S = 2 * SHORT_S
# Rare: they take so much of the time at most; so much at once if there were none before, and so
# much at first, when things are done that are done once.
_RARE = 1 / 50
_MOST_SPARE_S = 20 * SHORT_S
_FIRST_SPARE_S = 10 * SHORT_S
FAR_TOO_LONG_S = 125 * SHORT_S
_MOST_COUNTED_S = 4 * SHORT_S
_WEIGHT = 1 / 8
# How long it stays there: the first time, as it may have been a virtual machine's pause that looked
# like work, and at most.
_FIRST_PAUSE_S = 1 / 32
_MOST_PAUSE_S = 60.0
_CALLS_OF_A_SHORT_KIND = 1000  # after which the next time is the first time again
# How long calls of a kind are made in a row before their answers are sent, and how many.
_ROW_S, _ROW = 0.0005, 32


@dataclass(slots=True, eq=False)
class CallKind:
    """How long the calls of one kind have taken.

    Attributes:
        calls: how many were measured since they were last found too long; in threads no more count
            than it takes to be tried on the spot.
        spare_s: what long ones may take on the spot, as of `spared_s`.
        spared_s: when that was reckoned.
        least_s: the shortest of those in threads, where others get in between.
        mean_s: a moving mean of those on the spot; 0 while there were none.
        worked_s: a moving mean of how long those in threads were at work.
        waits: whether the last one had to wait for others, such as those of its batch.
        long_until_s: when they may be tried on the spot again.
        pause_s: how long they have to stay away the next time.
    """

    calls: int = 0
    spare_s: float = _FIRST_SPARE_S
    spared_s: float = 0.0
    least_s: float = math.inf
    mean_s: float = 0.0
    worked_s: float = 0.0
    waits: bool = False
    long_until_s: float = -math.inf
    pause_s: float = _FIRST_PAUSE_S

    def note(self, wall_s: float, processor_s: float, now_s: float, *, on_the_spot: bool) -> None:
        """Take a measurement into account.

        Args:
            wall_s: how long a call took, without the time in which it waited for others.
            processor_s: how much of that its thread was at work.
            now_s: the time now.
            on_the_spot: whether it was made in the event loop's thread.
        """
        if on_the_spot or self.calls < MEASUREMENTS:
            self.calls += 1
        if not on_the_spot:
            self.spare_s, self.spared_s = _FIRST_SPARE_S, now_s
            self.least_s = min(self.least_s, wall_s)
            is_first = not self.worked_s
            self.worked_s += (processor_s - self.worked_s) * (1.0 if is_first else _WEIGHT)
            return
        if not self.mean_s:
            self.mean_s = min(wall_s, SHORT_S)
        self.mean_s += (min(wall_s, _MOST_COUNTED_S) - self.mean_s) * _WEIGHT
        if self._is_too_long(wall_s, processor_s, now_s):
            self.calls, self.least_s, self.mean_s = 0, math.inf, 0.0
            self.long_until_s = now_s + self.pause_s
            self.pause_s = min(2 * self.pause_s, _MOST_PAUSE_S)
        elif self.calls > _CALLS_OF_A_SHORT_KIND:
            self.pause_s = _FIRST_PAUSE_S

    @property
    def most_in_row(self) -> int:
        """How many are made before their answers are sent: what has arrived is done together."""
        if self.waits:
            return _ROW  # they take part in one batch
        return max(1, int(_ROW_S / max(self.mean_s or self.least_s, _ROW_S / _ROW)))

    def _is_too_long(self, wall_s: float, processor_s: float, now_s: float) -> bool:
        if wall_s > FAR_TOO_LONG_S or self.mean_s > TOO_LONG_S:
            return True
        if processor_s <= TOO_LONG_S:
            return False
        spare_s = min(self.spare_s + _RARE * (now_s - self.spared_s), _MOST_SPARE_S)
        self.spare_s, self.spared_s = spare_s - processor_s, now_s
        return self.spare_s < 0


def belongs_on_the_spot(kind: CallKind | None, size_bytes: int, now_s: float) -> bool:
    """Say whether a call is made in the event loop's thread.

    Args:
        kind: what is known of others like it; None for nothing.
        size_bytes: size of its message.
        now_s: the time now.
    """
    if kind is None or size_bytes > MOST_BYTES_ON_THE_SPOT:
        return False
    is_known = kind.calls >= MEASUREMENTS and now_s >= kind.long_until_s
    return is_known and kind.least_s <= SHORT_S


def computes_for_long(kind: CallKind | None) -> bool:
    """Say whether a call needs a processor of its own; what only waits does not, however long.

    Args:
        kind: what is known of others like it; None for nothing.
    """
    return kind is not None and kind.worked_s >= LONG_S
