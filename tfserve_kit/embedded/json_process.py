"""A process that reads or writes large JSON for the server, one request after the other."""

import logging
import os
import socket
import struct
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from tfserve_kit.embedded.call import Call
from tfserve_kit.embedded.process_pipe import receive, send
from tfserve_kit.embedded.status import Code, ServingError

# What the process may ask for while it works, by name.
Answers = Mapping[str, Callable[..., Any]]

_START_S = 60.0  # Python and numpy, on a machine that has much to do
_WORKER = "tfserve_kit.embedded.json_worker"

_log = logging.getLogger(__name__)


class Unusable(Exception):
    """There can be no such process here: what it is for must be done without."""


class JsonProcess:
    """A process that does one task after the other; begins with the first one. Thread-safe.

    Args:
        command: what to run; its standard input is a socket. The worker, unless tests say more.
    """

    def __init__(self, command: Sequence[str] = (sys.executable, "-P", "-m", _WORKER)) -> None:
        self._command = command
        self._turn = threading.Lock()  # whose turn it is
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: socket.socket | None = None
        self._close: weakref.finalize[Any, Any] | None = None
        self._is_usable = True

    @property
    def pid(self) -> int | None:
        """The process's number, while there is one."""
        return self._process.pid if self._process else None

    def run(self, call: Call, answers: Answers, task: str, *arguments: Any) -> Any:
        """Have a task done, when its turn has come.

        Args:
            call: of the request it is for.
            answers: what the process may ask for; what they raise is raised.
            task: its name.
            arguments: what it is done with.

        Raises:
            ServingError: the task's own; CANCELLED or DEADLINE_EXCEEDED, nobody waits for it any
                more; UNAVAILABLE, the process died.
            Unusable: it cannot be started.
        """
        with self._turn_of(call):
            pipe = self._opened()
            try:
                _set_timeout(pipe, call.timeout_s)
                kind, value = _outcome(pipe, answers, (task, *arguments))
            except (EOFError, OSError) as error:
                self._end()
                call.check()  # it may have been that its time was over
                _log.error("the process that reads and writes large JSON ended: %r", error)
                text = "The process that reads and writes large JSON ended; repeat the request"
                raise ServingError(Code.UNAVAILABLE, text) from error
            except BaseException:
                self._end()  # in the middle of something
                raise
        if kind == "done":
            return value
        if kind == "refused":
            raise value
        raise ServingError(*value)

    def stop(self) -> None:
        """End the process; idempotent. A task that is under way fails."""
        self._is_usable = False
        if process := self._process:
            process.kill()
        with self._turn:
            self._end()

    @contextmanager
    def _turn_of(self, call: Call) -> Iterator[None]:
        timeout_s = call.timeout_s
        has_come = self._turn.acquire(timeout=-1 if timeout_s is None else timeout_s)
        try:
            call.check()
            if not has_come:  # so nearly that the deadline has yet to pass
                raise ServingError(Code.DEADLINE_EXCEEDED, "Deadline Exceeded")
            yield
        finally:
            if has_come:
                self._turn.release()

    def _opened(self) -> socket.socket:
        if self._process and self._process.poll() is not None:
            self._end()
        if not self._is_usable:
            raise Unusable
        if self._pipe is None:
            try:
                return self._start()
            except (OSError, EOFError, ValueError) as error:
                self._end()
                self._is_usable = False
                _log.warning("large JSON is read and written by the server itself: %r", error)
                raise Unusable from error
        return self._pipe

    def _start(self) -> socket.socket:
        pipe, theirs = socket.socketpair()
        _set_timeout(pipe, _START_S)
        with theirs, ExitStack() as otherwise:
            otherwise.callback(pipe.close)
            # Its modules are found where ours are, wherever this process has been started.
            path = os.pathsep.join(filter(None, sys.path))
            environment = {**os.environ, "PYTHONPATH": path}
            self._process = subprocess.Popen(
                self._command, stdin=theirs.fileno(), stdout=subprocess.DEVNULL, env=environment
            )
            otherwise.pop_all()
        self._close = weakref.finalize(self, _close, self._process, pipe)
        self._pipe = pipe
        receive(pipe)  # it is ready
        return pipe

    def _end(self) -> None:
        if self._close:
            self._close()
        self._pipe = self._process = self._close = None


def _close(process: subprocess.Popen[bytes], pipe: socket.socket) -> None:
    pipe.close()
    process.kill()
    process.wait()


def _outcome(pipe: socket.socket, answers: Answers, task: tuple[Any, ...]) -> tuple[str, Any]:
    """Return how a task ended, and with what."""
    refusal: Exception | None = None
    send(pipe, task)
    while True:
        kind, value = receive(pipe)
        if kind != "ask":
            return kind, refusal if kind == "refused" else value
        name, *arguments = value
        try:
            reply: tuple[bool, Any] = True, answers[name](*arguments)
        except ServingError as error:
            reply, refusal = (False, None), error
        send(pipe, reply)


def _set_timeout(pipe: socket.socket, timeout_s: float | None) -> None:
    """Bound each call of the system; unlike Python's own timeouts, that leaves it whole."""
    seconds, rest = divmod(max(timeout_s or 0.0, 0.0 if timeout_s is None else 0.001), 1)
    value = struct.pack("@ll", int(seconds), int(rest * 1e6))
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        pipe.setsockopt(socket.SOL_SOCKET, option, value)
