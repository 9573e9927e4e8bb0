"""What connections cost that say nothing: memory of a server, and its time."""

import resource
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil

from bench.generators import grpc_server
from bench.harness import Side, Sides, Unavailable
from bench.processes import MODELS, free_port, python_module, require_tensorflow

CONNECTIONS = 10_000

# The preface of HTTP/2, settings, and the acknowledgement of the server's: what a client of gRPC
# says before its first call.
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"".join(
    b"\0\0\0\4" + flags + bytes(4) for flags in (b"\0", b"\1")
)
_SETTLE_S, _LOOK_S, _PATIENCE_S = 1.0, 2.0, 60.0


@contextmanager
def idle_connections(scratch: Path) -> Iterator[Sides]:
    """Set our server against one in C++, both with connections that have greeted it and idle.

    A turn's figure is how many bytes the server has grown by since it had no connection.
    """
    require_tensorflow()
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if limit < CONNECTIONS + 1000:
        raise Unavailable(f"a process may open {limit} files; {CONNECTIONS + 1000} are needed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    with ExitStack() as stack:
        theirs = stack.enter_context(grpc_server(scratch))
        ports = {"gRPC": free_port(), "REST": free_port()}
        ours = stack.enter_context(_ours(ports))
        notes: dict[str, str] = {}
        yield Sides(
            _side("C++", theirs.process.pid, theirs.port, _GREETING, notes),
            _side("gRPC", ours, ports["gRPC"], _GREETING, notes),
            {"REST": _side("REST", ours, ports["REST"], b"", notes)},
            notes,
        )


@contextmanager
def _ours(ports: dict[str, int]) -> Iterator[int]:
    """Run the embedded engine; yield the number of its process."""
    flags = (f"--port={ports['gRPC']}", f"--rest_api_port={ports['REST']}")
    model = ("--model_name=m", f"--model_base_path={MODELS / 'half_plus_two'}")
    with python_module(
        "tfserve_kit.embedded", "--bind_address=127.0.0.1", *flags, *model
    ) as server:
        end_s = time.monotonic() + _PATIENCE_S
        for port in ports.values():
            while not _answers(port):
                if server.poll() is not None or time.monotonic() > end_s:
                    raise Unavailable("the embedded engine does not start")
                time.sleep(0.1)
        yield server.pid


def _answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


def _side(name: str, pid: int, port: int, greeting: bytes, notes: dict[str, str]) -> Side:
    process = psutil.Process(pid)
    before_bytes = process.memory_info().rss

    def side() -> float:
        with ExitStack() as stack:
            for _ in range(CONNECTIONS):
                client = socket.create_connection(("127.0.0.1", port))
                stack.enter_context(client).sendall(greeting)
            time.sleep(_SETTLE_S)
            used_s = _processor_s(process)
            time.sleep(_LOOK_S)
            busy = (_processor_s(process) - used_s) / _LOOK_S
            grown_bytes = process.memory_info().rss - before_bytes
        notes[name] = f"{grown_bytes / 1e6:.0f} MB, {busy:.1%} of a core"
        time.sleep(_SETTLE_S)  # it notices that they have gone
        return float(grown_bytes)

    return side


def _processor_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
