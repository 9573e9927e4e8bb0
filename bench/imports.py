"""How quickly whole processes get going: C1, C4 and C5."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.harness import Benchmark, Sides
from bench.processes import MODELS, PYTHON, Place, console_script, require_tensorflow
from bench.stats import Goal
from tfserve_kit.pictures.preprocessing import Preprocessing

_MESSAGES = "from tfserve_kit import protos; protos.PredictRequest"
# What messages made from descriptors cannot do without.
_RUNTIME = "from google.protobuf import descriptor_pb2, descriptor_pool, message_factory"
# What no client can do without: read the file, decode, resize, scale. As tfkit does it.
_FLOOR = """
import sys
import numpy as np
from PIL import Image
image = Image.open(sys.argv[1]).convert("L").resize((28, 28), Image.Resampling.BILINEAR)
pixels = (np.asarray(image, np.float32) / 255).reshape(1, -1)
"""
_PICTURE = (640, 480)  # width and height, in pixels


@contextmanager
def _messages(scratch: Path) -> Iterator[Sides]:
    place = Place(scratch)
    bare = {"an interpreter that does nothing": place.python("pass")}
    yield Sides(place.python(_RUNTIME), place.python(_MESSAGES), bare)


@contextmanager
def _help(scratch: Path) -> Iterator[Sides]:
    place = Place(scratch)
    # The least that any command line made with click costs.
    bare = place.python("import click; click.Group('bare').main(['--help'])")
    yield Sides(
        place.python("pass"), place.timed(console_script(), "--help"), {"click's empty group": bare}
    )


@contextmanager
def _predict(scratch: Path) -> Iterator[Sides]:
    require_tensorflow()
    place = Place(scratch)
    picture = scratch / "image.jpg"
    _paint(picture)
    base_path = scratch / "models" / "digits"
    place.tfkit("push-model", _noted_model(scratch), "--to", base_path)
    with place.server({"digits": base_path}) as server:
        tfkit = console_script()
        over_grpc = place.timed(tfkit, "predict", picture, "--url", server["grpc"])
        over_rest = place.timed(tfkit, "predict", picture, "--url", server["rest"])
        with_grpc = place.timed(PYTHON, "-c", _FLOOR + "import grpc", picture)
        yield Sides(
            place.timed(PYTHON, "-c", _FLOOR, picture),
            over_grpc,
            {"the subject over REST": over_rest, "the baseline with `import grpc`": with_grpc},
            {"picture": f"JPEG, {_PICTURE[0]}x{_PICTURE[1]}, {picture.stat().st_size} bytes"},
        )


def _noted_model(scratch: Path) -> Path:
    """Return a small classifier of digits with its preprocessing note."""
    model = scratch / "mlp"
    shutil.copytree(MODELS / "mlp" / "1", model)
    Preprocessing(
        height=28, width=28, channels=1, value_range=(0.0, 1.0), labels=tuple("0123456789")
    ).write(model)
    return model


def _paint(file: Path) -> None:
    """Write a JPEG with smooth parts and grain, as a photograph has."""
    import numpy as np
    from PIL import Image

    width, height = _PICTURE
    slope = np.add.outer(np.linspace(0, 120, height), np.linspace(0, 120, width))
    grain = np.random.default_rng(0).normal(0, 6, (height, width, 3))
    pixels = np.clip(slope[:, :, np.newaxis] + grain, 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(file, quality=90)


BENCHMARKS = (
    Benchmark(
        "C1",
        "importing the client's messages",
        "importing the protobuf runtime",
        Goal(1.3),
        _messages,
    ),
    Benchmark("C4", "`tfkit --help`", "`python -c pass`", Goal(4.0), _help),
    Benchmark(
        "C5",
        "`tfkit predict image.jpg` over gRPC",
        "a process that only decodes the picture",
        Goal(1.5),
        _predict,
    ),
)
