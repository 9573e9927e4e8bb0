"""What a deployment becomes as a container, without a daemon; its user, and what that can read."""

import json
import os
import re
import shlex
import stat
import subprocess
from pathlib import Path

import pytest

from tfserve_kit.deployment import Spec, build
from tfserve_kit.deployment.spec import Docker
from tfserve_kit.engines import container, draining
from tfserve_kit.engines.container import default_user, hand_over, unreadable
from tfserve_kit.engines.docker import DockerEngine
from tfserve_kit.engines.process import shell_line
from tfserve_kit.errors import EngineUnavailable, SpecError

CONFIG, STATE = Path("/state/servers/web/config"), Path("/state")
FILES = {"model_config.txt": "text"}


def plan(docker=None, *, files=FILES, models=None, **server):
    models = {name: {"base_path": path} for name, path in (models or {"m": "/m"}).items()}
    document = {
        "server": {"name": "web", "grpc_port": 1, "rest_port": 2, "drain_s": 0.0, **server},
        "models": models,
        "docker": docker or {},
    }
    deployment = build(document, source="test", folder=Path("/"))
    return container.plan(deployment, files, config=CONFIG, folder=STATE, user="7:8")


def options_of(made):
    """Return the options of `docker run`, without the image and the server's own arguments."""
    return made.argv[2 : made.argv.index(made.container["image"])]


# Every key of [docker]

NVIDIA = {"Driver": "nvidia", "Capabilities": [["gpu"]]}
KEYS = [
    ({"cpus": 1.5}, "nano_cpus", 1_500_000_000, ["--cpus=1.5"]),
    ({"memory": "4g"}, "mem_limit", "4g", ["--memory=4g"]),
    ({}, "user", "7:8", ["--user=7:8"]),
    ({"user": "me:us"}, "user", "me:us", ["--user=me:us"]),
    ({}, "read_only", True, ["--read-only"]),
    ({}, "restart_policy", {"Name": "no"}, ["--restart=no"]),
    ({"restart": "always"}, "restart_policy", {"Name": "always"}, ["--restart=always"]),
    ({"gpu": "all"}, "device_requests", [NVIDIA | {"Count": -1}], ["--gpus=all"]),
    ({"gpu": "2"}, "device_requests", [NVIDIA | {"Count": 2}], ["--gpus=2"]),
    ({"gpu": "device=0,2"}, "device_requests", [NVIDIA | {"DeviceIDs": ["0", "2"]}],
     ['--gpus="device=0,2"']),
    ({"gpu": "GPU-3faa"}, "device_requests", [NVIDIA | {"DeviceIDs": ["GPU-3faa"]}],
     ['--gpus="device=GPU-3faa"']),
    ({}, "pids_limit", 8192, ["--pids-limit=8192"]),
    ({"pids_limit": 50}, "pids_limit", 50, ["--pids-limit=50"]),
    ({"user": "0:0"}, "user", "0:0", ["--user=0:0"]),
    ({}, "cap_drop", ["ALL"], ["--cap-drop=ALL"]),
    ({}, "security_opt", ["no-new-privileges"], ["--security-opt=no-new-privileges"]),
    ({}, "tmpfs", {"/tmp": ""}, ["--tmpfs=/tmp"]),
    ({}, "init", True, ["--init"]),
    ({}, "name", "tfkit-web", ["--name=tfkit-web", "--detach"]),
]  # fmt: skip


@pytest.mark.parametrize(("docker", "argument", "value", "options"), KEYS)
def test_key_shows_in_the_arguments_and_in_the_command(docker, argument, value, options):
    made = plan(docker)
    assert made.container[argument] == value
    assert set(options) <= set(options_of(made))


@pytest.mark.parametrize(
    ("docker", "argument", "option"),
    [
        ({"read_only": False}, "read_only", "--read-only"),
        ({}, "nano_cpus", "--cpus"),
        ({}, "mem_limit", "--memory"),
        ({}, "device_requests", "--gpus"),
    ],
)
def test_what_is_not_asked_for_shows_nowhere(docker, argument, option):
    made = plan(docker)
    assert not made.container.get(argument)
    assert not [each for each in options_of(made) if each.startswith(option)]


@pytest.mark.parametrize(
    ("docker", "image"),
    [
        ({}, "tensorflow/serving:2.20.0"),
        ({"gpu": "all"}, "tensorflow/serving:2.20.0-gpu"),
        ({"image": "mine@sha256:0af"}, "mine@sha256:0af"),
        ({"image": "mine:1", "gpu": "1"}, "mine:1"),
    ],
)
def test_image_is_the_one_named_or_the_official_one(docker, image):
    made = plan(docker)
    assert made.container["image"] == image == container.image_of(Docker(**docker))
    assert made.argv.count(image) == 1


@pytest.mark.parametrize(
    ("docker", "expected"),
    [
        ({}, {}),
        ({"gpu": "all"}, {"TF_FORCE_GPU_ALLOW_GROWTH": "true"}),
        ({"gpu": "all", "gpu_memory": "all"}, {}),
        ({"gpu_memory": "growth"}, {}),
        ({"allocator": "jemalloc"}, {"LD_PRELOAD": "/usr/lib/x86_64-linux-gnu/libjemalloc.so.2"}),
        ({"allocator": "tcmalloc"},
         {"LD_PRELOAD": "/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4"}),
        ({"env": {"A": "b c=$d", "HOME": "/x"}}, {"A": "b c=$d", "HOME": "/x"}),
    ],
)  # fmt: skip
def test_environment_is_ours_and_the_deployments_on_top(docker, expected):
    made = plan(docker)
    values = {"TF_CPP_MIN_LOG_LEVEL": "1", "HOME": "/tmp"} | expected
    assert made.container["environment"] == values
    shown = [each for each in options_of(made) if each.startswith("--env=")]
    assert shown == [f"--env={key}={value}" for key, value in values.items()]


@pytest.mark.parametrize("pull", ["missing", "always", "never"])
def test_when_to_pull_is_no_matter_of_the_container(pull):
    assert plan({"pull": pull}).container == plan().container


@pytest.mark.parametrize(
    ("docker", "key"),
    [({"cpus": 0.0}, "cpus"), ({"cpus": float("inf")}, "cpus"), ({"memory": "4x"}, "memory"),
     ({"gpu": "a b"}, "gpu"), ({"user": "a b"}, "user"), ({"image": ""}, "image"),
     ({"pull": "now"}, "pull"), ({"restart": "yes"}, "restart")],
)  # fmt: skip
def test_value_that_is_none_is_refused_with_its_place(docker, key):
    with pytest.raises(SpecError) as caught:
        plan(docker)
    assert [each.path for each in caught.value.problems] == [f"docker.{key}"]


# Ports, mounts, labels


@pytest.mark.parametrize(
    ("server", "host", "called"),
    [
        ({}, "127.0.0.1", "127.0.0.1"),
        ({"host": "0.0.0.0"}, "0.0.0.0", "127.0.0.1"),
        ({"host": "10.1.2.3"}, "10.1.2.3", "10.1.2.3"),
        ({"host": "::1"}, "::1", "[::1]"),
    ],
)
def test_ports_are_published_on_loopback_unless_the_deployment_says(server, host, called):
    made = plan(**server)
    assert made.container["ports"] == {"8500/tcp": (host, 1), "8501/tcp": (host, 2)}
    assert {f"--publish={host}:1:8500", f"--publish={host}:2:8501"} <= set(options_of(made))
    assert made.endpoints.grpc == f"grpc://{called}:1"
    assert made.endpoints.rest == f"http://{called}:2"


def test_server_inside_listens_where_the_image_says():
    command = plan(flags={"num_load_threads": 2}).container["command"]
    assert {"--port=8500", "--rest_api_port=8501", "--num_load_threads=2"} <= set(command)
    assert f"--model_config_file={CONFIG}/model_config.txt" in command


def test_file_that_a_flag_names_is_mounted_and_grpc_has_tls(tmp_path):
    file = tmp_path / "ssl.txt"
    file.write_text("")
    flags = {"ssl_config_file": str(file), "platform_config_file": "/in/the/image.txt"}
    made = plan(flags=flags)
    sources = [each["Source"] for each in made.container["mounts"]]
    assert str(file) in sources and "/in/the/image.txt" not in sources
    assert made.endpoints.grpc.startswith("grpcs://")
    assert made.endpoints.rest.startswith("http://")


@pytest.mark.parametrize(
    ("files", "models", "expected"),
    [
        (FILES, {"m": "/m"}, [str(CONFIG), "/m"]),
        ({}, {"m": "/m"}, ["/m"]),
        (FILES, {"a": "/m", "b": "/m"}, [str(CONFIG), "/m"]),
        (FILES, {"a": "gs://bucket/m", "b": "s3://bucket/m"}, [str(CONFIG)]),
        ({}, {"m": '/odd: "a", b'}, ['/odd: "a", b']),
    ],
)
def test_config_and_local_base_paths_are_mounted_where_they_are_and_read_only(
    files, models, expected
):
    mounts = plan(files=files, models=models).container["mounts"]
    assert [each["Source"] for each in mounts] == expected
    assert [each["Target"] for each in mounts] == expected
    assert {(each["Type"], each["ReadOnly"]) for each in mounts} == {("bind", True)}


def test_mount_with_odd_characters_is_spelled_as_comma_separated_values():
    made = plan(files={}, models={"a": "/plain", "b": '/c,d"e:f'})
    assert [each for each in options_of(made) if each.startswith("--mount")] == [
        "--mount=type=bind,source=/plain,target=/plain,readonly",
        '--mount=type=bind,"source=/c,d""e:f","target=/c,d""e:f",readonly',
    ]


def test_labels_hold_what_is_needed_to_find_the_server_again():
    made = plan()
    labels = made.container["labels"]
    assert labels["tfkit.server"] == "web"
    assert labels["tfkit.folder"] == "/state"
    assert json.loads(labels["tfkit.endpoints"])["grpc"] == made.endpoints.grpc
    assert json.loads(labels["tfkit.models"]) == made.models == {"m": "/m"}
    for key, value in labels.items():
        assert f"--label={key}={value}" in options_of(made)


# The health check

ODD = ["m", "a b", "it's", '"$x"', "%s", "ä/ö", "~", "*", "-e"]


def test_health_check_asks_for_every_model_by_its_path():
    check = plan(models=dict.fromkeys(ODD, "/m")).container["healthcheck"]
    *_, script = check["test"]
    names = shlex.split(re.search("for model in (.*?); do", script).group(1))
    assert names == ["m", "a%20b", "it%27s", "%22%24x%22", "%25s", "%C3%A4%2F%C3%B6", "~", "%2A",
                     "-e"]  # fmt: skip
    assert "\n" not in script


def test_health_check_is_bash_and_hands_each_name_on_unchanged():
    """The script itself, with the requests it would send written to its output."""
    check = plan(models=dict.fromkeys(ODD, "/m")).container["healthcheck"]
    assert check["test"][:3] == ["CMD", "bash", "-c"]
    script = check["test"][3].replace("exec 3<>/dev/tcp/127.0.0.1/8501", "exec 3>&1")
    script = script.replace("grep -q", "true")
    done = subprocess.run(["bash", "-c", script], capture_output=True, check=True, cwd="/")
    asked = re.findall(rb"GET /v1/models/(\S+) HTTP/1.0\r\n\r\n", done.stdout)
    assert len(asked) == len(ODD)
    assert b"~" in asked


def test_health_check_in_the_command_is_the_same():
    made = plan(models={"it's": "/m"})
    check = made.container["healthcheck"]
    options = dict(each.split("=", 1) for each in options_of(made) if each.startswith("--health"))
    assert shlex.split(options.pop("--health-cmd")) == check["test"][1:]
    assert options == {"--health-interval": "5s", "--health-timeout": "3s",
                       "--health-start-period": "60s", "--health-retries": "3"}  # fmt: skip
    assert (check["interval"], check["start_period"]) == (5_000_000_000, 60_000_000_000)


# The command


def test_line_for_a_shell_is_one_line_and_means_the_same_arguments():
    odd = {"env": {"A": 'it\'s "$HOME" `x` \\ *'}, "gpu": "device=0,1"}
    made = plan(odd, models={name: f"/m/{name}" for name in ODD})
    line = shell_line(made.argv)
    assert shlex.split(line) == list(made.argv)
    assert "\n" not in line
    assert made.argv[:2] == ("docker", "run")


def test_command_ends_with_image_and_server_arguments():
    made = plan({"image": "mine:1"})
    at = made.argv.index("mine:1")
    assert made.argv[at - 1] == "--entrypoint=tensorflow_model_server"
    assert list(made.argv[at + 1 :]) == made.container["command"]


def test_server_is_ended_by_a_script_that_waits_for_its_requests():
    made = plan({"image": "mine:1"}, drain_s=2.5)
    script = f"{CONFIG}/drain.sh"
    assert made.files == {f"{CONFIG}/model_config.txt": "text", script: draining.script()}
    at = made.argv.index("mine:1")
    assert made.argv[at - 1] == "--entrypoint=sh"
    bounds = ("0", "3", "8500,8501")
    assert made.argv[at + 1 : at + 6] == (script, *bounds, "tensorflow_model_server")
    assert str(CONFIG) in {each["Source"] for each in made.container["mounts"]}


def test_plan_is_a_value_that_knows_its_deployment():
    assert plan({"cpus": 2.0}) == plan({"cpus": 2.0})
    made = plan({"cpus": 2.0})
    assert Spec.model_validate_json(made.deployment).docker.cpus == 2.0
    assert made.files == {f"{CONFIG}/model_config.txt": "text"}


def test_values_of_the_environment_are_told_apart_from_what_may_be_shown():
    made = plan({"env": {"TOKEN": "hunter2", "A": "b=c"}})
    assert {"--env=TOKEN=hunter2", "--env=A=b=c"} <= set(made.argv)
    assert made.private == {
        "--env=TOKEN=hunter2": "--env=TOKEN=***",
        "--env=A=b=c": "--env=A=***",
    }


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")


@pytest.fixture
def base(tmp_path):
    (tmp_path / "base" / "1" / "variables").mkdir(parents=True)
    (tmp_path / "base" / "1" / "saved_model.pb").write_text("x")
    for place in (tmp_path / "base").rglob("*"):
        place.chmod(0o755 if place.is_dir() else 0o644)
    (tmp_path / "base").chmod(0o755)
    return tmp_path / "base"


class TestDefault:
    def test_invoking_user_who_is_not_root(self, monkeypatch, base):
        monkeypatch.setattr(os, "geteuid", lambda: 1234)
        monkeypatch.setattr(os, "getuid", lambda: 1234)
        monkeypatch.setattr(os, "getgid", lambda: 99)
        assert default_user([str(base)]) == "1234:99"

    @needs_root
    def test_nobody_for_root_with_models_of_root(self, base, tmp_path):
        assert default_user([str(base), str(tmp_path / "missing"), "gs://b/m"]) == "65534:65534"

    @needs_root
    def test_owner_of_the_models_for_root(self, base):
        os.chown(base, 1234, 99)
        assert default_user([str(base)]) == "1234:99"

    @needs_root
    def test_nobody_for_root_with_models_of_several(self, base, tmp_path):
        os.chown(base, 1234, 99)
        (tmp_path / "other").mkdir()
        os.chown(tmp_path / "other", 1235, 99)
        assert default_user([str(base), str(tmp_path / "other")]) == "65534:65534"


class TestUnreadable:
    def test_what_everybody_may_read_is_fine(self, base):
        assert unreadable("65534:65534", str(base)) is None

    @pytest.mark.parametrize(
        ("place", "mode"),
        [(".", 0o700), ("1", 0o744), ("1/variables", 0o750), ("1/saved_model.pb", 0o640)],
    )
    def test_first_thing_that_is_closed_is_found(self, base, place, mode):
        (base / place).chmod(mode)
        assert unreadable("65534:65534", str(base)) == base / place

    def test_owner_and_group_have_bits_of_their_own(self, base):
        file = base / "1" / "saved_model.pb"
        owner, group = file.stat().st_uid, file.stat().st_gid
        file.chmod(0o440)
        assert unreadable(f"{owner}:77", str(base)) is None
        assert unreadable(f"77:{group}", str(base)) is None
        assert unreadable("77:77", str(base)) == file
        file.chmod(0o044)
        assert unreadable(f"{owner}:{group}", str(base)) == file

    def test_hidden_folders_and_dead_links_do_not_count(self, base):
        (base / ".tfkit-staging-1").mkdir(mode=0o700)
        (base / "1" / "link").symlink_to("nowhere")
        assert unreadable("65534:65534", str(base)) is None

    def test_of_a_name_nothing_is_said(self, base):
        base.chmod(0o700)
        assert unreadable("serving", str(base)) is None

    def test_server_is_not_started_and_the_remedy_named(self, base, tmp_path):
        base.chmod(0o700)
        document = {"models": {"m": {"base_path": str(base)}}, "docker": {"user": "65534:65534"}}
        deployment = build(document, source="test", folder=tmp_path)
        with pytest.raises(EngineUnavailable, match="65534:65534, who cannot read") as caught:
            DockerEngine(folder=tmp_path / "state").prepare(deployment)
        assert "chmod -R o+rX" in caught.value.remedy
        assert '"0:0"' in caught.value.remedy


class TestHandOver:
    @pytest.fixture
    def folder(self, tmp_path):
        (tmp_path / "config").mkdir(mode=0o700)
        (tmp_path / "config" / "a.txt").touch(mode=0o600)
        return tmp_path / "config"

    def test_own_user_has_them_already(self, folder):
        hand_over(folder, f"{os.geteuid()}:1")
        assert stat.S_IMODE((folder / "a.txt").stat().st_mode) == 0o600

    @needs_root
    def test_root_gives_them_away(self, folder):
        hand_over(folder, "1234:99")
        for path in (folder, folder / "a.txt"):
            assert (path.stat().st_uid, path.stat().st_gid) == (1234, 99)
        assert stat.S_IMODE((folder / "a.txt").stat().st_mode) == 0o600

    def test_others_open_them_within_their_closed_folder(self, folder, monkeypatch):
        monkeypatch.setattr(container.os, "geteuid", lambda: 4321)
        hand_over(folder, "1234:99")
        assert stat.S_IMODE(folder.stat().st_mode) == 0o755
        assert stat.S_IMODE((folder / "a.txt").stat().st_mode) == 0o644
