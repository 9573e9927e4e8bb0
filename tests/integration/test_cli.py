"""Every command: exit codes, JSON, what goes to stdout, and what happens with bad input."""

import fcntl
import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import sys
import termios
from pathlib import Path

import click
import pytest
import yaml
from PIL import Image

from tests.integration.commands import PATIENCE_S, remember
from tfserve_kit.cli import COMMANDS, cli, exits
from tfserve_kit.clock import SystemClock, wait_until
from tfserve_kit.engines import Availability, Endpoints, process, registry
from tfserve_kit.engines.docker import DockerEngine
from tfserve_kit.pictures.preprocessing import Preprocessing

MODELS = Path(__file__).parents[1] / "data" / "models"


@pytest.fixture
def web(shell, fake_binary):
    """A server named `web`, run by a fake tensorflow_model_server."""
    done = shell(*serve_web(fake_binary()), "--detach", "--json")
    assert done.code == 0, done.err
    return done.data


def serve_web(binary, *more):
    model = f"half_plus_two={MODELS / 'half_plus_two'}"
    ports = ("--grpc-port", 0, "--rest-port", 0)
    return ("serve", "--engine", "native", "--binary", binary, "--name", "web", "--model", model,
            *ports, *more)  # fmt: skip


@pytest.fixture
def running(embedded_server, state_dir):
    """A real server that tfkit knows as the only one it runs, with the image model alone."""
    models = {"image": embedded_server.models["image"]}
    home = state_dir / "servers" / "real"
    home.mkdir(parents=True)
    endpoints = embedded_server.endpoints
    remember(home, endpoints, models)


@pytest.fixture
def picture(tmp_path):
    """A red picture of the image model's size."""
    file = tmp_path / "red.png"
    Image.new("RGB", (8, 8), (255, 0, 0)).save(file)
    return file


@pytest.fixture
def toml(tmp_path):
    """Write tfkit.toml with a model and further text."""

    def write(text=""):
        file = tmp_path / "tfkit.toml"
        base_path = MODELS / "half_plus_two"
        file.write_text(f'[models.half_plus_two]\nbase_path = "{base_path}"\n{text}')
        return file

    return write


# Help


@pytest.mark.parametrize(
    "arguments",
    [["--help"], *([name, "--help"] for name in ("predict", "serve", "lint", "doctor"))],
)
def test_help_is_quick_it_imports_neither_tensorflow_nor_docker(arguments):
    code = (
        "import sys\n"
        "from tfserve_kit.cli import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "finally:\n    print(sorted({'tensorflow', 'docker', 'grpc'} & set(sys.modules)),"
        " file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    heavy = done.stderr.strip()
    assert " ".join(["Usage: tfkit", *arguments[:-1]]) in done.stdout
    assert heavy == "[]"


def options_of(command):
    """Every option of a command, and of the commands below it."""
    yield from command.params
    for each in getattr(command, "commands", {}).values():
        yield from options_of(each)


@pytest.mark.parametrize("name", COMMANDS)
def test_no_option_takes_nan_or_infinity_for_a_number(name):
    for option in options_of(cli.get_command(None, name)):
        if option.type.name.startswith("float"):
            for given in ("nan", "inf", "-inf"):
                with pytest.raises(click.BadParameter):
                    option.type.convert(given, option, None)


@pytest.mark.parametrize(
    ("option", "given"),
    [("--range", "0,inf"), ("--mean", "nan"), ("--std", "1,nan,1"), ("--timeout", "nan")],
)
def test_number_that_is_none_is_named(tfkit, option, given):
    done = tfkit("predict", "a.png", option, given)
    assert done.code == 2
    assert option in done.err
    assert repr(given) in done.err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script_asks_tfkit_itself(tfkit, shell):
    done = tfkit("completion", shell)
    assert done.code == 0
    assert f"_TFKIT_COMPLETE={shell}_complete" in done.out
    assert tfkit("completion", "tcsh").code == 2


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("tfkit re", ["render", "reload", "restart", "request"]),
        ("tfkit serve --gr", ["--grpc-port"]),
    ],
)
def test_words_are_completed_in_bash(tmp_path, words, expected):
    command = tmp_path / "tfkit"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m tfserve_kit "$@"\n')
    command.chmod(0o755)
    script = (
        f'PATH={tmp_path}:$PATH; eval "$(tfkit completion bash)"; '
        f"COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); "
        '_tfkit_completion tfkit; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == expected


@pytest.mark.parametrize("name", COMMANDS)
def test_help_text_in_the_list_is_the_commands_own(name):
    assert cli.get_command(None, name).get_short_help_str(limit=1000) == COMMANDS[name][1]


def test_help_lists_every_command(tfkit):
    done = tfkit("--help")
    assert done.code == 0
    listed = re.findall(r"^  ([a-z-]+) {2,}", done.out.partition("Commands:")[2], re.MULTILINE)
    assert listed == list(COMMANDS)


def test_version_is_that_of_the_package(tfkit):
    from importlib.metadata import version

    assert tfkit("--version").out == f"tfkit, version {version('tfserve-kit')}\n"


# Exit codes


def test_every_exit_code_has_one_meaning():
    rows = exits.rows()
    assert [code for code, _ in rows] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 130]


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["predic"], 2, "No such command 'predic': did you mean predict?"),
        (["ps", "--wide"], 2, "No such option"),
        (["versions", "nowhere"], 2, "cannot read nowhere: No such file or directory"),
        (["push-model", str(MODELS / "mlp" / "1")], 2, "give --model NAME or --to BASE_PATH"),
        (["push-model", "x", "--version", "1.5"], 2, "'1.5' is not next, epoch or a whole number"),
        (["render"], 2, "cannot read tfkit.toml: No such file or directory"),
        (["render", "--model", "m"], 2, "--model 'm' is not NAME=BASE_PATH"),
        (["render", "--model", "=x"], 2, "--model '=x' is not NAME=BASE_PATH"),
        (["render", "--model", "m=x", "--config", "f"], 2, "give --config or --model, not both"),
        (["render", "x.txt", "--model", "m=/m"], 2, "x.txt is not rendered here"),
        (["serve", "--engine", "natve", "--model", "m=/m"], 3, "server.engine"),
        (["serve", "--grpc-port", "70000", "--model", "m=/m"], 3, "server.grpc_port"),
        (["serve", "--ready-timeout", "0", "--model", "m=/m"], 2, "--ready-timeout"),
        (["serve", "--name", "a/b", "--model", "m=/m"], 3, "server.name"),
        (["serve", "--engine", "native", "--binary", "/none", "--model", "m=/m"], 4,
         "engine native cannot run here: /none is not on PATH"),
        (["logs", "nobody"], 5, "there is no server named 'nobody'"),
        (["stop", "nobody"], 5, "there is no server named 'nobody'"),
        (["logs"], 2, "which server? There are: none"),
        (["stop"], 2, "which server? There are: none"),
        (["status"], 2, "tfkit runs no server"),
        (["metadata"], 2, "tfkit runs no server"),
        (["predict", "x.png"], 2, "tfkit runs no server"),
        (["predict"], 2, "Missing argument 'IMAGE...'"),
        (["status", "--url", "localhost:8500", "--model", "m"], 2, "is not the address"),
        (["status", "--url", "grpc://localhost:1"], 2, "no model given"),
        (["status", "--url", "grpc://localhost:1", "--model", "m", "--timeout", "0"], 2,
         "--timeout"),
        (["predict", "x", "--size", "8"], 2, "'8' is not HEIGHTxWIDTH"),
        (["predict", "x", "--mean", "a"], 2, "'a' is not a list of numbers"),
        (["predict", "x", "--channels", "4"], 2, "'4' is not one of '1', '3'"),
        (["push-model", "nowhere", "--model", "m"], 8, "cannot read nowhere: No such file"),
    ],
)  # fmt: skip
def test_wrong_call_ends_with_the_code_of_the_table_and_says_why(tfkit, arguments, code, text):
    done = tfkit(*arguments)
    assert done.code == code
    assert text in done.err
    assert done.out == ""


def test_nothing_at_the_address_is_a_failed_request(tfkit):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    for scheme in ("grpc", "http"):
        done = tfkit("status", "--url", f"{scheme}://127.0.0.1:{port}", "--model", "m")
        assert done.code == 6
        assert "start one with `tfkit serve`" in done.err


def test_error_is_an_envelope_too_and_stays_on_stderr_as_text(tfkit):
    done = tfkit("logs", "nobody")
    assert done.out == ""
    done = tfkit("stop", "nobody", "--json")
    assert (done.code, done.kind) == (5, "error")
    assert done.data == {
        "error": "ServerNotFound",
        "message": "there is no server named 'nobody'",
        "remedy": "start one with `tfkit serve`",
    }
    assert "Error: there is no server named 'nobody'" in done.err


# Deployment files


def test_init_writes_a_file_that_serve_accepts(tfkit, tmp_path):
    done = tfkit("init", "--model", "digits", "--name", "web")
    assert (done.code, done.out) == (0, "")
    assert "tfkit push-model SAVED_MODEL --model digits" in done.err
    shown = tfkit("render", "--json").data
    assert 'name: "digits"' in shown["model_config.txt"]
    again = tfkit("init")
    assert (again.code, again.err.splitlines()[0]) == (2, "Error: tfkit.toml exists already")


def test_init_writes_any_model_name_into_the_file(tfkit):
    assert tfkit("init", "--model", "a b.c").code == 0
    assert 'name: "a b.c"' in tfkit("render", "--json").data["model_config.txt"]


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["no/such/folder/tfkit.toml"], 2, "cannot write no/such/folder/tfkit.toml"),
        (["--model", ""], 3, "models."),
        (["--name", "a b"], 3, "server.name"),
    ],
)
def test_init_refuses_what_would_be_no_deployment_file(tfkit, tmp_path, arguments, code, text):
    done = tfkit("init", *arguments)
    assert done.code == code
    assert text in done.err
    assert not (tmp_path / "tfkit.toml").exists()


@pytest.mark.parametrize(
    ("text", "path", "advice"),
    [
        ("[server]\ngrpc_prt = 1\n", "server.grpc_prt", "did you mean grpc_port?"),
        ("[batchin]\n", "batchin", "did you mean batching?"),
        ('versions = "newest"\n', "models.half_plus_two.versions", "latest, all"),
        ("[server.flags]\nnum_load_thread = 1\n", "server.flags.num_load_thread",
         "did you mean num_load_threads?"),
        ('[server]\ngrpc_port = "8500"\n', "server.grpc_port", "write a whole number"),
    ],
)  # fmt: skip
def test_key_that_is_not_known_is_named_with_the_nearest_one(tfkit, toml, text, path, advice):
    toml(text)
    for command in ("render", "serve"):
        done = tfkit(command)
        assert done.code == 3
        assert f"- {path}" in done.err
        assert advice in done.err


def test_all_faults_of_a_file_are_named_at_once(tfkit, toml):
    toml("nope = 1\n[server]\ngrpc_port = -1\nhots = 2\n")
    assert "3 problems" in tfkit("render").err


def test_file_that_is_not_toml_is_refused_with_its_place(tfkit, tmp_path):
    (tmp_path / "tfkit.toml").write_text("[server\n")
    done = tfkit("render")
    assert done.code == 3
    assert "is not TOML" in done.err
    assert "line 1" in done.err


def test_render_shows_or_writes_the_files(tfkit, toml, tmp_path):
    toml("[batching]\nmax_batch_size = 8\n[monitoring]\n")
    names = ["model_config.txt", "batching_config.txt", "monitoring_config.txt"]
    shown = tfkit("render", "--json")
    assert (shown.kind, list(shown.data)) == ("render", names)
    assert tfkit("render").out.startswith("# model_config.txt\nmodel_config_list {")
    assert list(tfkit("render", "batching_config.txt", "--json").data) == ["batching_config.txt"]
    written = tfkit("render", "--out", "conf/web")
    assert (written.code, written.out) == (0, "")
    for name in names:
        text = (tmp_path / "conf" / "web" / name).read_text()
        assert text == "# written by tfkit render, which replaces this file\n" + shown.data[name]


def test_render_for_kubernetes_is_a_stream_or_a_folder_for_kustomize(tfkit, tmp_path):
    (tmp_path / "tfkit.toml").write_text(
        '[server]\nname = "web"\nreplicas = 2\nengine = "kubernetes"\n'
        '[models.half]\nbase_path = "/models/half"\n[kubernetes]\nclaim = "c"\n'
    )
    shown = list(yaml.safe_load_all(tfkit("render", "--target", "kubernetes").out))
    assert [each["kind"] for each in shown][:2] == ["ConfigMap", "Deployment"]
    assert tfkit("render", "--target", "kubernetes", "--out", "base").code == 0
    base = yaml.safe_load((tmp_path / "base" / "kustomization.yaml").read_text())
    files = [yaml.safe_load((tmp_path / "base" / name).read_text()) for name in base["resources"]]
    assert files == shown
    kserve = list(yaml.safe_load_all(tfkit("render", "--target", "kserve").out))
    assert [each["kind"] for each in kserve] == ["ConfigMap", "ServingRuntime", "InferenceService"]


def test_render_for_kubernetes_says_what_is_missing(tfkit):
    done = tfkit("render", "--target", "kubernetes", "--model", "half=models/half")
    assert done.code == 3
    assert "give claim, host_path or in_image in [kubernetes]" in done.err


def test_render_replaces_its_own_files_and_no_others(tfkit, toml, tmp_path):
    toml()
    file = tmp_path / "conf" / "model_config.txt"
    for _ in range(2):
        assert tfkit("render", "--out", "conf").code == 0
    own = file.read_text()
    file.write_text("model_config_list {}")
    done = tfkit("render", "--out", "conf")
    assert (done.code, file.read_text()) == (2, "model_config_list {}")
    assert "conf/model_config.txt exists, and tfkit did not write it" in done.err
    assert tfkit("render", "--out", "conf", "--force").code == 0
    assert file.read_text() == own


def test_render_into_what_is_no_folder_is_refused(tfkit, toml):
    toml()
    done = tfkit("render", "--out", "tfkit.toml/conf")
    assert done.code == 2
    assert "cannot write to tfkit.toml/conf" in done.err


def test_template_that_is_broken_is_a_fault_of_the_deployment(tfkit, toml, tmp_path):
    toml()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "model_config.txt.j2").write_text("{{ nothing }}")
    done = tfkit("render", "--templates", "mine")
    assert done.code == 3
    assert "'nothing' is undefined" in done.err


# The repository


@pytest.fixture
def saved_model(tmp_path):
    """A SavedModel to push, with variables."""
    return shutil.copytree(MODELS / "half_plus_two" / "1", tmp_path / "export")


def test_push_adds_versions_that_the_list_then_shows(tfkit, saved_model, tmp_path):
    first = tfkit("push-model", saved_model, "--model", "half", "--json")
    assert (first.code, first.kind, first.data["version"]) == (0, "push", 1)
    assert Path(first.data["path"]) == tmp_path / "models" / "half" / "1"
    assert first.data["size_bytes"] > 1000
    second = tfkit("push-model", saved_model, "--to", "models/half")
    assert second.out.startswith("Pushed version 2: models/half/2 (")
    listed = tfkit("versions", "half", "--json")
    assert listed.kind == "versions"
    assert [(row["version"], row["state"]) for row in listed.data] == [
        (1, "complete"),
        (2, "complete"),
    ]
    assert re.match(r"VERSION  STATE     PATH\n1        complete  ", tfkit("versions", "half").out)


def spoil(folder, how):
    if how == "no SavedModel":
        (folder / "saved_model.pb").unlink()
    elif how == "truncated":
        graph = folder / "saved_model.pb"
        graph.write_bytes(graph.read_bytes()[:100])
    elif how == "missing shard":
        (folder / "variables" / "variables.data-00000-of-00001").unlink()
    elif how == "missing index":
        (folder / "variables" / "variables.index").unlink()


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ("no SavedModel", "saved_model.pb: is missing"),
        ("truncated", "truncated or damaged"),
        ("missing shard", "variables/variables.data-00000-of-00001: is missing"),
        ("missing index", "variables/variables.index: is missing"),
    ],
)
def test_push_of_what_is_no_whole_model_is_refused_and_changes_nothing(
    tfkit, saved_model, tmp_path, how, text
):
    spoil(saved_model, how)
    done = tfkit("push-model", saved_model, "--model", "half", "--json")
    assert (done.code, done.data["error"]) == (8, "PushRefused")
    assert text in done.data["message"]
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("version", ["0", "-1", "9223372036854775808"])
def test_push_of_a_version_that_is_no_positive_int64_is_refused(tfkit, saved_model, version):
    done = tfkit("push-model", saved_model, "--model", "half", f"--version={version}")
    assert done.code == 8
    assert f"version {version} is not a positive 64-bit integer" in done.err


def test_push_of_a_version_that_exists_is_refused_with_the_next_one(tfkit, saved_model):
    assert tfkit("push-model", saved_model, "--model", "half", "--version", "7").code == 0
    done = tfkit("push-model", saved_model, "--model", "half", "--version", "7")
    assert done.code == 8
    assert "version 7 already exists" in done.err
    assert "--version 8" in done.err


def test_list_of_versions_names_what_is_incomplete(tfkit, saved_model, tmp_path):
    spoil(saved_model, "missing shard")
    shutil.copytree(saved_model, tmp_path / "models" / "half" / "3")
    (row,) = tfkit("versions", "half", "--json").data
    assert row["version"] == 3
    assert "is missing" in row["state"]


# Servers


def test_dry_run_shows_the_command_and_starts_nothing(tfkit, toml, state_dir):
    toml()
    done = tfkit("serve", "--engine", "embedded", "--dry-run", "--json")
    assert (done.code, done.kind, done.data["engine"]) == (0, "plan", "embedded")
    assert done.data["argv"][1:3] == ["-m", "tfserve_kit.embedded"]
    (file,) = done.data["files"]
    assert f"--model_config_file={file}" in done.data["argv"]
    assert not state_dir.exists()
    text = tfkit("serve", "--engine", "embedded", "--dry-run").out
    assert text.splitlines()[0].startswith(f"{sys.executable} -m tfserve_kit.embedded --bind")


@pytest.mark.parametrize("engine", ["docker", "native", "embedded"])
def test_dry_run_of_a_named_engine_needs_neither_its_daemon_nor_its_binary(
    tfkit, toml, monkeypatch, engine
):
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    monkeypatch.setenv("PATH", "/nowhere")
    toml()
    done = tfkit("serve", "--engine", engine, "--dry-run", "--json")
    assert (done.code, done.data["engine"]) == (0, engine), done.err
    assert "--grpc_max_threads=64" in done.data["argv"]
    assert "--rest_api_num_threads=64" in done.data["argv"]
    started = tfkit("serve", "--engine", "docker", "--json")
    assert (started.code, started.data["error"]) == (4, "EngineUnavailable")


def test_status_without_a_model_lists_all_that_a_server_of_ours_has(
    tfkit, embedded_server, state_dir
):
    models = {name: embedded_server.models[name] for name in ("image", "half_plus_two")}
    home = state_dir / "servers" / "real"
    home.mkdir(parents=True)
    here = embedded_server.endpoints
    remember(home, here, models | {"gone": "/x"})
    for where in ([], ["--url", here.grpc], ["--url", here.rest], ["--protocol", "rest"]):
        done = tfkit("status", *where, "--json")
        assert done.code == 0, done.err
        states = {(row["model"], row["version"], row["state"]) for row in done.data}
        assert states >= {("image", 1, "AVAILABLE"), ("half_plus_two", 2, "AVAILABLE")}
        (gone,) = [row for row in done.data if row["model"] == "gone"]
        assert (gone["version"], gone["state"]) == (None, "NOT_FOUND")
    done = tfkit("metadata")
    assert (done.code, "it has image, half_plus_two, gone" in done.err) == (2, True)


def test_server_that_ended_by_itself_is_listed_and_asked_no_more(web, tfkit, state_dir):
    home = state_dir / "servers" / "gone"
    home.mkdir()
    endpoints = Endpoints(web["grpc"], web["rest"])
    process.Record("gone", "native", os.getpid(), 1.0, (), endpoints).write(home)
    assert [each["state"] for each in tfkit("ps", "--json").data] == ["exited", "running"]
    assert tfkit("status", "--json").data[0]["state"] == "AVAILABLE"  # there is just one to ask
    (running,) = registry.running()
    assert (running.server_name, running.models) == ("web", web["models"])


def test_server_is_served_listed_shown_and_stopped(web, tfkit):
    assert {"name", "engine", "state", "exit_code", "grpc", "rest", "models"} == set(web)
    assert (web["name"], web["engine"], web["state"]) == ("web", "native", "running")
    listed = tfkit("ps", "--json")
    assert (listed.kind, listed.data) == ("servers", [web])
    assert re.search(r"^web +native +running +grpc://", tfkit("ps").out, re.MULTILINE)
    status = tfkit("status", "--json")
    assert status.kind == "status"
    assert status.data == [
        {"model": "half_plus_two", "version": 2, "state": "AVAILABLE", "error": ""}
    ]
    assert re.search(r"^half_plus_two +2 +AVAILABLE$", tfkit("status").out, re.MULTILINE)
    log = tfkit("logs", "web")
    assert log.out.splitlines()[-1] == "Running gRPC ModelServer"
    assert tfkit("logs", "--tail", "1").out == "Running gRPC ModelServer\n"
    stopped = tfkit("stop", "--json")
    assert (stopped.kind, stopped.data) == ("stopped", ["web"])
    assert tfkit("ps", "--json").data == []
    assert tfkit("stop", "--all").out == "No server runs\n"


def test_name_must_be_given_where_there_are_several_servers(web, shell, fake_binary, tfkit):
    arguments = [each if each != "web" else "other" for each in serve_web(fake_binary())]
    assert shell(*arguments, "--detach").code == 0
    for command in ("stop", "logs"):
        done = tfkit(command)
        assert done.code == 2
        assert "which server? There are: other, web" in done.err
    status = tfkit("status")
    assert status.code == 2
    assert "tfkit runs 2 servers: other (grpc://" in status.err
    assert tfkit("status", "--url", web["grpc"], "--json").data[0]["state"] == "AVAILABLE"
    assert tfkit("stop", "--all", "--json").data == ["other", "web"]


def test_second_server_of_a_name_is_refused(web, tfkit, fake_binary):
    done = tfkit(*serve_web(fake_binary()), "--detach", "--json")
    assert (done.code, done.data["error"]) == (5, "ServerExists")
    assert tfkit("ps", "--json").data == [web]


def test_port_in_use_is_refused(tfkit, fake_binary):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = tfkit(*serve_web(fake_binary(), "--grpc-port", port))
    assert done.code == 5
    assert f"cannot listen on 127.0.0.1:{port} for grpc port" in done.err
    assert "--grpc-port 0" in done.err


def test_server_that_ends_at_once_is_shown_with_its_log(tfkit, fake_binary):
    done = tfkit(*serve_web(fake_binary("exit:3"), "--detach"))
    assert done.code == 5
    assert "ended with exit status 3" in done.err
    assert "  | it cannot go on" in done.err
    assert done.out == ""
    assert tfkit("ps", "--json").data == []


def test_server_that_is_not_ready_in_time_is_stopped(tfkit, fake_binary):
    done = tfkit(*serve_web(fake_binary("loading"), "--ready-timeout", "0.5"))
    assert done.code == 5
    assert "was not ready after 0.5 s" in done.err
    assert tfkit("ps", "--json").data == []


def test_base_path_without_a_model_is_a_fault_of_the_deployment(tfkit, fake_binary, tmp_path):
    model = f"half={tmp_path / 'none'}"
    done = tfkit("serve", "--engine", "native", "--binary", fake_binary(), "--model", model)
    assert done.code == 3
    assert "models.half.base_path" in done.err
    assert f"tfkit push-model SAVED_MODEL --to {tmp_path / 'none'}" in done.err


def settled(condition):
    return wait_until(
        lambda: condition() or None, timeout_s=PATIENCE_S, interval_s=0.05, clock=SystemClock()
    )


@pytest.fixture
def foreground(state_dir, tmp_path, fake_binary):
    """A `tfkit serve` in the foreground that has said it is ready."""
    # Where the tests run under nohup it would inherit that, and rightly ignore SIGHUP.
    inherited = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    with subprocess.Popen(
        [sys.executable, "-m", "tfserve_kit", *map(str, serve_web(fake_binary()))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    ) as serving:
        signal.signal(signal.SIGHUP, inherited)
        assert serving.stdout.readline() == "Server 'web' is ready: half_plus_two\n"
        yield serving
        serving.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_foreground_server_is_stopped_by_ctrl_c(foreground, tfkit, number):
    foreground.send_signal(number)
    _, err = foreground.communicate(timeout=PATIENCE_S)
    assert foreground.returncode == 130
    assert err.splitlines()[-1] == "Interrupted."
    assert tfkit("ps", "--json").data == []


def on_a_terminal(arguments, cwd, *, hup):
    """Run a command as a shell on a terminal of its own would: its process and the terminal."""
    ours, theirs = pty.openpty()

    def take():  # becomes the controlling terminal of a new session
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGHUP, hup)

    command = [sys.executable, "-m", "tfserve_kit", *map(str, arguments)]
    serving = subprocess.Popen(
        command,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=cwd,
        preexec_fn=take,  # noqa: PLW1509 (nothing else makes a terminal's session)
    )
    os.close(theirs)
    return serving, ours


def shown_until(terminal, text):
    shown = b""
    while text not in shown:
        shown += os.read(terminal, 4096)


SECRETS = """
[docker]
env = {TOKEN = "hunter2", PLAIN = "b c"}
[models.m]
base_path = "s3://key:hunter2@bucket/m?sig=hunter2"
"""


@pytest.mark.parametrize("as_json", [(), ("--json",)])
def test_secrets_of_a_dry_run_are_hidden_unless_asked_for(tfkit, tmp_path, monkeypatch, as_json):
    monkeypatch.setattr(DockerEngine, "available", lambda self: Availability(True, "here"))
    (tmp_path / "tfkit.toml").write_text(SECRETS)
    arguments = ("serve", "--engine", "docker", "--dry-run", *as_json)
    done = tfkit(*arguments)
    assert done.code == 0
    assert "hunter2" not in done.out + done.err
    assert "b c" not in done.out
    assert "TOKEN=***" in done.out
    assert "--show-secrets" in done.err
    shown = tfkit(*arguments, "--show-secrets")
    assert {"TOKEN=hunter2", "key:hunter2@bucket", "b c"} <= set(
        re.findall(r"TOKEN=hunter2|key:hunter2@bucket|b c", shown.out)
    )
    assert "***" not in shown.out + shown.err


@pytest.mark.parametrize("env", ['{TOKEN = ["hunter2"]}', '"hunter2"', "{TOKEN = {a = 'hunter2'}}"])
def test_secret_that_is_misspelled_is_not_quoted(tfkit, tmp_path, env):
    (tmp_path / "tfkit.toml").write_text(f"[docker]\nenv = {env}\n[models.m]\nbase_path = 'm'\n")
    done = tfkit("serve", "--dry-run")
    assert done.code == 3
    assert "docker.env" in done.err
    assert "hunter2" not in done.err


@pytest.mark.parametrize("detach", [(), ("--detach",)])
def test_closed_terminal_stops_a_foreground_server_and_no_other(
    state_dir, tmp_path, fake_binary, tfkit, detach
):
    arguments = [*serve_web(fake_binary()), *detach]
    serving, terminal = on_a_terminal(arguments, tmp_path, hup=signal.SIG_DFL)
    shown_until(terminal, b"REST")
    if detach:
        serving.wait(timeout=PATIENCE_S)
    os.close(terminal)
    assert serving.wait(timeout=PATIENCE_S) == (0 if detach else 130)
    assert [row["state"] for row in tfkit("ps", "--json").data] == ["running"] * len(detach)
    tfkit("stop", "--all")


def test_foreground_server_under_nohup_outlives_its_terminal(
    state_dir, tmp_path, fake_binary, tfkit
):
    serving, terminal = on_a_terminal(serve_web(fake_binary()), tmp_path, hup=signal.SIG_IGN)
    shown_until(terminal, b"REST")
    os.close(terminal)
    with pytest.raises(subprocess.TimeoutExpired):
        serving.wait(timeout=1)
    assert [row["state"] for row in tfkit("ps", "--json").data] == ["running"]
    serving.terminate()
    serving.wait(timeout=PATIENCE_S)
    assert tfkit("ps", "--json").data == []


def test_foreground_server_that_dies_is_reported_with_its_log(foreground, state_dir, tfkit):
    os.kill(process.Record.read(state_dir / "servers" / "web").pid, signal.SIGKILL)
    _, err = foreground.communicate(timeout=PATIENCE_S)
    assert foreground.returncode == 5
    assert "server 'web' ended by itself with exit status -9" in err
    assert "  | Running gRPC ModelServer" in err
    assert tfkit("ps", "--json").data == []


def test_ctrl_c_while_waiting_leaves_no_server(state_dir, tmp_path, fake_binary, tfkit):
    with subprocess.Popen(
        [sys.executable, "-m", "tfserve_kit", *map(str, serve_web(fake_binary("loading")))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    ) as serving:
        while "waiting for half_plus_two" not in serving.stderr.readline():
            assert serving.poll() is None
        serving.send_signal(signal.SIGINT)
        out, _ = serving.communicate(timeout=PATIENCE_S)
    assert (serving.returncode, out) == (130, "")
    assert tfkit("ps", "--json").data == []


# Requests, to a real server


@pytest.mark.tensorflow
def test_predict_classifies_pictures_with_labels(tfkit, running, picture, tmp_path):
    (tmp_path / "labels.txt").write_text("red\ngreen\nblue\n")
    done = tfkit("predict", picture, picture, "--labels", "labels.txt", "--top", "2", "--json")
    assert (done.code, done.kind, len(done.data)) == (0, "predict", 2)
    answer = done.data[0]
    assert (answer["image"], answer["model"], answer["version"]) == (str(picture), "image", 1)
    assert answer["request_ms"] > 0
    assert answer["prepare_ms"] > 0
    labels = ["red", "green", "blue"]
    scores = answer["scores"]
    assert len(scores) == 2
    assert scores[0]["score"] >= scores[1]["score"]
    assert all(each["label"] == labels[each["index"]] for each in scores)
    text = tfkit("predict", picture, "--labels", "labels.txt", "--top", "1").out
    assert text.startswith(f"{picture}: image version 1, prepared in ")
    assert text.splitlines()[1].split()[1:] == [str(scores[0]["index"]), scores[0]["label"]]


@pytest.mark.tensorflow
def test_predict_takes_the_note_of_the_version(tfkit, embedded_server, picture, tmp_path):
    (tmp_path / "models" / "1").mkdir(parents=True)
    Preprocessing(labels=("a", "b", "c")).write(tmp_path / "models" / "1")
    where = ("--url", embedded_server.endpoints.rest, "--model", "image", "--base-path", "models")
    (answer,) = tfkit("predict", picture, *where, "--json").data
    assert {each["label"] for each in answer["scores"]} == {"a", "b", "c"}
    assert answer["version"] == 1


@pytest.mark.tensorflow
@pytest.mark.parametrize("protocol", ["grpc", "rest"])
def test_metadata_and_status_are_the_same_over_both_protocols(tfkit, running, protocol):
    found = tfkit("metadata", "--protocol", protocol, "--json")
    assert (found.kind, found.data["model"], found.data["version"]) == ("metadata", "image", 1)
    first, *_ = found.data["tensors"]
    assert list(first) == ["signature", "direction", "name", "type", "tensor"]
    assert list(first.values())[:4] == ["serving_default", "in", "image", "uint8 [?, 8, 8, 3]"]
    text = tfkit("metadata", "--protocol", protocol).out
    assert text.splitlines()[0] == "image version 1"
    status = tfkit("status", "--protocol", protocol, "--json").data
    assert status == [{"model": "image", "version": 1, "state": "AVAILABLE", "error": ""}]


@pytest.mark.tensorflow
@pytest.mark.parametrize("protocol", ["grpc", "rest"])
@pytest.mark.parametrize(
    ("arguments", "code", "error", "text"),
    [
        (["--model", "nope"], 6, "ModelNotFound", "nope"),
        (["--version", "9"], 6, "ModelNotFound", "9"),
        (["--label", "stable"], 6, "InvalidRequest", "stable"),
        (["--label", "stable", "--version", "1"], 2, "UsageError", "not both"),
        (["--signature", "nope"], 2, "UsageError", "no signature 'nope'"),
        (["--size", "9x8"], 2, "UsageError", "9x8 with 3 channels does not fit"),
        (["--channels", "1"], 2, "UsageError", "8x8 with 1 channels does not fit"),
        (["--range", "0"], 2, "UsageError", "--range has 1 values"),
        (["--mean", "1,2"], 2, "UsageError", "--mean has 2 values for 3 channels"),
        (["--std", "0"], 2, "UsageError", "--std holds a zero"),
        (["--labels", "none.txt"], 2, "UsageError", "cannot read the labels in none.txt"),
    ],
)
def test_predict_that_cannot_succeed_says_why(
    tfkit, running, picture, protocol, arguments, code, error, text
):
    done = tfkit("predict", picture, "--protocol", protocol, *arguments, "--json")
    assert (done.code, done.data["error"]) == (code, error)
    assert text in done.data["message"]


@pytest.mark.tensorflow
def test_labels_of_another_number_are_refused(tfkit, running, picture, tmp_path):
    (tmp_path / "labels.txt").write_text("red\ngreen\n")
    done = tfkit("predict", picture, "--labels", "labels.txt")
    assert done.code == 2
    assert "2 labels for a model with 3 classes" in done.err


@pytest.mark.tensorflow
@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"just text", "notes.png is not a picture that can be read"),
        (b"", "notes.png is not a picture that can be read"),
        (None, "cannot read notes.png: No such file or directory"),
    ],
)
def test_file_that_is_no_picture_is_refused_after_those_before_it(
    tfkit, running, picture, tmp_path, content, text
):
    if content is not None:
        (tmp_path / "notes.png").write_bytes(content)
    done = tfkit("predict", picture, "notes.png")
    assert done.code == 6
    assert text in done.err
    assert done.out.startswith(f"{picture}: image version 1")
    assert "notes.png" not in done.out


@pytest.mark.tensorflow
def test_note_that_cannot_be_read_is_refused(tfkit, running, picture, tmp_path):
    note = tmp_path / "models" / "1" / "assets.extra" / "tfkit.json"
    note.parent.mkdir(parents=True)
    note.write_text("{")
    done = tfkit("predict", picture, "--base-path", "models")
    assert done.code == 3
    assert "tfkit.json" in done.err


@pytest.mark.tensorflow
def test_perf_measures_and_saves_its_samples(tfkit, running, tmp_path, picture):
    done = tfkit("perf", "--duration", "0.3", "--concurrency", "2", "--samples", "s.csv",
                 "--input", picture, "--json")  # fmt: skip
    assert (done.code, done.kind) == (0, "perf")
    assert len((tmp_path / "s.csv").read_text().splitlines()) > 2
