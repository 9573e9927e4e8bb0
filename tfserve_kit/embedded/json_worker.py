"""`python -m tfserve_kit.embedded.json_worker`: reads and writes large JSON for a server.

The server is at the other end of the standard input, a socket. It is asked for what only it knows:
a signature's inputs, and how much memory a request may still take.
"""

import ctypes
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from tfserve_kit.embedded import examples, json_answer, json_request, json_text, limits
from tfserve_kit.embedded.process_pipe import packed, receive, send, unpacked
from tfserve_kit.embedded.status import Code, ServingError, told

if TYPE_CHECKING:
    from tfserve_kit.embedded.ledger import Account

_OWN_BYTES = 1 << 30  # beyond what requests become
_LOW_PRIORITY = 5


class Refused(ServingError):
    """The server has said no, and knows why."""

    def __init__(self) -> None:
        super().__init__(Code.ABORTED, "The server refused")


class Info(NamedTuple):
    """What is read of a TensorInfo message."""

    dtype: int
    name: str


class Server:
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

    def info(self, signature: str) -> Mapping[str, Info]:
        """Return a signature's inputs by alias."""
        inputs = self._ask("info", signature)
        return {alias: Info(*each) for alias, each in inputs.items()}

    def _ask(self, name: str, *arguments: Any) -> Any:
        send(self._pipe, ("ask", (name, *arguments)))
        is_answered, value = receive(self._pipe)
        if not is_answered:
            raise Refused
        return value


def _predict(server: Server, body: Any) -> Any:
    request = json_request.PredictBody(bytes(body), server.info, cast("Account", server))
    return request.signature, request.row_format, packed(request.inputs)


def _examples(server: Server, body: Any) -> Any:
    document = json_text.parse_object(bytes(body), cast("Account", server))
    signature = json_request.signature_name(document)
    return signature, packed({"": examples.from_json(document, cast("Account", server))})


def _answer(server: Server, outputs: Any, row_format: bool) -> Any:  # noqa: FBT001
    del server
    answer = json_answer.predictions(unpacked(outputs), row_format=row_format)
    return np.frombuffer(answer, np.uint8)


_TASKS: dict[str, Callable[..., Any]] = {
    "predict": _predict,
    "examples": _examples,
    "answer": _answer,
}


def work(pipe: socket.socket) -> None:
    """Do what the server asks for, until it goes."""
    server = Server(pipe)
    with suppress(EOFError, OSError):
        send(pipe, ("ready", None))
        while True:
            send(pipe, _done(server, *receive(pipe)))
            with suppress(AttributeError):  # not glibc
                ctypes.CDLL(None).malloc_trim(0)


def _done(server: Server, name: str, *arguments: Any) -> tuple[str, Any]:
    try:
        return "done", _TASKS[name](server, *arguments)
    except Refused:
        return "refused", None
    except (EOFError, OSError):
        raise
    except Exception as error:  # noqa: BLE001 (the server must get an answer)
        refusal = told(error, f"large JSON ({name})")
        return "failed", (refusal.code, refusal.message)


def main() -> None:
    """Work in a thread, whose stack may be deep."""
    for number in (signal.SIGINT, signal.SIGTERM):  # the server decides when it ends
        signal.signal(number, signal.SIG_IGN)
    os.nice(_LOW_PRIORITY)
    most_bytes = limits.most_held_bytes() + _OWN_BYTES
    with suppress(ValueError, OSError):  # it is bounded more closely already
        resource.setrlimit(resource.RLIMIT_DATA, (most_bytes, most_bytes))
    json_text.allow_deep()
    with socket.socket(fileno=sys.stdin.fileno()) as pipe:
        worker = threading.Thread(target=work, args=(pipe,))
        worker.start()
        worker.join()


if __name__ == "__main__":
    main()
