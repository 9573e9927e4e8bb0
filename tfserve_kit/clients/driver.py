"""Run flows in the calling thread, which blocks. Nothing is decided here; see `async_driver.py`."""

import queue
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from tfserve_kit.clients.effects import Flow, Outcome, Send
from tfserve_kit.clock import Clock

T = TypeVar("T")


class Transport(Protocol):
    """Sends requests over connections it keeps, and blocks. Thread-safe."""

    def send(self, request: Any, timeout_s: float) -> Outcome:
        """Send a request and return what came of it, within `timeout_s` seconds; never raises."""

    def start(
        self, request: Any, timeout_s: float, done: Callable[[Outcome], None]
    ) -> Callable[[], None]:
        """Send a request in the background; returns what calls it off, as far as that can be."""

    def close(self) -> None:
        """Close the connections."""


def run(flow: Flow[T], transport: Transport, clock: Clock) -> T:
    """Run a flow to its end and return its result; its errors pass through."""
    try:
        effect = next(flow)
        while True:
            if type(effect) is Send:
                effect = flow.send(
                    transport.send(effect.request, effect.timeout_s)
                    if effect.hedge_after_s is None
                    else _hedged(effect, effect.hedge_after_s, transport)
                )
            else:
                clock.sleep(effect.duration_s)  # type: ignore[union-attr]
                effect = flow.send(None)
    except StopIteration as end:
        result: T = end.value
        return result


def _hedged(effect: Send, hedge_after_s: float, transport: Transport) -> Outcome:
    """Send once, and again if there is no answer after a while; the first answer counts."""
    outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
    stops = [transport.start(effect.request, effect.timeout_s, outcomes.put)]
    try:
        try:
            return outcomes.get(timeout=min(hedge_after_s, effect.timeout_s))
        except queue.Empty:
            left_s = effect.timeout_s - hedge_after_s
        if left_s <= 0 or not (effect.may_hedge and effect.may_hedge()):
            return outcomes.get()
        stops.append(transport.start(effect.request, left_s, outcomes.put))
        first = outcomes.get()
        return first if first.ok else outcomes.get()
    finally:
        for stop in stops:
            stop()
