"""How many replicas keep a limit on latency, from runs of one of them.

Runs say what one replica does; `simulation` says what many of them would do.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from tfserve_kit.errors import UsageError
from tfserve_kit.perf import simulation
from tfserve_kit.perf.gate import Condition
from tfserve_kit.perf.samples import OK, Run, is_error, service_ns, succeeded
from tfserve_kit.perf.simulation import (
    Arrivals,
    Floats,
    Outcome,
    Policy,
    SimulatedFleet,
    SimulatedReplica,
)
from tfserve_kit.perf.stats import NamedRun, interval_ranks, measured, rank, share_of, values_needed
from tfserve_kit.progress import SILENT, Progress

POLICIES: tuple[Policy, ...] = ("least-loaded", "round-robin")
Kind = Literal["poisson", "recorded"]

_MOST_ERRORS = 0.001
# Runs in which so many more requests are in flight, and that are no slower, show idle slots.
_MORE, _SLOWER = 1.5, 1.1
# What the model may miss by of the runs that it is made from.
_TOLERANCE = 0.2
_NEARLY_FULL = 0.95
_MOST_REPLAYED = 200_000
_LEAST_RUNS_OF_BATCHING = 3
_IDLE = 50  # a fleet so many times larger than one that is full has nothing left to gain
_FINE = 200  # runs are not known to so small a share
_CURVE = 10  # points of a plot
# Runs are of one thing if these settings of theirs are the same.
_SAME = ("model", "version", "signature", "protocol", "batch", "input", "sender")


@dataclass(frozen=True, slots=True)
class _Check:
    """A run beside its simulation; times in seconds.

    Attributes:
        name: of the run.
        rate: successful answers per second.
        in_flight: requests that the server had at a time, on average.
        p50_s: measured median.
        tail_s: the measured quantile that was asked for; None if the run is too short for it.
        simulated_p50_s: None where the run was too near to full load to be compared.
        simulated_tail_s: the same.
    """

    name: str
    rate: float
    in_flight: float
    p50_s: float | None
    tail_s: float | None
    simulated_p50_s: float | None = None
    simulated_tail_s: float | None = None

    @property
    def miss(self) -> float:
        """By which share the simulation is off, at worst; 0.0 where nothing was compared."""
        pairs = (self.p50_s, self.simulated_p50_s), (self.tail_s, self.simulated_tail_s)
        return max((abs(b / a - 1) for a, b in pairs if a and b), default=0.0)


@dataclass(frozen=True, slots=True, eq=False)
class Profile:
    """What runs say of one replica.

    Attributes:
        replica: the model of it.
        parallelism: highest rate by mean service time: requests worked on at a time.
        is_full: whether a run showed it full; else it may do more.
        tail_s: the quantile of its service time, with both ends of the 99 % interval, in seconds.
        checks: each run beside its simulation.
        gaps: recorded times between requests, one on average, float64 [gaps]; None if no run has
            such.
        assumptions: what was taken for granted, in sentences.
    """

    replica: SimulatedReplica
    parallelism: float
    is_full: bool
    tail_s: tuple[float, float, float]
    checks: tuple[_Check, ...]
    gaps: Floats | None
    assumptions: tuple[str, ...]


def profile(runs: Sequence[NamedRun], limit: Condition) -> Profile:
    """Return what runs say of one replica.

    The service time is that of requests which found the server idle, or, where none did, of the
    lightest run if a heavier one was no slower. Parallelism is the highest rate of answers times
    the mean service time (Little's law).

    Args:
        runs: of one and the same server, at least one.
        limit: the quantile that is asked for.

    Raises:
        UsageError: the runs cannot tell.
    """
    for each in runs:
        _require_sound(each)
    _require_same(runs)
    q = share_of(limit.name) or 0.0
    by_load = sorted(runs, key=_in_flight)
    service_s, source = _service(by_load, q)
    heaviest = max(runs, key=_rate)
    mean_s, rate = float(service_s.mean()), _rate(heaviest)
    # One after the other it can answer whatever it answers alone.
    parallelism = max(1.0, rate * mean_s)
    slots = max(1, round(parallelism))
    is_full = (heaviest.summary.service.mean_s or 0.0) > _SLOWER * mean_s
    replica = SimulatedReplica(service_s, slots, slots / parallelism)
    checks = tuple(_checked(each, replica, limit.name) for each in by_load)
    _require_batching_measured(runs, checks)
    opened = [each for each in runs if each.summary.loop == "open"]
    return Profile(
        replica, parallelism, is_full, _tail(service_s, q), checks,
        _gaps(max(opened, key=lambda each: len(each.run.samples)).run) if opened else None,
        tuple(_assumptions(runs, source, heaviest.name, checks, is_full=is_full)),
    )  # fmt: skip


def _rate(named: NamedRun) -> float:
    return named.summary.achieved_rate or 0.0


def _in_flight(named: NamedRun) -> float:
    return _rate(named) * (named.summary.service.mean_s or 0.0)


_AGAIN = "measure one replica again: `tfkit perf --output FILE`"


def _require_sound(named: NamedRun) -> None:
    """Refuse a run that is not of one undisturbed server under one load.

    Raises:
        UsageError: it is not.
    """
    name, settings, summary = named.name, named.run.settings, named.summary
    bad = int(np.count_nonzero(is_error(named.run.samples))) + summary.latency.unfinished
    if summary.invalid:
        raise UsageError(f"{name} is INVALID: {summary.invalid}", remedy=summary.remedy)
    faults = (
        ("," in str(settings.get("url", "")), "was sent to a fleet", "measure one replica"),
        (bad > _MOST_ERRORS * len(named.run.samples),
         f"has {bad:,} failed or unanswered requests of {len(named.run.samples):,}",
         "measure a replica that answers all, at a lower rate or with more --timeout"),
        (settings.get("end_rate") or settings.get("is_overload") or settings.get("poison_every"),
         "changed its load on the way", "measure at a constant --rate or --concurrency"),
        (named.run.marks or settings.get("during"), "was disturbed (--during)", _AGAIN),
        (not summary.achieved_rate, "is too short for a rate", "measure for longer"),
    )  # fmt: skip
    for is_so, what, remedy in faults:
        if is_so:
            raise UsageError(f"{name} {what}, so it cannot tell what one replica does",
                             remedy=remedy)  # fmt: skip


def _require_same(runs: Sequence[NamedRun]) -> None:
    first, *others = runs
    for each in others:
        for key in _SAME:
            one, other = first.run.settings.get(key), each.run.settings.get(key)
            if one != other:
                raise UsageError(
                    f"{first.name} and {each.name} measured different things: {key} is {one!r} "
                    f"and {other!r}",
                    remedy="give runs of one model with the same requests",
                )


def _alone_s(run: Run) -> Floats:
    """Return service times of requests that found the server idle, float64 [some], in seconds."""
    _, samples, _ = measured(run)
    ended = np.sort(run.samples["done_ns"])
    sent = np.sort(run.samples["sent_ns"])
    at = samples["sent_ns"]
    in_flight = np.searchsorted(sent, at) - np.searchsorted(ended, at, side="right")
    found: Floats = service_ns(samples[(samples["status"] == OK) & (in_flight <= 0)]) / 1e9
    return found


def _service(by_load: Sequence[NamedRun], q: float) -> tuple[Floats, str]:
    """Return service times, and where they come from.

    Raises:
        UsageError: all of them may hold the wait for others, or they are too few.
    """
    needed, lightest = values_needed(q), by_load[0]
    alone = {each.name: _alone_s(each.run) for each in by_load if each.summary.steady.found}
    name = max(alone, key=lambda name: len(alone[name]), default="")
    if name and len(alone[name]) >= needed:
        return alone[name], f"{len(alone[name]):,} requests of {name} that found the server idle"
    mean_s = lightest.summary.service.mean_s or math.inf
    for each in by_load[1:]:
        is_more = _in_flight(each) >= _MORE * _in_flight(lightest)
        if is_more and (each.summary.service.mean_s or math.inf) <= _SLOWER * mean_s:
            _, samples, _ = measured(lightest.run)
            found: Floats = service_ns(succeeded(samples)) / 1e9
            if len(found) >= needed:
                return found, f"{lightest.name}, which {each.name} with more load equals in latency"
    most = len(alone.get(name, ()))
    raise UsageError(
        f"the runs do not show the service time: {most:,} requests found the server idle, p"
        f"{q * 100:g} needs {needed:,}; latencies of others may hold the wait for each other",
        remedy="add a run at the lowest load: `tfkit perf --concurrency 1 --output light.npz`, "
        "for longer if it is there",
    )


def _tail(values: Floats, q: float) -> tuple[float, float, float]:
    ordered = np.sort(values)
    low, high = interval_ranks(len(ordered), q) or (0, len(ordered) - 1)
    value_s, low_s, high_s = (float(ordered[at]) for at in (rank(len(ordered), q), low, high))
    return value_s, low_s, high_s


def _gaps(run: Run) -> Floats:
    """Return the times between recorded requests, one on average, float64 [requests - 1]."""
    gaps = np.diff(np.sort(run.samples["due_ns"])).astype(np.float64)
    found: Floats = gaps / (gaps.mean() or 1.0) if len(gaps) else np.ones(1)
    return found


def _checked(named: NamedRun, replica: SimulatedReplica, quantile: str) -> _Check:
    """Return a run beside the simulation of the same requests at one replica."""
    latency, rate = named.summary.latency, _rate(named)
    seen = rate, _in_flight(named), latency.value_s("p50"), latency.value_s(quantile)
    ordinary, samples, steady = measured(named.run)
    is_full = rate > _NEARLY_FULL * replica.full_rate
    if named.summary.loop == "closed":
        concurrency = int(named.run.settings.get("concurrency", 1))
        found = simulation.closed_loop(replica, concurrency, min(len(samples), _MOST_REPLAYED))
    elif is_full or not steady.found:  # how long its queue was is chance
        return _Check(named.name, *seen)
    else:
        found = simulation.replay(replica, ordinary["due_ns"][:_MOST_REPLAYED] / 1e9)
    found = np.sort(found)
    tail = float(found[rank(len(found), share_of(quantile) or 0.0)])
    return _Check(named.name, *seen, float(found[rank(len(found), 0.5)]), tail)


def _require_batching_measured(runs: Sequence[NamedRun], checks: Sequence[_Check]) -> None:
    """Refuse batching, which makes the service time depend on the load, unless the model fits.

    Raises:
        UsageError: the server made batches, and the runs do not show what that does.
    """
    batching = [
        each.name for each in runs if (each.run.server.get("difference") or {}).get("batches")
    ]
    worst = max(checks, key=lambda check: check.miss)
    if not batching:
        return
    if len(runs) < _LEAST_RUNS_OF_BATCHING or worst.miss > _TOLERANCE:
        reason = (
            f"the model misses {worst.name} by {worst.miss:.0%}"
            if worst.miss > _TOLERANCE
            else "its effect shows at three loads or more"
        )
        raise UsageError(
            f"the server made batches in {batching[0]}, so its service time depends on the load: "
            f"{reason}",
            remedy="give runs at low, medium and full load, or measure without [batching]",
        )


def _assumptions(
    runs: Sequence[NamedRun], source: str, fullest: str, checks: Sequence[_Check], *, is_full: bool
) -> Iterator[str]:
    yield f"Service time is drawn, independent of load and of each other, from {source}."
    if is_full:
        yield f"A replica is full at the rate of {fullest}; more requests than slots wait in line."
    else:
        yield (
            f"No run showed the replica full. It is taken to do no more than in {fullest}: fewer "
            "replicas may do. `tfkit perf --concurrency 1,8,64` shows more."
        )
    yield "All replicas are like the one measured, warmed up, on machines as free as that one's."
    yield "Generator, network and gateway take as long as they did in the runs."
    if not any(each.run.server.get("difference") for each in runs):
        yield "The runs do not tell whether the server batches; it is taken not to."
    if failed := sum(int(np.count_nonzero(is_error(each.run.samples))) for each in runs):
        yield f"{failed:,} failed requests are left out; no request fails in the simulation."
    for check in checks:
        if check.miss > _TOLERANCE:
            yield (
                f"WARNING: the model misses {check.name} by {check.miss:.0%}: the latency of this "
                "server depends on its load in another way, and so may the answer."
            )


@dataclass(frozen=True, slots=True)
class Need:
    """What replicas have to do.

    Attributes:
        rate: requests per second.
        limit: the limit on latency, such as `p99<50ms`.
        arrivals: `poisson` as independent users, or `recorded` as in the runs, only faster.
        unavailable: how many replicas are out of service at once during a rollout.
        seed: of everything that is drawn.
    """

    rate: float
    limit: Condition
    arrivals: Kind = "poisson"
    unavailable: int = 1
    seed: int = 0

    @property
    def q(self) -> float:
        """The quantile as a share."""
        return share_of(self.limit.name) or 0.0


Situation = Literal["all in service", "one dead", "rollout"]


@dataclass(frozen=True, slots=True)
class Sizing:
    """How many replicas keep a limit in one situation.

    Attributes:
        policy: who gets a request.
        situation: what is wrong.
        replicas: how many there are; None where no number keeps it.
        in_service: how many of them get requests.
        outcome: what was simulated of them.
        fewer: the next smaller number in service that was looked at, and what it does; None where
            there is none.
        kept: whether the limit is kept.
    """

    policy: Policy
    situation: Situation
    replicas: int | None
    in_service: int
    outcome: Outcome
    fewer: tuple[int, Outcome] | None
    kept: bool


@dataclass(frozen=True, slots=True, eq=False)
class CapacityPlan:
    """What was found.

    Attributes:
        profile: what runs say of one replica.
        need: what has to be kept.
        answers: one for each situation of each policy.
        curves: by policy what fleets did that were simulated, by how many are in service.
    """

    profile: Profile
    need: Need
    answers: tuple[Sizing, ...]
    curves: Mapping[Policy, Mapping[int, Outcome]]

    @property
    def kept(self) -> bool:
        """Whether a policy keeps the limit in all situations."""
        return any(
            all(each.kept for each in self.answers if each.policy == policy)
            for policy in self.curves
        )


def plan(
    runs: Sequence[NamedRun],
    need: Need,
    *,
    policies: Sequence[Policy] = POLICIES,
    replicas: int | None = None,
    curves: bool = False,
    progress: Progress = SILENT,
) -> CapacityPlan:
    """Return how many replicas a need takes: with all, with one dead, and during a rollout.

    Args:
        runs: of one replica, see `profile`.
        need: what has to be kept.
        policies: who gets a request.
        replicas: look at so many instead of searching.
        curves: whether to simulate more fleets than the search does, for a plot.
        progress: told of each simulation.

    Raises:
        UsageError: the runs cannot tell, or have no arrivals of their own and are asked for them.
    """
    known = profile(runs, need.limit)
    if need.arrivals == "recorded" and known.gaps is None:
        raise UsageError(
            "--arrivals recorded, but in a closed loop the server decides when requests come",
            remedy="add a run with --rate or --replay, or use --arrivals poisson",
        )
    search = _Search(known, need, progress)
    answers = [each for policy in policies for each in search.answers(policy, replicas)]
    if curves:
        search.fill(policies, [each.in_service for each in answers])
    found = {
        policy: {
            count: outcome
            for (which, count), outcome in sorted(search.outcomes.items(), key=lambda each: each[0])
            if which == policy
        }
        for policy in policies
    }
    return CapacityPlan(known, need, tuple(answers), found)


class _Search:
    """Simulates fleets of a replica, each once.

    Attributes:
        outcomes: what was simulated, by policy and replicas in service.
    """

    def __init__(self, known: Profile, need: Need, progress: Progress) -> None:
        self._known, self._need, self._progress = known, need, progress
        gaps = known.gaps if need.arrivals == "recorded" else None
        self._arrivals = Arrivals(need.rate, gaps)
        self._limit_s = need.limit.limit
        self._full = math.floor(need.rate / known.replica.full_rate)
        self.outcomes: dict[tuple[Policy, int], Outcome] = {}

    def outcome(self, policy: Policy, count: int) -> Outcome:
        """Return what so many replicas in service do."""
        key = policy, count
        if key not in self.outcomes:
            self._progress.step(f"Simulating {count:,} replicas, {policy}")
            fleet = SimulatedFleet(self._known.replica, count, policy)
            self.outcomes[key] = simulation.simulate(
                fleet, self._arrivals, self._need.q, limit_s=self._limit_s, seed=self._need.seed
            )
        return self.outcomes[key]

    def _keeps(self, policy: Policy, count: int) -> bool:
        return self.outcome(policy, count).keeps(self._limit_s)

    def _fewest(self, policy: Policy) -> int | None:
        """Return the fewest replicas that keep the limit, None if no number does.

        The number grows in doubled steps until it does; then the gap is halved, to half a percent.
        """
        if self._known.tail_s[0] >= self._limit_s:
            return None
        low, step = self._full, max(1, self._full // _FINE)
        while not self._keeps(policy, low + step):
            low, step = low + step, 2 * step
            if low + step > _IDLE * (self._full + 1):
                return None
        high = low + step
        while high - low > max(1, self._full // _FINE):
            middle = (low + high) // 2
            low, high = (low, middle) if self._keeps(policy, middle) else (middle, high)
        return high

    def answers(self, policy: Policy, replicas: int | None) -> list[Sizing]:
        """Return how many replicas each situation takes, or what a given number does in it."""
        out: dict[Situation, int] = {
            "all in service": 0,
            "one dead": 1,
            "rollout": self._need.unavailable,
        }
        if replicas is not None:
            return [self._answer(policy, each, replicas - out[each], out[each]) for each in out]
        fewest = self._fewest(policy)
        if fewest is None:
            outcome = Outcome(0.0, trouble=self._why_not())
            return [Sizing(policy, each, None, 0, outcome, None, kept=False) for each in out]
        return [self._answer(policy, each, fewest, out[each]) for each in out]

    def _why_not(self) -> str:
        tail_s = self._known.tail_s[0]
        if tail_s >= self._limit_s:
            return f"a request alone takes longer: {self._need.limit.name} {tail_s * 1e3:.3f} ms"
        return "no number of replicas that was tried keeps the limit"

    def _answer(self, policy: Policy, situation: Situation, count: int, missing: int) -> Sizing:
        if count < 1:
            outcome = Outcome(math.inf, trouble="no replica is in service")
            return Sizing(policy, situation, count + missing, 0, outcome, None, kept=False)
        outcome = self.outcome(policy, count)
        below = max((n for which, n in self.outcomes if which == policy and n < count), default=0)
        if 1 < count <= self._full + 1:
            below = count - 1
        fewer = (below, self.outcome(policy, below)) if below else None
        kept = outcome.keeps(self._limit_s)
        return Sizing(policy, situation, count + missing, count, outcome, fewer, kept)

    def fill(self, policies: Sequence[Policy], counts: Sequence[int]) -> None:
        """Simulate fleets from those that are full to those with twice what they need."""
        first, last = self._full + 1, 2 * max(*counts, self._full + 1)
        for count in sorted({round(each) for each in np.geomspace(first, last, _CURVE)}):
            for policy in policies:
                self.outcome(policy, count)


_UNKNOWN = "-"
COLUMNS = ("policy", "situation", "replicas", "load", "p50 (ms)", "{} (ms)", "99% interval",
           "with fewer", "")  # fmt: skip
CHECK_COLUMNS = ("run", "rate", "in flight", "p50 (ms)", "simulated", "{} (ms)", "simulated")


def rows(found: CapacityPlan) -> list[list[str]]:
    """Return a row of COLUMNS for each answer."""
    return [
        [each.policy, each.situation, _UNKNOWN if each.replicas is None else f"{each.replicas:,}",
         f"{each.outcome.load:.1%}" if each.in_service else _UNKNOWN,
         _ms(each.outcome.p50_s), _ms(each.outcome.value_s),
         f"{_ms(each.outcome.low_s)} - {_ms(each.outcome.high_s)}" if each.outcome.low_s
         else _UNKNOWN,
         _fewer(each),
         "kept" if each.kept else "NOT KEPT"]
        for each in found.answers
    ]  # fmt: skip


def _fewer(answer: Sizing) -> str:
    if answer.fewer is None:
        return _UNKNOWN
    count, outcome = answer.fewer
    unknown = "full" if outcome.load >= 1 else "unsettled"
    return f"{count:,}: {_ms(outcome.value_s) if outcome.value_s else unknown}"


def check_rows(found: CapacityPlan) -> list[list[str]]:
    """Return a row of CHECK_COLUMNS for each run."""
    return [
        [each.name, f"{each.rate:,.1f}/s", f"{each.in_flight:.2f}", _ms(each.p50_s),
         _ms(each.simulated_p50_s), _ms(each.tail_s), _ms(each.simulated_tail_s)]
        for each in found.profile.checks
    ]  # fmt: skip


def facts(found: CapacityPlan) -> list[str]:
    """Return what one replica is, in lines."""
    known, name = found.profile, found.need.limit.name
    replica, least = known.replica, "" if known.is_full else "at least "
    tail, low, high = (_ms(each) for each in known.tail_s)
    mean = _ms(float(replica.service_s.mean()))
    slots = "1 slot" if replica.slots == 1 else f"{replica.slots} slots"
    held = f"simulated as {slots}, held for {replica.hold:.2f} of the service time"
    return [
        f"service time: mean {mean} ms, {name} {tail} ms (99% interval {low} - {high})",
        f"parallelism: {least}{known.parallelism:.2f}, highest rate x mean service time; {held}",
        f"full at: {least}{replica.full_rate:,.1f} requests/s",
    ]


def notes(found: CapacityPlan) -> list[str]:
    """Return what was taken for granted, and what went wrong, in sentences."""
    need = found.need
    come = (
        "Requests come as those of independent users do (Poisson)."
        if need.arrivals == "poisson"
        else "Requests come as they did in the longest open run, only faster or slower: the ups "
        "and downs of its users keep their size relative to the rate."
    )
    trouble = dict.fromkeys(
        f"{each.policy}, {each.situation}: {each.outcome.trouble}."
        for each in found.answers
        if each.outcome.trouble
    )
    out = need.unavailable
    first = "" if out else ", new ones start first"
    return [
        *trouble,
        *found.profile.assumptions,
        come,
        f"One dead: {_DEAD}",
        f"Rollout: {out} out of service at a time{first}; {_REPLACED}",
        _INTERVAL,
    ]


_DEAD = (
    "it is out of service; what it had in flight, and what is sent to it until that is noticed, is "
    "not in the figures."
)
_REPLACED = "replaced ones finish what they have; new ones are warmed up, and come in empty."
_INTERVAL = (
    "A limit is kept if the whole interval lies below it. The interval is that of the simulation; "
    "how sure the runs are of the service time stands above."
)


def conclusions(found: CapacityPlan) -> list[str]:
    """Return for each policy how many replicas keep the limit in all situations."""
    lines = []
    for policy in found.curves:
        mine = [each for each in found.answers if each.policy == policy]
        most = max((each.replicas or 0 for each in mine), default=0)
        what = f"{found.need.limit.text} at {found.need.rate:,.10g}/s"
        if all(each.kept for each in mine):
            lines.append(f"{policy}: {most:,} replicas keep {what} in all situations")
        else:
            lost = ", ".join(each.situation for each in mine if not each.kept)
            lines.append(f"{policy}: {what} is NOT KEPT: {lost}")
    return lines


def _ms(value_s: float | None) -> str:
    return _UNKNOWN if value_s is None else f"{value_s * 1e3:,.3f}"


def as_data(found: CapacityPlan) -> dict[str, Any]:
    """Return all of it for JSON: times in seconds, None where unknown."""
    known, replica = found.profile, found.profile.replica
    return {
        "rate": found.need.rate,
        "limit": found.need.limit.text,
        "arrivals": found.need.arrivals,
        "unavailable": found.need.unavailable,
        "seed": found.need.seed,
        "kept": found.kept,
        "replica": {
            "service_mean_s": float(replica.service_s.mean()),
            "service_tail_s": dict(zip(("value", "low", "high"), known.tail_s, strict=True)),
            "service_times": len(replica.service_s),
            "parallelism": known.parallelism,
            "slots": replica.slots,
            "hold": replica.hold,
            "full_rate": replica.full_rate,
            "is_full": known.is_full,
        },
        "checks": [asdict(each) | {"miss": each.miss} for each in known.checks],
        "answers": [asdict(each) for each in found.answers],
        "curves": {
            policy: [{"in_service": count} | asdict(each) for count, each in curve.items()]
            for policy, curve in found.curves.items()
        },
        "notes": notes(found),
    }
