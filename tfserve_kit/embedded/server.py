"""The embedded engine put together; the only module that knows all of its parts."""

import contextlib
import logging
from types import TracebackType
from typing import Self

from tfserve_kit.embedded.grpc_surface import GrpcSurface
from tfserve_kit.embedded.grpc_transport import GrpcTransport
from tfserve_kit.embedded.handlers import Handlers
from tfserve_kit.embedded.http_transport import HttpTransport
from tfserve_kit.embedded.loader import SavedModelLoader
from tfserve_kit.embedded.manager import Manager
from tfserve_kit.embedded.rest_surface import RestSurface
from tfserve_kit.embedded.servable import Loader
from tfserve_kit.embedded.settings import Settings

_log = logging.getLogger(__name__)


class EmbeddedServer:
    """A model server in this process, as a context manager.

    As with the official server the ports open once every model has an available version.

    Args:
        settings: what to serve and where.
        loader: how models are loaded; with tensorflow if left out.
        grace_s: how long requests in flight may take when it stops, in seconds.
    """

    def __init__(
        self, settings: Settings, *, loader: Loader | None = None, grace_s: float = 10.0
    ) -> None:
        self._settings = settings
        self._grace_s = grace_s
        self._manager = Manager(settings, loader or SavedModelLoader(settings.session))
        self._grpc: GrpcTransport | None = None
        self._http: HttpTransport | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def grpc_port(self) -> int:
        """The TCP port that answers gRPC; 0 before it is open."""
        return self._grpc.port if self._grpc else 0

    @property
    def rest_port(self) -> int | None:
        """The TCP port that answers REST, None where there is none."""
        return self._http.port if self._http else None

    def start(self) -> None:
        """Load the models, then open the ports.

        Raises:
            ServingError: a model cannot be loaded, or a port cannot be opened.
        """
        self._manager.start()
        self._manager.wait_until_serving()
        handlers = Handlers(self._manager)
        grpc = GrpcSurface(handlers, as_content=self._settings.answer_with_content)
        address = f"{self._settings.bind_address}:{self._settings.grpc_port}"
        self._grpc = GrpcTransport(grpc.answer, address, self._settings.grpc_threads)
        self._grpc.start()
        _log.info(
            "Running gRPC ModelServer at %s:%d ...", self._settings.bind_address, self.grpc_port
        )
        if self._settings.rest_port is not None:
            self._http = HttpTransport(
                RestSurface(handlers).reply,
                self._settings.bind_address,
                self._settings.rest_port,
                self._settings.rest_threads,
            )
            self._http.start()
            _log.info(
                "Exporting HTTP/REST API at:%s:%d ...", self._settings.bind_address, self._http.port
            )

    def stop(self) -> None:
        """Close the ports, let requests in flight finish, unload the models. Idempotent."""
        with contextlib.ExitStack() as stack:
            stack.callback(self._manager.stop)
            if self._grpc:
                stack.callback(self._grpc.stop, self._grace_s)
            if self._http:
                stack.callback(self._http.stop, self._grace_s)
        self._grpc = self._http = None

    def interrupt(self) -> None:
        """End a `start` that still waits for models; safe in a signal handler's thread."""
        self._manager.interrupt()
