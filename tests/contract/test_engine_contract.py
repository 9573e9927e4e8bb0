"""The obligations in engines/base.py, for every engine."""

import copy
import os
import pickle
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from tfserve_kit.clock import SystemClock, wait_until
from tfserve_kit.deployment import render
from tfserve_kit.engines import (
    Availability,
    Endpoints,
    Phase,
    State,
    draining,
    process,
    registry,
    services,
)
from tfserve_kit.engines.container import ContainerPlan
from tfserve_kit.engines.kubernetes import _ObjectsPlan
from tfserve_kit.engines.process import ProcessEngine, Record
from tfserve_kit.engines.records import deployed_models
from tfserve_kit.engines.services import ServicePlan
from tfserve_kit.errors import (
    EngineUnavailable,
    ServerExists,
    ServerFailed,
    ServerNotFound,
    UsageError,
)

STARTER = Path(__file__).with_name("start_server.py")
PATIENCE_S = 30.0
WEB = f"web-{os.getpid()}"  # containers share one namespace with all that runs on the machine
RUNNING, GONE = State(Phase.RUNNING), State(Phase.GONE)


def eventually(probe):
    """Wait until `probe` returns something true; return it."""
    return wait_until(
        lambda: probe() or None, timeout_s=PATIENCE_S, interval_s=0.01, clock=SystemClock()
    )


@pytest.fixture
def plan(engine, deployment):
    """Make a plan of the engine for a server of some name."""

    def make(name=WEB):
        spec = deployment(name)
        return engine.plan(spec, render.render(spec))

    return make


@pytest.fixture
def fake_plan(fake_engine, deployment):
    """Make a plan of the fake binary, with a life of one's choice."""

    def make(name=WEB, life="", **server):
        spec = deployment(name, **server)
        made = fake_engine.plan(spec, render.render(spec))
        return replace(made, argv=(*made.argv, f"--fake={life}"))

    return make


@pytest.fixture
def start():
    """Start a plan; whatever still runs at the end of the test is stopped."""
    handles = []

    def run(engine, plan):
        handles.append(engine.start(plan))
        return handles[-1]

    yield run
    for handle in handles:
        handle.stop(grace_s=0)


def broken(plan):
    """Return a plan of a server that ends by itself: its configuration does not exist."""
    flag = "--model_config_file=/nonexistent/models.config"
    if isinstance(plan, _ObjectsPlan):
        made = copy.deepcopy(plan.objects)
        for each in made:
            if each["kind"] == "Deployment":
                each["spec"]["template"]["spec"]["containers"][0]["args"].append(flag)
        return replace(plan, objects=made)
    if isinstance(plan, ServicePlan):
        made = copy.deepcopy(plan.services)
        for each in made.values():
            each["TaskTemplate"]["ContainerSpec"]["Args"].append(flag)
        return replace(plan, services=made)
    if isinstance(plan, ContainerPlan):
        command = [*plan.container["command"], flag]
        return replace(plan, container={**plan.container, "command": command})
    return replace(plan, argv=(*plan.argv, flag))


def ended(handle):
    assert eventually(lambda: handle.state().phase is Phase.EXITED)
    return handle.state()


def files_below(folder):
    return sorted(str(path) for path in folder.rglob("*"))


# Plans


def test_plan_has_no_effect_and_is_a_value(engine, deployment, state_dir):
    spec = deployment()
    first, second = (engine.plan(spec, render.render(spec)) for _ in range(2))
    assert first == second
    assert not state_dir.exists()


def test_plan_names_server_engine_models_and_endpoints(engine, deployment):
    spec = deployment(WEB, host="127.0.0.1")
    plan = engine.plan(spec, render.render(spec))
    assert (plan.server_name, plan.engine) == (WEB, engine.name)
    assert plan.models == {"half_plus_two": spec.models["half_plus_two"].base_path}
    if isinstance(plan, _ObjectsPlan):  # pods have addresses and ports of their own
        assert plan.endpoints.grpc == f"dns:///tfkit-{WEB}-grpc:{spec.server.grpc_port}"
        assert f'"--port={spec.server.grpc_port}"' in plan.stdin
        return
    assert plan.endpoints.grpc == f"grpc://127.0.0.1:{spec.server.grpc_port}"
    assert plan.endpoints.rest == f"http://127.0.0.1:{spec.server.rest_port}"
    for port, flag, inside in (
        (spec.server.grpc_port, "port", 8500),
        (spec.server.rest_port, "rest_api_port", 8501),
    ):
        is_container = engine.name in {"docker", "swarm"}
        assert f"--{flag}={inside if is_container else port}" in plan.argv
        published = f"--publish=127.0.0.1:{port}:{inside}" in plan.argv
        assert published == (engine.name == "docker")
        on_nodes = f"--publish=mode=host,target={inside},published={port}" in plan.argv
        assert on_nodes == (engine.name == "swarm")


def test_plan_shows_where_its_files_will_be(engine, deployment, state_dir):
    plan = engine.plan(deployment(WEB), {"model_config.txt": "text"})
    if isinstance(plan, _ObjectsPlan):  # they are in the cluster
        (config,) = (each for each in plan.objects if each["kind"] == "ConfigMap")
        assert config["data"] == {"model_config.txt": "text", "drain.sh": draining.script()}
        assert '"--model_config_file=/tfkit/model_config.txt"' in plan.stdin
        return
    if engine.name == "swarm":  # what nodes read has names of the swarm
        texts = {"model_config.txt": "text", "drain.sh": draining.script()}
        names = {file: services._content_name(f"tfkit-{WEB}", file, texts[file]) for file in texts}
        home = state_dir / "servers" / WEB
        assert plan.files == {str(home / names[file]): text for file, text in texts.items()}
        assert "--model_config_file=/tfkit/model_config.txt" in plan.argv
        return
    file = str(state_dir / "servers" / WEB / "config" / "model_config.txt")
    drain = str(state_dir / "servers" / WEB / "config" / "drain.sh")
    its_own = {drain: draining.script()} if engine.name == "docker" else {}
    assert plan.files == {file: "text", **its_own}
    assert f"--model_config_file={file}" in plan.argv


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "127.0.0.1"])
def test_server_on_all_addresses_is_called_on_loopback(fake_engine, deployment, host):
    spec = deployment()
    spec = spec.model_copy(update={"server": spec.server.model_copy(update={"host": host})})
    plan = fake_engine.plan(spec, {})
    assert plan.endpoints.grpc == f"grpc://127.0.0.1:{spec.server.grpc_port}"
    assert bool(plan.notes) == (host == "127.0.0.1")  # it cannot be told to listen there


def test_engine_that_can_is_told_where_to_listen(deployment, state_dir):
    able = ProcessEngine("x", ["server"], Availability(True, ""), binds_host=True)
    plan = able.plan(deployment(host="127.0.0.1"), {})
    assert plan.argv[:2] == ("server", "--bind_address=127.0.0.1")
    assert plan.notes == ()


# Start, find, list, stop


def test_started_server_runs_and_is_found_with_what_it_serves(engine, plan, start):
    todo = plan(WEB)
    handle = start(engine, todo)
    assert handle.state() == RUNNING
    for found in (handle, engine.find(WEB), *engine.list()):
        assert (found.server_name, found.engine) == (WEB, engine.name)
        assert found.models == todo.models
        assert found.endpoints == (todo.endpoints if engine.answers_here else handle.endpoints)
        assert found.state() == RUNNING
    for file, text in todo.files.items():
        if engine.name != "swarm":  # there it is a config of the swarm
            assert Path(file).read_text("utf-8") == text


def test_servers_are_listed_by_name(fake_engine, fake_plan, start):
    for name in ("b", "c", "a"):
        start(fake_engine, fake_plan(name))
    assert [each.server_name for each in fake_engine.list()] == ["a", "b", "c"]


def test_engine_does_not_see_the_servers_of_another(fake_engine, fake_plan, start):
    start(fake_engine, fake_plan(WEB))
    other = ProcessEngine("other", ["x"], Availability(True, ""), binds_host=False)
    assert other.find(WEB) is None
    assert other.list() == []


def test_unknown_name_is_not_found(engine):
    assert engine.find("nobody") is None
    assert engine.list() == []


def test_stopped_server_is_gone_without_a_trace(engine, plan, start, state_dir):
    handle = start(engine, plan(WEB))
    assert deployed_models(state_dir / "servers" / WEB) == handle.models
    handle.stop()
    assert handle.state().phase is Phase.GONE
    assert engine.find(WEB) is None
    assert engine.list() == []
    assert not (state_dir / "servers" / WEB).exists()
    assert list(handle.logs()) == []


def test_stop_may_be_repeated_by_anyone_who_holds_the_server(engine, plan, start):
    handle = start(engine, plan(WEB))
    found = engine.find(WEB)
    found.stop()
    handle.stop()
    found.stop()
    assert found.state() == GONE


def test_stop_is_polite_first(fake_engine, fake_plan, start, state_dir):
    handle = start(fake_engine, fake_plan())
    log = handle.logs(follow=True)
    assert eventually(lambda: "Running" in next(log))
    handle.stop()
    assert handle.state() == State(Phase.GONE, 0)  # the status it ends with by itself


@pytest.mark.parametrize("grace_s", [0, 0.2])
def test_server_that_will_not_end_is_killed(fake_engine, fake_plan, start, grace_s):
    handle = start(fake_engine, fake_plan(life="deaf"))
    assert eventually(lambda: "Running gRPC ModelServer" in list(handle.logs()))
    found = fake_engine.find(WEB)
    found.stop(grace_s=grace_s)
    assert found.state() == GONE


def test_process_of_a_stopped_server_is_gone(fake_engine, fake_plan, start, state_dir):
    handle = start(fake_engine, fake_plan(WEB))
    pid = Record.read(state_dir / "servers" / WEB).pid
    handle.stop()
    assert not psutil.pid_exists(pid)


def test_state_folder_that_cannot_be_written_is_named(engine, plan, state_dir):
    todo = plan(WEB)
    state_dir.mkdir(exist_ok=True)
    (state_dir / "servers").write_text("in the way")
    with pytest.raises(
        ServerFailed, match=rf"cannot keep server '{WEB}' in .*/state/servers"
    ) as caught:
        engine.start(todo)
    assert "TFKIT_STATE_DIR" in caught.value.remedy
    assert (state_dir / "servers").read_text() == "in the way"


def test_replicas_of_one_server_are_the_server_itself(engine, plan, start):
    todo = plan(WEB)
    handle = start(engine, todo)
    (replica,) = handle.replicas()
    assert todo.replicas == 1
    assert replica.state == RUNNING
    assert replica.endpoints == (todo.endpoints if engine.answers_here else handle.endpoints)
    assert replica.name.startswith(WEB)
    handle.stop()
    assert handle.replicas() == []


# One name, one server


def test_second_server_of_a_name_is_refused_and_the_first_untouched(engine, plan, start):
    first = start(engine, plan(WEB))
    log = list(first.logs())
    with pytest.raises(ServerExists) as caught:
        engine.start(plan(WEB))
    assert f"'{WEB}'" in caught.value.message
    assert f"tfkit stop {WEB}" in caught.value.remedy
    assert first.state() == RUNNING
    assert list(first.logs())[: len(log)] == log
    assert engine.find(WEB).endpoints == first.endpoints


def test_name_of_a_server_that_ended_may_be_given_anew(engine, plan, start):
    old = start(engine, broken(plan(WEB)))
    ended(old)
    new = start(engine, plan(WEB))
    assert new.state() == RUNNING
    assert old.state().phase is Phase.GONE
    assert list(old.logs()) == []


def test_stop_through_an_old_handle_leaves_the_new_server_of_that_name_alone(engine, plan, start):
    old = start(engine, plan(WEB))
    old.stop()
    new = start(engine, plan(WEB))
    old.stop()
    assert new.state() == RUNNING
    assert engine.find(WEB).state() == RUNNING


class Starter:
    """A process that starts a server once it is told to."""

    def __init__(self, file):
        self.process = subprocess.Popen(
            [sys.executable, STARTER, file],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def says(self):
        return self.process.stdout.readline().strip()

    def go(self):
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def close(self):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(PATIENCE_S)


@pytest.fixture
def starter(tmp_path, fake_plan, fake_engine):
    """Make processes that will start a server named WEB; the server is stopped at the end."""
    arguments = ("fake", [*fake_plan().argv[:2]], fake_engine.available())
    starters = []

    def make():
        file = tmp_path / f"start-{len(starters)}"
        file.write_bytes(pickle.dumps(((arguments, {"binds_host": False}), fake_plan(WEB))))
        starters.append(Starter(file))
        assert starters[-1].says() == "ready"
        return starters[-1]

    yield make
    if (handle := fake_engine.find(WEB)) is not None:
        handle.stop(grace_s=0)
    for each in starters:
        each.close()


def test_of_two_starts_at_once_exactly_one_wins(fake_engine, starter):
    both = [starter(), starter()]
    for each in both:
        each.go()
    assert sorted(each.says() for each in both) == ["ServerExists", "started"]
    assert fake_engine.find(WEB).state() == RUNNING
    running = [
        each
        for each in psutil.process_iter(["cmdline"])
        if any(f"servers/{WEB}" in part for part in each.info["cmdline"] or ())
    ]
    assert len(running) == 1


def test_stop_does_not_wait_for_a_parent_that_never_looks(fake_engine, starter):
    careless = starter()
    careless.go()
    assert careless.says() == "started"
    found = fake_engine.find(WEB)
    started_s = SystemClock().now_s()
    found.stop(grace_s=PATIENCE_S)
    assert SystemClock().now_s() - started_s < PATIENCE_S / 2
    assert found.state() == GONE


def test_server_outlives_a_starter_that_is_killed(fake_engine, starter):
    dying = starter()
    dying.go()
    assert dying.says() == "started"
    dying.process.send_signal(signal.SIGKILL)
    assert dying.process.wait(PATIENCE_S) == -signal.SIGKILL
    found = fake_engine.find(WEB)
    assert found.state() == RUNNING
    assert [each.server_name for each in fake_engine.list()] == [WEB]
    found.stop()
    assert found.state() == GONE


# Servers that end by themselves


def test_log_and_status_of_a_server_that_ended_are_kept_until_stop(engine, plan, start):
    handle = start(engine, broken(plan(WEB)))
    state = ended(handle)
    assert state.exit_code not in {0, None}
    found = engine.find(WEB)
    # A process's parent alone knows the status; Docker tells everybody.
    assert found.state() in {State(Phase.EXITED, None), state}
    assert "/nonexistent/models.config" in "".join(found.logs())
    assert [each.server_name for each in engine.list()] == [WEB]
    found.stop()
    assert engine.find(WEB) is None
    assert handle.state().phase is Phase.GONE


@pytest.mark.parametrize("code", [0, 3, 255])
def test_exit_status_is_known_to_who_started_it(fake_engine, fake_plan, start, code):
    handle = start(fake_engine, fake_plan(life=f"exit:{code}"))
    assert ended(handle) == State(Phase.EXITED, code)


def test_server_that_was_killed_has_the_signal_as_its_status(fake_engine, fake_plan, start):
    handle = start(fake_engine, fake_plan())
    os.kill(Record.read(Path(process.state_folder()) / "servers" / WEB).pid, signal.SIGKILL)
    assert ended(handle) == State(Phase.EXITED, -signal.SIGKILL)


@pytest.fixture
def stranger():
    """A process that no engine started."""
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def test_process_that_got_the_pid_of_an_old_server_is_left_alone(
    fake_engine, fake_plan, start, state_dir, stranger
):
    start(fake_engine, fake_plan(WEB))
    home = state_dir / "servers" / WEB
    real = Record.read(home)
    replace(real, pid=stranger.pid, started_s=real.started_s - 60).write(home)
    found = fake_engine.find(WEB)
    assert found.state() == State(Phase.EXITED)
    found.stop()
    assert stranger.poll() is None
    assert fake_engine.find(WEB) is None


def test_command_that_does_not_exist_leaves_nothing_behind(deployment, state_dir):
    absent = ProcessEngine("x", ["/no/such/command"], Availability(True, ""), binds_host=False)
    spec = deployment(WEB)
    with pytest.raises(ServerFailed) as caught:
        absent.start(absent.plan(spec, render.render(spec)))
    assert caught.value.message == "cannot start /no/such/command: No such file or directory"
    assert absent.find(WEB) is None
    assert not (state_dir / "servers" / WEB).exists()


def test_record_that_cannot_be_read_is_no_server(fake_engine, fake_plan, start, state_dir):
    start(fake_engine, fake_plan("good"))
    for name, content in (("empty", ""), ("list", "[]"), ("part", '{"server_name": "part"}')):
        (state_dir / "servers" / name).mkdir()
        (state_dir / "servers" / name / "server.json").write_text(content)
        assert fake_engine.find(name) is None
    assert [each.server_name for each in fake_engine.list()] == ["good"]


# Logs


@pytest.mark.parametrize(
    ("tail", "expected"),
    [
        (None, ["something is wrong", "it cannot go on"]),
        (2, ["something is wrong", "it cannot go on"]),
        (1, ["it cannot go on"]),
        (0, []),
    ],
)
def test_log_is_shown_whole_or_from_its_tail(fake_engine, fake_plan, start, tail, expected):
    handle = start(fake_engine, fake_plan(life="exit:1"))
    ended(handle)
    lines = list(handle.logs(tail=tail))
    assert lines[-2:] == expected
    assert len(lines) == (3 if tail is None else tail)


def test_log_is_followed_until_the_server_ends(fake_engine, fake_plan, start):
    handle = start(fake_engine, fake_plan())
    log = handle.logs(follow=True)
    first = next(log)
    assert first.startswith("fake model server")
    os.kill(Record.read(Path(process.state_folder()) / "servers" / WEB).pid, signal.SIGTERM)
    assert list(log)[-1] == "ended as it was told to"


def test_log_followed_from_its_end_shows_only_what_is_new(fake_engine, fake_plan, start):
    handle = start(fake_engine, fake_plan(life="exit:1"))
    ended(handle)
    assert list(handle.logs(tail=0, follow=True)) == []
    assert list(handle.logs(tail=1, follow=True)) == ["it cannot go on"]


def test_log_that_is_no_utf8_is_shown_all_the_same(fake_engine, fake_plan, start):
    handle = start(fake_engine, fake_plan(life="noisy"))
    assert eventually(lambda: "no utf-8: \ufffd" in list(handle.logs()))


# Where servers are kept


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"TFKIT_STATE_DIR": "/a/b"}, Path("/a/b")),
        ({"XDG_STATE_HOME": "/x", "TFKIT_STATE_DIR": ""}, Path("/x/tfkit")),
        (
            {"HOME": "/h", "XDG_STATE_HOME": "", "TFKIT_STATE_DIR": ""},
            Path("/h/.local/state/tfkit"),
        ),
    ],
)
def test_servers_are_kept_where_the_environment_says(monkeypatch, environment, expected):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert process.state_folder() == expected


def test_relative_state_folder_is_taken_from_here(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TFKIT_STATE_DIR", "state")
    assert process.state_folder() == tmp_path / "state"


# Availability


@pytest.fixture
def usable_binary(tmp_path):
    """Something executable."""
    binary = tmp_path / "my_server"
    binary.write_text("#!/bin/sh\n")
    binary.chmod(0o755)
    return str(binary)


def test_native_engine_names_what_is_missing():
    absent = process.native("no-such-binary").available()
    assert (absent.usable, absent.reason) == (False, "no-such-binary is not on PATH")
    assert absent.remedy


def test_native_engine_takes_the_binary_it_is_given(usable_binary, deployment, state_dir):
    engine = process.native(usable_binary)
    assert engine.available() == Availability(True, f"{usable_binary} is there")
    assert engine.plan(deployment(), {}).argv[0] == usable_binary


# Which engine


@pytest.mark.parametrize("name", ["auto", "native"])
def test_native_engine_is_chosen_where_its_binary_is(usable_binary, state_dir, name):
    engine, why = registry.choose(name, binary=usable_binary)
    assert engine.name == "native"
    assert why == {"auto": f"{usable_binary} is there", "native": "as requested"}[name]


@pytest.mark.tensorflow
def test_embedded_engine_is_chosen_where_there_is_no_binary_and_no_docker(state_dir, monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", "unix:///none")
    engine, why = registry.choose("auto", binary="no-such-binary")
    assert engine.name == "embedded"
    assert why == (
        "no-such-binary is not on PATH; no Docker daemon answers at unix:///none: there is no "
        "such file; the tensorflow wheel is installed"
    )


def test_engine_that_cannot_run_is_refused_with_a_remedy(state_dir):
    with pytest.raises(EngineUnavailable) as caught:
        registry.choose("native", binary="no-such-binary")
    assert caught.value.message == ("engine native cannot run here: no-such-binary is not on PATH")
    assert caught.value.remedy == "install it, or use --engine embedded"


def test_engine_that_nobody_knows_is_refused_with_the_known_ones(state_dir):
    with pytest.raises(UsageError) as caught:
        registry.choose("podman")
    known = [each.name for each in registry.engines()]
    assert caught.value.remedy == f"choose {', '.join(['auto', *known])}"


def test_server_is_found_by_name_whichever_engine_runs_it(state_dir):
    for name, engine in (("b", "native"), ("a", "embedded"), ("c", "other")):
        home = state_dir / "servers" / name
        home.mkdir(parents=True)
        here = Endpoints("grpc://h:1", "http://h:2")
        Record(name, engine, os.getpid(), 0.0, (), here).write(home)
    assert [each.server_name for each in registry.servers()] == ["a", "b"]
    assert registry.find("b").engine == "native"
    with pytest.raises(ServerNotFound) as caught:
        registry.find("c")
    assert caught.value.remedy == "`tfkit ps` lists them: a, b"
