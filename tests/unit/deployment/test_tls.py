"""What an SSLConfig means for tfkit's own clients, told before a server is started."""

import pytest

from tests.certificates import Authority, Pair, ssl_config
from tfserve_kit.deployment import build, tls
from tfserve_kit.deployment.lint import lint
from tfserve_kit.errors import SpecError


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def server(authority):
    return authority.issue("server", alternative="DNS:models.example,IP:10.0.0.1")


@pytest.fixture
def deployment(tmp_path):
    """Make a deployment whose server has the TLS of a text."""

    def make(text, **client):
        (tmp_path / "ssl.txt").write_text(text)
        document = {
            "models": {"m": {"base_path": "m"}},
            "server": {"flags": {"ssl_config_file": "ssl.txt"}},
            "client": {key: str(value) for key, value in client.items()},
        }
        return build(document, source="test", folder=tmp_path)

    return make


def test_server_without_tls_has_none(tmp_path):
    plain = build({"models": {"m": {"base_path": "m"}}}, source="t", folder=tmp_path)
    assert tls.of_deployment(plain) is None


@pytest.mark.parametrize(
    ("alternative", "name"),
    [
        ("DNS:models.example,DNS:other", "models.example"),
        ("DNS:*.example", "tfkit.example"),
        ("IP:10.0.0.1", "10.0.0.1"),
        ("", "named"),
    ],
)
def test_name_is_one_that_the_certificate_has(authority, deployment, alternative, name):
    pair = authority.issue("named", alternative=alternative)
    found = tls.of_deployment(deployment(ssl_config(pair)))
    assert found == (pair.cert.read_text(), name)


def test_certificate_of_the_client_is_tried_against_what_the_server_trusts(
    authority, server, deployment, tmp_path
):
    text = ssl_config(server, custom_ca=authority.own.cert, client_verify=True)
    client = authority.issue("client")
    good = deployment(text, cert=client.cert, key=client.key)
    assert tls.of_deployment(good)[1] == "models.example"
    with pytest.raises(SpecError, match="tfkit has no certificate to show"):
        tls.of_deployment(deployment(text))
    stranger = Authority(tmp_path / "other", "other").issue("client")
    with pytest.raises(SpecError, match=r"handshake that the server rejects.*custom_ca"):
        tls.of_deployment(deployment(text, cert=stranger.cert, key=stranger.key))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda text: "", "without server_key"),
        (lambda text: text.replace("server_cert", "server_crt"), "which is not an SSLConfig"),
        (lambda text: text.replace("CERTIFICATE", "LETTER"), "cannot be used"),
        (lambda text: "\udcff", "cannot be read"),
    ],
)
def test_file_that_is_of_no_use_is_named_and_no_key_is_told(
    server, deployment, tmp_path, spoil, said
):
    deployed = deployment("x")
    text = spoil(ssl_config(server))
    (tmp_path / "ssl.txt").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(SpecError) as caught:
        tls.of_deployment(deployed)
    assert said in str(caught.value)
    assert caught.value.problems[0].path == "server.flags.ssl_config_file"
    assert not any(line in str(caught.value) for line in server.key.read_text().splitlines()[1:-1])


def test_key_of_another_certificate_is_told(authority, server, deployment):
    mixed = Pair(server.cert, authority.own.key)
    with pytest.raises(SpecError, match="server_cert and server_key cannot be used"):
        tls.of_deployment(deployment(ssl_config(mixed)))


def test_authority_that_did_not_sign_is_told(server, deployment, tmp_path):
    other = Authority(tmp_path / "other")
    with pytest.raises(SpecError, match="handshake that tfkit rejects"):
        tls.of_deployment(deployment(ssl_config(server), ca_file=other.own.cert))


def test_authority_that_signed_is_as_good_as_the_certificate(authority, server, deployment):
    assert tls.of_deployment(deployment(ssl_config(server), ca_file=authority.own.cert))


def test_name_that_the_certificate_has_not_is_told(server, deployment):
    assert tls.of_deployment(deployment(ssl_config(server), server_name="models.example"))
    with pytest.raises(SpecError, match=r"wrong.example.*set server_name"):
        tls.of_deployment(deployment(ssl_config(server), server_name="wrong.example"))


def test_file_that_only_the_server_sees_is_fine_where_the_client_knows_enough(
    authority, deployment, tmp_path
):
    deployed = deployment("", ca_file=authority.own.cert, server_name="models.example")
    (tmp_path / "ssl.txt").unlink()
    assert tls.of_deployment(deployed) is None


def test_lint_says_what_a_launch_would_stumble_over(server, deployment):
    names = {each.rule for each in lint(deployment(ssl_config(server)))}
    assert not names & {"tls-unusable", "rest-stays-plain"}
    assert "tls-unusable" in {each.rule for each in lint(deployment(""))}


def test_lint_warns_of_plain_rest_that_others_can_reach(server, deployment):
    deployed = deployment(ssl_config(server))
    wide = deployed.server.model_copy(update={"host": "0.0.0.0"})
    names = {each.rule for each in lint(deployed.model_copy(update={"server": wide}))}
    assert "rest-stays-plain" in names
