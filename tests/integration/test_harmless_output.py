"""Whatever texts come from outside, no command sends a terminal a character that acts there."""

import json
import os
import shutil
import subprocess
import sys

import grpc
import pytest

from tests.contract import lying_servers
from tests.unit import saved_models
from tfserve_kit import protos
from tfserve_kit.cli import COMMANDS

EVIL = "\x1b]0;owned\x07\x1b[2J\x9b2J\rFAKE\u202e\u2066\u200f\u2028\x7f\udcff"
ACTING = [each for each in EVIL if not each.isascii() or not each.isprintable()]

# Replaces what a command does by everything that a careless one could do.
CARELESS = f"""
import logging, sys, warnings
import click
from tfserve_kit import cli
from tfserve_kit.cli import output
from tfserve_kit.errors import UsageError

EVIL = {EVIL!a}

def careless(how):
    with output.TerminalProgress() as progress:
        progress.step(EVIL), progress.advance(1, 2), progress.note(EVIL), progress.fault(EVIL)
    output.note(EVIL), output.line(EVIL)
    output.result("any", {{EVIL: [EVIL]}}, as_json=False, text=output.table([EVIL], [[EVIL]]))
    click.echo(EVIL), click.secho(EVIL, err=True), print(EVIL), print(EVIL, file=sys.stderr)
    sys.stdout.write(EVIL + "\\n"), sys.stderr.writelines([EVIL, "\\n"])
    warnings.warn(EVIL), logging.getLogger("any").error(EVIL)
    raise {{"expected": UsageError(EVIL, remedy=EVIL), "clicks": click.UsageError(EVIL),
           "clicks own": click.BadParameter(EVIL), "bug": RuntimeError(EVIL),
           "exit": SystemExit(EVIL)}}[how]

command = cli.cli.get_command(None, sys.argv[1])
while isinstance(command, click.Group) and command.commands:
    command = command.commands[sorted(command.commands)[0]]
command.params, command.callback = [], lambda **_: careless(sys.argv[2])
command.invoke = lambda context: careless(sys.argv[2])
group = cli.cli.get_command(None, sys.argv[1])
if group is not command:
    group.parse_args = lambda context, args: []
    group.invoke = lambda context: careless(sys.argv[2])
cli.main([sys.argv[1]])
"""


def assert_harmless(*streams):
    for stream in streams:
        text = stream.decode("utf-8", "surrogatepass")
        assert not [each for each in ACTING if each in text], text


def run(*arguments, **more):
    return subprocess.run([sys.executable, *arguments], capture_output=True, check=False, **more)


@pytest.mark.parametrize("name", COMMANDS)
def test_careless_command_is_harmless(name):
    done = run("-c", CARELESS, name, "expected")
    assert_harmless(done.stdout, done.stderr)
    assert done.returncode == 2, done.stderr
    assert done.stdout.count(rb"\x1b]0;owned\x07") >= 5
    assert done.stderr.count(rb"\x1b]0;owned\x07") >= 8


@pytest.mark.parametrize("how", ["clicks", "clicks own", "bug", "exit"])
def test_every_way_to_fail_is_harmless(how):
    done = run("-c", CARELESS, "status", how)
    assert_harmless(done.stdout, done.stderr)
    assert done.returncode == (2 if "click" in how else 1)
    assert rb"\x1b]0;owned\x07" in done.stderr.splitlines()[-1]


# Runs a command with one list of arguments after the other, each in a fork of its own.
EACH = """
import os, sys
from tfserve_kit.cli import cli, main

cli.get_command(None, sys.argv[1])  # imported once
for arguments in ([sys.argv[2]], sys.argv[3:8], ["--port", sys.argv[3]]):
    if not os.fork():
        main([sys.argv[1], *arguments])
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
"""


@pytest.mark.parametrize("name", COMMANDS)
def test_option_and_argument_that_nobody_knows_are_harmless(name):
    evil = os.fsencode(EVIL[:-1]) + b"\xff"
    done = run("-c", EACH, name, b"--" + evil, *[evil] * 5, stdin=subprocess.DEVNULL)
    assert_harmless(done.stdout, done.stderr)
    assert done.stdout.split()[0] == b"2", done.stderr


def test_json_holds_the_text_itself_and_nothing_that_acts():
    code = (
        f"from tfserve_kit.cli import output; output.result('k', {EVIL!a}, as_json=True, text='')"
    )
    for encoding in ("utf-8", "latin-1", "ascii"):
        done = run("-c", code, env={**os.environ, "PYTHONIOENCODING": encoding})
        assert_harmless(done.stdout)
        assert json.loads(done.stdout)["data"] == EVIL


# What gRPC carries of it as text: half a character is none.
SAID = EVIL[:-1]


def evil_metadata():
    signatures = protos.from_json("SignatureDefMap", lying_servers.SIGNATURES)
    signature = signatures.signature_def["serving_default"]
    signature.outputs[SAID].CopyFrom(signature.outputs["y"])
    signatures.signature_def[SAID].CopyFrom(signature)
    answer = protos.GetModelMetadataResponse()
    answer.model_spec.version.value = 7
    answer.metadata["signature_def"].Pack(signatures)
    return answer.SerializeToString()


def evil_status():
    answer = protos.GetModelStatusResponse()
    version = answer.model_version_status.add(version=1, state=30)
    version.status.error_message = SAID
    return answer.SerializeToString()


def evil_outputs():
    answer = protos.PredictResponse()
    answer.outputs[SAID].CopyFrom(protos.TensorProto(dtype=7, string_val=[SAID.encode()]))
    return answer.SerializeToString()


def evil_server(predict):
    return lying_servers.grpc_server(
        GetModelMetadata=evil_metadata(), GetModelStatus=evil_status(), Predict=predict
    )


@pytest.mark.parametrize("predict", ["outputs", "error"])
@pytest.mark.parametrize(
    "arguments",
    [["status"], ["status", "--json"], ["metadata"], ["metadata", "--json"],
     ["request", "in.json"], ["request", "in.json", "--json"],
     ["request", "in.json", "--signature", "x"],
     ["perf", "--duration", "0.2"], ["predict", "evil"], ["evaluate", "evil"]],
    ids=" ".join,
)  # fmt: skip
def test_server_with_evil_texts_is_shown_harmlessly(arguments, predict, tmp_path):
    (tmp_path / "in.json").write_text('{"inputs": {"x": [1]}}')
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "a\x1b]0;owned\x07.jpg").write_bytes(b"x")
    error = (grpc.StatusCode.INVALID_ARGUMENT, "owned" + "".join(filter(str.isascii, SAID)))
    with evil_server(evil_outputs() if predict == "outputs" else error) as url:
        done = run("-m", "tfserve_kit", *arguments, "--url", url, "--model", "m", cwd=tmp_path)
    assert_harmless(done.stdout, done.stderr)
    assert done.stdout + done.stderr


def test_evil_texts_are_shown_all_the_same():
    with evil_server(b"") as url:
        for command, shown in (("status", r"\x1b]0;owned"), ("metadata", r"\x9b2J")):
            done = run("-m", "tfserve_kit", command, "--url", url, "--model", "m")
            assert shown in done.stdout.decode()


def evil_model(folder):
    """Return a SavedModel that has evil names everywhere."""
    graph = saved_models.meta_graph(("y", "Identity", "x"), (SAID, "Evil" + SAID, "x"))
    signature = graph.signature_def["serving_default"]
    signature.inputs[SAID].CopyFrom(signature.inputs["x"])
    graph.signature_def[SAID].CopyFrom(signature)
    saved_models.asset(graph, filename=SAID.replace("/", ""))
    saved_models.write(folder, graph)
    (folder / "fi\x1b]0;owned\x07le\u202e").write_bytes(b"x")
    (folder / "assets.extra").mkdir()
    note = {"labels": [SAID], SAID: 3}
    (folder / "assets.extra" / "tfkit.json").write_text(json.dumps(note))
    return folder


@pytest.mark.parametrize(
    "arguments",
    [["inspect", "model"], ["inspect", "model", "--json"], ["push-model", "model", "--to", "base"],
     ["push-model", "model", "--to", "base", "--signature", "nope"], ["verify", "model"],
     ["versions", "model"], ["lint", "tfkit.toml"], ["render", "--config", "tfkit.toml"],
     ["serve", "--config", "tfkit.toml", "--dry-run"], ["doctor"]],
    ids=" ".join,
)  # fmt: skip
def test_model_and_settings_with_evil_texts_are_shown_harmlessly(arguments, tmp_path):
    evil_model(tmp_path / "model")
    toml = f"[models.m]\nbase_path = {json.dumps(SAID)}\n[models.{json.dumps(SAID)}]\nx = 1\n"
    (tmp_path / "tfkit.toml").write_text(toml)
    done = run("-m", "tfserve_kit", *arguments, cwd=tmp_path)
    assert_harmless(done.stdout, done.stderr)
    assert done.stdout + done.stderr


def test_log_of_a_server_is_shown_harmlessly_line_by_line():
    code = f"""
from tfserve_kit.cli import cli, main, servers
class Handle:
    def logs(self, tail, follow):
        return iter([{EVIL!a}, "plain"])
servers._named_or_only = lambda name: Handle()
main(["logs"])
"""
    done = run("-c", code)
    assert_harmless(done.stdout, done.stderr)
    assert done.stdout.splitlines()[1:] == [b"plain"]


@pytest.mark.parametrize("arguments", [["--help"], ["doctor"], ["completion", "bash"]])
def test_reader_that_went_away_ends_a_command_quietly(arguments):
    command = [sys.executable, "-m", "tfserve_kit", *arguments]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert not done.stderr
    assert done.returncode == 130


@pytest.mark.parametrize("buffered", ["", "1"])
@pytest.mark.parametrize("arguments", [["--help"], ["ps", "--json"], ["completion", "bash"]])
def test_results_without_room_for_them_are_an_error(arguments, buffered):
    command = [sys.executable, "-m", "tfserve_kit", *arguments]
    environment = {**os.environ, "PYTHONUNBUFFERED": buffered}
    with open("/dev/full", "w") as full:  # noqa: PTH123 (a device)
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, env=environment, text=True, check=False
        )
    assert done.returncode == 2
    assert done.stderr.startswith("Error: cannot write standard output: No space left on device\n")
    assert "Traceback" not in done.stderr


def test_remarks_without_room_for_them_do_not_end_a_command():
    command = [sys.executable, "-m", "tfserve_kit", "init", "/dev/null/no"]
    with open("/dev/full", "w") as full:  # noqa: PTH123 (a device)
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=full, check=False)
    assert (done.returncode, done.stdout) == (2, b"")


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_stream_that_is_closed_from_the_start_is_written_to_in_vain(closed):
    code = (
        "from tfserve_kit.cli import output; output.guard_streams(); output.note('a')\n"
        "output.line('b'); output.TerminalProgress().step('c'); assert not output.is_one_terminal()"
    )
    command = ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ("" if closed.startswith(">") else "b\n")


@pytest.mark.parametrize("encoding", ["ascii", "cp437", "latin-1"])
def test_terminal_of_few_characters_is_shown_the_numbers_of_others(encoding, models, tmp_path):
    shutil.copytree(models / "half_plus_two", tmp_path / "日本")
    done = subprocess.run(
        [sys.executable, "-m", "tfserve_kit", "inspect", "日本"],
        cwd=tmp_path, capture_output=True, check=False,
        env={**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(rb"\u65e5\u672c/2")
