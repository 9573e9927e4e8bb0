"""A fleet: several servers of the same models, of which each call takes one.

`rotation.py` says which one. Here requests are sent by it, and again to another replica where that
is safe; beside them, while there are any, silent replicas are asked whether they live and names are
resolved anew.

Why not by grpc's own balancing: docs/adr/0011-own-balancing.md.
"""

import asyncio
import os
import queue
import threading
import time
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from tfserve_kit.clients import addresses, server_messages
from tfserve_kit.clients.addresses import Address
from tfserve_kit.clients.options import Options
from tfserve_kit.clients.protocol import (
    Attempts,
    Deadline,
    Exchange,
    Flow,
    Loss,
    Lost,
    Outcome,
    Reply,
    Send,
    ServerProtocol,
    Sleep,
)
from tfserve_kit.clients.results import Target
from tfserve_kit.clients.rotation import PROBE_S, Member, Rotation
from tfserve_kit.clock import Clock, SystemClock
from tfserve_kit.errors import RequestError, ServerUnreachable, UsageError
from tfserve_kit.http.messages import HttpRequest

T = TypeVar("T")

_TICK_S = 0.05
# How long nothing must be asked for the keeper to end; the next request starts another.
_IDLE_S = 10.0
# How often names are resolved: as a rule, and while a replica is left out.
_LOOK_UP_S, _LOOK_UP_SOON_S = 10.0, 1.0
_MOST_READ = 4000
_NOBODY = "no model server answers at "


class Fleet:
    """The replicas of a fleet and the connections to them. Thread-safe.

    Args:
        members: addresses of the replicas, or names to be resolved.
        connect: given a URL and the address it is from, returns a transport.
        protocol: given a URL, returns the protocol, which names the URL in errors.
        clock: what time is measured with.

    Attributes:
        url: all addresses, as they were given.
        rotation: which replica is next.
    """

    def __init__(
        self,
        members: Sequence[Address],
        connect: Callable[[str, Address], Any],
        protocol: Callable[[str], ServerProtocol],
        clock: Clock | None = None,
    ) -> None:
        self.url = ",".join(each.url for each in members)
        self._clock, self._connect, self.protocol_at = clock or SystemClock(), connect, protocol
        self._sources: dict[str, Address] = {each.url: each for each in members}
        self._names = [each for each in members if each.is_name]
        self._behind: dict[str, list[str]] = {
            each.url: [] if each.is_name else [each.url] for each in members
        }
        self.rotation = Rotation(self._urls(), self._clock, self._transport)
        self._leaving: list[Member] = []
        self.about: Target | None = None
        self._is_closed = self._is_kept = self._is_used = self._is_looking = False
        self._looked_s = self._used_s = -_IDLE_S
        self._lock, self._process = threading.Lock(), os.getpid()

    # For calls

    @property
    def has_replicas(self) -> bool:
        """Whether an address is known; for names, one must have been resolved."""
        return bool(self.rotation.replicas)

    def take(self, about: Target, tried: Sequence[Member] = ()) -> Member:
        """Return the replica for a request about a model; see `Rotation.take`."""
        if self._process != os.getpid():
            self._begin_anew()
        self.about = about
        with self._lock:
            self._is_used = True
            is_kept, self._is_kept = self._is_kept, True
        if not is_kept:
            try:
                self._begin_keeping()
            except RuntimeError:  # no thread can be had now; the next call tries again
                self._is_kept = False
        return self.rotation.take(tried)

    def send(self, request: Any, timeout_s: float) -> Outcome:
        """Resolve the names; `request` is none. See `Transport.send`."""
        del request
        done: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        self._look_up(done.put)
        try:
            return done.get(timeout=timeout_s)
        except queue.Empty:
            return Lost(Loss.LATE, "the time is up")

    def close(self) -> None:
        """Close the connections to all replicas."""
        self._is_closed = True
        for replica in (*self.rotation.replicas, *self._leaving):
            replica.transport.close()

    # Beside calls

    def tick(self) -> bool:
        """Do what is due beside the calls; return False once there is nothing more to do."""
        now_s = self._clock.now_s()
        for replica in self.rotation.to_ask():
            try:
                self._ask(replica)
            except RuntimeError:  # no thread can be had now, which says nothing of the replica
                self.rotation.told(replica, is_alive=not replica.is_out, asked_s=now_s)
        gone = [each for each in self._leaving if not each.outstanding]
        self._leaving = [each for each in self._leaving if each.outstanding]
        for replica in gone:
            self._discard(replica.transport)
        if self._names and not self._is_looking and now_s >= self._next_look_s():
            with suppress(RuntimeError):
                self._look_up(lambda _: None)
        with self._lock:
            if self._is_used or any(each.outstanding for each in self.rotation.replicas):
                self._is_used, self._used_s = False, now_s
            self._is_kept = not self._is_closed and now_s - self._used_s < _IDLE_S
            return self._is_kept

    def gave(self, sent: "_Sent") -> None:
        """Note what came of a request; nothing is as good as a caller that stopped waiting."""
        is_alive = None
        if sent.outcome is not None and not sent.is_given_up:
            is_alive = self.is_sign_of_life(sent.outcome)
        self.rotation.gave(sent.replica, is_alive=is_alive)

    def told(self, replica: Member, transport: Any, asked_s: float, outcome: Outcome) -> None:
        """Note the answer to a probe; give up the connections of a replica that gives none.

        One that was only silent is alive if it speaks HTTP at all, whatever it says to `/`.
        """
        speaks = isinstance(outcome, Reply) and outcome.status.isdigit() and not replica.is_out
        is_alive = speaks or bool(self.is_sign_of_life(outcome))
        if self.rotation.told(replica, is_alive=is_alive, asked_s=asked_s):
            if not self._is_closed and replica.url in self._sources:
                replica.transport = self._transport(replica.url)
            self._discard(transport)

    @staticmethod
    def is_sign_of_life(outcome: Outcome) -> bool | None:
        """Say whether an outcome shows that the replica lives; None where it shows neither."""
        if outcome.ok:
            return True
        if isinstance(outcome, Lost):
            return None if outcome.how is Loss.LATE else outcome.how is Loss.TOO_LARGE
        if outcome.status in {"DEADLINE_EXCEEDED", "CANCELLED"}:
            return None
        return not _is_away(outcome)

    def _ask(self, replica: Member) -> None:
        """Send a probe: any answer will do."""
        transport, asked_s = replica.transport, self._clock.now_s()
        done = partial(self.told, replica, transport, asked_s)
        transport.start(self._probe(replica), PROBE_S, done)

    def _probe(self, replica: Member) -> Any:
        """Return a question that a server answers at once; a silent one over REST need not work.

        All threads that answer REST may be busy, and status would wait for one of them; gRPC
        servers refuse what they have no thread for.
        """
        request = self.protocol_at(self.url).status(self.about or Target("")).request
        if isinstance(request, HttpRequest) and not replica.is_out:
            return request._replace(path="/")
        return request

    def _begin_keeping(self) -> None:
        threading.Thread(
            target=_keep, args=(weakref.ref(self),), name="tfkit fleet", daemon=True
        ).start()

    def _discard(self, transport: Any) -> None:
        transport.abandon()

    def _look_up(self, done: Callable[[Outcome], None]) -> None:
        threading.Thread(target=lambda: done(self._resolve_names()), daemon=True).start()

    def _resolve_names(self) -> Outcome:
        """Resolve the names, and have the replicas that are behind them."""
        self._is_looking = True
        failure: OSError | None = None
        for name in self._names:
            try:
                self._behind[name.url] = addresses.resolved(name)
            except OSError as error:  # what was known of it stays
                failure = error
        found = {url: each for each in self._names for url in self._behind[each.url]}
        self._sources = {
            url: each for url, each in self._sources.items() if each.url == url
        } | found
        with self._lock:
            if not self._is_closed and (urls := self._urls()):
                self._leaving += self.rotation.update(urls)
        self._looked_s, self._is_looking = self._clock.now_s(), False
        if failure is None or self.has_replicas:
            return Reply(True, b"")
        return Lost(Loss.UNSENT, f"the name cannot be resolved: {failure}", failure)

    def _next_look_s(self) -> float:
        is_whole = not any(each.is_out for each in self.rotation.replicas)
        return self._looked_s + (_LOOK_UP_S if is_whole else _LOOK_UP_SOON_S)

    def _urls(self) -> list[str]:
        return [url for found in self._behind.values() for url in found]

    def _transport(self, url: str) -> Any:
        return self._connect(url, self._sources[url])

    def _begin_anew(self) -> None:
        """Go on in a forked child, where no thread is left, and the parent's locks may be held."""
        self._lock, self._process = threading.Lock(), os.getpid()
        self._is_kept = self._is_looking = False
        self.rotation.begin_anew()


class AsyncFleet(Fleet):
    """The replicas of a fleet, for one event loop; the twin of `Fleet`."""

    _tasks: set["asyncio.Task[Any]"]

    async def send(self, request: Any, timeout_s: float) -> Outcome:  # type: ignore[override]
        """Resolve the names; see `Fleet.send`."""
        del request
        found: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

        def done(outcome: Outcome) -> None:
            if not found.done():
                found.set_result(outcome)

        self._look_up(done)
        try:
            return await asyncio.wait_for(found, timeout_s)
        except TimeoutError as error:
            return Lost(Loss.LATE, "the time is up", error)

    async def close(self) -> None:  # type: ignore[override]
        """Close the connections to all replicas."""
        self._is_closed = True
        for task in (tasks := tuple(self.__dict__.get("_tasks", ()))):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for replica in (*self.rotation.replicas, *self._leaving):
            await replica.transport.close()

    def _begin_keeping(self) -> None:
        self._begin(self._keep())

    async def _keep(self) -> None:
        while self.tick():
            await asyncio.sleep(_TICK_S)

    def _ask(self, replica: Member) -> None:
        transport, asked_s = replica.transport, self._clock.now_s()

        async def ask() -> None:
            outcome = await transport.send(self._probe(replica), PROBE_S)
            self.told(replica, transport, asked_s, outcome)

        self._begin(ask())

    def _discard(self, transport: Any) -> None:
        self._begin(transport.abandon())

    def _look_up(self, done: Callable[[Outcome], None]) -> None:
        async def look_up() -> None:
            done(await asyncio.to_thread(self._resolve_names))

        self._begin(look_up())

    def _begin(self, work: Any) -> None:
        """Have something done beside what goes on."""
        tasks = self.__dict__.setdefault("_tasks", set())
        task = asyncio.get_running_loop().create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)


class FleetAttempts(Attempts):
    """Sends a call to a replica, and to another one where it fails and that is safe.

    Args:
        fleet: the replicas.
        options: how often, and whether at all.
        clock: what time is measured with.
        more: further arguments of `Attempts`.
    """

    def __init__(self, fleet: Fleet, options: Options, clock: Clock, **more: Any) -> None:
        super().__init__(fleet.protocol_at(fleet.url), options, clock, **more)
        self._fleet = fleet

    def require_one_server(self) -> None:
        """Refuse; see `Attempts.require_one_server`."""
        raise UsageError(
            f"reload is for one server, and {self._fleet.url} is a fleet",
            remedy="connect to each replica alone",
        )

    def call(self, call: Exchange[T], deadline: Deadline) -> Flow[T]:
        """Return the answer of a call; see `Attempts.call`."""
        self._budget.earn()
        failed: dict[Member, RequestError] = {}
        repeated = 0
        while True:
            left_s = deadline.left_s()
            if left_s <= 0:
                raise self._late(call.about, deadline)
            if not self._fleet.has_replicas:
                yield from self._resolve(left_s)
                continue
            outcome, replica, error = yield from self._attempt(call, deadline, tuple(failed))
            if error is None:
                deadline.replica = replica.url
                return self._read(call, outcome, replica)
            failed[replica] = error
            if self._may_take_another(error, outcome, failed):
                continue
            pause_s = self._pause_s(repeated)
            if not self._is_worth_another(call, error, outcome, repeated, deadline, pause_s):
                raise self._told(error, failed) from outcome.cause
            yield Sleep(pause_s)
            repeated += 1

    def _resolve(self, left_s: float) -> Flow[None]:
        """Have the names resolved; the client's own transport, the fleet, does it.

        Raises:
            ServerUnreachable: they cannot be.
        """
        outcome: Outcome = yield Send(None, left_s)  # type: ignore[arg-type]
        if not outcome.ok:
            raise ServerUnreachable(
                f"no model server is known at {self._fleet.url}: {outcome.text}",
                remedy="check the name, or give addresses",
            ) from outcome.cause

    def _attempt(
        self, call: Exchange[T], deadline: Deadline, failed: Sequence[Member]
    ) -> Flow[tuple[Outcome, Member, RequestError | None]]:
        """Send to one replica, or a second one where hedging is wanted; note what came of it."""
        send = self._send(call, deadline.left_s())
        sent = [_Sent(self._fleet.take(call.about, failed))]

        def another() -> _Sent:
            sent.append(_Sent(self._fleet.take(call.about, (*failed, sent[0].replica))))
            return sent[1]

        try:
            if send.hedge_after_s is None:
                outcome = yield send._replace(via=sent[0].transport)
                sent[0].outcome = outcome
            else:
                outcome = yield send._replace(via=sent[0], hedge_via=another)
        finally:
            for each in sent:
                self._fleet.gave(each)
        last = next((each for each in sent if each.outcome is outcome), sent[0])
        return outcome, last.replica, self._error(outcome, last, call, deadline)

    def _error(
        self, outcome: Outcome, sent: "_Sent", call: Exchange[T], deadline: Deadline
    ) -> RequestError | None:
        if outcome.ok:
            return None
        url = sent.replica.url
        if sent.is_given_up:
            return server_messages.unreachable(url, "it has stopped answering")
        return self._fleet.protocol_at(url).error(outcome, call.about, deadline.timeout_s)

    def _read(self, call: Exchange[T], outcome: Outcome, replica: Member) -> T:
        try:
            return call.read(outcome.body)  # type: ignore[union-attr]
        except RequestError as error:  # the protocol knows the fleet, not who answered
            error.message = error.message.replace(self._fleet.url, replica.url)
            raise

    def _may_take_another(
        self, error: RequestError, outcome: Outcome, failed: Collection[Member]
    ) -> bool:
        """Say whether a replica that has not seen the call yet may do better, at no cost to any.

        It takes nothing from the budget of retries: one request less goes to the replica that
        failed, and none sees the call twice.
        """
        is_away = isinstance(error, ServerUnreachable) or _is_away(outcome)
        is_safe = self._options.idempotent or self._is_safe(error, outcome)
        left = len(self._fleet.rotation.replicas) - len(failed)
        return is_away and is_safe and left > 0 and self._options.retries > 0

    def _told(self, error: RequestError, failed: Mapping[Member, RequestError]) -> RequestError:
        """Return the error of a call, with the replicas that were tried."""
        count = len(self._fleet.rotation.replicas)
        if len(failed) > 1 and all(isinstance(e, ServerUnreachable) for e in failed.values()):
            reasons = "; ".join(e.message.removeprefix(_NOBODY) for e in failed.values())
            which = "none" if len(failed) >= count else f"none of {len(failed)}"
            return ServerUnreachable(
                f"{which} of the {count} replicas answers: {reasons}",
                remedy="start them with `tfkit serve`, or give other addresses",
            )
        if count > 1:
            error.message += f" ({len(failed)} of {count} replicas tried)"
        return error


class _Sent:
    """A request that went to a replica, and what came of it; a transport for hedged requests."""

    __slots__ = ("outcome", "replica", "transport")

    def __init__(self, replica: Member) -> None:
        self.replica, self.transport = replica, replica.transport
        self.outcome: Outcome | None = None

    @property
    def is_given_up(self) -> bool:
        """Whether the replica was found silent meanwhile, and its connections were given up."""
        return self.replica.transport is not self.transport

    def start(
        self, request: Any, timeout_s: float, done: Callable[[Outcome], None]
    ) -> Callable[[], None]:
        """Send in the background; see `Transport.start`."""

        def noted(outcome: Outcome) -> None:
            self.outcome = outcome
            done(outcome)

        stop: Callable[[], None] = self.transport.start(request, timeout_s, noted)
        return stop

    async def send(self, request: Any, timeout_s: float) -> Outcome:
        """Send; see `AsyncTransport.send`."""
        outcome: Outcome = await self.transport.send(request, timeout_s)
        self.outcome = outcome
        return outcome


def _is_away(outcome: Outcome) -> bool:
    """Say whether a server is there, but not for requests: it starts, ends or has lost its own."""
    if isinstance(outcome, Lost) or outcome.status not in {"UNAVAILABLE", "502", "503"}:
        return False
    said = outcome.text + outcome.body[:_MOST_READ].decode("utf-8", "replace")
    return not server_messages.is_full_queue(said)


def _keep(fleet: "weakref.ref[Fleet]") -> None:
    """Do what is due beside the calls until there is nothing more, or no fleet."""
    while (kept := fleet()) is not None and kept.tick():
        del kept
        time.sleep(_TICK_S)
