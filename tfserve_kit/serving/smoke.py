"""The trial of a staged version: it is loaded and asked before anybody can see it.

A model is code. The embedded engine loads it in a process of its own, with bounds on memory and
time, so that a model that breaks its server breaks nothing else.
"""

import contextlib
import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfserve_kit import deployment, processes, savedmodel
from tfserve_kit.clients import Target, connect
from tfserve_kit.clients.files import read_inputs_for
from tfserve_kit.clients.sync import Client
from tfserve_kit.clock import SystemClock, wait_until
from tfserve_kit.engines import Phase, ServerHandle, process
from tfserve_kit.engines.base import LOG_TAIL
from tfserve_kit.errors import (
    DeadlineExceeded,
    EngineUnavailable,
    Problem,
    PushRefused,
    RequestError,
    ServerFailed,
    ServerOverloaded,
    ServerUnreachable,
    SpecError,
    UsageError,
)
from tfserve_kit.progress import SILENT, Progress
from tfserve_kit.savedmodel import Signature, TensorSpec, choose_signature
from tfserve_kit.savedmodel.scan import foreign_operations
from tfserve_kit.savedmodel.warmup import CLASSIFY, REGRESS
from tfserve_kit.serving import launch
from tfserve_kit.tensors import dtypes

_MODEL = "candidate"
_TRIAL = "trial"  # what remarks are about
_TRUST = "if it is only this machine that cannot run the model, and you trust it: --trust"
_MOST_BYTES = 64 << 20  # of the zeros for one input; more would test the machine, not the model
_MOST_DIMENSIONS = 32  # of numpy before its version 2
_DIES_WITHIN_S = 5.0  # after its connection broke
# Few threads: each reserves memory for a deep stack, which counts as used.
_FLAGS = {"max_num_load_retries": 0, "grpc_max_threads": 4, "rest_api_num_threads": 1}


def trial(  # noqa: PLR0913 (what is asked of the model, and how long it may take)
    version_dir: Path,
    *,
    files: Sequence[Path] = (),
    signature: str = "",
    tag: str = "serve",
    timeout_s: float = 120.0,
    is_trusted: bool = False,
    progress: Progress = SILENT,
) -> tuple[Problem, ...]:
    """See what a version does to a server: load it, warm it up, send zeros to each signature.

    Fits `repository.push(..., approve=trial)`.

    Args:
        version_dir: a SavedModel, under whatever name.
        files: content of one more request, which must be answered: pictures, or a JSON, .npy or
            .npz file; see `read_inputs`.
        signature: which signature gets that request; `serving_default` if empty.
        tag: the graph that is loaded.
        timeout_s: how long loading may take, and each answer, in seconds.
        is_trusted: send no zeros, only the request of `files`.
        progress: told the steps.

    Returns:
        Remarks: what was answered with an error, which zeros may well be; or that there was no
        trial, as the embedded engine cannot run here, or not this model's operations.

    Raises:
        PushRefused: the server died, ran out of memory or out of time; or the version does not
            load, its warm-up requests fail, or `files` are not answered.
        EngineUnavailable: the embedded engine cannot run here, and there are `files`.
    """
    if not files and (untried := _cannot_be_tried(version_dir, tag)) is not None:
        return (untried,)
    progress.step("testing the model in a temporary server")
    remarks: tuple[Problem, ...] = ()
    with _serving(version_dir, tag, timeout_s) as handle:
        if not is_trusted:
            signatures = savedmodel.read_signatures(version_dir, tag=tag).values()
            remarks = tuple(_ask_zeros(handle, list(signatures), timeout_s))
        if files:
            progress.step("smoke test")
            _ask(handle, version_dir, files, signature, timeout_s)
        _require_alive(handle, within_s=0)
    return remarks


def _cannot_be_tried(version_dir: Path, tag: str) -> Problem | None:
    """Return why the embedded engine cannot run a model that another server may well run."""
    availability = process.embedded().available()
    reason, remedy = availability.reason, availability.remedy
    if availability.usable:
        foreign = foreign_operations(savedmodel.meta_graph(version_dir, tag=tag))
        if not foreign:
            return None
        reason = f"the tensorflow wheel has no {', '.join(foreign[:5])}"
        remedy = "test it in a server that has them"
    return Problem(_TRIAL, f"the model was not tested before it was pushed: {reason}", remedy)


@contextlib.contextmanager
def _serving(version_dir: Path, tag: str, timeout_s: float) -> Iterator[ServerHandle]:
    """Serve a version from a folder of its own for a `with` block; nothing of it stays."""
    with tempfile.TemporaryDirectory(prefix="tfkit-smoke-") as place:
        memory_bytes = round(processes.free_memory_bytes() * processes.MEMORY_SHARE)
        engine = process.embedded(folder=Path(place) / "state", memory_bytes=memory_bytes)
        if not (availability := engine.available()).usable:
            raise EngineUnavailable(
                f"no smoke test here: {availability.reason}", remedy=availability.remedy
            )
        base_path = Path(place) / _MODEL
        base_path.mkdir()
        (base_path / "1").symlink_to(version_dir.absolute())
        try:
            handle = launch.start(_deployment(base_path, tag, timeout_s), engine)
        except (ServerFailed, SpecError) as error:
            raise _refused(error) from error
        try:
            yield handle
        finally:
            handle.stop(grace_s=0)


def _deployment(base_path: Path, tag: str, timeout_s: float) -> deployment.Spec:
    server = {
        "name": f"smoke-{os.getpid()}",
        "grpc_port": 0,
        "rest_port": 0,
        "ready_timeout_s": timeout_s,
        "flags": {**_FLAGS, "saved_model_tags": tag},
    }
    document = {"models": {_MODEL: {"base_path": str(base_path)}}, "server": server}
    return deployment.build(document, source="smoke test", folder=base_path.parent)


def _refused(error: ServerFailed | SpecError) -> PushRefused:
    told = ServerFailed(error.message, log_tail=getattr(error, "log_tail", []))
    return PushRefused(f"the smoke test failed: {told}", remedy=_TRUST)


_LONGER = "give the test more time with --timeout"
_OWN_REQUEST = "test it with a request of your own: --smoke FILE"


def _ask_zeros(
    handle: ServerHandle, signatures: Sequence[Signature], timeout_s: float
) -> Iterator[Problem]:
    """Send one request of zeros to each signature; yield what was answered with an error."""
    clock = SystemClock()
    end_s = clock.now_s() + timeout_s
    with connect(handle.endpoints.grpc, retries=0, check=False) as client:
        for number, signature in enumerate(signatures):
            if clock.now_s() > end_s:
                left = len(signatures) - number
                yield Problem(_TRIAL, f"no time was left to test {left} of its signatures", _LONGER)
                return
            # The zeros of one tensor must go together, or no model answers them.
            if signature.composites or not all(map(_can_be_sent, signature.inputs.values())):
                continue
            try:
                _send_zeros(client, signature, timeout_s)
            except RequestError as error:
                _require_harmless(error, signature.name, handle, timeout_s)
                text = f"answers zeros with an error, which may be right: {error.message}"
                yield Problem(signature.name, text, _OWN_REQUEST)


def _can_be_sent(spec: TensorSpec) -> bool:
    if spec.dtype is None or spec.dtype.numpy is None:
        return False
    sizes = _sizes(spec)
    fits = math.prod(sizes) * spec.dtype.numpy.itemsize <= _MOST_BYTES
    return fits and len(sizes) <= _MOST_DIMENSIONS


def _send_zeros(client: Client, signature: Signature, timeout_s: float) -> None:
    target = Target(_MODEL, signature=signature.name)
    if signature.method_name == CLASSIFY:
        client.classify(target, [{}], timeout_s=timeout_s)
    elif signature.method_name == REGRESS:
        client.regress(target, [{}], timeout_s=timeout_s)
    else:
        inputs = {alias: _zeros(each) for alias, each in signature.inputs.items()}
        client.predict(target, inputs, timeout_s=timeout_s)


def _zeros(spec: TensorSpec) -> NDArray[Any]:
    """Return zeros, or empty texts, of an input's type and shape."""
    assert spec.dtype is not None  # noqa: S101 (see _can_be_sent)
    empty: Any = b"" if spec.dtype is dtypes.STRING else 0
    return np.full(_sizes(spec), empty, dtype=spec.dtype.numpy)


def _sizes(spec: TensorSpec) -> list[int]:
    return [1 if size is None else size for size in (spec.shape if spec.shape is not None else [1])]


def _require_harmless(
    error: RequestError, name: str, handle: ServerHandle, timeout_s: float
) -> None:
    """Refuse what did more to the server than to answer with an error."""
    if isinstance(error, ServerUnreachable):
        _require_alive(handle, within_s=_DIES_WITHIN_S, after=f" by a request to {name!r}")
    if isinstance(error, DeadlineExceeded):
        text = f"signature {name!r} does not answer a request of zeros within {timeout_s:g} s"
        raise PushRefused(f"the smoke test failed: {text}", remedy=f"--timeout, or {_TRUST}")
    if isinstance(error, ServerOverloaded):
        text = f"signature {name!r} ran out of memory over a request of zeros: {error.message}"
        raise PushRefused(f"the smoke test failed: {text}", remedy=_TRUST)


def _require_alive(handle: ServerHandle, *, within_s: float, after: str = "") -> None:
    """Refuse a version whose server has died, or does so within a few seconds."""

    def ended() -> int | None:
        state = handle.state()
        return None if state.phase is Phase.RUNNING else state.exit_code or 0

    code = wait_until(ended, timeout_s=within_s, interval_s=0.02, clock=SystemClock())
    if code is not None:
        text = f"the server was ended{after} with {process.exit_text(code)}"
        tail = list(handle.logs(tail=LOG_TAIL))
        raise _refused(ServerFailed(text, log_tail=tail))


def _ask(
    handle: ServerHandle,
    version_dir: Path,
    files: Sequence[Path],
    signature: str,
    timeout_s: float,
) -> None:
    target = Target(_MODEL, signature=signature)
    with connect(handle.endpoints.grpc, retries=0) as client:
        try:
            known = client.metadata(target, timeout_s=timeout_s).signatures
            chosen = choose_signature(known, signature)
            inputs = read_inputs_for(version_dir, files, chosen)
            client.predict(target, inputs, timeout_s=timeout_s)
        except (RequestError, UsageError) as error:
            if isinstance(error, ServerUnreachable):
                _require_alive(handle, within_s=_DIES_WITHIN_S)
            raise PushRefused(f"the smoke test failed: {error}") from error
