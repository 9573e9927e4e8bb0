"""The contract of an engine: what runs model servers, and how they are held.

::

    Engine.plan(spec, files) -> Plan          pure: no daemon, no disk, nothing happens
    Engine.prepare(spec)                  what takes minutes, such as pulling an image
    Engine.start(plan)       -> ServerHandle
    Engine.find(name)        -> ServerHandle | None
    Engine.list()            -> [ServerHandle]

    STARTING ──▶ RUNNING ──▶ EXITED(code) ──▶ GONE
        └──────────────────────▲    stop() leads from anywhere to GONE

Obligations of every engine, held by one contract suite:

- `plan` has no effects and shows the exact command that `start` will run;
- `start` either returns a handle or raises and leaves nothing behind; a second server of a name
  that runs is refused with ServerExists;
- a server outlives the process that started it, and `find` sees it from any other;
- the log of a server that ended by itself is kept until `stop` is called;
- `stop` is idempotent, lets requests in flight finish (at most `drain_s` of the deployment), asks
  politely first, and never touches a process it did not start;
- a server is one or more replicas behind its endpoints: `replicas` tells each of them, and one of
  several that fails, moves or is replaced does not change the server's phase;
- what a server was deployed with is found by whoever may ask the engine: `home` is a folder to read
  from, which the engine fills if the truth is elsewhere.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from tfserve_kit.errors import ServerExists
from tfserve_kit.progress import SILENT, Progress

if TYPE_CHECKING:  # `tfkit predict` reads records of servers and needs no deployment
    from tfserve_kit.clock import Clock
    from tfserve_kit.deployment.spec import Server, Spec


class Phase(Enum):
    """Where a server is in its life."""

    STARTING = "starting"
    RUNNING = "running"
    EXITED = "exited"
    GONE = "gone"


ALIVE = frozenset({Phase.STARTING, Phase.RUNNING})
LOG_TAIL = 15  # last lines of a log, for an error to show


@dataclass(frozen=True, slots=True)
class State:
    """A phase, and the exit status if the server ended and it is known."""

    phase: Phase
    exit_code: int | None = None


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where a server answers: `grpc://host:port` (`grpcs://` with TLS) and `http://host:port`."""

    grpc: str
    rest: str


@dataclass(frozen=True, slots=True)
class Replica:
    """One of the processes behind a server's endpoints.

    Attributes:
        name: what it is called, such as `web.2`.
        node: the machine that it runs on, as whatever runs it calls it; empty for this one.
        state: where it is in its life.
        endpoints: where it answers itself; None if only what is before the replicas leads there.
        reason: why it does not run, in the words of what runs it; empty if it does.
        address: where what is before the replicas finds it; empty if nothing is.
    """

    name: str
    node: str
    state: State
    endpoints: Endpoints | None
    reason: str = ""
    address: str = ""


def endpoints(server: "Server") -> Endpoints:
    """Return where a server will answer; REST has no TLS in the official server."""
    host = "127.0.0.1" if server.is_everywhere else server.host
    host = f"[{host}]" if ":" in host else host
    scheme = "grpcs" if server.flags.get("ssl_config_file") else "grpc"
    return Endpoints(f"{scheme}://{host}:{server.grpc_port}", f"http://{host}:{server.rest_port}")


@dataclass(frozen=True, slots=True)
class Availability:
    """Whether an engine can run here; if not, `reason` says why and `remedy` what to do.

    One that is usable but `is_costly` must download something large first.
    """

    usable: bool
    reason: str
    remedy: str = ""
    is_costly: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything needed to start a server; a value.

    Attributes:
        server_name: what the server will be called.
        engine: name of the engine that made the plan.
        argv: the command.
        files: rendered configuration files that must exist first: absolute path to text.
        endpoints: where it will answer, however many replicas it has.
        models: base path by model name.
        deployment: what it was made of, as JSON.
        notes: what the user should know, such as an option the engine cannot honour.
        private: arguments (or `stdin`) that hold secrets, to what is shown instead of them.
        replicas: how many processes will answer there.
        before: commands that the command needs to have been run, in their order.
        stdin: what the command reads.
    """

    server_name: str
    engine: str
    argv: tuple[str, ...]
    files: Mapping[str, str]
    endpoints: Endpoints
    models: Mapping[str, str]
    deployment: str
    notes: tuple[str, ...] = field(default=())
    private: Mapping[str, str] = field(default_factory=dict)
    replicas: int = 1
    before: tuple[tuple[str, ...], ...] = ()
    stdin: str = field(default="", repr=False)


class RunningServer(Protocol):
    """A server that tfkit runs, and where it is."""

    @property
    def server_name(self) -> str:
        """Its name."""

    @property
    def engine(self) -> str:
        """Name of the engine that runs it."""

    @property
    def endpoints(self) -> Endpoints:
        """Where it answers."""

    @property
    def models(self) -> Mapping[str, str]:
        """Base path by model name."""

    @property
    def home(self) -> Path:
        """Folder of its deployment and its rendered files, to read from; see `records`."""


class ServerHandle(RunningServer, Protocol):
    """A server somewhere in its life. Safe to use from several threads."""

    def keep(self, files: Mapping[str, str]) -> None:
        """Write files into its folder: path in it to text; what is there keeps owner and mode."""

    def sees(self, base_path: str) -> bool:
        """Say whether the running server can read a folder of this machine."""

    def state(self) -> State:
        """Look where it is now."""

    def replicas(self) -> Sequence[Replica]:
        """Look at each of the processes that answer for it, by name; none once it is gone."""

    def logs(self, *, tail: int | None = None, follow: bool = False) -> Iterator[str]:
        """Yield its log lines, all or the last `tail`; `follow` goes on until it has ended."""

    def stop(self, *, grace_s: float = 10.0) -> None:
        """Drain it, end it and forget it: a polite signal, after `grace_s` seconds the hard one.

        With a `grace_s` of 0 requests in flight are not waited for.
        """


@runtime_checkable
class FleetHandle(Protocol):
    """A handle of a server that is changed while it serves, one replica after the other."""

    def update(
        self,
        plan: Plan,
        *,
        is_forced: bool = False,
        progress: Progress = SILENT,
        clock: "Clock | None" = None,
    ) -> ServerHandle:
        """Make the server what another plan says; what it is already is left alone.

        Args:
            plan: a plan of its engine for its name.
            is_forced: replace the replicas even if the plan is what they were made of.
            progress: told how many replicas are as wanted.
            clock: what the waiting measures with.

        Raises:
            ServerFailed: a replica did not become healthy; all is again as it was before.
        """


def alone(handle: ServerHandle) -> list[Replica]:
    """Return the replicas of a server that has just one."""
    state = handle.state()
    if state.phase is Phase.GONE:
        return []
    return [Replica(handle.server_name, "", state, handle.endpoints)]


def together(states: Sequence[State]) -> State | None:
    """Return the state of a server from those of its replicas; None while none has come to run.

    One that runs is enough; else one that ended tells more than those that start.
    """
    telling = (Phase.RUNNING, Phase.EXITED)
    return next((each for phase in telling for each in states if each.phase is phase), None)


def outlasting(
    faults: Mapping[str, tuple[float, str]], since_s: dict[str, float], now_s: float
) -> str | None:
    """Return why replicas do not run, if that has lasted for too long; None if nothing has yet.

    Args:
        faults: by kind, how many seconds it may last, and why it is so.
        since_s: since when each kind has lasted; to be given again at the next look.
        now_s: the time of this look, of the same clock.
    """
    for gone in since_s.keys() - faults.keys():
        del since_s[gone]
    for kind, (patience_s, why) in faults.items():
        if now_s - since_s.setdefault(kind, now_s) >= patience_s:
            return why
    return None


def taken(server_name: str, by: str, *, is_fleet: bool = False) -> ServerExists:
    """Return the error of a start under a name whose server runs already.

    Args:
        server_name: the name.
        by: what the server is, such as `pid 7`.
        is_fleet: whether it can be changed while it serves.
    """
    change = f"; `tfkit restart {server_name} --config FILE` changes it without a stop"
    return ServerExists(
        f"a server named {server_name!r} is already running ({by})",
        remedy=f"`tfkit stop {server_name}`, or give another --name{change if is_fleet else ''}",
    )


class Engine(Protocol):
    """Something that runs model servers; see the module's text for its obligations.

    Attributes:
        name: what `engine` in `[server]` calls it.
        binds_here: whether its servers take ports of this machine.
        answers_here: whether they can be called from this machine; where that is not sure, `start`
            and `update` return once their models are available.
    """

    name: str
    binds_here: bool
    answers_here: bool

    def available(self) -> Availability:
        """Say whether it can be used on this machine."""

    def plan(self, spec: "Spec", files: Mapping[str, str]) -> Plan:
        """Return what `start` needs; `files` are the rendered files, name to text.

        Ports must be settled: none of them 0.
        """

    def prepare(self, spec: "Spec", *, progress: Progress = SILENT) -> None:
        """Fetch what `start` will need and what takes long, such as an image.

        May be interrupted at any time and repeated.

        Raises:
            EngineUnavailable: it cannot be had.
        """

    def start(
        self, plan: Plan, *, progress: Progress = SILENT, clock: "Clock | None" = None
    ) -> ServerHandle:
        """Start a server.

        Args:
            plan: one of its own.
            progress: told what is waited for, where that takes long.
            clock: what such waiting measures with.

        Raises:
            ServerExists: one of that name runs.
            ServerFailed: the command cannot be started.
        """

    def find(self, server_name: str) -> ServerHandle | None:
        """Return the server of that name, running or ended, if this engine started it.

        Raises:
            EngineUnavailable: it did, but what runs it does not answer.
        """

    def list(self) -> Sequence[ServerHandle]:
        """Return every server that this engine started and nobody stopped, by name."""
