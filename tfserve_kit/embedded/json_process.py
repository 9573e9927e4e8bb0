"""Large JSON is read and written in processes of its own, one for reading and one for writing.

Python runs one thread at a time, and parsers keep it for the whole of a body: everybody would wait.
So what takes long is done elsewhere, with the same words and results. Small requests pay no more
than a comparison.

Both ends stand here. The process's standard input is a socket to the server; it asks the server for
what only that knows: a signature's inputs, and how much memory a request may still take. Arrays
travel as they lie in memory; each piece is one call of the system, however large, so that nothing
else waits for Python meanwhile.
"""

import ctypes
import logging
import os
import pickle
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from tfserve_kit.embedded import json_reader, json_writer, limits, messages
from tfserve_kit.embedded.json_reader import Bulk
from tfserve_kit.embedded.ledger import Call
from tfserve_kit.embedded.messages import examples_from_json
from tfserve_kit.embedded.status import Code, ServingError, told

if TYPE_CHECKING:
    from tfserve_kit.embedded.ledger import Account

_COUNT = struct.Struct("!I")
_SIZE = struct.Struct("!Q")


class Strings:
    """An object array of bytes on its way: as objects they would be sent one by one.

    Args:
        array: object array of bytes, of any shape.
    """

    def __init__(self, array: NDArray[Any]) -> None:
        items = array.ravel().tolist()
        self.shape = array.shape
        self.lengths = np.fromiter(map(len, items), np.int64, len(items))
        self.joined = np.frombuffer(b"".join(items), np.uint8)

    def array(self) -> NDArray[Any]:
        """Return the array again."""
        array, joined = np.empty(len(self.lengths), object), self.joined.data
        ends = accumulate(self.lengths, initial=0)
        for index, (begin, end) in enumerate(pairwise(map(int, ends))):
            array[index] = bytes(joined[begin:end])
        return array.reshape(self.shape)


def packed(arrays: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """Return arrays as they are best sent."""
    return {
        name: Strings(array) if array.dtype == object else np.asarray(array, order="C")
        for name, array in arrays.items()
    }


def unpacked(arrays: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """Return arrays as they were before `packed`."""
    return {
        name: each.array() if isinstance(each, Strings) else each for name, each in arrays.items()
    }


def send(pipe: socket.socket, value: Any) -> None:
    """Send a value that can be pickled; raises OSError if the other process has gone."""
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    parts = [memoryview(head), *(each.raw() for each in buffers)]
    sizes = b"".join(_SIZE.pack(part.nbytes) for part in parts)
    pipe.sendall(_COUNT.pack(len(parts)) + sizes)
    for part in parts:
        pipe.sendall(part)


def receive(pipe: socket.socket) -> Any:
    """Return what the other process has sent.

    Raises:
        EOFError: it has gone.
        OSError: it took longer than the socket allows.
    """
    (count,) = _COUNT.unpack(_exactly(pipe, _COUNT.size).data)
    sizes = _SIZE.iter_unpack(_exactly(pipe, count * _SIZE.size).data)
    head, *buffers = [_exactly(pipe, size) for (size,) in sizes]
    return pickle.loads(head.data, buffers=buffers)  # noqa: S301 (from a process of our own)


def _exactly(pipe: socket.socket, size: int) -> NDArray[np.uint8]:
    whole = np.empty(size, np.uint8)  # not a bytearray: that would be filled with zeros first
    view, at = whole.data, 0
    while at < size:
        got = pipe.recv_into(view[at:], 0, socket.MSG_WAITALL)
        if not got:
            raise EOFError
        at += got
    return whole


# What the process may ask for while it works, by name.
Answers = Mapping[str, Callable[..., Any]]

_START_S = 60.0  # Python and numpy, on a machine that has much to do
_WORKER = "from tfserve_kit.embedded.json_process import worker_main; worker_main()"

_log = logging.getLogger(__name__)


class _Unusable(Exception):
    """There can be no such process here: what it is for must be done without."""


class JsonProcess:
    """A process that does one task after the other; begins with the first one. Thread-safe.

    Args:
        command: what to run; its standard input is a socket. The worker, unless tests say more.
    """

    def __init__(self, command: Sequence[str] = (sys.executable, "-P", "-c", _WORKER)) -> None:
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
            _Unusable: it cannot be started.
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
            raise _Unusable
        if self._pipe is None:
            try:
                return self._start()
            except (OSError, EOFError, ValueError) as error:
                self._end()
                self._is_usable = False
                _log.warning("large JSON is read and written by the server itself: %r", error)
                raise _Unusable from error
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


# Bodies of so many bytes are read elsewhere; one array of numbers, which is read quickly, only from
# the second figure on.
LARGE_BYTES = 128 << 10
LARGE_BULK_BYTES = 4 << 20
# Answers are written elsewhere that take so much memory: eight thousand numbers.
LARGE_ANSWER_BYTES = 512_000

_PLAIN_KINDS = frozenset("fiubO")


class LargeJson:
    """Reads requests and writes answers, wherever that is best done. Thread-safe."""

    def __init__(self) -> None:
        self._reader, self._writer = JsonProcess(), JsonProcess()

    def stop(self) -> None:
        """End the processes; idempotent."""
        self._reader.stop()
        self._writer.stop()

    def predict_body(
        self, body: bytes, info: json_reader.InputInfo, call: Call
    ) -> json_reader.PredictBody | Bulk:
        """Read a predict request; arguments and errors as of `json_reader.PredictBody`."""
        if len(body) < LARGE_BYTES:
            return json_reader.PredictBody(body, info, call.account)
        if len(body) < LARGE_BULK_BYTES:
            found = json_reader.bulk_body(body, info, call.account)
            if found:
                return found

        def inputs_of(signature: str) -> dict[str, tuple[int, str]]:
            return {alias: (each.dtype, each.name) for alias, each in info(signature).items()}

        answers = _account(call) | {"info": inputs_of}
        with suppress(_Unusable):
            sent = np.frombuffer(body, np.uint8)
            signature, row_format, inputs = self._reader.run(call, answers, "predict", sent)
            return Bulk(signature, row_format, unpacked(inputs))
        return json_reader.PredictBody(body, info, call.account)

    def examples(self, body: bytes, call: Call) -> tuple[str, NDArray[Any]]:
        """Read a classify or regress request.

        Args:
            body: the JSON.
            call: charged with what it becomes.

        Returns:
            The signature's name, and object [examples] of serialized tf.Example.

        Raises:
            ServingError: the body is no such request, or becomes too large.
        """
        if len(body) >= LARGE_BYTES:
            with suppress(_Unusable):
                sent = np.frombuffer(body, np.uint8)
                signature, rows = self._reader.run(call, _account(call), "examples", sent)
                return signature, unpacked(rows)[""]
        document = json_reader.parse_object(body, call.account)
        signature = json_reader.signature_name(document)
        return signature, examples_from_json(document, call.account)

    def predictions(
        self, outputs: Mapping[str, NDArray[Any]], cost_bytes: int, call: Call, *, row_format: bool
    ) -> bytes:
        """Print the outputs of a predict call; see `json_writer.predictions`.

        Args:
            outputs: as there.
            cost_bytes: what that takes, by `ledger.cost_of_answer`.
            call: whose answer it is.
            row_format: as there.
        """
        is_large = cost_bytes >= LARGE_ANSWER_BYTES
        if is_large and all(array.dtype.kind in _PLAIN_KINDS for array in outputs.values()):
            with suppress(_Unusable):
                sent = packed(outputs)
                return bytes(self._writer.run(call, {}, "answer", sent, row_format))
        return json_writer.predictions(outputs, row_format=row_format)


def _account(call: Call) -> dict[str, Callable[..., Any]]:
    return {"take": call.account.take, "give": call.account.give}


_OWN_BYTES = 1 << 30  # beyond what requests become
_LOW_PRIORITY = 5


class Refused(ServingError):
    """The server has said no, and knows why."""

    def __init__(self) -> None:
        super().__init__(Code.ABORTED, "The server refused")


class _Info(NamedTuple):
    """What is read of a TensorInfo message."""

    dtype: int
    name: str


class _Server:
    """The server that asks, as an account and as what knows the signatures.

    Args:
        pipe: leads to it.
    """

    def __init__(self, pipe: socket.socket) -> None:
        self._pipe = pipe

    def take(self, size_bytes: int, what: str) -> None:
        """See `Account.take`."""
        self._ask("take", size_bytes, what)

    def give(self, size_bytes: int) -> None:
        """See `Account.give`."""
        self._ask("give", size_bytes)

    def info(self, signature: str) -> Mapping[str, _Info]:
        """Return a signature's inputs by alias."""
        inputs = self._ask("info", signature)
        return {alias: _Info(*each) for alias, each in inputs.items()}

    def _ask(self, name: str, *arguments: Any) -> Any:
        send(self._pipe, ("ask", (name, *arguments)))
        is_answered, value = receive(self._pipe)
        if not is_answered:
            raise Refused
        return value


def _predict(server: _Server, body: Any) -> Any:
    request = json_reader.PredictBody(bytes(body), server.info, cast("Account", server))
    return request.signature, request.row_format, packed(request.inputs)


def _examples(server: _Server, body: Any) -> Any:
    document = json_reader.parse_object(bytes(body), cast("Account", server))
    signature = json_reader.signature_name(document)
    return signature, packed({"": messages.examples_from_json(document, cast("Account", server))})


def _answer(server: _Server, outputs: Any, row_format: bool) -> Any:  # noqa: FBT001
    del server
    answer = json_writer.predictions(unpacked(outputs), row_format=row_format)
    return np.frombuffer(answer, np.uint8)


_TASKS: dict[str, Callable[..., Any]] = {
    "predict": _predict,
    "examples": _examples,
    "answer": _answer,
}


def work(pipe: socket.socket) -> None:
    """Do what the server asks for, until it goes."""
    server = _Server(pipe)
    with suppress(EOFError, OSError):
        send(pipe, ("ready", None))
        while True:
            send(pipe, _done(server, *receive(pipe)))
            with suppress(AttributeError):  # not glibc
                ctypes.CDLL(None).malloc_trim(0)


def _done(server: _Server, name: str, *arguments: Any) -> tuple[str, Any]:
    try:
        return "done", _TASKS[name](server, *arguments)
    except Refused:
        return "refused", None
    except (EOFError, OSError):
        raise
    except Exception as error:  # noqa: BLE001 (the server must get an answer)
        refusal = told(error, f"large JSON ({name})")
        return "failed", (refusal.code, refusal.message)


def worker_main() -> None:
    """Work in a thread, whose stack may be deep."""
    for number in (signal.SIGINT, signal.SIGTERM):  # the server decides when it ends
        signal.signal(number, signal.SIG_IGN)
    with suppress(OSError):  # lower than the server's, whichever of its threads has started this
        niceness = os.getpriority(os.PRIO_PROCESS, os.getppid()) + _LOW_PRIORITY
        os.setpriority(os.PRIO_PROCESS, 0, niceness)
    most_bytes = limits.most_held_bytes() + _OWN_BYTES
    with suppress(ValueError, OSError):  # it is bounded more closely already
        resource.setrlimit(resource.RLIMIT_DATA, (most_bytes, most_bytes))
    json_reader.allow_deep()
    with socket.socket(fileno=sys.stdin.fileno()) as pipe:
        worker = threading.Thread(target=work, args=(pipe,))
        worker.start()
        worker.join()
