"""The embedded engine put together; the only module that knows all of its parts."""

import logging
import os
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from tfserve_kit.deployment.flags import FlagValue
from tfserve_kit.embedded import limits
from tfserve_kit.embedded.batching import BatchScheduler
from tfserve_kit.embedded.front import EventLoop
from tfserve_kit.embedded.grpc_surface import GrpcSurface
from tfserve_kit.embedded.grpc_transport import GrpcServer, Ports, options_of
from tfserve_kit.embedded.handlers import Handlers
from tfserve_kit.embedded.http_transport import HttpServer, RestOptions
from tfserve_kit.embedded.lanes import Lanes, processors
from tfserve_kit.embedded.ledger import Ledger
from tfserve_kit.embedded.loader import PreparingLoader, SavedModelLoader, TfLiteLoader
from tfserve_kit.embedded.manager import Manager
from tfserve_kit.embedded.metrics import Metrics, process_readings
from tfserve_kit.embedded.rest_surface import RestSurface
from tfserve_kit.embedded.servable import Loader
from tfserve_kit.embedded.settings import ServerSettings, in_process, prometheus_path, read_models
from tfserve_kit.embedded.status import Code, ServingError

_log = logging.getLogger(__name__)


class EmbeddedServer:
    """A model server in this process, as a context manager: see `of` for tests and notebooks.

    As with the official server the ports open once every model has an available version. Several
    may run in one process; each is started once.

    Args:
        settings: what to serve and where.
        loader: how models are loaded; with tensorflow if left out.
        grace_s: how long requests in flight may take when it stops, in seconds.
    """

    def __init__(
        self, settings: ServerSettings, *, loader: Loader | None = None, grace_s: float = 10.0
    ) -> None:
        self._settings = settings
        self._grace_s = grace_s
        self._metrics = Metrics()
        self._ledger = Ledger(limits.most_held_bytes(), limits.MOST_REQUEST_BYTES)
        batching = settings.batching
        self._scheduler = (
            BatchScheduler(batching.threads, batching.thread_pool_name) if batching else None
        )
        loader = loader or SavedModelLoader(settings.session, self._metrics)
        if settings.tflite_interpreters:
            loader = TfLiteLoader(loader, settings.tflite_interpreters)
        prepared = PreparingLoader(
            loader,
            self._metrics,
            batching=batching,
            scheduler=self._scheduler,
            warmup_passes=settings.warmup_passes,
        )
        self._manager = Manager(settings, prepared)
        self._metrics.look_up(process_readings)
        self._metrics.look_up(self._manager.readings)
        self._handlers = Handlers(
            self._manager, self._metrics, check_method_name=settings.check_method_name
        )
        self._lock = threading.Lock()  # while ports open or close
        self._has_begun = False
        self._stopping = threading.Event()
        self._front = EventLoop()
        # As many as the official server runs operations at once, which none of its calls avoids.
        self._processors = processors(settings.session.config.inter_op_parallelism_threads)
        self._grpc: GrpcServer | None = None
        self._http: HttpServer | None = None
        self._rest: RestSurface | None = None

    @classmethod
    def of(cls, models: Mapping[str, str | os.PathLike[str]], **flags: FlagValue) -> Self:
        """Return a server for this machine alone, on free ports unless they are given.

        Args:
            models: base path (a folder of version folders) by model name.
            flags: flags of tensorflow_model_server, such as `enable_batching=True`.

        Raises:
            TypeError: there is no such flag.
            ServingError: values that contradict, or a file that cannot be used.
        """
        return cls(in_process(models, **flags))

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
        """The TCP port that answers gRPC; 0 where none is open."""
        return self._grpc.port if self._grpc else 0

    @property
    def rest_port(self) -> int:
        """The TCP port that answers REST; 0 where none is open."""
        return self._http.port if self._http else 0

    @property
    def grpc_url(self) -> str:
        """What a client on this machine connects to, such as `grpc://127.0.0.1:8500`."""
        return f"grpc://127.0.0.1:{self.grpc_port}"

    @property
    def rest_url(self) -> str:
        """The same for REST, such as `http://127.0.0.1:8501`."""
        return f"http://127.0.0.1:{self.rest_port}"

    def start(self) -> None:
        """Load the models, then open the ports; once.

        Raises:
            ServingError: a model cannot be loaded, or gRPC cannot listen; CANCELLED, it was
                stopped meanwhile; FAILED_PRECONDITION, it was started or stopped before. Without
                a usable port or monitoring file REST stays off, as with the official server.
        """
        with self._lock:
            if self._has_begun:
                text = "A server is started once; make another one"
                raise ServingError(Code.FAILED_PRECONDITION, text)
            self._has_begun = True
            self._manager.start()
        self._manager.wait_until_serving()
        with self._lock:
            if self._stopping.is_set():
                raise ServingError(Code.CANCELLED, "stopped before the ports were open")
            self._open()

    def _open(self) -> None:
        self._open_grpc()
        try:
            self._open_rest()
        except ServingError as error:
            _log.error("REST stays off: %s", error)
        if self._settings.config_poll_s > 0:
            threading.Thread(target=self._poll_config, name="config", daemon=True).start()

    def stop(self) -> None:
        """Close the ports, let requests in flight finish, unload the models.

        Idempotent, and ends a `start` that is under way; safe to call from any thread.
        """
        self._stopping.set()
        self._manager.interrupt()
        with self._lock, ExitStack() as stack:
            self._has_begun = True
            if self._scheduler:
                stack.callback(self._scheduler.stop)
            stack.callback(self._manager.stop, self._grace_s)
            if self._rest:
                stack.callback(self._rest.stop)
            stack.callback(self._front.stop)
            # Both at once: the grace is what somebody who stops a server will wait.
            transports = stack.enter_context(ThreadPoolExecutor(2, "stop"))
            for transport in (self._grpc, self._http):
                if transport:
                    stack.callback(transports.submit(transport.stop, self._grace_s).result)
            self._grpc = self._http = self._scheduler = None

    def interrupt(self) -> None:
        """End a `start` that still waits for models; safe to call from any thread."""
        self._manager.interrupt()

    def _open_grpc(self) -> None:
        settings = self._settings
        surface = GrpcSurface(
            self._handlers,
            self._metrics,
            as_content=settings.answer_with_content,
            health=settings.health,
        )
        address = f"{settings.bind_address}:{settings.grpc_port}"
        if settings.grpc_port is None:
            address = ""
        self._grpc = GrpcServer(
            surface.begin,
            Lanes(settings.grpc_threads, self._processors),
            self._ledger,
            Ports(address, settings.grpc_socket_path, settings.tls),
            options_of(settings.grpc_channel_arguments),
            self._front,
            repeat=surface.repeat,
        )
        self._grpc.start()
        _log.info("Running gRPC ModelServer at %s:%d ...", settings.bind_address, self.grpc_port)

    def _open_rest(self) -> None:
        settings = self._settings
        if settings.rest_port is None:
            return
        self._rest = RestSurface(
            self._handlers,
            self._metrics,
            cors=settings.cors,
            metrics_path=prometheus_path(settings.monitoring_config_file),
        )
        self._http = HttpServer(
            self._rest.begin,
            self._ledger,
            (settings.bind_address, settings.rest_port),
            RestOptions(
                settings.rest_threads, settings.rest_timeout_s, processors=self._processors
            ),
            self._front,
            self._rest.at_once,
        )
        self._http.start()
        address = settings.bind_address
        _log.info("Exporting HTTP/REST API at:%s:%d ...", address, self._http.port)

    def _poll_config(self) -> None:
        """Read the configuration file again and again; what cannot be used changes nothing."""
        while not self._stopping.wait(self._settings.config_poll_s):
            try:
                configs = read_models(self._settings.model_config_file)
                self._manager.reload(configs, timeout_s=0)
            except ServingError as error:
                _log.error("%s", error)
            except Exception:  # noqa: BLE001 (the next look may find a file that can be used)
                _log.exception("reading %s failed", self._settings.model_config_file)
