"""TLS, headers and addresses on the command line: a server of ours for life, and foreign ones."""

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import click
import grpc
import pytest

from tests.certificates import Authority, ssl_config
from tests.unit.clients.test_options import grpc_server, rest_server
from tfserve_kit.cli import COMMANDS, cli

SECRET = "s3cret-value"
ACCESS = {"--ca-file", "--cert", "--key", "--server-name", "--header"}


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def server_pair(authority):
    """A certificate for a name that is not the address, as of machines behind a proxy."""
    return authority.issue("server", alternative="DNS:models.example")


@pytest.fixture(scope="module")
def client_pair(authority):
    return authority.issue("client")


def test_every_command_that_takes_a_server_takes_what_is_needed_to_reach_it():
    context = click.Context(cli, info_name="tfkit")
    found = set()
    for name in COMMANDS:
        command = cli.get_command(context, name)
        options = {each for parameter in command.params for each in parameter.opts}
        if "--url" in options:
            assert options >= ACCESS, name
            found.add(name)
    assert found >= {"predict", "request", "evaluate", "perf", "status", "metadata", "push-model",
                     "rollback"}  # fmt: skip
    for name in ("serve", "reload", "restart", "promote", "canary", "tune"):
        command = cli.get_command(context, name)
        assert {each for parameter in command.params for each in parameter.opts} >= ACCESS, name


@pytest.fixture
def deployed(shell, models, tmp_path):
    """Write tfkit.toml and what it names, serve it in the background, and stop it at the end."""

    def serve(text, client="", *more):
        shutil.copytree(models / "half_plus_two", tmp_path / "models" / "hp")
        (tmp_path / "stage").mkdir()
        (tmp_path / "stage" / "ssl.txt").write_text(text)
        (tmp_path / "tfkit.toml").write_text(
            '[server]\nname = "tls"\nengine = "embedded"\ngrpc_port = 0\nrest_port = 0\n'
            'ready_timeout_s = 60\n[server.flags]\nssl_config_file = "stage/ssl.txt"\n'
            'file_system_poll_wait_seconds = 1\n[models.hp]\nbase_path = "models/hp"\n' + client
        )
        (tmp_path / "ask.json").write_text('{"instances": [1, 2, 5]}')
        return shell("serve", "--detach", "--json", *more)

    return serve


@pytest.mark.tensorflow
def test_server_with_tls_lives_through_all_commands(tfkit, shell, deployed, server_pair):
    done = deployed(ssl_config(server_pair))
    assert done.code == 0, done.err
    assert done.data["grpc"].startswith("grpcs://") and done.data["rest"].startswith("http://")
    for arguments in (
        ("status",), ("metadata",), ("request", "ask.json"),
        ("request", "ask.json", "--protocol", "rest"),
        ("request", "ask.json", "--url", done.data["grpc"].replace("127.0.0.1", "localhost")),
        ("push-model", "models/hp/1", "--to", "models/hp", "--version", "3", "--verify",
         "--rate", "20", "--allow-breaking"),
        ("rollback", "models/hp", "--to", "2"),
        ("push-model", "models/hp/1", "--to", "models/hp", "--version", "4", "--wait"),
        ("promote", "hp", "2"), ("canary", "hp", "1"), ("reload",),
        ("perf", "--duration", "0.5"), ("perf", "--duration", "0.5", "--protocol", "rest"),
        ("status",),
    ):  # fmt: skip
        answered = tfkit(*arguments, "--json")
        assert answered.code == 0, (arguments, answered.out, answered.err)
    again = shell("restart", "tls", "--json")
    assert again.code == 0, again.err
    prune = tfkit("prune", "models/hp", "--keep", "1", "--dry-run", "--json")
    assert prune.code == 0, prune.err
    assert "does not answer" not in prune.err


@pytest.mark.tensorflow
def test_server_that_wants_certificates_gets_them(
    tfkit, shell, deployed, authority, server_pair, client_pair, tmp_path, monkeypatch
):
    text = ssl_config(server_pair, custom_ca=authority.own.cert, client_verify=True)
    refused = deployed(text)
    assert refused.code == 3 and "tfkit has no certificate to show" in refused.err
    assert not list((tmp_path / "state").glob("servers/*"))
    section = f'[client]\ncert = "{client_pair.cert}"\nkey = "{client_pair.key}"\n'
    file = tmp_path / "tfkit.toml"
    file.write_text(file.read_text() + section)
    done = shell("serve", "--detach", "--json")
    assert done.code == 0, done.err
    url = done.data["grpc"]
    for arguments in (
        ("status",), ("request", "ask.json"), ("promote", "hp", "1"),
        ("perf", "--duration", "0.5", "--processes", "2"), ("reload",),
    ):  # fmt: skip
        answered = tfkit(*arguments, "--json")
        assert answered.code == 0, (arguments, answered.err)
    mine_still = os.environ["TFKIT_STATE_DIR"]
    monkeypatch.setenv("TFKIT_STATE_DIR", str(tmp_path / "other"))  # now it is anybody's server
    file.unlink()
    asked = ("status", "--url", url, "--model", "hp", "--timeout", "5")
    bare = tfkit(*asked)
    assert bare.code == 6 and "--ca-file" in bare.err
    half = ("--ca-file", str(server_pair.cert), "--server-name", "models.example")
    unnamed = tfkit(*asked, *half)
    assert unnamed.code == 6 and "--cert and --key" in unnamed.err
    mine = ("--cert", str(client_pair.cert), "--key", str(client_pair.key))
    given = tfkit(*asked, *half, *mine)
    assert given.code == 0, given.err
    wrong_name = tfkit(*asked, *half[:2], *mine)
    assert wrong_name.code == 6 and "--server-name" in wrong_name.err
    monkeypatch.setenv("TFKIT_STATE_DIR", mine_still)


@pytest.mark.parametrize("is_mutual", [False, True])
def test_native_engine_starts_reloads_and_stops_a_server_with_tls(
    shell, tfkit, deployed, authority, server_pair, client_pair, fake_binary, is_mutual
):
    text = ssl_config(server_pair)
    client = ""
    if is_mutual:
        text = ssl_config(server_pair, custom_ca=authority.own.cert, client_verify=True)
        client = f'[client]\ncert = "{client_pair.cert}"\nkey = "{client_pair.key}"\n'
    done = deployed(text, client, "--engine", "native", "--binary", fake_binary())
    assert done.code == 0, done.err
    assert done.data["engine"] == "native" and done.data["grpc"].startswith("grpcs://")
    for arguments in (("status",), ("status", "--url", done.data["grpc"])):
        assert tfkit(*arguments, "--json").data[0]["state"] == "AVAILABLE"
    restarted = shell("restart", "tls", "--json")
    assert restarted.code == 0, restarted.err


def test_certificates_of_the_command_line_are_those_of_the_deployment(
    deployed, authority, server_pair, client_pair, fake_binary
):
    text = ssl_config(server_pair, custom_ca=authority.own.cert, client_verify=True)
    mine = ("--cert", client_pair.cert, "--key", client_pair.key)
    done = deployed(text, "", "--engine", "native", "--binary", fake_binary(), *mine)
    assert done.code == 0, done.err


@pytest.mark.tensorflow
def test_server_with_tls_is_tuned(shell, deployed, server_pair, tmp_path):
    pytest.importorskip("optuna")
    deployed(ssl_config(server_pair))
    done = shell("tune", "--rate", "20", "--quantile", "p50", "--trials", "1", "--duration", "0.5",
                 "--rounds", "0", "--json")  # fmt: skip
    assert done.code == 0, done.err
    assert done.data["candidates"][0]["failure"] == ""


# Headers


@pytest.fixture(params=[grpc_server, rest_server], ids=["grpc", "rest"])
def foreign(request):
    with request.param() as found:
        yield found


def test_headers_come_from_the_command_line_the_environment_and_the_file(
    tfkit, foreign, monkeypatch, tmp_path
):
    url, seen = foreign
    monkeypatch.setenv("TOKEN", SECRET)
    monkeypatch.setenv("TFKIT_HEADERS", "x-env=1\nx-both=env\n")
    (tmp_path / "token").write_text(f"{SECRET}\n")
    (tmp_path / "tfkit.toml").write_text(
        '[client.headers]\nx-file = "file:token"\nx-both = "toml"\n'
    )
    done = tfkit("status", "--url", url, "--model", "m", "--json")
    assert done.code == 0, done.err
    assert (seen[0]["x-env"], seen[0]["x-both"], seen[0]["x-file"]) == ("1", "env", SECRET)
    given = ("--header", "Authorization=env:TOKEN", "--header", "x-eq=a=b", "--header",
             "x-here=file:token")  # fmt: skip
    done = tfkit("status", "--url", url, "--model", "m", *given, "--json")
    assert (seen[1]["authorization"], seen[1]["x-eq"]) == (SECRET, "a=b")
    assert seen[1]["x-here"] == SECRET
    assert SECRET not in done.out + done.err


@pytest.mark.parametrize(
    "header", [f"no-equals-{SECRET}", f"x y={SECRET}", f"x={SECRET}\n", f"content-length={SECRET}"]
)
def test_header_that_cannot_be_sent_is_refused_and_not_told(tfkit, foreign, header):
    url, seen = foreign
    done = tfkit("status", "--url", url, "--model", "m", "--header", header, "--json")
    assert done.code == 2 and not seen
    assert SECRET not in done.out + done.err


def test_headers_do_not_show_in_a_dry_run(tfkit, models, tmp_path):
    (tmp_path / "tfkit.toml").write_text(
        f'[models.m]\nbase_path = "{models / "half_plus_two"}"\n[client.headers]\nx = "{SECRET}"\n'
    )
    for more in ((), ("--json",)):
        for engine in ("embedded", "docker"):
            done = tfkit("serve", "--engine", engine, "--dry-run", *more)
            assert done.code == 0, done.err
            assert SECRET not in done.out + done.err


def test_certificate_without_its_key_is_refused(tfkit):
    done = tfkit("status", "--url", "grpcs://h:1", "--model", "m", "--cert", "c.pem")
    assert done.code == 2 and "--cert and --key belong together" in done.err


def test_tls_that_was_asked_for_is_refused_where_the_address_has_none(tfkit, monkeypatch):
    given = ("status", "--url", "grpc://127.0.0.1:1", "--model", "m", "--timeout", "1")
    asked = tfkit(*given, "--ca-file", "ca.pem")
    assert asked.code == 2 and "does not use TLS" in asked.err
    monkeypatch.setenv("TFKIT_CA_FILE", "ca.pem")  # for those addresses that have it
    assert tfkit(*given).code == 6


# Addresses


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/v1/models/m:predict", "model 'm'"),
        ("/v1/models/m/metadata", "model 'm'"),
        ("/v1/models/m/versions/7", "version 7"),
        ("/v1/models/m/labels/stable", "label 'stable'"),
    ],
)
def test_pasted_url_says_the_model_and_what_was_taken_is_told(tfkit, path, said):
    with rest_server() as (url, _):
        done = tfkit("status", "--url", url + path, "--json")
        assert done.code == 0, done.err
        assert json.loads(done.out)["data"][0]["model"] == "m"
        assert f"From the URL: REST at {url}, model 'm'" in done.err and said in done.err


def test_server_of_another_protocol_is_named_with_the_right_address(tfkit, server_pair):
    server = grpc.server(ThreadPoolExecutor(1))
    secret = (server_pair.key.read_bytes(), server_pair.cert.read_bytes())
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([secret]))
    server.start()
    for scheme in ("grpc", "http", "https"):
        url = f"{scheme}://127.0.0.1:{port}"
        done = tfkit("status", "--url", url, "--model", "m", "--timeout", "5", "--json")
        assert done.code == 6
        if scheme != "https":
            assert done.data["remedy"] == f"write grpcs://127.0.0.1:{port}"
    server.stop(None)
    with rest_server() as (url, _):
        done = tfkit("status", "--url", url.replace("http:", "grpc:"), "--model", "m", "--json")
        assert url in done.data["remedy"]


def test_pasted_url_and_options_that_contradict_it_are_refused(tfkit):
    url = "http://127.0.0.1:1/v1/models/m/versions/7"
    for more in (("--model", "other"), ("--version", "3"), ("--label", "stable")):
        done = tfkit("metadata", "--url", url, *more)
        assert done.code == 2 and "the URL names" in done.err
    done = tfkit("perf", "--url", url)
    assert done.code == 2 and "names version 7" in done.err
