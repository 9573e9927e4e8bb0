"""One measurement from beginning to end: watch the server, send, mark what happens, keep it all."""

import math
import os
import platform
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, Self

from tfserve_kit import safe_text
from tfserve_kit.perf import sending
from tfserve_kit.perf.load import Load, Payload, Tally
from tfserve_kit.perf.metrics import Watch
from tfserve_kit.perf.samples import Mark, Run, Samples
from tfserve_kit.progress import SILENT, Progress
from tfserve_kit.version import VERSION

POISON, OVERLOAD = "poison", "overload"
POISON_EVERY = 100

_GRACE_S = 30.0
_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Command:
    """A command to run.

    Attributes:
        name: what marks call it.
        argv: one text for the shell; or a program and its arguments, which Ctrl-C does not reach.
        news: makes a mark of what a program printed, as soon as it did; an empty text is none.
    """

    name: str
    argv: str | Sequence[str]
    news: Callable[[str], str] | None = None


def command_of(during: str) -> Command | None:
    """Return the shell command that a disturbance is; None for those that change what is sent."""
    return None if during in {"", POISON, OVERLOAD} else Command(safe_text.redacted(during), during)


class Disturbance:
    """Runs a command beside a run; a `with` block that ends when both have.

    Args:
        command: the command, if any.
        after_s: when it begins, in seconds since the run began.

    Attributes:
        start_ns: `time.monotonic_ns()` at the start of the run; 0 before that.
        marks: when the command began and ended; to be read after the block.
    """

    def __init__(self, command: Command | None, after_s: float) -> None:
        self._command, self._after_s = command, after_s
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self.start_ns = 0
        self.marks: list[Mark] = []

    def begin(self, start_ns: int) -> None:
        """Take note that the run has begun."""
        self.start_ns = start_ns
        if self._command:
            self._thread = threading.Thread(target=self._run, args=(self._command,))
            self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        if self._thread:
            self._thread.join()

    def _run(self, command: Command) -> None:
        if self._over.wait(self._after_s):
            return
        self._mark(f"begin: {command.name}")
        run = self._shell if isinstance(command.argv, str) else self._program
        self._mark(f"end: {command.name} ({run(command)})")

    def _mark(self, what: str) -> None:
        self.marks.append(Mark(time.monotonic_ns() - self.start_ns, what))

    def _shell(self, command: Command) -> str:
        """Run a command of the user's, and return how it ended."""
        with subprocess.Popen(  # noqa: S602 (the user's own command line, in the user's own shell)
            command.argv, shell=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        ) as process:
            return self._ended(process, lambda: None)

    def _program(self, command: Command) -> str:
        """Run a program, mark its news, and return how it ended, with its last words if badly."""
        with (
            tempfile.TemporaryFile() as out,
            tempfile.TemporaryFile() as err,
            subprocess.Popen(
                command.argv,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            ) as process,
        ):
            ended = self._ended(process, _Once(out, lambda text: self._tell(command, text)))
            said = _text(err).rpartition("Error: ")[2].strip() if process.returncode else ""
        return f"{ended}: {said.splitlines()[0]}" if said else ended

    def _tell(self, command: Command, printed: str) -> None:
        if command.news and (news := command.news(printed)):
            self._mark(news)

    def _ended(self, process: "subprocess.Popen[bytes]", look: Callable[[], None]) -> str:
        """Wait, and return the exit code or that the command did not end with the run."""
        late_s = 0.0
        while (is_running := process.poll() is None) and late_s < _GRACE_S:
            look()
            time.sleep(_POLL_S)
            late_s += _POLL_S * self._over.is_set()
        look()
        if is_running:
            process.kill()
            return "killed: it outlived the run"
        return f"exit code {process.returncode}"


class _Once:
    """Passes on what a program printed, once it is there as a whole line."""

    def __init__(self, out: IO[bytes], tell: Callable[[str], None]) -> None:
        self._out, self._tell, self._is_over = out, tell, False

    def __call__(self) -> None:
        if not self._is_over and (text := _text(self._out)).endswith("\n"):
            self._is_over = True
            self._tell(text)


def _text(file: IO[bytes]) -> str:
    """Return what is in a file, and leave alone the place where the program goes on writing."""
    return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode("utf-8", "replace")


_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


def describe_environment() -> dict[str, str | int]:
    """Return processor, cores and versions, for a report to show beside its numbers."""
    found: dict[str, str | int] = {
        "cpu": _cpu(),
        "cores": os.cpu_count() or 1,
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0,
        "memory_gb": _memory_gb(),
        "load_before": f"{os.getloadavg()[0]:.2f}" if hasattr(os, "getloadavg") else "unknown",
        "governor": _read(_GOVERNOR) or "unknown",
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "tfkit": VERSION,
        "grpcio": version("grpcio"),
        "numpy": version("numpy"),
    }
    return found


def _memory_gb() -> int:
    import psutil

    return round(psutil.virtual_memory().total / 1e9)


def _cpu() -> str:
    lines = (_read(Path("/proc/cpuinfo")) or "").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def _read(file: Path) -> str:
    try:
        return file.read_text("utf-8").strip()
    except OSError:
        return ""


@dataclass(frozen=True, slots=True)
class Bench:
    """All that runs of one measurement share.

    Attributes:
        payloads: what requests consist of, sent in turn.
        send: what takes the place of `perf.sending.run`.
        about: settings to keep besides those of the load.
        during: `poison` makes every hundredth request invalid; `overload` is the name of a load
            that doubles its rate, see `Open.at_rate`; anything else is a command for the shell, run
            after a third of the time, if `command` is none.
        watch: makes what looks at the server meanwhile.
        stop: ends a run early.
        progress: is told how many requests have ended.
        command: what is run after a third of the time, where `during` is but a name for it.
    """

    payloads: Sequence[Payload]
    send: Callable[..., Samples] | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    during: str = ""
    watch: Callable[[], Watch] | None = None
    stop: threading.Event | None = None
    progress: Progress = SILENT
    command: Command | None = None

    def measure(self, load: Load) -> Run:
        """Send a load and return all that is known of the run."""
        payloads, about = self.payloads, dict(self.about)
        if self.during == POISON:
            payloads, about = poisoned(payloads), about | {"poison_every": POISON_EVERY}
        if self.during:
            about["during"] = safe_text.redacted(self.during)
        place = describe_environment()
        watch = self.watch() if self.watch else None
        disturbance = Disturbance(self.command or command_of(self.during), load.duration_s / 3)
        with watch or nullcontext(), disturbance:
            samples = (self.send or sending.run)(
                load, payloads, stop=self.stop, progress=self.progress, started=disturbance.begin
            )
        marks = (*disturbance.marks, *_overload_marks(load))
        seen = watch.data(disturbance.start_ns) if watch else {}
        answers = checked(load.tally)
        return Run(samples, load.settings() | about, place, marks, seen, answers)


def checked(tally: Tally) -> dict[str, Any]:
    """Return how the answers of a run were checked, as a run keeps it; {} if they were not.

    Its keys: `checked` (answers looked into), `held_against` (what of each), `decoded` (how many
    of them in full), `versions` (right answers by the version that gave them; over gRPC),
    `rows_unknown` (outputs whose rows the request does not tell).
    """
    if not tally.checked:
        return {}
    return {
        "checked": tally.checked,
        "held_against": ["framing", "outputs", "dtype", "rank", "rows"],
        "decoded": tally.decoded,
        "versions": {str(version): tally.versions[version] for version in sorted(tally.versions)},
        "rows_unknown": sorted(tally.without_rows),
    }


def _overload_marks(load: Load) -> Iterator[Mark]:
    if load.settings()["is_overload"]:
        third_ns = round(load.duration_s / 3 * 1e9)
        yield Mark(third_ns, "begin: twice the rate")
        yield Mark(2 * third_ns, "end: twice the rate")


def poisoned(payloads: Sequence[Payload]) -> list[Payload]:
    """Return payloads of which every `POISON_EVERY`-th is no request that a server can read."""
    turns = range(math.lcm(POISON_EVERY, len(payloads)))
    return [
        payloads[i % len(payloads)]._replace(body=b"\xff\xff not a request \xff")
        if i % POISON_EVERY == POISON_EVERY - 1
        else payloads[i % len(payloads)]
        for i in turns
    ]
