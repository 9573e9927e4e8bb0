"""A fixture for the tests of projects that call models: `tfkit_server`.

pytest finds it once the package is installed. With the embedded engine's packages missing, the
tests that ask for it are skipped.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tfserve_kit.embedded.server import EmbeddedServer


@pytest.fixture
def tfkit_server() -> Iterator[Callable[..., "EmbeddedServer"]]:
    """Serve models for the duration of a test, in the test's own process.

    `server = tfkit_server({"digits": "models/digits"})` takes what `EmbeddedServer.of`
    takes and returns a running server with its `grpc_url` and `rest_url`. May be called again.
    """
    if find_spec("tensorflow") is None:
        pytest.skip("the embedded engine is missing: pip install 'tfserve-kit[embedded]'")
    from tfserve_kit.embedded.server import EmbeddedServer

    with ExitStack() as running:

        def serve(models: Any, **flags: Any) -> EmbeddedServer:
            return running.enter_context(EmbeddedServer.of(models, **flags))

        yield serve
