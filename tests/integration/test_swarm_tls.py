"""TLS of replicas: at the gateway for both protocols, or by each; keys are secrets of the swarm."""

import json

import numpy as np
import pytest

from tests.certificates import Authority, ssl_config
from tests.integration import test_swarm
from tests.integration.test_swarm import MODEL
from tfserve_kit import connect
from tfserve_kit.deployment import tls
from tfserve_kit.errors import ServerUnreachable
from tfserve_kit.serving import launch

manager, deployment, start = test_swarm.manager, test_swarm.deployment, test_swarm.start
X = {"x": np.ones(1, np.float32)}


@pytest.fixture
def authority(tmp_path):
    """A private one."""
    return Authority(tmp_path / "ca")


@pytest.fixture
def secured(authority, manager, tmp_path):
    """Make an SSLConfig with a new key for the manager's address: its file and the key."""

    def make(name, **options):
        pair = authority.issue(name, alternative=f"IP:{manager.address}")
        file = tmp_path / f"{name}.txt"
        file.write_text(ssl_config(pair, custom_ca=authority.own.cert, **options))
        return {"flags": {tls.FLAG: str(file)}}, pair.key.read_text()

    return make


def answers(url, **options):
    with connect(url, retries=0, **options) as client:
        return client.predict(MODEL, X, timeout_s=10).outputs["y"].tolist() == [2.5]


def secrets(manager, name):
    found = manager.docker("secret", "ls", "--quiet", "--filter", f"label=tfkit.server={name}")
    return found.split()


def shown(manager, name):
    """Return all that the swarm shows of a server to who may ask it."""
    found = []
    for kind in ("service", "config", "secret"):
        of = manager.docker(kind, "ls", "--quiet", "--filter", f"name=tfkit-{name}").split()
        found += [manager.docker(kind, "inspect", each) for each in of]
    return "".join(found)


def test_gateway_ends_tls_of_both_protocols_and_takes_a_new_certificate(
    deployment, start, secured, authority, manager
):
    wanted, key = secured("first")
    handle = start(deployment(replicas=1, **wanted))
    urls = (handle.endpoints.grpc, handle.endpoints.rest)
    assert [url.partition(":")[0] for url in urls] == ["grpcs", "https"]
    trusting = {"ca_file": authority.own.cert}
    for url in urls:
        assert answers(url, **trusting)
        with pytest.raises(ServerUnreachable, match=r"(?i)certificate|tls|ssl"):
            answers(url)  # the system's authorities do not know ours
        with pytest.raises(ServerUnreachable):
            answers(url.replace("s:", ":", 1))
    assert len(secrets(manager, handle.server_name)) == 1
    assert json.dumps(key)[1:-1] not in shown(manager, handle.server_name)

    wanted, other = secured("second", client_verify=True)
    mine = authority.issue("caller")
    client = {"cert": str(mine.cert), "key": str(mine.key)}
    launch.change(handle, deployment(replicas=1, client=client, **wanted))
    for url in urls:
        assert answers(url, **trusting, cert_file=mine.cert, key_file=mine.key)
        with pytest.raises(ServerUnreachable):
            answers(url, **trusting)  # without a certificate of ours
    # The swarm may still go back to the key of before; one that is older is gone.
    launch.change(handle, deployment(replicas=1, client=client, **secured("third")[0]))
    assert len(secrets(manager, handle.server_name)) == 2
    assert json.dumps(other)[1:-1] not in shown(manager, handle.server_name)


def test_without_a_gateway_each_replica_has_the_key_as_a_secret(
    deployment, start, secured, authority, manager
):
    wanted, key = secured("replica")
    here = {"constraints": ["node.role == manager"]}
    handle = start(deployment(replicas=1, gateway=False, swarm=here, **wanted))
    assert answers(handle.endpoints.grpc, ca_file=authority.own.cert)
    with pytest.raises(ServerUnreachable):
        answers(handle.endpoints.grpc)
    assert len(secrets(manager, handle.server_name)) == 1
    assert json.dumps(key)[1:-1] not in shown(manager, handle.server_name)
