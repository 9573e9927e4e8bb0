"""Run flows in an event loop of asyncio; the twin of `driver.py`."""

import asyncio
from typing import Any, Protocol, TypeVar

from tfserve_kit.clients.effects import Flow, Outcome, Send

T = TypeVar("T")


class AsyncTransport(Protocol):
    """Sends requests over connections it keeps, for one event loop."""

    async def send(self, request: Any, timeout_s: float) -> Outcome:
        """Send a request and return what came of it, within `timeout_s` seconds; never raises."""

    async def close(self) -> None:
        """Close the connections."""


async def run_async(flow: Flow[T], transport: AsyncTransport) -> T:
    """Run a flow to its end and return its result; its errors pass through."""
    try:
        effect = next(flow)
        while True:
            if isinstance(effect, Send):
                effect = flow.send(
                    await transport.send(effect.request, effect.timeout_s)
                    if effect.hedge_after_s is None
                    else await _hedged_async(effect, effect.hedge_after_s, transport)
                )
            else:
                await asyncio.sleep(effect.duration_s)
                effect = flow.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    finally:
        flow.close()  # a task may be cancelled while it waits


async def _hedged_async(effect: Send, hedge_after_s: float, transport: AsyncTransport) -> Outcome:
    first = asyncio.ensure_future(transport.send(effect.request, effect.timeout_s))
    tasks = {first}
    try:
        await asyncio.wait(tasks, timeout=min(hedge_after_s, effect.timeout_s))
        left_s = effect.timeout_s - hedge_after_s
        if first.done() or left_s <= 0 or not (effect.may_hedge and effect.may_hedge()):
            return await first
        second = asyncio.ensure_future(transport.send(effect.request, left_s))
        tasks.add(second)
        done, left = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        best = max((task.result() for task in done), key=lambda outcome: outcome.ok)
        return best if best.ok or not left else await left.pop()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
