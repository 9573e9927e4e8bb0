"""One process that sends, or several whose samples are put together.

Other processes are fresh interpreters: nothing of this one's threads and locks is copied, and its
main module is not run again. They are told what to do on standard input, and they stop when it
ends, so that none outlives its parent.
"""

import contextlib
import gc
import os
import pickle
import selectors
import signal
import struct
import subprocess
import sys
import threading
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from queue import SimpleQueue
from typing import Any

import numpy as np

from tfserve_kit.clients import server_messages
from tfserve_kit.errors import RequestError, TfkitError
from tfserve_kit.perf.load import Load, Open, Payload, Tally, dealt
from tfserve_kit.perf.samples import Samples, status_name
from tfserve_kit.perf.sending.driving import Driver, Snapshot, SnapshotListener, feed
from tfserve_kit.perf.sending.pools import FleetPool, GrpcioPool, Pool
from tfserve_kit.progress import SILENT, Progress, Silent

_LEAST_OPEN_S, _MOST_OPEN_S = 1.0, 10.0
_HEAD_START_NS = 50_000_000
_LENGTH = struct.Struct(">Q")
_CODE = "from tfserve_kit.perf.sending import workers; workers.main()"
_WATCHED = "watched"
_WATCH_S = 0.05


_Result = tuple[Samples, dict[int, str], Tally]  # of a worker, with the notes of its pool


def alone(
    load: Load,
    payloads: Sequence[Payload],
    stop: threading.Event,
    progress: Progress,
    started: Callable[[int], object],
) -> Samples:
    """Send in this thread; see `sending.run`."""
    with _opened(load, payloads) as pool:
        start_ns = time.monotonic_ns()
        started(start_ns)
        samples = _drive(pool, load, payloads, start_ns, stop, progress)
        load.tally.add(pool.judges.tally())
        _tell(pool.notes, progress)
    return samples


def _drive(
    pool: Pool,
    load: Load,
    payloads: Sequence[Payload],
    start_ns: int,
    stop: threading.Event,
    progress: Progress,
) -> Samples:
    schedule = feed(load.schedule)
    sizes = [len(payload.body) for payload in payloads]
    driver = Driver(pool, schedule, sizes, load.timeout_s, load.grace_s)
    with _telling(driver, schedule.total, progress) as tell, _no_garbage_collection():
        return driver.run(start_ns, stop, tell)


@contextlib.contextmanager
def _telling(
    driver: Driver, total: int | None, progress: Progress
) -> Iterator[Callable[[int, int], None]]:
    """Make what a driver calls now and then, and what must not hold it up."""
    if not isinstance(progress, SnapshotListener):
        yield lambda ended, _: progress.advance(ended, total or ended)
        return
    with _in_a_thread(progress.snapshot) as take:
        yield lambda _, now_ns: take(driver.snapshot(now_ns))


@contextlib.contextmanager
def _in_a_thread(tell: Callable[[Snapshot], object]) -> Iterator[Callable[[Snapshot], None]]:
    """Give what takes snapshots, and never waits; a thread passes them on."""
    seen: SimpleQueue[Snapshot | None] = SimpleQueue()

    def pass_on() -> None:
        while (each := seen.get()) is not None:
            tell(each)

    thread = threading.Thread(target=pass_on, daemon=True)
    thread.start()
    try:
        yield seen.put
    finally:
        seen.put(None)
        thread.join()


@contextlib.contextmanager
def _opened(load: Load, payloads: Sequence[Payload]) -> Iterator[Pool]:
    pool = _pool(load, payloads)
    try:
        pool.open(min(_MOST_OPEN_S, max(_LEAST_OPEN_S, load.timeout_s)))
        yield pool
    finally:
        pool.close()


def _pool(load: Load, payloads: Sequence[Payload]) -> Pool:
    if len(load.urls) > 1:
        each = [replace(load, url=url) for url in load.urls]
        return FleetPool(load.urls, [_pool(one, payloads) for one in each])
    if load.protocol == "rest":
        from tfserve_kit.perf.sending.http1 import Http1Pool

        return Http1Pool(load, payloads)
    if load.uses_grpcio:
        return GrpcioPool(load, payloads)
    from tfserve_kit.perf.sending.http2 import Http2Pool

    return Http2Pool(load, payloads)


def _tell(notes: dict[int, str], progress: Progress) -> None:
    for status, message in sorted(notes.items()):
        advice = server_messages.remedy(message)
        said = f"{status_name(status)}: {message or 'no message'}"
        progress.note(f"{said}\n  Try: {advice}" if advice else said)


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Keep the collector from pausing the loop, which makes no cycles."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@contextlib.contextmanager
def stopped_by_ctrl_c(stop: threading.Event) -> Iterator[None]:
    """Let the first Ctrl-C of a `with` block set an event, where this is the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)

    def handle(number: int, frame: Any) -> None:
        if not stop.is_set():
            stop.set()
        elif callable(before):
            before(number, frame)

    signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before or signal.SIG_DFL)


def together(
    parts: Sequence[Load],
    payloads: Sequence[Payload],
    stop: threading.Event,
    progress: Progress,
    started: Callable[[int], object],
) -> Samples:
    """Send from a process per part, all of which start at the same moment; see `sending.run`."""
    is_watched = isinstance(progress, SnapshotListener)
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(_worker(is_watched=is_watched)) for _ in parts]
        for number, (worker, part) in enumerate(zip(workers, parts, strict=True)):
            _write(worker.stdin, (part, dealt(payloads, number, len(parts))))
        for worker in workers:
            _answer(worker)
        start_ns = time.monotonic_ns() + _HEAD_START_NS
        started(start_ns)
        for worker in workers:
            _write(worker.stdin, start_ns)
        with _passing_on(stop, workers):
            found = _results(workers, progress)
    for _, _, tally in found:
        parts[0].tally.add(tally)  # all parts have that of the whole
    _tell({code: text for _, notes, _ in reversed(found) for code, text in notes.items()}, progress)
    is_open = isinstance(parts[0].schedule, Open)
    return _merged([samples for samples, *_ in found], is_open=is_open)


def _results(workers: Sequence["subprocess.Popen[bytes]"], progress: Progress) -> list[_Result]:
    """Return what each worker found, and pass on how they stand until then."""
    together = (
        _SnapshotMerger(len(workers), progress.snapshot)
        if isinstance(progress, SnapshotListener)
        else None
    )
    found: dict[int, _Result] = {}
    with selectors.DefaultSelector() as talk:
        for number, worker in enumerate(workers):
            talk.register(worker.stdout or -1, selectors.EVENT_READ, number)
        while len(found) < len(workers):
            for key, _ in talk.select():
                said = _answer(workers[key.data])
                if not isinstance(said, Snapshot):
                    found[key.data] = *said, _answer(workers[key.data])
                    talk.unregister(key.fileobj)
                elif together:
                    together.take(key.data, said)
    return [found[number] for number in range(len(workers))]


class _SnapshotMerger:
    """Puts the snapshots of several workers together, one of each.

    Args:
        count: number of workers.
        tell: takes what they make together.
    """

    def __init__(self, count: int, tell: Callable[[Snapshot], object]) -> None:
        self._count, self._tell = count, tell
        self._last: dict[int, Snapshot] = {}
        self._new: dict[int, Snapshot] = {}

    def take(self, worker: int, seen: Snapshot) -> None:
        """Take a worker's snapshot; one that has ended before the others is not waited for."""
        if worker in self._new:
            self._tell_all()
        self._new[worker] = seen
        if len(self._new) == self._count:
            self._tell_all()

    def _tell_all(self) -> None:
        self._last |= self._new
        all_ns = array("q")
        for each in self._new.values():
            all_ns.extend(each.latencies_ns)
        seen = self._last.values()
        self._tell(
            Snapshot(
                max(each.at_ns for each in seen),
                _if_all(max, [each.end_ns for each in seen]),
                sum(each.ended for each in seen),
                _if_all(sum, [each.total for each in seen]),
                sum(each.failed for each in seen),
                sum(each.in_flight for each in seen),
                _if_all(max, [each.late_ns for each in self._new.values()]),
                all_ns,
            )
        )
        self._new = {}


def _if_all(combine: Callable[[Iterable[int]], int], values: list[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return combine(known) if len(known) == len(values) else None


def _merged(parts: Sequence[Samples], *, is_open: bool) -> Samples:
    """Put the samples of all workers in one order, and number them so."""
    for number, part in enumerate(parts):
        part["worker"] = number
        if is_open:  # as they were dealt out
            part["sequence"] = part["sequence"] * len(parts) + number
    merged = np.concatenate(parts)
    if is_open:
        return merged[np.argsort(merged["sequence"], kind="stable")]
    merged = merged[np.argsort(merged["sent_ns"], kind="stable")]
    merged["sequence"] = np.arange(len(merged))
    return merged


@contextlib.contextmanager
def _worker(*, is_watched: bool = False) -> Iterator["subprocess.Popen[bytes]"]:
    path = os.pathsep.join(each or os.getcwd() for each in sys.path)  # noqa: PTH109 (as it stands)
    process = subprocess.Popen(
        [sys.executable, "-c", _CODE, *[_WATCHED] * is_watched],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": path},
        start_new_session=True,  # Ctrl-C is for the parent, who passes it on
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@contextlib.contextmanager
def _passing_on(
    stop: threading.Event, workers: Sequence["subprocess.Popen[bytes]"]
) -> Iterator[None]:
    """Tell the workers when to stop."""
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.is_set():
            if stop.wait(_WATCH_S):
                for worker in workers:
                    _write(worker.stdin, None)
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def _answer(worker: "subprocess.Popen[bytes]") -> Any:
    """Return what a worker says next.

    Raises:
        TfkitError: it failed, in the way it says.
        RequestError: it was killed.
    """
    try:
        found = _read(worker.stdout)
    except EOFError as error:
        if (code := worker.wait()) >= 0:  # its traceback stands on stderr
            raise RuntimeError(f"a sending process exited with status {code}") from error
        raise RequestError(
            f"a sending process was killed before it finished ({signal.strsignal(-code)})",
            remedy="free memory, or use fewer processes or fewer requests at once",
        ) from error
    if isinstance(found, TfkitError):
        raise found
    return found


def _write(stream: Any, value: Any) -> None:
    data = pickle.dumps(value)
    with contextlib.suppress(BrokenPipeError):  # whoever has ended is found out by reading
        stream.write(_LENGTH.pack(len(data)) + data)
        stream.flush()


def _read(stream: Any) -> Any:
    """Read a value without reading ahead, and without a lock that a blocked thread would keep."""
    (length,) = _LENGTH.unpack(_exactly(stream.fileno(), _LENGTH.size))
    return pickle.loads(_exactly(stream.fileno(), length))  # noqa: S301 (parent and child of one run)


def _exactly(file: int, size: int) -> bytes:
    found = bytearray()
    while len(found) < size:
        data = os.read(file, size - len(found))
        if not data:
            raise EOFError
        found += data
    return bytes(found)


def main() -> None:
    """Be a worker: read a share and the moment to start, write the samples."""
    source, sink = sys.stdin, sys.stdout.buffer
    load, payloads = _read(source)
    try:
        with _opened(load, payloads) as pool:
            _write(sink, None)
            start_ns = _read(source)
            stop = threading.Event()
            threading.Thread(
                target=_stop_on_parent_signal, args=(source.fileno(), stop), daemon=True
            ).start()
            progress = _ParentReporter(sink) if _WATCHED in sys.argv else SILENT
            samples = _drive(pool, load, payloads, start_ns, stop, progress)
            _write(sink, (samples, pool.notes))
            _write(sink, pool.judges.tally())
    except TfkitError as error:
        _write(sink, error)


class _ParentReporter(Silent):
    """Tells the parent how a worker stands."""

    def __init__(self, sink: Any) -> None:
        self._sink = sink

    def snapshot(self, seen: Snapshot) -> None:
        """Pass it on."""
        _write(self._sink, seen)


def _stop_on_parent_signal(source: int, stop: threading.Event) -> None:
    """Stop at the parent's word, and at its end."""
    os.read(source, 1)
    stop.set()
