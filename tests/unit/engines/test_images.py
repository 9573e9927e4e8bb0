"""Build folders of images: what is written, copied and quoted. No daemon is needed here."""

import gc
import json
import os
import re
import signal
import socket
import subprocess
import threading

import pytest

from tfserve_kit import protos
from tfserve_kit.deployment import build
from tfserve_kit.deployment.flags import handler_threads
from tfserve_kit.engines import images
from tfserve_kit.engines.images import Variant, _folder_name, choose, files
from tfserve_kit.errors import EngineUnavailable, ServerFailed, SpecError, UsageError
from tfserve_kit.repository import Version

ODD_NAMES = [
    'it$s "q" \\',
    "a/b",
    "..",
    ".",
    "$(id)",
    "`id`; #",
    "naïve 模型",
    "%41",
    "*?[a]",
    "-rf",
]


class Steps:
    """Progress that is written down."""

    def __init__(self):
        self.steps, self.counts = [], []

    def step(self, text):
        self.steps.append(text)

    def advance(self, done, total):
        self.counts.append((done, total))


@pytest.fixture
def base_path(tmp_path):
    """A base path with versions 1, 2, 9 and 10, and things that are none."""
    folder = tmp_path / "store" / "m"
    for name in ("1", "2", "9", "010", ".staging", "notes"):
        (folder / name / "variables").mkdir(parents=True)
        (folder / name / "saved_model.pb").write_text(name)
        (folder / name / "variables" / "variables.index").write_text(name)
    return folder


@pytest.fixture
def deployment(base_path):
    """Make a deployment of models with these names, all from one base path."""

    def make(*names, versions="latest", **sections):
        model = {"base_path": str(base_path), "versions": versions}
        document = {"models": {name: dict(model) for name in names or ("m",)}, **sections}
        return build(document, source="test", folder=base_path.parent)

    return make


def rendered(deployment, variant=None):
    return files(deployment, choose(deployment), variant)


def instructions(dockerfile):
    """Return the instructions of a Dockerfile as (word, rest), lines joined."""
    joined = re.sub(r"\\\n\s*", "", dockerfile)
    lines = [line for line in joined.splitlines() if line and not line.startswith("#")]
    return [tuple(line.split(" ", 1)) for line in lines]


class TestVersions:
    @pytest.mark.parametrize(
        ("policy", "chosen"),
        [
            ("latest", [10]),
            ({"latest": 2}, [9, 10]),
            ({"latest": 99}, [1, 2, 9, 10]),
            ("all", [1, 2, 9, 10]),
            ({"specific": [2, 9]}, [2, 9]),
        ],
    )
    def test_those_that_the_policy_would_load_are_copied(
        self, deployment, tmp_path, policy, chosen
    ):
        inside = images.render_context(deployment(versions=policy), tmp_path / "out")
        assert inside == {"m": chosen}
        folders = {int(each.name) for each in (tmp_path / "out" / "models" / "m").iterdir()}
        assert folders == set(chosen)

    def test_folder_gets_the_plain_number_and_all_files(self, deployment, tmp_path):
        images.render_context(deployment(), tmp_path / "out")
        version = tmp_path / "out" / "models" / "m" / "10"
        assert (version / "saved_model.pb").read_text() == "010"
        assert (version / "variables" / "variables.index").is_file()

    def test_every_fault_is_reported_at_once(self, deployment, base_path):
        (base_path / "11").write_text("no folder")
        empty = base_path.parent / "empty"
        empty.mkdir()
        models = {
            "file": {"base_path": str(base_path)},
            "empty": {"base_path": str(empty)},
            "missing": {"base_path": str(base_path / "nowhere")},
            "remote": {"base_path": "gs://bucket/m"},
            "short": {"base_path": str(base_path), "versions": {"specific": [2, 77]}},
        }
        with pytest.raises(SpecError) as caught:
            choose(build({"models": models}, source="test", folder=base_path))
        said = {problem.path.split(".")[1]: problem.message for problem in caught.value.problems}
        assert list(said) == list(models)
        assert "11 is not a folder" in said["file"]
        assert "holds no version" in said["empty"]
        assert "nowhere" in said["missing"]
        assert "gs://bucket/m" in said["remote"]
        assert "[77]" in said["short"]


class TestFiles:
    def test_it_is_pure(self, deployment, base_path, tmp_path):
        nowhere = {"m": [Version(3, tmp_path / "nowhere")]}
        assert '"{\\"m\\": [3]}"' in files(deployment(), nowhere)["Dockerfile"]

    def test_official_image_runs_unprivileged_with_a_health_check(self, deployment):
        steps = instructions(rendered(deployment())["Dockerfile"])
        assert [word for word, _ in steps] == [
            "FROM", "LABEL", "ENV", "COPY", "COPY", "USER", "HEALTHCHECK", "ENTRYPOINT",
        ]  # fmt: skip
        assert steps[0] == ("FROM", "tensorflow/serving:2.20.0")
        assert ("USER", "65534:65534") in steps
        assert ("ENV", 'MODEL_NAME="m"') in steps
        assert json.loads(dict(steps)["ENTRYPOINT"]) == ["bash", "/tfkit/entrypoint.sh"]

    def test_health_check_waits_as_long_as_the_deployment_does(self, deployment):
        found = rendered(deployment(server={"ready_timeout_s": 33.4}))["Dockerfile"]
        assert "--start-period=33s" in found

    def test_gpu_differs_in_the_image_and_the_memory_setting_only(self, deployment):
        plain = rendered(deployment())["Dockerfile"]
        gpu = rendered(deployment(), Variant(gpu=True))["Dockerfile"]
        more = [line for line in gpu.splitlines() if line not in plain.splitlines()]
        assert more[0] == "FROM tensorflow/serving:2.20.0-gpu"
        assert "ENV TF_FORCE_GPU_ALLOW_GROWTH=true" in more
        assert len(more) == 4  # with a comment and the label of the base image

    @pytest.mark.parametrize("gpu", [False, True])
    def test_given_base_is_taken_as_it_is(self, deployment, gpu):
        found = rendered(deployment(), Variant("host:5000/a/b:1@sha256:00", gpu=gpu))
        assert "FROM host:5000/a/b:1@sha256:00\n" in found["Dockerfile"]

    def test_several_models_set_no_model_name(self, deployment):
        found = rendered(deployment("a", "b"))["Dockerfile"]
        assert "MODEL_NAME" not in found
        assert "COPY models/a/ /models/a/\nCOPY models/b/ /models/b/\n" in found

    def test_configs_are_those_of_the_container(self, deployment):
        found = rendered(
            deployment(
                server={"grpc_port": 1, "rest_port": 2, "flags": {"num_load_threads": 3}},
                batching={"max_batch_size": 4},
                monitoring={},
            )
        )
        config = protos.from_text("ModelServerConfig", found["tfkit/config/model_config.txt"])
        assert config.model_config_list.config[0].base_path == "/models/m"
        script = found["tfkit/entrypoint.sh"]
        for flag in (
            "--port=8500", "--rest_api_port=8501", "--enable_batching=true", "--num_load_threads=3",
            "--batching_parameters_file=/tfkit/config/batching_config.txt",
            "--monitoring_config_file=/tfkit/config/monitoring_config.txt",
        ):  # fmt: skip
            assert f"  {flag} \\\n" in script
        assert {"tfkit/config/batching_config.txt", "tfkit/config/monitoring_config.txt"} <= set(
            found
        )

    @pytest.mark.parametrize("name", ODD_NAMES)
    def test_odd_name_stays_within_its_quotes_and_its_folder(self, deployment, name):
        found = rendered(deployment(name))
        folder = _folder_name(name)
        assert re.fullmatch(r"[\w.~%-]+", folder, re.ASCII)
        assert folder not in {".", ".."}
        steps = instructions(found["Dockerfile"])
        assert ("COPY", f"models/{folder}/ /models/{folder}/") in steps
        quoted = dict(steps)["ENV"].removeprefix("MODEL_NAME=")
        assert re.sub(r"\\(.)", r"\1", quoted[1:-1]) == name
        assert not re.search(r'(?<!\\)(\\\\)*["$]', quoted[1:-1])
        config = protos.from_text("ModelServerConfig", found["tfkit/config/model_config.txt"])
        assert config.model_config_list.config[0].name == name
        assert config.model_config_list.config[0].base_path == f"/models/{folder}"

    @pytest.mark.parametrize("name", ["two\nlines", "tab\t", "\x00", "\u2028"])
    def test_name_that_no_dockerfile_can_hold_is_refused(self, deployment, name):
        with pytest.raises(SpecError, match="cannot stand in a Dockerfile"):
            rendered(deployment(name))

    def test_embedded_engine_brings_its_server_and_what_it_requires(self):
        found = files(None, {}, Variant(embedded=True))
        assert set(found) == {
            "Dockerfile", "server/requirements.txt", "server/tf_serving_entrypoint.sh",
        }  # fmt: skip
        assert "ARG BASE=python:3.12-slim\n" in found["Dockerfile"]
        assert "ARG PIP_NO_INDEX=\n" in found["Dockerfile"]
        words = [word for word, _ in instructions(found["Dockerfile"])]
        assert words[-4:] == ["ENV", "EXPOSE", "USER", "ENTRYPOINT"]
        required = re.split(r"[<>=\n]+", found["server/requirements.txt"])
        assert {"tensorflow", "httptools", "grpcio"} <= set(required)
        assert "pytest" not in required

    def test_embedded_engine_with_a_model_ends_like_the_official_image(self, deployment):
        plain = rendered(deployment())["Dockerfile"]
        embedded = rendered(deployment(), Variant(embedded=True))["Dockerfile"]
        assert embedded.endswith(plain[plain.index("ENV MODEL_NAME") :])

    def test_templates_of_the_user_win(self, deployment, tmp_path):
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "Dockerfile.j2").write_text("FROM {{ base }}\n# mine\n")
        found = files(deployment(), {"m": []}, templates=tmp_path / "mine")
        assert found["Dockerfile"] == "FROM tensorflow/serving:2.20.0\n# mine\n"

    def test_official_image_without_a_model_is_refused(self):
        with pytest.raises(UsageError, match="without a model"):
            files(None, {})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gpu": True, "embedded": True}, "CPUs only"),
        ({"wheels": "folder"}, "only for the embedded engine"),
        ({"base": "a\nRUN evil"}, "is not the name of an image"),
        ({"base": "-x"}, "is not the name of an image"),
    ],
)
def test_impossible_variant_is_refused(options, message):
    with pytest.raises(UsageError, match=message):
        Variant(**options)


class TestFolder:
    def test_readable_file_is_linked_and_a_private_one_copied_readable(
        self, deployment, base_path, tmp_path
    ):
        (base_path / "010" / "saved_model.pb").chmod(0o600)
        (base_path / "010" / "variables").chmod(0o700)
        images.render_context(deployment(), tmp_path / "out")
        version = tmp_path / "out" / "models" / "m" / "10"
        index = version / "variables" / "variables.index"
        assert index.samefile(base_path / "010" / "variables" / "variables.index")
        assert not (version / "saved_model.pb").samefile(base_path / "010" / "saved_model.pb")
        assert (version / "saved_model.pb").stat().st_mode & 0o777 == 0o644
        assert index.parent.stat().st_mode & 0o777 == 0o755
        assert (base_path / "010" / "variables").stat().st_mode & 0o777 == 0o700

    def test_links_are_followed(self, deployment, base_path, tmp_path):
        blob = tmp_path / "blob"
        blob.write_text("far away")
        (base_path / "11").mkdir()
        (base_path / "11" / "saved_model.pb").symlink_to(blob)
        (base_path / "12").symlink_to(base_path / "11")
        images.render_context(deployment(), tmp_path / "out")
        copy = tmp_path / "out" / "models" / "m" / "12" / "saved_model.pb"
        assert copy.read_text() == "far away"
        assert not copy.is_symlink()

    def test_private_umask_does_not_lock_the_server_out(self, deployment, tmp_path):
        before = os.umask(0o077)
        try:
            images.render_context(deployment(), tmp_path / "out")
        finally:
            os.umask(before)
        for each in (tmp_path / "out" / "tfkit").rglob("*"):
            assert each.stat().st_mode & 0o005 == (0o005 if each.is_dir() else 0o004) or (
                each.suffix == ".sh"
            )

    def test_folder_that_is_not_empty_is_left_alone(self, deployment, tmp_path):
        out = tmp_path / "out"
        (out / "models" / "m").mkdir(parents=True)
        with pytest.raises(UsageError, match="is not empty"):
            images.render_context(deployment(), out)
        assert [each.name for each in out.rglob("*")] == ["models", "m"]

    def test_folder_that_cannot_be_made_is_named(self, deployment, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(UsageError, match="file"):
            images.render_context(deployment(), tmp_path / "file" / "out")

    def test_own_wheel_lies_apart_from_those_it_requires(self, tmp_path):
        wheels = tmp_path / "wheels"
        wheels.mkdir()
        for name in ("tfserve_kit-0.1.0-py3-none-any.whl", "click-8-py3-none-any.whl", "notes.txt"):
            (wheels / name).write_text("")
        out = tmp_path / "out"
        images.render_context(None, out, Variant(embedded=True, wheels=wheels))
        assert [each.name for each in (out / "wheels").iterdir()] == ["click-8-py3-none-any.whl"]
        assert (out / "server" / "tfserve_kit-0.1.0-py3-none-any.whl").is_file()
        assert "ARG PIP_NO_INDEX=1\n" in (out / "Dockerfile").read_text()
        assert os.access(out / "server" / "tf_serving_entrypoint.sh", os.X_OK)


@pytest.fixture
def entrypoint(deployment, tmp_path):
    """Make the command that runs a model image's entrypoint on a server of shell commands."""

    def make(behaviour, **sections):
        binary = tmp_path / "bin" / "tensorflow_model_server"
        binary.parent.mkdir()
        binary.write_text(f"#!/bin/bash\n{behaviour}\n")
        binary.chmod(0o755)
        script = tmp_path / "entrypoint.sh"
        script.write_text(rendered(deployment(**sections))["tfkit/entrypoint.sh"])
        return ["env", f"PATH={binary.parent}:{os.environ['PATH']}", "bash", str(script)]

    return make


class TestEntrypoint:
    def test_flags_arrive_unbroken_and_then_those_appended(self, entrypoint):
        odd = "a=1 $(id) 'x' \"y\" \\"
        argv = entrypoint(
            "printf '%s\\n' \"$@\"", server={"flags": {"grpc_channel_arguments": odd}}
        )
        done = subprocess.run([*argv, "--more=1 2"], check=True, capture_output=True, text=True)
        assert done.stdout.splitlines() == [
            "--port=8500",
            "--rest_api_port=8501",
            f"--grpc_max_threads={handler_threads()}",
            f"--rest_api_num_threads={handler_threads()}",
            "--model_config_file=/tfkit/config/model_config.txt",
            f"--grpc_channel_arguments={odd}",
            "--more=1 2",
        ]

    @pytest.mark.parametrize("status", [0, 3, 255])
    def test_status_of_a_server_that_ends_by_itself_is_kept(self, entrypoint, status):
        assert subprocess.run(entrypoint(f"exit {status}"), check=False).returncode == status

    @pytest.mark.parametrize(
        ("behaviour", "status"),
        [
            ("echo ready; exec sleep 60", 128 + signal.SIGTERM),
            ("trap 'sleep 0.2; echo done; exit 0' TERM; echo ready; sleep 60 & wait", 0),
            ("trap 'exit 3' TERM; echo ready; while :; do :; done", 3),
            ("echo ready; kill $PPID; exec sleep 60", 128 + signal.SIGTERM),
        ],
    )
    def test_signal_reaches_the_server_whose_end_is_awaited(self, entrypoint, behaviour, status):
        with subprocess.Popen(entrypoint(behaviour), stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout.readline() == "ready\n"
            process.terminate()
            assert process.wait(timeout=10) == status


@pytest.fixture
def health(deployment):
    """Run a health check against a server that says this of each model: status, and the paths."""

    def check(answers, *names):
        with socket.create_server(("127.0.0.1", 0)) as server:
            port, asked = server.getsockname()[1], []

            def serve():
                for answer in answers:
                    with server.accept()[0] as connection:
                        request = b""
                        while not request.endswith(b"\r\n\r\n"):  # it comes line by line
                            request += connection.recv(1000)
                        asked.append(request.decode().splitlines()[0])
                        connection.sendall(f"HTTP/1.0 200 OK\r\n\r\n{answer}".encode())

            thread = threading.Thread(target=serve)
            thread.start()
            script = rendered(deployment(*names))["tfkit/healthcheck.sh"]
            script = script.replace("/8501", f"/{port}")
            done = subprocess.run(["bash", "-c", script], check=False, timeout=10)
            thread.join(timeout=10)
        return done.returncode, asked

    return check


class TestHealthCheck:
    GOOD = '{"state": "AVAILABLE"}'
    BAD = '{"state": "LOADING"}'

    def test_it_is_healthy_if_every_model_is_available(self, health):
        status, asked = health([self.GOOD, self.GOOD], "a", "$(id) b/c")
        assert status == 0
        paths = ["/v1/models/a", "/v1/models/%24%28id%29%20b%2Fc"]
        assert asked == [f"GET {path} HTTP/1.0" for path in paths]

    @pytest.mark.parametrize("answers", [[BAD], [GOOD, BAD], ["404"], [""]])
    def test_it_is_unhealthy_if_any_is_not(self, health, answers):
        assert health(answers, "a", "b")[0] == 1

    def test_it_is_unhealthy_if_nothing_listens(self, deployment):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        script = rendered(deployment())["tfkit/healthcheck.sh"].replace("/8501", f"/{port}")
        done = subprocess.run(["bash", "-c", script], check=False, stderr=subprocess.PIPE)
        assert done.returncode == 1


class TestBuild:
    @pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
    def test_without_a_daemon_the_engine_is_unavailable(self, tmp_path, monkeypatch):
        monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
        with pytest.raises(EngineUnavailable, match=r"none\.sock"):
            images.build(tmp_path, "tag")
        gc.collect()  # now, while it may warn: the SDK leaves a socket open

    def test_steps_are_told_and_the_id_returned(self):
        progress = Steps()
        lines = [
            {"stream": "Step 1/2 : FROM base"},
            {"stream": "\n"},
            {"stream": " ---> 0123\n"},
            {"stream": "Step 2/2 : LABEL a=1      b=2"},
            {"aux": {"ID": "sha256:4567"}},
            {"stream": "Successfully built 4567\n"},
        ]
        assert images._follow(iter(lines), "tag", progress) == "sha256:4567"
        assert progress.steps == ["building tag: FROM base", "building tag: LABEL a=1 b=2"]
        assert progress.counts == [(0, 2), (1, 2)]

    def test_failed_step_is_named_with_its_own_last_lines(self):
        many = "".join(f"line {number}\n" for number in range(100))
        lines = iter(
            [
                {"stream": "Step 1/2 : RUN first"},
                {"stream": "of the first\n"},
                {"stream": "Step 2/2 : RUN second"},
                {"stream": " ---> Running in 0123\n"},
                {"stream": many},
                {"stream": "Removing intermediate container 0123\n"},
                {"error": "returned a non-zero code: 7"},
            ]
        )
        with pytest.raises(ServerFailed, match=r"tag .*code: 7 .*RUN second") as caught:
            images._follow(lines, "tag", Steps())
        assert caught.value.log_tail == [f"line {number}" for number in range(85, 100)]
