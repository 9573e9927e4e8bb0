"""Servers as processes: the native binary, and the embedded engine, which takes the same flags.

A server's folder holds its record (pid and start time, checked before any signal), its rendered
files and its log::

    <state>/servers/<name>/server.json   deployment.json   config/*.txt   server.log
"""

import contextlib
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import psutil

from tfserve_kit import processes
from tfserve_kit.clock import Clock, SystemClock, wait_until
from tfserve_kit.deployment.spec import Spec
from tfserve_kit.engines import draining
from tfserve_kit.engines.base import (
    Availability,
    Endpoints,
    Phase,
    Plan,
    Replica,
    State,
    alone,
    endpoints,
    taken,
)
from tfserve_kit.engines.records import (
    CONFIG,
    Home,
    Record,
    claimed,
    home_of,
    open_private,
    private_folder,
    records,
    state_folder,
    write_files,
)
from tfserve_kit.errors import ServerFailed
from tfserve_kit.progress import SILENT, Progress

NATIVE_BINARY = "tensorflow_model_server"

_LOG = "server.log"
_BOUNDED_LOG_BYTES = 256 << 20
_FOLLOW_INTERVAL_S = 0.1
_LOOK_S = 0.02  # between two looks whether a process has ended
# How long the end of a killed process is waited for; only a hanging disk makes it take longer.
_KILLED_WITHIN_S = 10.0


class ProcessEngine:
    """Runs servers as processes of this user; implements `Engine`.

    Args:
        name: `native` or `embedded`.
        head: the command up to the flags of tensorflow_model_server.
        availability: whether the command can run here.
        binds_host: whether the command can be told the address to listen on.
        folder: where servers are kept; `state_folder()` if left out.
    """

    binds_here = True
    answers_here = True

    def __init__(
        self,
        name: str,
        head: Sequence[str],
        availability: Availability,
        *,
        binds_host: bool,
        folder: Path | None = None,
    ) -> None:
        self.name = name
        self._head = tuple(head)
        self._availability = availability
        self._binds_host = binds_host
        self._folder = folder or state_folder()

    def available(self) -> Availability:
        """Say whether the command was found."""
        return self._availability

    def plan(self, spec: Spec, files: Mapping[str, str]) -> Plan:
        """Return command, files and endpoints; see `Engine.plan`."""
        server = spec.server
        config = home_of(server.name, self._folder) / CONFIG
        bind = (f"--bind_address={server.host}",) if self._binds_host else ()
        deaf = not self._binds_host and not server.is_everywhere
        note = f"{NATIVE_BINARY} cannot be told where to listen: it uses all addresses"
        return Plan(
            server_name=server.name,
            engine=self.name,
            argv=(*self._head, *bind, *spec.argv(files, config)),
            files={str(config / name): text for name, text in files.items()},
            endpoints=endpoints(server),
            models={name: model.base_path for name, model in spec.models.items()},
            deployment=spec.model_dump_json(),
            notes=(note,) if deaf else (),
        )

    def prepare(self, spec: Spec, *, progress: Progress = SILENT) -> None:
        """Do nothing: all is there; see `Engine.prepare`."""

    def start(
        self, plan: Plan, *, progress: Progress = SILENT, clock: Clock | None = None
    ) -> "_ProcessHandle":
        """Start the process; see `Engine.start`."""
        del progress, clock  # it takes no time
        home = home_of(plan.server_name, self._folder)
        with claimed(self._folder, plan.server_name), contextlib.ExitStack() as undo:
            self._refuse_taken(plan.server_name)
            shutil.rmtree(home, ignore_errors=True)
            private_folder(home)
            undo.callback(shutil.rmtree, home, ignore_errors=True)
            write_files(plan, home)
            process = self._spawn(plan, home / _LOG)
            undo.callback(_end, process)
            record = Record(
                plan.server_name,
                self.name,
                process.pid,
                processes.started_s(process.pid),
                plan.argv,
                plan.endpoints,
            )
            record.write(home)
            undo.pop_all()
        return _ProcessHandle(record, home, process)

    def find(self, server_name: str) -> "_ProcessHandle | None":
        """Return the server of that name; see `Engine.find`."""
        home = home_of(server_name, self._folder)
        record = Record.read(home)
        mine = record is not None and record.engine == self.name
        return _ProcessHandle(record, home) if record and mine else None

    def list(self) -> list["_ProcessHandle"]:
        """Return the servers of this engine; see `Engine.list`."""
        return [
            _ProcessHandle(record, home_of(record.server_name, self._folder))
            for record in records(self._folder)
            if record.engine == self.name
        ]

    def _refuse_taken(self, server_name: str) -> None:
        record = Record.read(home_of(server_name, self._folder))
        if record is not None and _alive(record) is not None:
            raise taken(server_name, f"pid {record.pid}")

    def _spawn(self, plan: Plan, log: Path) -> subprocess.Popen[bytes]:
        try:
            with open_private(log) as output:
                return subprocess.Popen(
                    plan.argv,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    # Its own session: Ctrl-C reaches tfkit, which then stops the server in order.
                    start_new_session=True,
                )
        except OSError as error:
            raise ServerFailed(
                f"cannot start {plan.argv[0]}: {error.strerror}",
                remedy="check that the file exists and may be executed",
            ) from error


def native(binary: str | None = None) -> ProcessEngine:
    """Return the engine of the official binary: `binary`, or the one on PATH."""
    path = shutil.which(binary or NATIVE_BINARY)
    if path:
        availability = Availability(usable=True, reason=f"{path} is there")
    else:
        availability = Availability(
            usable=False,
            reason=f"{binary or NATIVE_BINARY} is not on PATH",
            remedy="install it, or use --engine embedded",
        )
    return ProcessEngine("native", [path or NATIVE_BINARY], availability, binds_host=False)


def embedded(folder: Path | None = None, *, memory_bytes: int | None = None) -> ProcessEngine:
    """Return the engine that runs our own server on the tensorflow wheel.

    Args:
        folder: where its servers are kept; `state_folder()` if left out.
        memory_bytes: the most that a server may allocate, which then writes no long log and does
            not outlive this process either; None for no such bounds.
    """
    if find_spec("tensorflow") is not None:
        availability = Availability(usable=True, reason="the tensorflow wheel is installed")
    else:
        availability = Availability(
            usable=False,
            reason="the tensorflow wheel is not installed",
            remedy="pip install 'tfserve-kit[embedded]'",
        )
    head = [sys.executable, "-m", "tfserve_kit.embedded"]
    if memory_bytes is not None:
        head = processes.confined(head, memory_bytes, _BOUNDED_LOG_BYTES)
    return ProcessEngine("embedded", head, availability, binds_host=True, folder=folder)


class _ProcessHandle(Home):
    """A server that is a process; implements `ServerHandle`."""

    def __init__(
        self, record: Record, home: Path, process: subprocess.Popen[bytes] | None = None
    ) -> None:
        self._record = record
        super().__init__(home)
        self._process = process  # only in the process that started it

    @property
    def engine(self) -> str:
        """Name of its engine."""
        return self._record.engine

    @property
    def endpoints(self) -> Endpoints:
        """Where it answers."""
        return self._record.endpoints

    def state(self) -> State:
        """Look whether the process lives; its exit status is known to its parent only."""
        if self._process is not None:
            code = self._process.poll()
            running = code is None
        else:
            code, running = None, _alive(self._record) is not None
        if running:
            return State(Phase.RUNNING)
        return State(Phase.EXITED if self._is_kept() else Phase.GONE, code)

    def replicas(self) -> list[Replica]:
        """Return the process itself; see `ServerHandle.replicas`."""
        return alone(self)

    def logs(self, *, tail: int | None = None, follow: bool = False) -> Iterator[str]:
        """Yield the lines of its log; see `ServerHandle.logs`."""
        if not self._is_kept():
            return
        try:
            stream = (self._home / _LOG).open(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return
        with stream:
            lines = stream if tail is None else deque(stream, maxlen=tail)
            for line in lines:
                yield line.rstrip("\n")
            while follow:
                ended = self.state().phase is not Phase.RUNNING
                for line in stream:
                    yield line.rstrip("\n")
                if ended:
                    return
                time.sleep(_FOLLOW_INTERVAL_S)

    def stop(self, *, grace_s: float = 10.0) -> None:
        """Wait for requests in flight, send SIGTERM, after `grace_s` SIGKILL; remove its folder."""
        if grace_s and _alive(self._record) is not None:
            draining.wait(self._record.pid, self.endpoints, self._home)
        self._signal(signal.SIGTERM, grace_s)
        self._signal(signal.SIGKILL, _KILLED_WITHIN_S)
        if self._process is not None:
            self._process.wait()
        if self._is_kept():
            shutil.rmtree(self._home, ignore_errors=True)

    def _signal(self, number: signal.Signals, wait_s: float) -> None:
        """Signal the process if it still runs, and wait for its end, but not for its parent."""
        process = _alive(self._record)
        if process is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)
            wait_until(
                lambda: _alive(self._record) is None or None,
                timeout_s=wait_s,
                interval_s=_LOOK_S,
                clock=SystemClock(),
            )

    def _is_kept(self) -> bool:
        """Say whether the folder still is this server's: its name may have been given anew."""
        kept = Record.read(self._home)
        mine = (self._record.pid, self._record.started_s)
        return kept is not None and (kept.pid, kept.started_s) == mine


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def _alive(record: Record) -> psutil.Process | None:
    """Return the recorded process if it is the same one and still runs."""
    return processes.alive(record.pid, record.started_s)


def shell_line(argv: Sequence[str]) -> str:
    """Return a command as a line that can be pasted into a shell."""
    return shlex.join(argv)


_SIGNALLED = 128


# Meaning and remedy, by the status as a shell or container tells it.
EXITS = {
    126: (
        "the file cannot be executed",
        "`chmod +x` it, and check that it was built for this kind of machine",
    ),
    127: (
        "the command or a library it needs was not found",
        "check the path, and `ldd` on the binary",
    ),
    132: (
        "illegal instruction: the CPU lacks one that it was built with, most likely AVX",
        "use a machine with AVX, or a binary that was built without",
    ),
    134: (
        "aborted by one of its own checks",
        "look at the line of its log that starts with F: it names the value",
    ),
    137: (
        "killed: out of memory, or it did not stop in time",
        "`dmesg` tells whether memory ran out; serve fewer models or versions, or raise the limit",
    ),
    139: (
        "segmentation fault: known for impossible batching values and far too many threads",
        "run `tfkit lint`, and try without batching and extra flags",
    ),
    143: (
        "terminated: somebody stopped it",
        "start it again if that was not meant",
    ),
    255: (
        "refused to start because of a flag, a configuration file, a port or a model",
        "see its log; `tfkit lint` finds most causes beforehand",
    ),
}


def exit_meaning(exit_code: int) -> tuple[str, str] | None:
    """Return what an exit status means, and a remedy; None where it says nothing in particular.

    Args:
        exit_code: as a parent sees it (-9), or as a shell or container does (137).
    """
    return EXITS.get(_SIGNALLED - exit_code if exit_code < 0 else exit_code)


def exit_text(exit_code: int | None) -> str:
    """Return `exit status N` with its meaning where there is one."""
    if exit_code is None:
        return "an unknown exit status"
    found = exit_meaning(exit_code)
    return f"exit status {exit_code}" + (f" ({found[0]})" if found else "")
