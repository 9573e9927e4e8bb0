"""Checks of the machine, each on a machine made up for it."""

import os
import platform
import socket
from dataclasses import dataclass

import pytest

from tfserve_kit import doctor
from tfserve_kit.engines import Availability, Endpoints, Phase, State, registry
from tfserve_kit.errors import Problem, Severity

GB = 10**9


def check_of(name, severity, found, remedy=""):
    return Problem(name, found, remedy, severity)


@dataclass
class Server:
    """A server in a phase of one's choice."""

    server_name: str
    now: State
    endpoints: Endpoints | None = None

    def state(self):
        return self.now


@pytest.fixture
def binary(tmp_path):
    """Make an executable that answers --version in a way of one's choice."""

    def make(script):
        file = tmp_path / "server"
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(0o755)
        return str(file)

    return make


@pytest.fixture
def taken():
    """A TCP port that this process listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


# Engines


def test_engine_that_can_run_is_ok():
    check = doctor.engine("docker", Availability(usable=True, reason="Docker 27 answers"))
    assert check == check_of("docker", Severity.INFO, "Docker 27 answers")


def test_engine_that_cannot_run_says_why_and_what_to_do():
    check = doctor.engine("docker", Availability(usable=False, reason="no", remedy="start it"))
    assert check == check_of("docker", Severity.ERROR, "no", "start it")


def test_binary_that_tells_its_version_is_ok(binary):
    path = binary("[ $1 = --version ] && printf 'ModelServer: 2.20\\nLibrary: 2.20\\n'")
    check = doctor.native(path)
    assert check == check_of("native", Severity.INFO, f"{path}: ModelServer: 2.20, Library: 2.20")


def test_binary_that_is_not_there_fails():
    assert doctor.native(None).severity is Severity.ERROR
    assert doctor.native("/none").severity is Severity.ERROR


def test_binary_that_crashes_is_explained(binary):
    check = doctor.native(binary("kill -ILL $$"))
    assert check.severity is Severity.ERROR
    assert "exit status -4 (illegal instruction" in check.message
    assert "AVX" in check.remedy


def test_binary_that_never_answers_fails(binary):
    check = doctor.native(binary("exec sleep 30"), timeout_s=0.1)
    assert check.severity is Severity.ERROR
    assert "does not tell its version" in check.message


def test_embedded_engine_names_what_it_has_or_what_is_missing():
    good = doctor.embedded({"tensorflow": "2.21.0", "httptools": "0.7"})
    assert good == check_of("embedded", Severity.INFO, "tensorflow 2.21.0, httptools 0.7")
    bad = doctor.embedded({"tensorflow": "2.21.0", "httptools": None, "x": None})
    assert bad.severity is Severity.ERROR
    assert bad.message == "not installed: httptools, x"
    assert bad.remedy == "pip install 'tfserve-kit[embedded]'"


def test_installed_packages_have_their_version():
    from importlib.metadata import version

    found = doctor.installed(["numpy", "no-such-package-here"])
    assert found == {"numpy": version("numpy"), "no-such-package-here": None}


def node(name, state="ready", availability="active"):
    return {
        "Description": {"Hostname": name},
        "Status": {"State": state},
        "Spec": {"Availability": availability},
    }


def test_nodes_that_take_no_replicas_are_told_with_their_state():
    good = doctor.nodes([node("a"), node("b")])
    assert good == check_of("swarm nodes", Severity.INFO, "2 of 2 take replicas")
    bad = doctor.nodes([node("a"), node("b", state="down"), node("c", availability="drain")])
    assert bad.severity is Severity.WARNING
    assert bad.message == "1 of 3 take replicas: b is down, active; c is ready, drain"
    assert "docker node update --availability active" in bad.remedy


def test_kernel_with_ipvs_has_it_loaded_or_as_a_module(tmp_path):
    nowhere, table = tmp_path / "none", tmp_path / "ip_vs"
    assert "not in this kernel" in doctor.ipvs(nowhere, tmp_path).message
    assert "dnsrr" in doctor.ipvs(nowhere, tmp_path).message
    (tmp_path / "modules.dep").write_text("kernel/net/netfilter/ipvs/ip_vs_rr.ko.xz:\n")
    assert "not in this kernel" in doctor.ipvs(nowhere, tmp_path).message
    (tmp_path / "modules.dep").write_text("kernel/net/netfilter/ipvs/ip_vs.ko.xz: x.ko\n")
    assert "has it" in doctor.ipvs(nowhere, tmp_path).message
    table.touch()
    assert "has it" in doctor.ipvs(table, nowhere).message


def test_image_of_a_gateway_is_here_or_to_be_pulled():
    assert doctor.gateway("haproxy:3.0", is_here=True).severity is Severity.INFO
    missing = doctor.gateway("haproxy:3.0", is_here=False)
    assert (missing.severity, missing.remedy) == (Severity.WARNING, "docker pull haproxy:3.0")


def check_named(name, outcome):
    return check_of(name, outcome, "")


@pytest.mark.parametrize(
    ("checks", "usable"),
    [
        ([check_named("native", Severity.INFO), check_named("embedded", Severity.ERROR)], True),
        ([check_named("native", Severity.WARNING)], True),
        ([check_named("native", Severity.ERROR), check_named("memory", Severity.INFO)], False),
        ([], False),
    ],
)
def test_machine_can_serve_if_one_engine_can(checks, usable):
    assert doctor.can_serve(checks, ["native", "embedded"]) is usable


# The machine


@pytest.mark.parametrize(
    ("runtimes", "tool", "outcome", "word"),
    [
        ({"runc": {}}, None, Severity.INFO, "no NVIDIA driver"),
        ({"runc": {}, "nvidia": {}}, "/usr/bin/nvidia-smi", Severity.INFO, "has its runtime"),
        ({"runc": {}}, "/usr/bin/nvidia-smi", Severity.WARNING, "no runtime"),
    ],
)
def test_gpu_needs_driver_and_runtime(runtimes, tool, outcome, word):
    check = doctor.gpu(runtimes, tool)
    assert check.severity is outcome
    assert word in check.message
    assert bool(check.remedy) is (outcome is Severity.WARNING)


@pytest.mark.parametrize(
    ("machine", "flags", "outcome", "word"),
    [
        ("x86_64", frozenset({"sse", "avx"}), Severity.INFO, "with AVX"),
        ("AMD64", None, Severity.INFO, "AVX unknown"),
        ("x86_64", frozenset({"sse"}), Severity.ERROR, "132"),
        ("aarch64", None, Severity.WARNING, "x86_64 only"),
    ],
)
def test_cpu_must_be_what_the_official_builds_are_for(machine, flags, outcome, word):
    check = doctor.cpu(machine, flags)
    assert check.severity is outcome
    assert word in check.message


def test_flags_of_the_cpu_are_read(tmp_path):
    file = tmp_path / "cpuinfo"
    file.write_text("processor\t: 0\nflags\t\t: fpu sse avx\n\nprocessor\t: 1\nflags\t\t: fpu\n")
    assert doctor.cpu_flags(file) == {"fpu", "sse", "avx"}
    file.write_text("Features\t: neon\n")
    assert doctor.cpu_flags(file) is None
    assert doctor.cpu_flags(tmp_path / "none") is None


def test_little_memory_is_a_warning():
    assert doctor.memory(16 * GB).message == "16.0 GB available"
    assert doctor.memory(GB // 2).severity is Severity.WARNING


def test_disk_is_looked_at_where_a_folder_would_be_made(tmp_path):
    seen = []

    def free(folder):
        seen.append(folder)
        return 3 * GB

    folder = tmp_path / "state" / "tfkit"
    check = doctor.disk("state", folder, GB, free=free)
    assert check == check_of("state", Severity.INFO, f"{folder}: 3.0 GB free")
    assert seen == [tmp_path]
    full = doctor.disk("state", folder, 4 * GB, free=free)
    assert full.severity is Severity.WARNING
    assert full.remedy == "free some space: 4 GB are needed"


def test_disk_that_cannot_be_looked_at_is_a_warning(tmp_path):
    def refuse(folder):
        raise PermissionError(13, "Permission denied")

    check = doctor.disk("docker root", tmp_path, GB, free=refuse)
    assert check.severity is Severity.WARNING
    assert "Permission denied" in check.message


def test_real_disk_has_a_size(tmp_path):
    assert "GB free" in doctor.disk("state", tmp_path, 1).message


# Ports and servers


def test_free_port_is_ok():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        number = listener.getsockname()[1]
    assert doctor.port(number) == check_of(f"port {number}", Severity.INFO, "free")


def test_port_of_a_process_is_told_with_its_pid(taken):
    check = doctor.port(taken)
    assert check.severity is Severity.WARNING
    assert f"(pid {os.getpid()}) has it" in check.message


def test_port_of_a_server_of_ours_is_told_with_its_name(taken):
    urls = Endpoints("grpc://127.0.0.1:1", f"http://127.0.0.1:{taken}")
    dead = Server("old", State(Phase.EXITED), urls)
    live = Server("web", State(Phase.RUNNING), urls)
    assert doctor.port(taken, [dead, live]).message.endswith("tfkit's server 'web' has it")


def test_servers_that_ended_by_themselves_are_told_with_the_reason():
    servers = [
        Server("a", State(Phase.RUNNING)),
        Server("b", State(Phase.EXITED, 137)),
        Server("c", State(Phase.EXITED)),
        Server("d", State(Phase.EXITED, 3)),
        Server("e", State(Phase.GONE)),
    ]
    killed, unknown, plain = doctor.ended(servers)
    assert {each.severity for each in (killed, unknown, plain)} == {Severity.WARNING}
    assert killed.path == "server b"
    assert "exit status 137 (killed: out of memory" in killed.message
    assert "dmesg" in killed.remedy and "`tfkit logs b`" in killed.remedy
    assert unknown.message == "ended with an unknown exit status"
    assert plain.message == "ended with exit status 3"
    assert plain.remedy == "`tfkit logs d` says why; `tfkit stop d` forgets it"


# As a whole


def test_this_machine_gets_one_check_of_each_kind(state_dir):
    checks = doctor.examine()
    names = [each.path for each in checks]
    assert len(set(names)) == len(names)
    assert {"docker", "gpu", "native", "embedded", "cpu", "memory", "state folder"} <= set(names)
    assert {each.name for each in registry.engines()} <= set(names)
    assert {"port 8500", "port 8501"} <= set(names)
    assert all(each.message for each in checks)
    assert all(each.remedy for each in checks if each.severity is Severity.ERROR)
    (cpu,) = [each for each in checks if each.path == "cpu"]
    assert cpu.message.startswith(platform.machine())
    assert not state_dir.exists()


def test_missing_binary_fails_by_its_name(state_dir):
    (native,) = [each for each in doctor.examine(binary="/no/server") if each.path == "native"]
    assert native.severity is Severity.ERROR
