"""The smoke test: a staged version answers one request before anybody can see it.

It is loaded by the embedded engine in a process of its own, so that a model that breaks its server
breaks nothing else.
"""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tfserve_kit import launch, spec
from tfserve_kit.clients import Target, connect
from tfserve_kit.clients.inputs import read_inputs
from tfserve_kit.engines import process
from tfserve_kit.errors import (
    EngineUnavailable,
    PushRefused,
    RequestError,
    ServerFailed,
    SpecError,
    UsageError,
)
from tfserve_kit.preprocessing import Preprocessing
from tfserve_kit.progress import SILENT, Progress
from tfserve_kit.savedmodel import DEFAULT_SIGNATURE

_MODEL = "candidate"


def smoke(
    version_dir: Path,
    files: Sequence[Path],
    *,
    signature: str = "",
    timeout_s: float = 120.0,
    progress: Progress = SILENT,
) -> None:
    """Load a version in a throw-away server and send it one request.

    Args:
        version_dir: a SavedModel, under whatever name.
        files: the request's content: pictures, or a JSON, .npy or .npz file; see `read_inputs`.
        signature: which signature is called; `serving_default` if empty.
        timeout_s: how long loading may take, and answering, in seconds.
        progress: told the steps.

    Raises:
        PushRefused: it does not load, or does not answer.
        EngineUnavailable: the embedded engine cannot run here.
    """
    with tempfile.TemporaryDirectory(prefix="tfkit-smoke-") as place:
        engine = process.embedded(folder=Path(place) / "state")
        if not (availability := engine.available()).usable:
            raise EngineUnavailable(
                f"no smoke test here: {availability.reason}", remedy=availability.remedy
            )
        base_path = Path(place) / _MODEL
        base_path.mkdir()
        (base_path / "1").symlink_to(version_dir.absolute())
        progress.step("smoke test")
        try:
            handle = launch.up(_deployment(base_path, timeout_s), engine)
        except (ServerFailed, SpecError) as error:
            raise PushRefused(f"the smoke test failed: {error}") from error
        try:
            _ask(handle.endpoints.grpc, version_dir, files, signature, timeout_s)
        finally:
            handle.stop(grace_s=0)


def _deployment(base_path: Path, timeout_s: float) -> spec.Spec:
    server = {
        "name": f"smoke-{os.getpid()}",
        "grpc_port": 0,
        "rest_port": 0,
        "ready_timeout_s": timeout_s,
        "flags": {"max_num_load_retries": 0},
    }
    document = {"models": {_MODEL: {"base_path": str(base_path)}}, "server": server}
    return spec.build(document, source="smoke test", folder=base_path.parent)


def _ask(
    url: str, version_dir: Path, files: Sequence[Path], signature: str, timeout_s: float
) -> None:
    target = Target(_MODEL, signature=signature)
    with connect(url) as client:
        try:
            known = client.metadata(target, timeout_s=timeout_s).signatures
            name = signature or DEFAULT_SIGNATURE
            if name not in known:
                raise PushRefused(
                    f"the smoke test failed: the model has no signature {name!r}",
                    remedy=f"it has {', '.join(known) or 'none'}",
                )
            inputs = read_inputs(files, known[name], Preprocessing.read(version_dir))
            client.predict(target, inputs, timeout_s=timeout_s)
        except (RequestError, UsageError) as error:
            raise PushRefused(f"the smoke test failed: {error}") from error
