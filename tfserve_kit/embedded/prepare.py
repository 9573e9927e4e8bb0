"""What happens to a version between being loaded and being served: batching and warm-up."""

import time
from pathlib import Path
from typing import Any

from tfserve_kit.embedded import calls, examples, inference, warmup
from tfserve_kit.embedded.batching import BatchingServable, BatchScheduler, batch_options
from tfserve_kit.embedded.grpc_surface import predict_inputs
from tfserve_kit.embedded.metrics import (
    LOAD_ATTEMPTS,
    LOAD_LATENCY,
    WARMUP_LATENCY,
    WARMUP_RECORDS,
    Metrics,
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
        path, start_ns = str(version_dir), time.perf_counter_ns()
        try:
            servable = self._loader(version_dir)
        except ServingError:
            self._metrics.add(LOAD_ATTEMPTS, (path, "fail"))
            raise
        self._metrics.add(LOAD_ATTEMPTS, (path, "success"))
        self._metrics.add(LOAD_LATENCY, (path,), (time.perf_counter_ns() - start_ns) // 1000)
        return servable

    def _batched(self, version_dir: Path, servable: Servable) -> Servable:
        if self._batching is None or self._scheduler is None:
            return servable
        options, own = self._batching.options, version_dir / _PER_MODEL_FILE
        if self._batching.per_model and own.is_file():
            options = batch_options(read_text_proto("BatchingParameters", str(own)))
        return BatchingServable(servable, self._scheduler, options)

    def _warm_up(self, version_dir: Path, servable: Servable) -> None:
        path, start_ns, status = str(version_dir), time.perf_counter_ns(), "OK"
        try:
            sent = warmup.replay(
                version_dir,
                lambda method, message: _send(servable, method, message),
                passes=self._warmup_passes,
            )
        except ServingError as error:
            status, sent = error.code.name, 1
            raise
        finally:
            if sent:
                elapsed_us = (time.perf_counter_ns() - start_ns) / 1000
                self._metrics.observe(WARMUP_LATENCY, elapsed_us, (path, status))
                self._metrics.add(WARMUP_RECORDS, (path,), sent)


def _send(servable: Servable, method: str, request: Any) -> None:
    """Run a stored request; the model it names does not matter."""
    if method == "Predict":
        calls.predict(
            servable,
            request.model_spec.signature_name,
            predict_inputs(request),
            request.output_filter,
        )
        return
    rows = examples.from_input(request.input)
    tasks = request.tasks if method == "MultiInference" else [request]
    for task in tasks:
        kind = task.method_name if method == "MultiInference" else _KINDS[method]
        run = calls.classify if kind == inference.CLASSIFY else calls.regress
        run(servable, task.model_spec.signature_name, rows, check_method=False)


_KINDS = {"Classify": inference.CLASSIFY, "Regress": inference.REGRESS}
