"""The asyncio client, the twin of `sync.py`: each method awaits the flow of the same name."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, Self, TypeVar

from tfserve_kit.clients.inputs import Features, Inputs
from tfserve_kit.clients.operations import OnError, Operations
from tfserve_kit.clients.options import DEFAULT_TIMEOUT_S, Headers, Options
from tfserve_kit.clients.protocol import (
    Attempts,
    Flow,
    Inferred,
    Outcome,
    Send,
    ServerProtocol,
    with_headers,
)
from tfserve_kit.clients.results import (
    BatchPrediction,
    Classification,
    Metadata,
    Prediction,
    Regression,
    Target,
    VersionStatus,
    as_target,
)
from tfserve_kit.clients.sync import closed_client
from tfserve_kit.clock import SystemClock
from tfserve_kit.errors import UsageError

T = TypeVar("T")


class AsyncTransport(Protocol):
    """Sends requests over connections it keeps, for one event loop."""

    async def send(self, request: Any, timeout_s: float) -> Outcome:
        """Send a request and return what came of it, within `timeout_s` seconds; never raises."""

    async def close(self) -> None:
        """Close the connections."""

    async def abandon(self) -> None:
        """Close them, and have those that wait for an answer wait no longer."""


async def run_async(flow: Flow[T], transport: AsyncTransport) -> T:
    """Run a flow to its end and return its result; its errors pass through."""
    try:
        effect = next(flow)
        while True:
            if isinstance(effect, Send):
                via = effect.via or transport
                effect = flow.send(
                    await via.send(effect.request, effect.timeout_s)
                    if effect.hedge_after_s is None
                    else await _hedged_async(effect, effect.hedge_after_s, via)
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
        other = effect.hedge_via() if effect.hedge_via else transport
        second = asyncio.ensure_future(other.send(effect.request, left_s))
        tasks.add(second)
        done, left = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        best = max((task.result() for task in done), key=lambda outcome: outcome.ok)
        return best if best.ok or not left else await left.pop()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class AsyncClient:
    """A connection to a model server or a fleet, for one event loop; an async context manager.

    Its methods, their arguments and errors are those of `Client`.

    Args:
        protocol: the protocol.
        transport: what sends requests of that protocol.
        options: how the client behaves.
        attempts: how calls are repeated; as for one server if None.
    """

    def __init__(
        self,
        protocol: ServerProtocol,
        transport: AsyncTransport,
        options: Options,
        attempts: Attempts | None = None,
    ) -> None:
        self.url = protocol.url
        self._transport = transport
        self._is_closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        attempts = attempts or Attempts(protocol, options, SystemClock())
        self._operations = Operations(protocol, attempts, check=options.check)

    async def predict(
        self,
        target: Target | str,
        inputs: Inputs,
        *,
        signature: str = "",
        output_filter: Sequence[str] = (),
        timeout_s: float = DEFAULT_TIMEOUT_S,
        headers: Headers | None = None,
    ) -> Prediction:
        """Run a signature; see `Client.predict`."""
        where = as_target(target, signature)
        return await self._run(
            self._operations.predict(where, inputs, output_filter, timeout_s), headers
        )

    async def predict_batch(  # noqa: PLR0913 (predict, and how to cut)
        self,
        target: Target | str,
        inputs: Inputs,
        *,
        signature: str = "",
        output_filter: Sequence[str] = (),
        batch_size: int | None = None,
        on_error: OnError = "raise",
        timeout_s: float = DEFAULT_TIMEOUT_S,
        headers: Headers | None = None,
    ) -> BatchPrediction:
        """Run a signature on any number of rows; see `Client.predict_batch`."""
        where = as_target(target, signature)
        flow = self._operations.predict_batch(
            where, inputs, output_filter, batch_size, on_error, timeout_s
        )
        return await self._run(flow, headers)

    async def classify(
        self,
        target: Target | str,
        examples: Iterable[Features],
        *,
        signature: str = "",
        timeout_s: float = DEFAULT_TIMEOUT_S,
        headers: Headers | None = None,
    ) -> Classification:
        """Return labels and scores of examples; see `Client.classify`."""
        where = as_target(target, signature)
        return await self._run(self._operations.classify(where, examples, timeout_s), headers)

    async def regress(
        self,
        target: Target | str,
        examples: Iterable[Features],
        *,
        signature: str = "",
        timeout_s: float = DEFAULT_TIMEOUT_S,
        headers: Headers | None = None,
    ) -> Regression:
        """Return a value for each example; see `Client.regress`."""
        where = as_target(target, signature)
        return await self._run(self._operations.regress(where, examples, timeout_s), headers)

    async def multi_inference(
        self,
        target: Target | str,
        tasks: Mapping[str, str],
        examples: Iterable[Features],
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        headers: Headers | None = None,
    ) -> dict[str, Inferred]:
        """Ask several signatures in one request; see `Client.multi_inference`."""
        where = as_target(target, "")
        return await self._run(
            self._operations.multi_inference(where, tasks, examples, timeout_s), headers
        )

    async def metadata(
        self,
        target: Target | str,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        headers: Headers | None = None,
    ) -> Metadata:
        """Return the model's signatures, read anew."""
        return await self._run(self._operations.metadata(as_target(target, ""), timeout_s), headers)

    async def status(
        self,
        target: Target | str,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        headers: Headers | None = None,
    ) -> list[VersionStatus]:
        """Return the state of the model's versions; see `Client.status`."""
        return await self._run(self._operations.status(as_target(target, ""), timeout_s), headers)

    async def reload(
        self, config: Any, *, timeout_s: float = DEFAULT_TIMEOUT_S, headers: Headers | None = None
    ) -> None:
        """Replace the whole set of served models; see `Client.reload`."""
        await self._run(self._operations.reload(config, timeout_s), headers)

    async def close(self) -> None:
        """Close the connections; calls after it raise UsageError."""
        self._is_closed = True
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def _run(self, flow: Flow[T], headers: Headers | None) -> T:
        if self._is_closed:
            raise closed_client(self.url)
        loop = asyncio.get_running_loop()
        self._loop = self._loop or loop
        if self._loop is not loop:
            raise UsageError(
                f"the client for {self.url} belongs to another event loop",
                remedy="create a client in each event loop with connect_async",
            )
        return await run_async(with_headers(flow, headers), self._transport)
