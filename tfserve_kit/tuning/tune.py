"""The search from beginning to end: try, look again at the best, and prove the winner."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tfserve_kit.errors import ServerFailed
from tfserve_kit.tuning.candidate import Candidate, Space
from tfserve_kit.tuning.goals import Goal, Score
from tfserve_kit.tuning.proof import Proof
from tfserve_kit.tuning.study import Study, Tried
from tfserve_kit.tuning.testbed import Running, Testbed

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


def tune(bed: Testbed, goal: Goal, space: Space, effort: Effort) -> Tuned:
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


class _Search:
    """One search, step by step."""

    def __init__(self, bed: Testbed, goal: Goal, study: Study) -> None:
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

    def _pair(self, sides: list[tuple[Tried, Running]], *, flipped: bool) -> tuple[float, float]:
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
