"""What running `tfkit` leaves, and `tfkit serve` as a process of its own."""

import contextlib
import json
import subprocess
import sys
from dataclasses import dataclass

PATIENCE_S = 60.0


@dataclass
class Done:
    """What a command left: exit code and the two streams."""

    code: int
    out: str
    err: str

    @property
    def data(self):
        """The data of the envelope on stdout, which must be all there is."""
        envelope = json.loads(self.out)
        assert envelope["schema"] == 1
        assert self.out.count("\n") == 1
        return envelope["data"]

    @property
    def kind(self):
        return json.loads(self.out)["kind"]


class Command:
    """A `tfkit` command that runs as a process of its own."""

    def __init__(self, popen):
        self.popen = popen

    def wait_for(self, text, stream="stderr"):
        """Read a stream up to the line that holds a text."""
        for line in getattr(self.popen, stream):
            if text in line:
                return
        raise AssertionError(f"{text!r} never came")

    def ended(self):
        out, err = self.popen.communicate(timeout=PATIENCE_S)
        return Done(self.popen.returncode, out, err)


@contextlib.contextmanager
def running(*arguments):
    """Run a `tfkit` command during a `with` block."""
    command = [sys.executable, "-m", "tfserve_kit", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as popen:
        try:
            yield Command(popen)
        finally:
            popen.kill()
