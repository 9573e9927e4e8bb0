"""What happens to a version between being loaded and being served: batching and warm-up."""

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from tfserve_kit.embedded import calls, claims, examples, inference, warmup
from tfserve_kit.embedded.batching import BatchScheduler, batch_options
from tfserve_kit.embedded.batching_servable import BatchingServable
from tfserve_kit.embedded.call import Call
from tfserve_kit.embedded.grpc_surface import PredictInputs
from tfserve_kit.embedded.ledger import Ledger
from tfserve_kit.embedded.limits import MOST_REQUEST_BYTES, most_held_bytes
from tfserve_kit.embedded.metrics import (
    LOAD_ATTEMPTS,
    LOAD_LATENCY,
    WARMUP_LATENCY,
    WARMUP_RECORDS,
    Metrics,
    micros_since,
)
from tfserve_kit.embedded.model_config import read_text_proto
from tfserve_kit.embedded.servable import Loader, Servable
from tfserve_kit.embedded.settings import Batching
from tfserve_kit.embedded.status import ServingError

_PER_MODEL_FILE = "batching_params.pbtxt"


class PreparingLoader:
    """Loads a version, puts batching around it and warms it up; implements `Loader`.

    Args:
        loader: what really loads.
        metrics: told of loads and warm-ups.
        batching: how requests are batched, None if they are not.
        scheduler: runs the batches; needed with `batching`.
        warmup_passes: how often stored requests are replayed.
    """

    def __init__(
        self,
        loader: Loader,
        metrics: Metrics,
        *,
        batching: Batching | None = None,
        scheduler: BatchScheduler | None = None,
        warmup_passes: int = 0,
    ) -> None:
        self._loader = loader
        self._metrics = metrics
        self._batching = batching
        self._scheduler = scheduler
        self._warmup_passes = warmup_passes

    def __call__(self, version_dir: Path) -> Servable:
        """Load a version and make it ready.

        Raises:
            ServingError: it cannot be loaded, its batching options cannot work, or a warm-up
                request fails.
        """
        servable = self._load(version_dir)
        try:
            servable = self._batched(version_dir, servable)
            self._warm_up(version_dir, servable)
        except BaseException:
            servable.close()
            raise
        return servable

    def _load(self, version_dir: Path) -> Servable:
        path, started_ns = str(version_dir), time.perf_counter_ns()
        try:
            servable = self._loader(version_dir)
        except ServingError:
            self._metrics.add(LOAD_ATTEMPTS, (path, "fail"))
            raise
        self._metrics.add(LOAD_ATTEMPTS, (path, "success"))
        self._metrics.add(LOAD_LATENCY, (path,), int(micros_since(started_ns)))
        return servable

    def _batched(self, version_dir: Path, servable: Servable) -> Servable:
        """Put batching around a servable; with options per model, only where it brings some.

        Source: tensorflow_serving/servables/tensorflow/bundle_factory_util.cc.
        """
        if self._batching is None or self._scheduler is None:
            return servable
        options = self._batching.options
        if self._batching.per_model:
            own = version_dir / _PER_MODEL_FILE
            if not own.is_file():
                return servable
            options = batch_options(read_text_proto("BatchingParameters", str(own)))
        return BatchingServable(servable, self._scheduler, options, self._metrics)

    def _warm_up(self, version_dir: Path, servable: Servable) -> None:
        path, file = str(version_dir), version_dir / warmup.WARMUP_FILE
        if not self._warmup_passes or not file.is_file():
            return
        started_ns, status = time.perf_counter_ns(), "OK"
        try:
            # Of its own: what clients hold must not fail a load, nor a load their requests.
            ledger = Ledger(most_held_bytes(), MOST_REQUEST_BYTES)
            send = partial(_send, servable)
            count = warmup.replay(file, send, passes=self._warmup_passes, ledger=ledger)
            self._metrics.add(WARMUP_RECORDS, (path,), count)
        except ServingError as error:
            status = error.code.name
            raise
        finally:
            self._metrics.observe(WARMUP_LATENCY, micros_since(started_ns), (path, status))


def _send(servable: Servable, method: str, request: Any, call: Call) -> None:
    """Run a stored request; the model it names does not matter."""
    signatures, run = servable.signatures, partial(_run, servable, call)
    if method == "Predict":
        name, inputs = request.model_spec.signature_name, PredictInputs(request, call.account)
        calls.predict(signatures, run, name, inputs, request.output_filter)
        return
    if method == "MultiInference":
        named = [(task.method_name, task.model_spec.signature_name) for task in request.tasks]
        tasks = calls.several(signatures, named, check_method=False)
    else:
        name = request.model_spec.signature_name
        tasks = [calls.single(signatures, _KINDS[method], name, check_method=False)]
    rows = examples.from_input(request.input, call.account)
    calls.infer(run, tasks, rows, call.account)


def _run(
    servable: Servable, call: Call, feeds: calls.Arrays, fetches: Sequence[str]
) -> Sequence[NDArray[Any]]:
    values = servable.run(feeds, fetches, call=call)
    call.account.take(claims.of_arrays(values), "the outputs")
    return values


_KINDS = {"Classify": inference.CLASSIFY, "Regress": inference.REGRESS}
