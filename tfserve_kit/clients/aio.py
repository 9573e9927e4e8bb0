"""The client for asyncio: each method awaits the flow of the same name; the twin of `sync.py`."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

from tfserve_kit.clients.async_driver import AsyncTransport, run_async
from tfserve_kit.clients.attempts import Attempts
from tfserve_kit.clients.base import DEFAULT_TIMEOUT_S, closed
from tfserve_kit.clients.batches import Batch, OnError, predict_batch
from tfserve_kit.clients.checking import Inputs
from tfserve_kit.clients.effects import Flow, with_headers
from tfserve_kit.clients.examples import Features
from tfserve_kit.clients.headers import Headers
from tfserve_kit.clients.operations import Operations
from tfserve_kit.clients.options import Options
from tfserve_kit.clients.results import (
    BatchPrediction,
    Classification,
    Metadata,
    Prediction,
    Regression,
    Target,
    VersionStatus,
)
from tfserve_kit.clients.targets import named
from tfserve_kit.clients.wire import Inferred, Wire
from tfserve_kit.clock import SystemClock
from tfserve_kit.errors import UsageError

T = TypeVar("T")


class AsyncClient:
    """A connection to one model server, for one event loop; an asynchronous context manager.

    Its methods, their arguments and errors are those of `Client`.

    Args:
        wire: the protocol.
        transport: what sends requests of that protocol.
        options: how the client behaves.
    """

    def __init__(self, wire: Wire, transport: AsyncTransport, options: Options) -> None:
        self.url = wire.url
        self._transport = transport
        self._is_closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        attempts = Attempts(wire, options, SystemClock())
        self._operations = Operations(wire, attempts, check=options.check)

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
        where = named(target, signature)
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
        batch = Batch(output_filter, batch_size, on_error)
        where = named(target, signature)
        return await self._run(
            predict_batch(self._operations, where, inputs, batch, timeout_s), headers
        )

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
        where = named(target, signature)
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
        where = named(target, signature)
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
        where = named(target, "")
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
        return await self._run(self._operations.metadata(named(target, ""), timeout_s), headers)

    async def status(
        self,
        target: Target | str,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        headers: Headers | None = None,
    ) -> list[VersionStatus]:
        """Return the state of the model's versions; see `Client.status`."""
        return await self._run(self._operations.status(named(target, ""), timeout_s), headers)

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

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def _run(self, flow: Flow[T], headers: Headers | None) -> T:
        if self._is_closed:
            raise closed(self.url)
        loop = asyncio.get_running_loop()
        self._loop = self._loop or loop
        if self._loop is not loop:
            raise UsageError(
                f"the client of {self.url} belongs to another event loop",
                remedy="make a client in each event loop with connect_async",
            )
        return await run_async(with_headers(flow, headers), self._transport)
