"""Calls over a fleet of made-up transports: who is asked next, what is repeated, what is told."""

import asyncio
import gc
import os
import threading
import time
import weakref

import grpc
import pytest

from tests.contract import lying_servers
from tests.contract.lying_servers import ANSWER, Liar, http, says
from tests.unit.clients.scripts import FakeClock, failed, lost
from tfserve_kit import connect, connect_async
from tfserve_kit.clients import addresses
from tfserve_kit.clients.addresses import Address
from tfserve_kit.clients.fleet import Fleet, FleetAttempts
from tfserve_kit.clients.grpc import GrpcProtocol
from tfserve_kit.clients.options import Options
from tfserve_kit.clients.protocol import Exchange, GrpcRequest, HttpRequest, Loss, Reply
from tfserve_kit.clients.rest import RestProtocol
from tfserve_kit.clients.results import Target
from tfserve_kit.clients.sync import run
from tfserve_kit.errors import (
    InvalidRequest,
    ServerFault,
    ServerOverloaded,
    ServerUnreachable,
    UsageError,
)

GOOD = Reply(True, b"good")
AWAY = failed("UNAVAILABLE", "connection refused")
CALL = Exchange(GrpcRequest("Predict", b""), lambda body: body.decode(), Target("m"))
GRPC = tuple(f"grpc://{name}:1" for name in "abc")
REST = tuple(f"http://{name}:1" for name in "abc")


class Transport:
    """Answers with what `outcome` is at the time; notes what happens to it."""

    def __init__(self, url, outcomes):
        self.url, self._outcomes, self.ends = url, outcomes, []

    def send(self, request, timeout_s):
        outcome = self._outcomes.get(self.url, GOOD)
        return outcome(request) if callable(outcome) else outcome

    def start(self, request, timeout_s, done):
        done(self.send(request, timeout_s))
        return lambda: self.ends.append("called off")

    def close(self):
        self.ends.append("closed")

    def abandon(self):
        self.ends.append("abandoned")


class QuietFleet(Fleet):
    """A fleet whose keeper is the test."""

    def _begin_keeping(self):
        pass

    def _look_up(self, done):
        done(self._resolve_names())


class Calls:
    """A fleet of made-up replicas, and calls to it."""

    def __init__(self, urls=GRPC, protocol=GrpcProtocol, **options):
        self.clock, self.outcomes, self.made = FakeClock(), {}, []
        members = addresses.read(",".join(urls)).members
        self.fleet = QuietFleet(members, self._made, protocol, self.clock)
        self._attempts = FleetAttempts(
            self.fleet, Options(**options), self.clock, chance=lambda: 1.0
        )

    def _made(self, url, source):
        self.made.append(Transport(url, self.outcomes))
        return self.made[-1]

    def call(self, call=CALL):
        deadline = self._attempts.deadline(30.0)
        answer = run(self._attempts.call(call, deadline), self.fleet, self.clock)
        return answer, deadline.replica

    def error(self, kind, call=CALL):
        with pytest.raises(kind) as caught:
            self.call(call)
        return caught.value


def test_answer_says_which_replica_it_is_from():
    calls = Calls()
    assert {calls.call() for _ in range(60)} == {("good", url) for url in GRPC}


@pytest.mark.parametrize(
    "outcome",
    [AWAY, lost(Loss.UNSENT), lost(Loss.BROKEN), failed("UNAVAILABLE", "the server is stopping")],
)
def test_call_that_fails_goes_to_another_replica_at_once(outcome):
    calls = Calls()
    protocol = RestProtocol if not isinstance(outcome, Reply) else GrpcProtocol
    calls = Calls(REST if protocol is RestProtocol else GRPC, protocol)
    first, second, third = calls.fleet.url.split(",")
    calls.outcomes |= {first: outcome, second: outcome}
    assert {calls.call() for _ in range(60)} == {("good", third)}
    assert calls.clock.time_s == 100.0


@pytest.mark.parametrize("status", ["502", "503"])
def test_replica_behind_which_nothing_answers_is_left_out_over_rest(status):
    calls = Calls(REST, RestProtocol)
    calls.outcomes[REST[0]] = failed(status, "Service Unavailable")
    request = CALL._replace(request=HttpRequest("POST", "/v1/models/m:predict", b""))
    assert {calls.call(request) for _ in range(60)} == {("good", url) for url in REST[1:]}
    assert [each.is_out for each in calls.fleet.rotation.replicas] == [True, False, False]


def test_failing_over_takes_nothing_from_the_budget_of_retries():
    calls = Calls(retry_share=0.0)
    calls.outcomes[GRPC[0]] = AWAY
    for _ in range(100):
        assert calls.call()[0] == "good"
        calls.fleet.rotation.told(
            calls.fleet.rotation.replicas[0], is_alive=True, asked_s=calls.clock.now_s()
        )


def test_no_retries_means_none_to_another_replica_either():
    calls = Calls(retries=0)
    calls.outcomes |= dict.fromkeys(GRPC, AWAY)
    assert "1 of 3 replicas tried" in calls.error(ServerUnreachable).message


def test_what_may_have_been_done_is_not_sent_elsewhere_where_that_does_harm():
    calls = Calls(REST, RestProtocol, idempotent=False)
    calls.outcomes |= dict.fromkeys(REST, lost(Loss.BROKEN))
    assert "1 of 3 replicas tried" in calls.error(ServerUnreachable).message
    calls.outcomes |= dict.fromkeys(REST, lost(Loss.UNSENT))
    calls.outcomes[REST[2]] = GOOD
    assert calls.call() == ("good", REST[2])


def test_refusal_names_the_replica_and_is_not_repeated():
    calls = Calls()
    calls.outcomes |= dict.fromkeys(GRPC, failed("INVALID_ARGUMENT", "no"))
    error = calls.error(InvalidRequest)
    assert sum(url in error.message for url in GRPC) == 1
    assert "(1 of 3 replicas tried)" in error.message


def test_where_all_are_down_the_error_has_each_address_and_its_reason():
    calls = Calls()
    calls.outcomes |= {url: failed("UNAVAILABLE", f"reason {url[-3]}") for url in GRPC}
    error = calls.error(ServerUnreachable)
    assert error.message.startswith("none of the 3 replicas answers: ")
    assert all(f"{url}: reason {url[-3]}" in error.message for url in GRPC)
    assert "tfkit serve" in error.remedy
    calls.outcomes[GRPC[1]] = GOOD  # those left out are tried nevertheless
    assert calls.call() == ("good", GRPC[1])


def test_status_is_asked_of_another_replica_where_one_is_away_but_not_twice_of_one():
    probe = CALL._replace(is_probe=True)
    calls = Calls()
    calls.outcomes |= dict.fromkeys(GRPC[:2], AWAY)
    assert calls.call(probe) == ("good", GRPC[2])
    calls.outcomes[GRPC[2]] = AWAY
    calls.error(ServerUnreachable, probe)
    assert calls.clock.time_s == 100.0


def test_full_replica_counts_as_alive_and_takes_from_the_budget():
    calls = Calls(retry_share=0.0)
    calls.outcomes |= dict.fromkeys(GRPC, failed("RESOURCE_EXHAUSTED", "full"))
    calls.error(ServerOverloaded)
    assert not any(each.is_out for each in calls.fleet.rotation.replicas)


def test_unreadable_answer_names_the_replica_it_is_from():
    def read(body):
        raise ServerFault(f"{','.join(GRPC)} sent an unreadable answer")

    assert GRPC[1] not in Calls(GRPC[:1] + GRPC[2:]).fleet.url
    message = Calls().error(ServerFault, CALL._replace(read=read)).message
    assert sum(message.startswith(url + " ") for url in GRPC) == 1


def test_hedged_call_goes_to_another_replica_the_second_time():
    calls = Calls(hedge_after_s=0.01)
    asked = []

    class Slow(Transport):
        def start(self, request, timeout_s, done):
            asked.append(self.url)
            if len(asked) == 2:
                done(GOOD)
            return lambda: None

    for each in calls.fleet.rotation.replicas:
        each.transport = Slow(each.url, {})
    assert calls.call() == ("good", asked[1])
    assert asked[0] != asked[1]
    assert [each.outstanding for each in calls.fleet.rotation.replicas] == [0, 0, 0]


def test_silent_replica_is_given_up_and_its_calls_go_elsewhere():
    calls = Calls()
    silent = []

    def answer(request):
        if request.method != "Predict":
            return failed("DEADLINE_EXCEEDED")
        silent.append(calls.made[0])
        calls.clock.sleep(1.0)
        calls.fleet.tick()
        assert calls.made[0].ends == ["abandoned"]  # which ends the wait:
        return failed("CANCELLED", "Channel closed!")

    calls.outcomes[GRPC[0]] = answer
    for _ in range(60):
        assert calls.call()[0] == "good"
    assert len(silent) == 1
    assert [each.url for each in calls.made] == [*GRPC, GRPC[0]]
    del calls.outcomes[GRPC[0]]
    calls.clock.sleep(2.0)
    calls.fleet.tick()
    assert not any(each.is_out for each in calls.fleet.rotation.replicas)


def test_rest_server_is_asked_for_anything_while_it_is_silent_and_for_status_to_come_back():
    calls = Calls(REST, RestProtocol)
    asked = []

    def answer(request):
        asked.append(request.path)
        return lost(Loss.LATE)

    calls.outcomes |= dict.fromkeys(REST, answer)
    calls.fleet.take(Target("m"))
    calls.clock.sleep(1.0)
    calls.fleet.tick()
    calls.clock.sleep(1.0)
    calls.fleet.tick()
    assert asked == ["/", "/v1/models/m"]


def test_page_of_a_proxy_is_a_sign_of_life_but_does_not_bring_a_replica_back():
    calls = Calls(REST, RestProtocol)
    replica = calls.fleet.rotation.replicas[0]
    while calls.fleet.take(Target("m")) is not replica:
        pass
    calls.outcomes |= dict.fromkeys(REST, failed("503", "Service Unavailable"))
    calls.clock.sleep(1.0)
    calls.fleet.tick()
    assert not replica.is_out
    calls.fleet.rotation.gave(replica, is_alive=False)
    calls.clock.sleep(1.0)
    calls.fleet.tick()
    assert replica.is_out


def test_without_threads_to_be_had_calls_go_on_and_nobody_is_blamed(monkeypatch):
    def none(*_):
        raise RuntimeError("can't start new thread")

    calls = Calls()
    monkeypatch.setattr(calls.fleet, "_begin_keeping", none)
    assert calls.call()[0] == "good"
    for each in calls.fleet.rotation.replicas:
        each.transport.start = none
    silent = calls.fleet.take(Target("m"))
    calls.clock.sleep(1.0)
    assert calls.fleet.tick()
    assert not silent.is_out and not silent.asked


def test_nothing_is_kept_up_for_a_client_that_nobody_uses():
    calls = Calls()
    calls.outcomes[GRPC[0]] = AWAY
    for _ in range(3):
        calls.call()
    assert calls.fleet.tick()
    calls.clock.sleep(9.0)
    assert calls.fleet.tick()
    calls.clock.sleep(2.0)
    assert not calls.fleet.tick()


def test_reload_is_refused_for_a_fleet():
    with connect(GRPC) as client, pytest.raises(UsageError, match="is for one server") as caught:
        client.reload(None)
    assert "each replica alone" in caught.value.remedy


class TestNames:
    @pytest.fixture
    def behind(self, monkeypatch):
        """What the name resolves to; None for nothing."""
        found = {"urls": list(GRPC[:2])}

        def resolved(address):
            if found["urls"] is None:
                raise OSError("Name or service not known")
            return list(found["urls"])

        monkeypatch.setattr(addresses, "resolved", resolved)
        return found

    @pytest.fixture
    def calls(self, behind):
        return Calls(["dns:///models:8500"])

    def test_name_is_resolved_by_the_first_call(self, calls):
        assert calls.made == []
        assert {calls.call()[1] for _ in range(40)} == set(GRPC[:2])

    def test_replicas_that_join_and_leave_are_noticed_without_a_leak(self, calls, behind):
        calls.call()
        behind["urls"] = list(GRPC[1:])
        calls.clock.sleep(11.0)
        calls.fleet.tick()
        assert {calls.call()[1] for _ in range(40)} == set(GRPC[1:])
        calls.fleet.tick()
        assert set(calls.fleet._sources) == {"dns:///models:8500", *GRPC[1:]}
        assert [(each.url, each.ends) for each in calls.made] == [
            (GRPC[0], ["abandoned"]), (GRPC[1], []), (GRPC[2], []),
        ]  # fmt: skip

    def test_replica_that_leaves_may_finish_its_calls(self, calls, behind):
        calls.call()
        slow = calls.fleet.take(Target("m"))
        behind["urls"] = [url for url in GRPC if url != slow.url]
        calls.clock.sleep(11.0)
        calls.fleet.tick()
        calls.fleet.tick()
        assert slow.transport.ends == []
        slow.outstanding -= 1
        calls.fleet.tick()
        assert slow.transport.ends == ["abandoned"]

    def test_replicas_stay_while_the_name_cannot_be_resolved(self, calls, behind):
        calls.call()
        behind["urls"] = None
        calls.clock.sleep(11.0)
        calls.fleet.tick()
        assert calls.call()[0] == "good"

    def test_replica_that_fails_has_the_name_resolved_again_soon(self, calls, behind):
        calls.call()
        calls.outcomes[GRPC[0]] = calls.outcomes[GRPC[1]] = AWAY
        behind["urls"] = [GRPC[2]]
        calls.error(ServerUnreachable)
        calls.clock.sleep(1.1)
        calls.fleet.tick()
        assert calls.call() == ("good", GRPC[2])

    def test_name_that_cannot_be_resolved_says_so(self, calls, behind):
        behind["urls"] = None
        error = calls.error(ServerUnreachable)
        assert "dns:///models:8500" in error.message
        assert "Name or service not known" in error.message
        assert "check the name" in error.remedy

    @pytest.mark.parametrize(
        ("text", "host", "url"),
        [
            ("dns:///localhost:8500", "localhost", "grpc://127.0.0.1:8500"),
            ("dns+grpcs://localhost:8500", "localhost", "grpcs://127.0.0.1:8500"),
            ("dns+http://localhost:8501", "localhost", "http://127.0.0.1:8501"),
            ("dns+https://localhost/serving", "localhost", "https://127.0.0.1:443/serving"),
        ],
    )
    def test_system_resolves_names_of_each_scheme(self, text, host, url):
        assert url in addresses.resolved(addresses.read(text))


@pytest.mark.parametrize(
    ("name", "options", "server_name", "host"),
    [
        ("dns+grpcs://models:8500", {}, "models", None),
        ("dns+grpcs://models:8500", {"server_name": "other"}, "other", None),
        ("dns+https://models:8501/prefix", {}, "models", "models:8501"),
        ("dns+http://models:8501", {"headers": {"host": "other"}}, None, "other"),
        ("dns:///models:8500", {}, None, None),
    ],
)
def test_replica_behind_a_name_must_be_of_that_name(monkeypatch, name, options, server_name, host):
    made = []

    def transport(url, options, **more):
        made.append((url, options))
        return Transport(url, {})

    from tfserve_kit.clients import grpc_channel, http_transport

    monkeypatch.setattr(grpc_channel, "GrpcTransport", transport)
    monkeypatch.setattr(http_transport, "HttpTransport", transport)
    monkeypatch.setattr(addresses, "resolved", lambda address: ["scheme://10.0.0.1:1"])
    with connect(name, **options) as client:
        client._transport._resolve_names()
    ((url, used),) = made
    assert url == "scheme://10.0.0.1:1"
    assert used.server_name == server_name
    headers = {key.lower(): value for key, value in used.headers.items()}
    assert headers.get("host") == host


@pytest.mark.parametrize(
    ("given", "url"),
    [
        (["grpc://a:1", "grpc://b:2"], "grpc://a:1,grpc://b:2"),
        ("grpc://a:1,grpc://b:2", "grpc://a:1,grpc://b:2"),
        ("grpc://a:1, grpc://b:2", "grpc://a:1,grpc://b:2"),
        (["grpc://a:1"], "grpc://a:1"),
        (["grpc://a:1", "grpc://a:1"], "grpc://a:1"),
        ("dns:///models:8500", "dns:///models:8500"),
        ("dns+http://models:8501", "dns+http://models:8501"),
        (["unix:/a", "unix:/b"], "unix:/a,unix:/b"),
    ],
)
def test_fleets_are_written_as_lists_with_commas_or_as_names(given, url):
    with connect(given) as client:
        assert client.url == url


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "not the address"),
        (["grpc://a:1", "http://a:1"], "same scheme"),
        (["grpc://a:1", "grpcs://a:1"], "same scheme"),
        (["grpc://a:1", "localhost:8500"], "protocol"),
        ("dns://8.8.8.8/models:8500", "write dns:///models:8500, and name that server in"),
        ("dns://u:pw@8.8.8.8:53/models:8500", "cannot be told to ask 8.8.8.8:53\n"),
        ("dns://models:8500", "dns:///host:8500"),
        ("dns:///models", "no default port"),
        ("dns+ftp://models:1", "dns:///host:8500"),
    ],
)
def test_what_is_no_fleet_is_refused_with_the_form_that_is(given, words):
    with pytest.raises(UsageError) as caught:
        connect(given)
    assert words in str(caught.value)


class TestRealConnections:
    """Servers of the tests behind real clients."""

    @pytest.fixture
    def servers(self):
        found = [Liar(says(http(ANSWER))) for _ in range(2)]
        yield [each.url for each in found]
        for each in found:
            each.close()

    @staticmethod
    def threads():
        return [each for each in threading.enumerate() if each.name.startswith("tfkit fleet")]

    @staticmethod
    def soon(condition):
        end_s = time.monotonic() + 5
        while not (is_so := condition()) and time.monotonic() < end_s:
            time.sleep(0.01)
        return is_so

    def predicted(self, client):
        return client.predict("m", {"x": [1.0]}, timeout_s=10).replica

    def test_forked_child_and_its_parent_both_go_on(self, servers):
        with connect(servers) as client:
            assert {self.predicted(client) for _ in range(40)} == set(servers)
            child = os.fork()
            if not child:
                code = 1
                try:
                    code = {self.predicted(client) for _ in range(40)} != set(servers)
                finally:
                    os._exit(code)
            assert os.waitpid(child, 0)[1] == 0
            assert {self.predicted(client) for _ in range(40)} == set(servers)

    def test_close_ends_all(self, servers):
        assert self.soon(lambda: not self.threads())
        with connect(servers) as client:
            self.predicted(client)
            assert len(self.threads()) == 1
        assert self.soon(lambda: not self.threads())
        with pytest.raises(UsageError, match="is closed"):
            self.predicted(client)

    def test_client_that_is_forgotten_is_not_kept_alive(self, servers):
        client = connect(servers)
        self.predicted(client)
        seen = weakref.ref(client._transport)
        for each in client._transport.rotation.replicas:
            each.transport.close()  # or Python complains of sockets
        del each, client
        assert self.soon(lambda: gc.collect() is not None and seen() is None)

    def test_async_client_leaves_no_task(self, servers):
        async def main():
            async with connect_async(servers) as client:
                found = {(await client.predict("m", {"x": [1.0]})).replica for _ in range(40)}
            return found, len(asyncio.all_tasks())

        assert asyncio.run(main()) == (set(servers), 1)

    def test_many_threads_share_a_fleet(self, servers):
        seen = []
        with connect(servers) as client:
            workers = [
                threading.Thread(
                    target=lambda: seen.extend(self.predicted(client) for _ in range(50))
                )
                for _ in range(8)
            ]
            for each in workers:
                each.start()
            for each in workers:
                each.join()
            assert sum(each.outstanding for each in client._transport.rotation.replicas) == 0
        assert len(seen) == 400 and set(seen) == set(servers)

    def test_slow_replica_that_is_alive_is_waited_for(self):
        def lie(liar, connection):
            time.sleep(1.5)
            connection.sendall(http(ANSWER))

        slow = [Liar(lie) for _ in range(2)]
        with connect([each.url for each in slow]) as client:
            assert self.predicted(client)
            assert not any(each.is_out for each in client._transport.rotation.replicas)
        assert sum(len(each.requests) for each in slow) == 1
        for each in slow:
            each.close()

    def test_replica_that_answers_unavailable_costs_no_call(self):
        truth = lying_servers.tensor(
            'outputs { key: "y" value { dtype: DT_FLOAT float_val: 1.5 '
            "tensor_shape { dim { size: 1 } } } }"
        )
        with (
            lying_servers.grpc_liar(truth) as good,
            lying_servers.grpc_liar(grpc.StatusCode.UNAVAILABLE) as bad,
            connect([good, bad], check=False) as client,
        ):
            assert {self.predicted(client) for _ in range(300)} == {good}


def test_addresses_of_a_fleet_are_not_looked_into_for_other_protocols():
    assert addresses.other_protocol(Address("grpc://a:1,grpc://b:1")) is None
