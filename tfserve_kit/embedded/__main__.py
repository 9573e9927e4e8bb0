"""`python -m tfserve_kit.embedded --port=8500 ...`: the command line of tensorflow_model_server.

Source: tensorflow_serving/model_servers/main.cc (output and exit status).
"""

import gc
import logging
import os
import signal
import sys
import threading
from importlib.metadata import version
from types import FrameType
from typing import TYPE_CHECKING

from tfserve_kit.deployment import flags
from tfserve_kit.embedded.logs import BoundedHandler
from tfserve_kit.embedded.status import CheckFailed, Code, ServingError

if TYPE_CHECKING:
    from tfserve_kit.embedded.server import EmbeddedServer

EXIT_FAILED = 255
_ALL_ADDRESSES = "0.0.0.0"  # noqa: S104 (what the official server listens on)
_BIND = "--bind_address="
# How long a thread may keep Python to itself while others want it: less than usual, so that those
# that read large requests do not keep the others waiting, and long enough to answer a small one.
_SWITCH_S = 0.002


def main(argv: list[str]) -> int:
    """Serve until SIGTERM or SIGINT; return the exit status."""
    logging.addLevelName(logging.CRITICAL, "FATAL")
    logging.basicConfig(level=logging.INFO, handlers=[BoundedHandler(sys.stderr)])
    # Not one of the official server's flags: tfkit itself says where to listen.
    binds = [argument.removeprefix(_BIND) for argument in argv if argument.startswith(_BIND)]
    line = flags.parse(argument for argument in argv if not argument.startswith(_BIND))
    if line.error or "--help" in line.unknown:
        if line.error:
            logging.getLogger(__name__).error(line.error)
        sys.stdout.write(flags.usage())
        return EXIT_FAILED
    if line.values["version"]:
        sys.stdout.write(_version())
        return 0
    for argument in line.unknown:
        sys.stdout.write(f"unknown argument: {argument}\n")
    if line.unknown:
        sys.stdout.write(flags.usage())
    sys.stdout.flush()
    try:
        from tfserve_kit.embedded import json_reader
        from tfserve_kit.embedded.front import allow_many_connections, keep_freed_memory
        from tfserve_kit.embedded.loader import skip_package_import
        from tfserve_kit.embedded.server import EmbeddedServer
        from tfserve_kit.embedded.settings import from_flags

        json_reader.allow_deep()
        sys.setswitchinterval(_SWITCH_S)
        allow_many_connections()
        keep_freed_memory()
        skip_package_import()
        settings = from_flags(line.values, bind_address=binds[-1] if binds else _ALL_ADDRESSES)
        return _serve(EmbeddedServer(settings))
    except CheckFailed as error:
        logging.getLogger(__name__).critical("Check failed: %s", error.message)
        os.abort()
    except ServingError as error:
        if error.code is Code.CANCELLED:
            return 0
        sys.stdout.write(f"Failed to start server. Error: {error}\n")
        return EXIT_FAILED


def _serve(server: "EmbeddedServer") -> int:
    stop = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        del number, frame
        for each in (signal.SIGTERM, signal.SIGINT):  # the next one ends the process at once
            signal.signal(each, signal.SIG_DFL)
        stop.set()
        # A thread: the handler may have interrupted code that holds the lock this needs.
        threading.Thread(target=server.interrupt).start()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    with server:
        gc.freeze()  # what is there now stays: no need to look through it at each unload
        stop.wait()
    # What has not ended within its grace, such as a request that hangs, must not hold up the end.
    logging.shutdown()
    os._exit(0)


def _version() -> str:
    return (
        f"TensorFlow ModelServer: tfkit-embedded-{version('tfserve-kit')}\n"
        f"TensorFlow Library: {version('tensorflow')}\n"
    )


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
