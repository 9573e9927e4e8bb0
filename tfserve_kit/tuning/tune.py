"""The search from beginning to end: try, look again at the best, and prove the winner."""

import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tfserve_kit import processes
from tfserve_kit.clients.options import Options
from tfserve_kit.clock import Clock, SystemClock
from tfserve_kit.deployment.lint import hindrances
from tfserve_kit.deployment.spec import Spec
from tfserve_kit.engines import registry
from tfserve_kit.engines.base import Engine
from tfserve_kit.engines.records import Record
from tfserve_kit.errors import ServerFailed, UsageError, did_you_mean
from tfserve_kit.perf import stats
from tfserve_kit.perf.load import Arrivals, Closed, Load, Open, Protocol
from tfserve_kit.perf.measuring import Bench
from tfserve_kit.perf.payloads import RANDOM, Preparer
from tfserve_kit.perf.stats import Summary
from tfserve_kit.progress import SILENT, Progress
from tfserve_kit.serving import access, launch
from tfserve_kit.tuning.goals import Goal, Proof, Score
from tfserve_kit.tuning.study import Candidate, Space, Study, Tried

_WARMUP_S = 1.0
_WARMUP_IN_FLIGHT = 16


@dataclass(frozen=True, slots=True)
class CandidateServer:
    """What all candidates have in common.

    Attributes:
        spec: the deployment whose settings are varied; see `launch.prepare`.
        engine: what runs the servers.
        protocol: of the requests, `grpc` or `rest`.
        requests: makes what is sent.
        quantile: name of the quantile that every run must be long enough for.
        duration_s: how long each run is, at least.
        arrivals: how requests are spaced.
        templates: a folder whose templates replace ours.
        progress: told what is going on.
        clock: what the waiting for servers measures with; may raise KeyboardInterrupt where it
            sleeps.
        stop: once set, nothing more is measured.
    """

    __test__ = False  # a name that pytest would collect

    spec: Spec
    engine: Engine
    protocol: Protocol
    requests: Preparer
    quantile: str
    duration_s: float = 10.0
    arrivals: Arrivals = "constant"
    templates: Path | None = None
    progress: Progress = SILENT
    clock: Clock = field(default_factory=SystemClock)
    stop: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def serving(self, candidate: Candidate, name: str = "tune") -> Iterator["_Running"]:
        """Run a server with a candidate's settings for a `with` block, on free ports.

        Raises:
            ServerExists: there is a server of that name, as while another search is going on.
            ServerFailed: it does not start so.
            KeyboardInterrupt: the search is to end.
        """
        varied = candidate.applied(self.spec)
        server = varied.server.model_copy(update={"name": name, "grpc_port": 0, "rest_port": 0})
        todo = varied.model_copy(update={"server": server})
        handle = launch.start(todo, self.engine, templates=self.templates, clock=self.clock)
        try:
            # Callers have processors of their own; a server at its limit must not delay ours.
            if (record := Record.read(handle.home)) and record.pid:
                processes.give_way(record.pid)
            url = getattr(handle.endpoints, self.protocol)
            options = access.of_server(handle.home).options(url)
            made = self.requests.prepare(url, options)
            bench = Bench(made.payloads, about={"warmup_s": 0.0}, stop=self.stop)
            load = Load(url, self.protocol, options=Options(**options))
            yield _Running(bench, load, self._at_rate, self.clock)
        finally:
            handle.stop()

    def _at_rate(self, rate: float) -> Open:
        """Return a schedule as long as was asked, and as the quantile needs to be known."""
        share = stats.share_of(self.quantile)
        least = stats.values_needed(share) if share else 1
        needed = math.ceil(least + 4 * math.sqrt(least))  # random arrivals may be fewer
        return Open.at_rate(rate, max(self.duration_s, needed / rate), arrivals=self.arrivals)


class _Running:
    """A server that is being measured.

    Attributes:
        start_rate: half of what it answered per second while it was warmed up.
    """

    def __init__(
        self, bench: Bench, load: Load, at_rate: Callable[[float], Open], clock: Clock
    ) -> None:
        self._bench, self._load, self._at_rate, self._clock = bench, load, at_rate, clock
        warmup = self._summary(Closed(_WARMUP_IN_FLIGHT, _WARMUP_S))
        self.start_rate = (warmup.achieved_rate or 2.0) / 2

    def measure(self, rate: float) -> Summary:
        """Send at a rate, for as long as was asked and as the quantile needs.

        A run in which the generator lagged is repeated once.

        Raises:
            KeyboardInterrupt: the search is to end.
        """
        schedule = self._at_rate(rate)
        first = self._summary(schedule)
        return self._summary(schedule) if first.invalid else first

    def _summary(self, schedule: Closed | Open) -> Summary:
        self._clock.sleep(0)  # where an interrupt strikes that came while a server was started
        run = self._bench.measure(replace(self._load, schedule=schedule))
        if self._bench.stop is not None and self._bench.stop.is_set():
            raise KeyboardInterrupt
        return stats.summarize(run)


DEFAULT = 0  # number of the candidate that leaves all to the server
_FINALISTS = 3


@dataclass(frozen=True, slots=True)
class Effort:
    """How thoroughly is searched, and where it is kept.

    Attributes:
        folder: what keeps the search; one that was interrupted there goes on.
        trials: how many candidates are tried in all.
        rounds: how often the winner is held against the default; 0 for no proof.
        about: what the search is about besides, as JSON has it: another one needs another folder.
        seed: of what is drawn.
    """

    folder: Path
    trials: int = 20
    rounds: int = 6
    about: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Tuned:
    """What a search found.

    Attributes:
        goal: what was looked for.
        tried: all candidates, in order.
        winner: the best one; None where none kept what was asked.
        proof: the winner against the server's default batching; None where there was none.
        is_interrupted: whether Ctrl-C ended it early.
    """

    goal: Goal
    tried: tuple[Tried, ...]
    winner: Tried | None
    proof: Proof | None
    is_interrupted: bool = False

    @property
    def is_better(self) -> bool:
        """Whether the winner was proved to be better than the default."""
        return self.proof is not None and self.proof.outcome == "better"


@contextmanager
def _uninterrupted() -> Iterator[Clock]:
    yield SystemClock()


def tune(bed: CandidateServer, goal: Goal, space: Space, effort: Effort) -> Tuned:
    """Find the best settings for a deployment.

    The server's default batching and no batching are tried first. Each candidate has a server of
    its own. Those that are surely worse than the best are given up early; the best few are tried
    again at the end, and count with their worse value, so that luck does not win. Then the winner
    and the default are measured in turn.

    Args:
        bed: starts and measures servers.
        goal: what is looked for.
        space: what may be tried.
        effort: how thoroughly, and where it is kept.

    Returns:
        What was found; Ctrl-C returns what was found until then, and the next call goes on.

    Raises:
        UsageError: the folder holds another search.
        ServerFailed: the server does not even start with its defaults.
    """
    study = Study(
        effort.folder, space, goal.direction, trials=effort.trials, seed=effort.seed,
        about={"goal": str(goal), **effort.about},
    )  # fmt: skip
    search = _Search(bed, goal, study)
    proof = None
    try:
        search.go_on(effort.trials)
        winner = search.look_again(_FINALISTS)
        if winner is not None and winner.number != DEFAULT:
            proof = search.prove(winner, effort.rounds)
    except KeyboardInterrupt:
        return Tuned(goal, tuple(study.tried()), search.best(), None, is_interrupted=True)
    return Tuned(goal, tuple(study.tried()), winner, proof)


def tune_deployment(  # noqa: PLR0913 (what is sent, and how it is told)
    spec: Spec,
    goal: Goal,
    effort: Effort,
    *,
    model: str | None = None,
    signature: str = "",
    source: str = RANDOM,
    batch: int = 1,
    protocol: Protocol = "grpc",
    arrivals: Arrivals = "poisson",
    duration_s: float = 3.0,
    templates: Path | None = None,
    progress: Progress = SILENT,
    interruptible: Callable[[], AbstractContextManager[Clock]] = _uninterrupted,
) -> Tuned:
    """Find the best settings for a deployment: `tune`, with servers and requests made for it.

    Args:
        spec: what is served; its engine runs the candidates.
        goal: what is looked for.
        effort: how thoroughly, and where it is kept.
        model: which model gets the requests; None if there is only one.
        signature: which of its signatures; empty for `serving_default`.
        source: what is sent, as `tfkit perf --input` has it.
        batch: rows in each request.
        protocol: of the requests.
        arrivals: how requests are spaced.
        duration_s: how long each run is, at least.
        templates: a folder whose templates replace ours.
        progress: told what is going on.
        interruptible: gives the clock of `CandidateServer`, once all is prepared.

    Raises:
        UsageError: no such model, nothing to send, or the folder holds another search.
        TfkitError: as `launch.prepare`.
    """
    name = _measured(spec, model)
    spec, batches = _batchable(spec, name, signature, progress)
    engine, why = registry.choose(spec.server.engine, binary=spec.server.binary, docker=spec.docker)
    progress.note(f"Engine {engine.name}: {why}.")
    base_path = spec.models[name].base_path
    requests = Preparer(name, signature, source, batch, base_path=Path(base_path))
    space = Space(os.cpu_count() or 1, batch, protocol, goal.patience_s, batches)
    about = {
        "model": base_path,
        "engine": engine.name,
        "cpus": space.cpus,
        **({} if batches else {"batching": False}),
        "signature": signature,
        "source": source,
        "batch": batch,
        "protocol": protocol,
        "arrivals": arrivals,
    }
    launch.prepare(spec, engine, progress=progress)
    with interruptible() as clock:
        bed = CandidateServer(
            spec, engine, protocol, requests, goal.quantile, duration_s, arrivals, templates,
            progress, clock,
        )  # fmt: skip
        return tune(bed, goal, space, replace(effort, about=about))


def _measured(spec: Spec, model: str | None) -> str:
    """Return the model that gets the requests."""
    if model is None and len(spec.models) == 1:
        return next(iter(spec.models))
    if model is None:
        raise UsageError(
            f"the deployment has {len(spec.models)} models", remedy="give --measure MODEL"
        )
    if model not in spec.models:
        raise UsageError(f"no model {model!r} is deployed", remedy=did_you_mean(model, spec.models))
    return model


def _batchable(spec: Spec, model: str, signature: str, progress: Progress) -> tuple[Spec, bool]:
    """Return the deployment, without batching where its models cannot be batched, and say so."""
    if not (found := hindrances(spec, model, signature)):
        return spec, True
    progress.note(f"Batching is left out: {found[0].message}.")
    return spec.model_copy(update={"batching": None}), False


class _Search:
    """One search, step by step."""

    def __init__(self, bed: CandidateServer, goal: Goal, study: Study) -> None:
        self._bed, self._goal, self._study = bed, goal, study

    def best(self) -> Tried | None:
        """Return the best candidate until now."""
        return next(iter(self._ranked()), None)

    def go_on(self, trials: int) -> None:
        """Try candidates until there are so many."""
        while (count := len(self._study.tried())) < trials:
            tried = self._study.ask()
            if tried is None:
                self._bed.progress.note("Nothing new to try was found")
                return
            self._say(f"candidate {count + 1} of {trials}", tried.candidate)
            try:
                value = self._best_value()
                self._study.tell(tried, self._score(tried.candidate, value, value))
            except ServerFailed as error:
                if tried.number == DEFAULT:
                    raise
                self._study.tell(tried, None, error.message)

    def look_again(self, finalists: int) -> Tried | None:
        """Try the best ones a second time, and return the best of them."""
        for tried in self._ranked()[:finalists]:
            if len(tried.scores) == 1:
                self._say("once more", tried.candidate)
                # To the end this time, also if it is worse than it seemed.
                self._study.tell(tried, self._score(tried.candidate, None, self._value(tried)))
        return self.best()

    def prove(self, winner: Tried, rounds: int) -> Proof | None:
        """Hold a candidate against the default, both running, in rounds of alternating order."""
        default = self._study.tried()[DEFAULT]
        pairs = self._study.pairs(winner.number)[:rounds]
        if not rounds:
            return None
        with ExitStack() as servers:
            sides = [
                (each, servers.enter_context(self._bed.serving(each.candidate, f"tune-{role}")))
                for each, role in ((default, "default"), (winner, "best"))
                if len(pairs) < rounds
            ]
            while len(pairs) < rounds:
                self._bed.progress.step(f"proof, round {len(pairs) + 1} of {rounds}")
                pairs.append(self._pair(sides, flipped=len(pairs) % 2 == 1))
                self._study.keep_pairs(winner.number, pairs)
        return Proof.of(pairs, self._goal.gain)

    def _pair(self, sides: list[tuple[Tried, _Running]], *, flipped: bool) -> tuple[float, float]:
        """Measure both sides, one after the other."""
        near = max(filter(None, (self._value(tried) for tried, _ in sides)))
        values = [
            self._goal.again(running.measure, self._value(tried) or near)
            for tried, running in (sides[::-1] if flipped else sides)
        ]
        first, second = values[::-1] if flipped else values
        return first, second

    def _score(self, candidate: Candidate, best: float | None, near: float | None) -> Score:
        with self._bed.serving(candidate) as running:
            return self._goal.score(running.measure, best, near or running.start_rate)

    def _value(self, tried: Tried) -> float | None:
        return tried.value(self._goal.direction)

    def _best_value(self) -> float | None:
        best = self.best()
        return self._value(best) if best else None

    def _ranked(self) -> list[Tried]:
        """Return the candidates that kept what was asked, the best one first."""
        values = [(self._value(each), each) for each in self._study.tried()]
        good = [(value, each) for value, each in values if value is not None]
        good.sort(key=lambda pair: pair[0], reverse=self._goal.direction == "maximize")
        return [each for _, each in good]

    def _say(self, what: str, candidate: Candidate) -> None:
        value = self._best_value()
        known = "" if value is None else f" (best so far {self._goal.shown(value)})"
        self._bed.progress.step(f"{what}{known}: {candidate}")
