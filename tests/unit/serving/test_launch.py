"""Starting a server: what is refused before, awaited after, and stopped where it fails."""

import errno
import socket

import pytest

from tests.unit.serving.made import Server
from tfserve_kit.engines import Phase
from tfserve_kit.engines.base import Plan, endpoints
from tfserve_kit.errors import ServerExists, ServerFailed, SpecError
from tfserve_kit.progress import Silent
from tfserve_kit.serving import launch


class Engine:
    """Starts servers in memory; `act` may change one before it is asked."""

    name, binds_here, answers_here = "memory", True, True

    def __init__(self, folder, act=lambda server: None):
        self.folder, self.act, self.started, self.prepared = folder, act, [], 0
        self.specs = []

    def plan(self, spec, files):
        self.specs.append(spec)
        models = {name: model.base_path for name, model in spec.models.items()}
        where = endpoints(spec.server)
        return Plan(spec.server.name, self.name, ("x",), files, where, models, "")

    def prepare(self, spec, *, progress):
        self.prepared += 1

    def start(self, plan, *, progress=None, clock=None):
        server = Server(self.folder / plan.server_name, self.specs[-1])
        self.act(server)
        self.started.append(server)
        return server


@pytest.fixture
def starting(tmp_path, monkeypatch):
    """Start a deployment in memory."""
    monkeypatch.setenv("TFKIT_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setattr(launch, "_listens", lambda url: True)

    def act(spec, change=lambda server: None, **options):
        engine = Engine(tmp_path / "servers", change)
        monkeypatch.setattr(launch.access, "connect", lambda handle, *_: handle)
        act.engine = engine
        return launch.start(spec, engine, **options)

    return act


def test_server_that_answers_is_returned_with_ports_of_its_own(starting, deployed):
    handle = starting(deployed(server={"grpc_port": 0, "rest_port": 0}))
    ports = {
        int(each.rpartition(":")[2]) for each in (handle.endpoints.grpc, handle.endpoints.rest)
    }
    assert len(ports) == 2 and 0 not in ports and handle.stopped == 0


def test_model_that_fails_to_load_ends_the_server_with_its_log(starting, deployed):
    def break_it(server):
        server.broken[3] = "checksum"

    with pytest.raises(ServerFailed, match="could not load 'half': checksum") as caught:
        starting(deployed(server={"grpc_port": 0, "rest_port": 0}), break_it)
    assert caught.value.log_tail == ["E first", "E last"]
    assert starting.engine.started[0].stopped == 1


def test_server_that_ends_is_told_with_its_exit_status(starting, deployed):
    def end(server):
        server.phase, server.exit_code = Phase.EXITED, 3

    with pytest.raises(ServerFailed, match="ended with exit status 3") as caught:
        starting(deployed(server={"grpc_port": 0, "rest_port": 0}), end)
    assert caught.value.exit_code == 3 and starting.engine.started[0].stopped == 1


def test_server_that_is_never_ready_is_stopped_in_time(starting, deployed):
    def wait(server):
        server.answers = False

    with pytest.raises(ServerFailed, match=r"not ready after 0\.2 s"):
        starting(deployed(server={"grpc_port": 0, "rest_port": 0}), wait)
    assert starting.engine.started[0].stopped == 1


def test_interrupt_stops_what_was_started(starting, deployed):
    class Interrupted(Silent):
        def advance(self, done, total):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        starting(deployed(server={"grpc_port": 0, "rest_port": 0}), progress=Interrupted())
    assert starting.engine.started[0].stopped == 1


def test_port_that_is_taken_is_refused_before_anything_starts(starting, deployed):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServerFailed, match=f"cannot listen on 127.0.0.1:{port}") as caught:
            starting(deployed(server={"grpc_port": port, "rest_port": 0}))
    assert "--grpc-port 0" in caught.value.remedy and not starting.engine.started


@pytest.mark.parametrize("host", ["999.1.1.1", "192.0.2.1"])
def test_address_that_is_not_of_this_machine_is_not_told_as_a_port_that_is_taken(
    starting, deployed, host
):
    with pytest.raises(ServerFailed, match=rf"cannot listen on {host}:8500") as caught:
        starting(deployed(server={"host": host, "rest_port": 0}))
    assert caught.value.remedy.startswith("give an address that this machine has: --host 127.0.0.1")
    assert "while attempting" not in caught.value.message


def test_port_that_only_root_may_open_is_told_so(starting, deployed, monkeypatch):
    def refuse(address):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket, "create_server", refuse)
    with pytest.raises(ServerFailed, match=r":80 for grpc port: Permission denied") as caught:
        starting(deployed(server={"grpc_port": 80, "rest_port": 80 + 1}))
    assert caught.value.remedy == "give a port above 1023: --grpc-port 8080"


def test_port_that_is_taken_here_is_free_for_servers_elsewhere(deployed):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        spec = deployed(server={"grpc_port": port, "rest_port": 0})
        assert launch._settle_ports(spec, binds_here=False).server.grpc_port == port
        with pytest.raises(ServerFailed):
            launch._settle_ports(spec)


def test_name_that_runs_on_another_engine_is_refused(starting, deployed, serve, monkeypatch):
    other = serve()
    monkeypatch.setattr(launch.registry, "elsewhere", lambda name, engine: other)
    with pytest.raises(ServerExists, match="'web' is already running"):
        starting(deployed())
    other.phase = Phase.EXITED  # what has ended makes room
    starting(deployed(server={"grpc_port": 0, "rest_port": 0}))
    assert other.stopped == 1


def test_deployment_with_errors_is_not_prepared(deployed, base_path, tmp_path):
    engine = Engine(tmp_path)
    broken = deployed(half={"versions": {"specific": [9]}})
    with pytest.raises(SpecError, match="9"):
        launch.prepare(broken, engine)
    assert engine.prepared == 0


def test_warnings_are_told_and_the_engine_prepares(deployed, base_path, tmp_path):
    class Notes(Silent):
        notes = []

        def note(self, text):
            self.notes.append(text)

    (base_path / "v4").mkdir()
    engine = Engine(tmp_path)
    launch.prepare(deployed(), engine, progress=Notes())
    assert engine.prepared == 1 and any("v4" in note for note in Notes.notes)
