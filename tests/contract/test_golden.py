"""The server behaves as the official one was recorded to: down to codes, bodies and error texts.

Runs on the embedded engine, and unchanged on the official binary that $TFKIT_TEST_MODEL_SERVER
names.
"""

import contextlib
import json
import time
from pathlib import Path

import pytest

from tests.contract import golden

pytestmark = pytest.mark.tensorflow

REQUESTS = [case for kind in ("rest", "grpc") for case in golden.cases(kind)]
SHARED = [case for case in REQUESTS if not case.get("fresh")]
FRESH = [case for case in REQUESTS if case.get("fresh")]


def identified(cases):
    return [pytest.param(case, id=case["id"]) for case in cases]


@pytest.fixture(scope="session", params=["embedded", "native"])
def command(request):
    """The command of a server that takes tensorflow_model_server's flags."""
    if request.param == "native":
        return [request.getfixturevalue("native_binary")]
    return golden.EMBEDDED


@pytest.fixture(scope="session")
def quick_command(command):
    """The same for tests that start a server each."""
    return golden.WARM if command == golden.EMBEDDED else command


@pytest.fixture
def deviates(request, command):
    """Leave out what the embedded engine does otherwise on purpose."""

    def check(case):
        if command == golden.EMBEDDED and case["id"] in golden.DEVIATIONS:
            pytest.skip(f"deviation: {golden.DEVIATIONS[case['id']]}")

    return check


@pytest.fixture(scope="session")
def running(command, tmp_path_factory):
    """Servers by setup; each is started once."""
    servers = {}

    def server(name):
        if name not in servers:
            folder = tmp_path_factory.mktemp(name)
            servers[name] = golden.Server(command, golden.SETUPS[name], folder)
            servers[name].wait_ready()
        return servers[name]

    yield server
    for each in servers.values():
        each.stop()


def assert_agrees(server, case):
    differs = golden.disagreement(case["request"], case["response"], server.send(case["request"]))
    assert differs is None, f"{golden.SOURCES[case['group']]}: {differs}"
    for then in case.get("then", []):

        def settled(then=then):
            got = server.send(then["request"])
            return golden.disagreement(then["request"], then["response"], got) is None

        assert golden.wait_for(settled, then.get("within_s", 0)), then


@pytest.mark.parametrize("case", identified(SHARED))
def test_request_is_answered_as_recorded(running, deviates, case):
    deviates(case)
    assert_agrees(running(case["server"]), case)


@pytest.mark.parametrize("case", identified(FRESH))
def test_request_to_a_new_server_is_answered_as_recorded(quick_command, deviates, case, tmp_path):
    deviates(case)
    server = golden.Server(quick_command, golden.SETUPS[case["server"]], tmp_path)
    try:
        server.wait_ready()
        assert_agrees(server, case)
    finally:
        server.stop()


@pytest.mark.parametrize("case", identified(golden.cases("startup")))
def test_start_ends_as_recorded(quick_command, deviates, case, tmp_path):
    deviates(case)
    server = golden.Server(quick_command, case["setup"], tmp_path)
    want = case["response"]
    runs = not isinstance(want["exit"], int)
    try:
        if runs and any(want["ports_open"].values()):
            golden.wait_for(lambda: opened(server) == want["ports_open"], 30)
        elif runs:
            time.sleep(case.get("seconds", 3))  # nothing may happen
        else:
            golden.wait_for(lambda: server.process.poll() is not None, 30)
        code = server.process.poll()
        # An exit status is eight bits wide, and 255 is also -1.
        assert code == (None if runs else want["exit"])
        assert not runs or opened(server) == want["ports_open"]
    finally:
        server.stop()


def opened(server):
    return {name: server.is_open(name) for name in server.ports}


@pytest.mark.parametrize("case", identified(golden.cases("lifecycle")))
def test_changes_on_disk_and_reloads_lead_where_recorded(quick_command, deviates, case, tmp_path):
    deviates(case)
    server = golden.Server(quick_command, case["setup"], tmp_path)
    try:
        if case["setup"].get("wait", True):
            server.wait_ready()
        for step in case["steps"]:
            answer = server.do(step["do"])
            if "answer" in step:
                request = step["do"]["request"]
                assert golden.disagreement(request, step["answer"], answer) is None
            watch, want = step.get("watch", case["watch"]), step["observed"]["watch"]
            found = golden.wait_for(lambda w=watch, e=want: observe(server, w) == e, 20)
            assert found, f"after {step['do']}: {observe(server, watch)}"
    finally:
        server.stop()


def observe(server, watch):
    found = []
    for request in watch:
        answer = server.send(request)
        answer.pop("headers", None)
        with contextlib.suppress(KeyError, ValueError):
            answer["body"] = json.loads(answer["body"])
        found.append(answer)
    return found


def test_every_deviation_is_documented():
    page = (Path(__file__).parents[2] / "docs" / "embedded.md").read_text("utf-8")
    assert [case for case in golden.DEVIATIONS if case not in page] == []


def test_every_group_names_its_source():
    groups = {case["group"] for case in REQUESTS}
    assert groups <= golden.SOURCES.keys()
