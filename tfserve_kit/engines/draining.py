"""Ending a server without cutting off what it was asked: the script for it, and its commands.

The official server has no handler for SIGTERM and dies with its requests in flight. `drain.sh`
waits for those: around the server in a container, beside it for a process of this machine.
"""

import math
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from tfserve_kit.deployment import render
from tfserve_kit.engines.base import Endpoints
from tfserve_kit.engines.records import deployed

SCRIPT = "drain.sh"
_SPARE_S = 5.0  # for a machine so busy that its shells are late


def script() -> str:
    """Return the script's text; it takes a POSIX shell, grep, awk and /proc."""
    return render.text(SCRIPT, {})


def around(
    command: Sequence[str], file: Path, ports: Sequence[int], *, drain_s: float, settle_s: float = 0
) -> list[str]:
    """Return a command that runs a server and passes SIGTERM on once it may end.

    Args:
        command: the server's own command.
        file: where it will find the script.
        ports: those of the server.
        drain_s: maximum wait for requests in flight, in seconds, `settle_s` included.
        settle_s: how long new requests may still come after the signal, in seconds.
    """
    return ["sh", str(file), *_bounds(settle_s, drain_s), _listed(ports), *command]


def wait(pid: int, endpoints: Endpoints, home: Path) -> None:
    """Wait until a server that is a process of this machine may end; see `drain.sh`.

    Args:
        pid: the process.
        endpoints: where it answers.
        home: its folder, whose deployment says how long to wait.
    """
    drain_s = seconds(home)
    ports = [urlsplit(url).port or 0 for url in (endpoints.grpc, endpoints.rest)]
    command = ["sh", "-c", script(), SCRIPT, *_bounds(0, drain_s), _listed(ports)]
    with suppress(OSError, subprocess.TimeoutExpired):  # no shell: it ends as if it were idle
        subprocess.run(
            [*command, "--wait", str(pid)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=drain_s + _SPARE_S,
            check=False,
        )


def seconds(home: Path) -> float:
    """Return how long the server of a folder may go on with requests; 0 if that is not known."""
    try:
        return float(deployed(home, "server", "drain_s"))
    except (ValueError, TypeError):
        return 0.0


def _bounds(*seconds: float) -> list[str]:
    return [str(math.ceil(each)) for each in seconds]


def _listed(ports: Sequence[int]) -> str:
    return ",".join(map(str, ports))
