"""How servers and each of their replicas are reached: what wins, and what is never told."""

import pytest

from tfserve_kit import deployment
from tfserve_kit.clients import addresses
from tfserve_kit.engines import Endpoints, Phase, Replica, State
from tfserve_kit.errors import ServerFailed, ServerUnreachable, SpecError, UsageError
from tfserve_kit.serving import access
from tfserve_kit.serving.access import Access, ServedModel

SECRET = "s3cret"


def test_what_is_given_wins_and_headers_are_joined():
    given = Access(ca_file="a", headers={"x": "1"})
    known = Access(ca_file="b", server_name="n", headers={"x": "0", "y": "2"})
    both = given.over(known)
    assert (both.ca_file, both.server_name, dict(both.headers)) == ("a", "n", {"x": "1", "y": "2"})


def test_values_stand_for_what_the_environment_and_files_hold(monkeypatch, tmp_path):
    monkeypatch.setenv("TOKEN", SECRET)
    (tmp_path / "token").write_text(f"Bearer {SECRET}\n")
    headers = {"a": "env:TOKEN", "b": f"file:{tmp_path / 'token'}", "c": "plain"}
    found = Access(headers=headers).options("grpc://h:1")["headers"]
    assert found == {"a": SECRET, "b": f"Bearer {SECRET}", "c": "plain"}


@pytest.mark.parametrize("text", ["env:NOT_SET_ANYWHERE", "file:/nowhere/token"])
def test_value_that_is_not_there_is_refused_by_name(text):
    with pytest.raises(UsageError) as caught:
        Access(headers={"x-key": text}).options("grpc://h:1")
    assert "'x-key'" in caught.value.message
    assert text.partition(":")[2] in caught.value.message


def test_files_of_tls_are_for_addresses_with_tls_unless_they_were_asked_for():
    known = Access(ca_file="a", server_name="n")
    assert "ca_file" not in known.options("http://h:1")
    assert known.options("grpcs://h:1")["server_name"] == "n"
    firm = Access(ca_file="a", is_firm=True)
    with pytest.raises(UsageError, match="does not use TLS"):
        firm.connect("grpc://h:1")


def test_what_may_be_secret_is_not_shown():
    assert SECRET not in repr(Access(headers={"x": SECRET}))
    assert SECRET not in repr(deployment.ClientSection(headers={"x": SECRET}))


@pytest.mark.parametrize(
    ("url", "is_there"),
    [
        ("grpcs://127.0.0.1:8500", True), ("grpcs://localhost:8500", True),
        ("http://LOCALHOST:8501", True), ("grpc://127.0.0.1:8500", False),
        ("grpcs://127.0.0.1:8501", False), ("grpcs://other:8500", False),
    ],
)  # fmt: skip
def test_address_is_known_by_scheme_and_place(url, is_there):
    here = Endpoints("grpcs://127.0.0.1:8500", "http://127.0.0.1:8501")
    assert access.at(here, addresses.read(url)) is is_there


class TestFile:
    @staticmethod
    def written(tmp_path, text):
        (tmp_path / "tfkit.toml").write_text(text)
        return tmp_path / "tfkit.toml"

    def test_section_counts_alone_and_its_files_are_seen_from_its_folder(self, tmp_path):
        file = self.written(
            tmp_path,
            '[client]\nca_file = "ca.pem"\nheaders = {x = "file:token"}\n[models.a]\nno = "key"\n',
        )
        found = access.of_file(file)
        assert found.ca_file == str(tmp_path / "ca.pem")
        assert found.headers == {"x": f"file:{tmp_path / 'token'}"}

    @pytest.mark.parametrize("text", ["", "[models.a]\n", "no toml at all ["])
    def test_file_without_the_section_says_nothing(self, tmp_path, text):
        assert access.of_file(self.written(tmp_path, text)) == access.NOTHING
        assert access.of_file(tmp_path / "none.toml") == access.NOTHING

    @pytest.mark.parametrize(
        ("line", "said"),
        [
            ("ca_fiel = 'x'", "did you mean ca_file"),
            ("cert = 'x'", "give both"),
            (f"headers = '{SECRET}'", "client.headers"),
            (f"headers = {{x = ['{SECRET}']}}", "client.headers.x"),
        ],
    )
    def test_wrong_section_is_told_without_what_may_be_secret(self, tmp_path, line, said):
        with pytest.raises(SpecError) as caught:
            access.of_file(self.written(tmp_path, f"[client]\n{line}\n"))
        assert said in str(caught.value) and SECRET not in str(caught.value)


def test_folder_of_a_server_without_anything_says_nothing(tmp_path):
    assert access.of_server(tmp_path) == access.NOTHING


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
        monkeypatch.setattr(access, "server_at", lambda _: handle)
        monkeypatch.setattr(access.registry, "find", lambda _: handle)
        return ServedModel("grpc://127.0.0.1:1", "m", access=Access(headers={"a": "b"}))

    return act


def replica(number, state=RUNNING, reason=""):
    here = Endpoints(f"grpc://10.0.0.{number}:1", f"http://10.0.0.{number}:2")
    return Replica(f"web.{number}", "node", state, here, reason)


def test_server_that_is_alone_is_its_own_replica(state_dir):
    alone = ServedModel("grpc://h:1", "m")
    assert access.each_replica(alone) == {"grpc://h:1": alone}


def test_servers_of_a_fleet_are_each_reached_at_their_address():
    found = access.each_replica(ServedModel("grpc://h:1,grpc://i:1", "m"))
    assert {name: each.url for name, each in found.items()} == {
        "grpc://h:1": "grpc://h:1",
        "grpc://i:1": "grpc://i:1",
    }


def test_name_that_cannot_be_resolved_is_not_a_fleet_of_nobody():
    with pytest.raises(ServerUnreachable, match=r"no.such.invalid"):
        access.each_replica(ServedModel("dns:///no.such.invalid:1", "m"))


def test_replicas_without_a_gateway_are_reached_at_their_nodes(web):
    found = access.each_replica(web(replica(1), replica(2)))
    assert [each.url for each in found.values()] == ["grpc://10.0.0.1:1", "grpc://10.0.0.2:1"]
    assert {tuple(each.access.headers.items()) for each in found.values()} == {(("a", "b"),)}


@pytest.mark.parametrize("phase", [Phase.STARTING, Phase.EXITED])
def test_replica_that_does_not_run_is_named_with_the_reason(web, phase):
    with pytest.raises(ServerFailed, match=rf"web\.2 .* {phase.value} no room") as caught:
        access.each_replica(web(replica(1), replica(2, State(phase), "no room")))
    assert "tfkit restart web" in caught.value.remedy
