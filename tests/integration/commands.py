"""What running `tfkit` leaves, `tfkit serve` as a process of its own, and a client of a server."""

import contextlib
import json
import os
import subprocess
import sys
import threading
from dataclasses import dataclass

import numpy as np

from tfserve_kit import connect, processes
from tfserve_kit.clients import Target
from tfserve_kit.engines.records import Record
from tfserve_kit.errors import RequestError

PATIENCE_S = 60.0


def _refuse(word):
    raise AssertionError(f"{word} is no JSON")


def remember(home, endpoints, models):
    """Write what tfkit keeps of a server that is this very process."""
    started_s = processes.started_s(os.getpid())
    Record(home.name, "embedded", os.getpid(), started_s, (), endpoints).write(home)
    paths = {name: {"base_path": path} for name, path in models.items()}
    (home / "deployment.json").write_text(json.dumps({"models": paths}))


@dataclass
class Done:
    """What a command left: exit code and the two streams."""

    code: int
    out: str
    err: str

    @property
    def data(self):
        """The data of the envelope on stdout, which must be all there is."""
        envelope = json.loads(self.out, parse_constant=_refuse)
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


class Caller:
    """Sends one request after the other until told to stop; keeps what came back.

    Args:
        url: a server with a version of `half_plus_two`.
        model: the name it has there.
    """

    def __init__(self, url, model="half_plus_two"):
        self._url, self._model, self._stop = url, model, threading.Event()
        self.answers, self.errors = [], []
        self._thread = threading.Thread(target=self._run)

    def _run(self):
        with connect(self._url) as client:
            while not self._stop.is_set():
                try:
                    answer = client.predict(Target(self._model), {"x": np.float32([1])})
                    self.answers.append(float(answer.outputs["y"][0]))
                except RequestError as error:
                    self.errors.append(error)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._stop.set()
        self._thread.join()
