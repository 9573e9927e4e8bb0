"""Which replicas a server has, and where each is reached."""

import pytest

from tfserve_kit.engines import Endpoints, Phase, Replica, State
from tfserve_kit.errors import ServerFailed, ServerUnreachable
from tfserve_kit.serving import replicas
from tfserve_kit.serving.access import Access, ServedModel

RUNNING = State(Phase.RUNNING)


class Handle:
    """A fleet without a gateway."""

    server_name, engine = "web", "swarm"
    endpoints = Endpoints("grpc://127.0.0.1:1", "http://127.0.0.1:2")

    def __init__(self, *found):
        self._found = found

    def replicas(self):
        return self._found

    def update(self, plan, **_):
        raise AssertionError


@pytest.fixture
def web(monkeypatch):
    def act(*found):
        handle = Handle(*found)
        monkeypatch.setattr(replicas, "server_at", lambda _: handle)
        monkeypatch.setattr(replicas.registry, "find", lambda _: handle)
        return ServedModel("grpc://127.0.0.1:1", "m", access=Access(headers={"a": "b"}))

    return act


def replica(number, state=RUNNING, reason=""):
    here = Endpoints(f"grpc://10.0.0.{number}:1", f"http://10.0.0.{number}:2")
    return Replica(f"web.{number}", "node", state, here, reason)


def test_server_that_is_alone_is_its_own_replica(state_dir):
    alone = ServedModel("grpc://h:1", "m")
    assert replicas.of(alone) == {"grpc://h:1": alone}


def test_servers_of_a_fleet_are_each_reached_at_their_address():
    found = replicas.of(ServedModel("grpc://h:1,grpc://i:1", "m"))
    assert {name: each.url for name, each in found.items()} == {
        "grpc://h:1": "grpc://h:1",
        "grpc://i:1": "grpc://i:1",
    }


def test_name_that_cannot_be_resolved_is_not_a_fleet_of_nobody():
    with pytest.raises(ServerUnreachable, match=r"no.such.invalid"):
        replicas.of(ServedModel("dns:///no.such.invalid:1", "m"))


def test_replicas_without_a_gateway_are_reached_at_their_nodes(web):
    found = replicas.of(web(replica(1), replica(2)))
    assert [each.url for each in found.values()] == ["grpc://10.0.0.1:1", "grpc://10.0.0.2:1"]
    assert {tuple(each.access.headers.items()) for each in found.values()} == {(("a", "b"),)}


@pytest.mark.parametrize("phase", [Phase.STARTING, Phase.EXITED])
def test_replica_that_does_not_run_is_named_with_the_reason(web, phase):
    with pytest.raises(ServerFailed, match=rf"web\.2 .* {phase.value} no room") as caught:
        replicas.of(web(replica(1), replica(2, State(phase), "no room")))
    assert "tfkit restart web" in caught.value.remedy
