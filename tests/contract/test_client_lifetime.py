"""A client from its first use to its end: after close, in other event loops, in forked children."""

import asyncio
import os

import numpy as np
import pytest

from tests.contract import lying_servers
from tests.contract.blocking import Blocking
from tests.contract.lying_servers import ANSWER, Liar, http, says
from tfserve_kit import connect, connect_async
from tfserve_kit.errors import UsageError

MODEL, INPUTS = "half_plus_two", {"x": np.float32([1])}
TRUTH = lying_servers.tensor(
    'outputs { key: "y" value { dtype: DT_FLOAT float_val: 1.5 tensor_shape { dim { size: 1 } } } }'
)


@pytest.fixture(params=["grpc", "rest"])
def url(request):
    """A server of each protocol that tells the truth."""
    if request.param == "grpc":
        with lying_servers.grpc_liar(TRUTH) as url:
            yield url
        return
    server = Liar(says(http(ANSWER)))
    yield server.url
    server.close()


def predicted(client):
    return client.predict(MODEL, INPUTS, timeout_s=10).outputs["y"].tolist()


@pytest.mark.parametrize("method", ["predict", "metadata", "status"])
def test_use_after_close_says_so_and_what_to_do(url, twin, method):
    with twin(url) as client:
        assert predicted(client) == [1.5]
        client.close()
        arguments = (MODEL, INPUTS) if method == "predict" else (MODEL,)
        with pytest.raises(UsageError, match="is closed") as caught:
            getattr(client, method)(*arguments)
    assert "connect" in caught.value.remedy


def test_close_is_repeatable_and_needs_no_use(url, twin):
    with twin(url) as client:
        client.close()
        client.close()


def test_client_of_another_event_loop_says_so(url):
    with Blocking(url) as client:
        assert predicted(client) == [1.5]

        async def elsewhere():
            with pytest.raises(UsageError, match="another event loop"):
                await client._client.predict(MODEL, INPUTS)

        asyncio.run(elsewhere())


def in_a_child(work):
    """Run a function in a forked child, and return whether it returned something true."""
    child = os.fork()
    if not child:
        code = 1
        try:
            code = 0 if work() else 1
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1] == 0


def test_forked_child_and_its_parent_both_go_on_with_one_client():
    server = Liar(says(http(ANSWER)))
    try:
        with connect(server.url, retries=0) as client:
            assert predicted(client) == [1.5]
            assert in_a_child(lambda: predicted(client) == [1.5])
            assert predicted(client) == [1.5]
        assert server.connections == 2  # one each: answers to one cannot reach the other
    finally:
        server.close()


def test_tasks_that_use_a_client_first_at_once_share_it(url):
    async def all_at_once():
        async with connect_async(url) as client:
            found = await asyncio.gather(*(client.predict(MODEL, INPUTS) for _ in range(20)))
        return [each.outputs["y"].tolist() for each in found]

    assert asyncio.run(all_at_once()) == [[1.5]] * 20
