"""Every command that has --json prints one line of JSON, as strict parsers read it."""

import json
import shutil

import click
import pytest
from PIL import Image

from tests.integration.commands import PATIENCE_S
from tests.unit.perf.runs import queued
from tfserve_kit.cli import COMMANDS, cli
from tfserve_kit.perf import samples

pytestmark = pytest.mark.tensorflow

# In this order: the servers that some start are those that others ask. {} is the test's folder.
STEPS = {
    "lint": ["--model", "half={}/models/half"],
    "render": ["--model", "half={}/models/half"],
    "push-model": ["{}/half", "--to", "{}/models/half", "--trust"],
    "versions": ["half"],
    "verify": ["half"],
    "inspect": ["half"],
    "warmup": ["{}/half", "--random"],
    "build-image": ["--model", "half={}/models/half", "--out", "{}/image"],
    "serve": ["--engine", "embedded", "--model", "half={}/models/half", "--grpc-port", "0",
              "--rest-port", "0", "--detach"],
    "ps": [],
    "top": ["--once", "--interval", "0.2"],
    "scale": ["default", "1"],
    "status": [],
    "metadata": [],
    "request": ["{}/in.json"],
    "perf": ["--duration", "0.3", "--output", "{}/a.npz"],
    "perf report": ["{}/a.npz"],
    "perf compare": ["{}/a.npz", "{}/a.npz"],
    "capacity": ["{}/kept.npz", "--rate", "100", "--p99", "50ms"],
    "canary": ["half", "1"],
    "promote": ["half"],
    "reload": ["--model", "half={}/models/half", "--model", "image={}/models/image"],
    "predict": ["{}/red.png", "--model", "image"],
    "evaluate": ["{}/labelled", "--model", "image"],
    "rollback": ["half", "--force"],
    "prune": ["half", "--keep", "1", "--dry-run"],
    "restart": [],
    "stop": [],
    "tune": ["--engine", "embedded", "--model", "half={}/models/half", "--rate", "50", "--trials",
             "1", "--rounds", "0", "--duration", "0.3", "--output", "{}/tuned"],
    "doctor": [],
}  # fmt: skip
CODES = {"doctor": {0, 4}, "perf": {0, 7}, "perf compare": {0, 7}, "lint": {0, 3}}


def with_json():
    """Yield the name of every command that has --json, those within others included."""

    def below(name, command):
        if any(parameter.name == "as_json" for parameter in command.params):
            yield name
        if isinstance(command, click.Group):
            for inner, each in command.commands.items():
                yield from below(f"{name} {inner}", each)

    for name in COMMANDS:
        yield from below(name, cli.get_command(None, name))


def refuse(word):
    raise AssertionError(f"{word} is not JSON")


def test_every_command_with_json_is_run_here():
    assert set(STEPS) == set(with_json())


@pytest.fixture
def place(tmp_path, models):
    """A folder with models, pictures and a request."""
    for name in ("half_plus_two", "image"):
        version = min((models / name).glob("[0-9]*"))
        short = name.partition("_")[0]
        shutil.copytree(version, tmp_path / "models" / short / "1")
    shutil.copytree(tmp_path / "models" / "half" / "1", tmp_path / "half")
    (tmp_path / "in.json").write_text('{"instances": [1.0, 2.0]}')
    for number, colour in enumerate(("red", "green", "blue")):
        (tmp_path / "labelled" / str(number)).mkdir(parents=True)
        picture = Image.new("RGB", (8, 8), colour)
        picture.save(tmp_path / "labelled" / str(number) / "a.png")
    picture.save(tmp_path / "red.png")
    samples.write(queued(rate=20.0), tmp_path / "kept.npz")
    return tmp_path


def test_what_every_command_prints_with_json_is_one_line_by_the_standard(shell, place):
    for name, arguments in STEPS.items():
        command = [*name.split(), *(each.format(place) for each in arguments), "--json"]
        done = shell(*command, timeout_s=PATIENCE_S * (4 if name == "tune" else 1))  # it measures
        assert done.code in CODES.get(name, {0}), (name, done.err)
        assert done.out.count("\n") == 1, name
        document = json.loads(done.out, parse_constant=refuse)
        assert set(document) == {"schema", "kind", "data"}, name
        assert document["kind"] != "error", name


def test_what_a_command_prints_with_json_when_it_fails_is_json_too(shell):
    done = shell("status", "--url", "grpc://127.0.0.1:1", "--model", "m", "--json")
    document = json.loads(done.out, parse_constant=refuse)
    assert (document["kind"], done.code) == ("error", 6)
