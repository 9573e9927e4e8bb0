"""The zoo, built, pushed and served once for all tests of the folder."""

import base64
import contextlib
import io
import itertools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.field.cells import written
from tests.field.rows import BY_NAME
from tests.integration.commands import Done
from tfserve_kit.cli import main
from tfserve_kit.clients.inputs import to_examples

ROOT = Path(__file__).parents[2]
COLOURS = {"blue": (20, 20, 230), "green": (20, 230, 20), "red": (230, 20, 20)}
GREYS = {"bright": (255,) * 3, "dark": (0,) * 3, "mid": (128,) * 3}


class Field:
    """The models, and commands about them.

    Attributes:
        home: where commands run; pictures and sets lie there.
        zoo, models: folder of the models as they were built, and of their base paths.
        told: question and answer of some models, as the framework gave them.
        warmed, pushed: what `tfkit warmup` and `tfkit push-model` left, by model.
    """

    def __init__(self, home):
        self.home, self.zoo, self.models = home, home / "zoo", home / "models"
        self.warmed, self.pushed, self.told = {}, {}, {}
        self._numbers, self._states = itertools.count(), {}

    def tfkit(self, *arguments):
        """Run a command in this process."""
        out, err = io.StringIO(), io.StringIO()
        streams = contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)
        with contextlib.chdir(self.home), streams[0], streams[1], pytest.raises(SystemExit) as end:
            main([str(each) for each in arguments])
        return Done(end.value.code, out.getvalue(), err.getvalue())

    def build(self):
        """Have tensorflow and Keras write the models."""
        self.zoo.mkdir()
        argv = [sys.executable, "-m", "tests.field.zoo", str(self.zoo)]
        built = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
        assert built.returncode == 0, built.stderr[-3000:]
        self.told = json.loads((self.zoo / "told.json").read_text())

    def push(self, row):
        """Store warm-up requests with a model, and push it."""
        staged = self.home / "staged" / row.name
        shutil.copytree(self.zoo / row.name, staged)
        if not row.pushed:
            given = () if row.input == "random" else ("--input", row.input)
            named = ("--signature", row.signature) if row.signature else ()
            self.warmed[row.name] = self.tfkit("warmup", staged, *given, *named)
        self.pushed[row.name] = self.tfkit("push-model", staged, "--to", self.models / row.name)
        if row.pushed:  # as people do who copy by hand
            shutil.copytree(staged, self.home / "copied" / row.name / "1")

    def base_path(self, row):
        return (self.home / "copied" if row.pushed else self.models) / row.name

    def serve(self):
        served = [row for row in BY_NAME.values() if not row.pushed]
        models = [part for row in served for part in ("--model", f"{row.name}=models/{row.name}")]
        ports = ("--grpc-port", 0, "--rest-port", 0)
        how = ("--engine", "embedded", "--name", "field", "--detach", *ports, *models)
        command = [sys.executable, "-m", "tfserve_kit", "serve", *map(str, how)]
        done = subprocess.run(command, cwd=self.home, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        for each in self.tfkit("status", "--json").data:
            self._states.setdefault(each["model"], {})[str(each["version"])] = each["state"]

    def server_of(self, row):
        """Return the state of each version that the server has of a model."""
        return self._states[row.name]

    def plain(self, text):
        """Return a text without what differs between runs: folders, ports, times."""
        for protocol in ("grpc", "rest"):
            text = text.replace(self.url(protocol), f"{protocol.upper()}_SERVER")
        # TensorFlow counts its functions, and draws the names of its tables, which may begin alike.
        text = re.sub(r"_[0-9a-f]{8}-[0-9a-f-]{27}|_\d{3,}", "_N", text)
        return text.replace(f"{self.home}/", "").replace(str(self.home), ".")

    def url(self, protocol):
        (server,) = self.tfkit("ps", "--json").data
        return server[protocol]

    def file_of(self, inputs):
        """Return a file that holds the inputs of a request."""
        if isinstance(inputs, str):
            return inputs
        return written(inputs, self.home / f"request-{next(self._numbers)}")


@pytest.fixture(scope="session")
def field(tmp_path_factory):
    """Every model that a push accepts, served by one embedded server."""
    made = Field(tmp_path_factory.mktemp("field"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFKIT_STATE_DIR", str(made.home / "state"))
        write_pictures(made.home)
        write_requests(made.home)
        made.build()
        for row in BY_NAME.values():
            made.push(row)
        made.serve()
        yield made
        made.tfkit("stop", "field")


def write_pictures(home):
    """Write pictures, each by itself and in sets with a folder for each class."""
    halves = {
        name: np.repeat(np.uint8([[left] * 14 + [255 - left] * 14]), 28, axis=0)
        for name, left in (("left", 255), ("right", 0))
    }
    pictures = {
        name: Image.new("RGB", (8, 8), colour) for name, colour in (COLOURS | GREYS).items()
    } | {name: Image.fromarray(pixels) for name, pixels in halves.items()}
    sets = {"colours": COLOURS, "brightness": GREYS, "halves": halves, "redness": ("blue", "red")}
    for name, picture in pictures.items():
        picture.save(home / f"{name}.png")
    for dataset, names in sets.items():
        for name in names:
            folder = home / "sets" / dataset / name
            folder.mkdir(parents=True)
            pictures[name].save(folder / "0.png")
            pictures[name].resize((40, 30)).save(folder / "1.jpg", quality=95)


def write_requests(home):
    """Write what the rows name as files."""
    (message,) = to_examples([{"age": 40.0, "city": "Graz"}])
    serialized = base64.b64encode(message.SerializeToString()).decode()
    bodies = {
        "text": {"inputs": {"sentence": [["good film"]]}},
        "columns": {"inputs": {"age": [50.0], "income": [100], "city": ["Graz"]}},
        "examples": {"examples": [{"age": 40.0, "city": "Graz"}]},
        "serialized": {"inputs": {"inputs": [{"b64": serialized}]}},
        "word": {"inputs": {"word": ["b"]}},
        "words": {"inputs": {"text": ["süß"]}},
        "x": {"inputs": {"x": [3.0]}},
        "halves": {"inputs": {"x": [[0.5, 3.0]]}},
        "nothing": {"inputs": {}},
    }
    for name, body in bodies.items():
        (home / f"{name}.json").write_text(json.dumps(body))
    (home / "abc.txt").write_text("a\nb\nc\n")
    np.save(home / "rows.npy", np.stack([np.zeros((8, 8, 3)), np.ones((8, 8, 3))]).astype("f4"))
    np.savez(home / "complex.npz", z=np.complex64([1 + 2j]))
    np.savez(home / "sparse.npz", rows=np.int64([[0, 1], [1, 0]]), rows_1=np.float32([1, 2]),
             rows_2=np.int64([2, 5]))  # fmt: skip
