"""What was tried, kept so that a search can go on later; Optuna chooses what is tried next."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from tfserve_kit.errors import UsageError
from tfserve_kit.tuning.candidate import BATCHING, Candidate, Space, Value
from tfserve_kit.tuning.goals import Direction, Point, Score

JOURNAL = "search.journal"

_NAME = "tune"
_ABOUT, _PAIRS = "about", "pairs"
_RANDOM_SHARE = 3  # one of so many is drawn at random before what was seen counts
_MOST_REPEATS = 20


@dataclass(frozen=True, slots=True)
class Tried:
    """One candidate and what became of it.

    Attributes:
        number: its number, from 0, the server's default.
        candidate: the settings.
        scores: what they amounted to, each time they were tried.
        failure: why the server did not run with them; empty if it did.
    """

    number: int
    candidate: Candidate
    scores: tuple[Score, ...] = ()
    failure: str = ""

    def as_data(self) -> dict[str, Any]:
        """Return what became of it as JSON has it."""
        return {"scores": [each.as_data() for each in self.scores], "failure": self.failure}

    @property
    def points(self) -> tuple[Point, ...]:
        """All its runs."""
        return tuple(point for score in self.scores for point in score.points)

    def value(self, direction: Direction) -> float | None:
        """Return the worst value it had; None if it could not do it at all, or was beaten."""
        values = [each.value for each in self.scores if not each.beaten]
        known = [value for value in values if value is not None]
        if not known or len(known) < len(values):
            return None
        return min(known) if direction == "maximize" else max(known)


class Study:
    """A search in a folder.

    Args:
        folder: where it is kept; made if it is not there.
        space: what may be tried.
        direction: whether more or less is better.
        trials: how many candidates there will be in all.
        about: what makes one search another than the one that is kept there, as JSON has it.
        seed: the same one draws the same candidates, as far as the same is measured.

    Raises:
        UsageError: the folder holds another search, or cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        space: Space,
        direction: Direction,
        *,
        trials: int,
        about: Mapping[str, Any],
        seed: int = 0,
    ) -> None:
        self._space = space
        self._study = _opened(folder, direction)
        # A search that goes on must not draw what it drew at first.
        seed += len(self._study.trials)
        self._random = optuna.samplers.RandomSampler(seed)
        self._informed = optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=max(4, trials // _RANDOM_SHARE)
        )
        kept = self._study.user_attrs.get(_ABOUT)
        if kept is None:
            self._study.set_user_attr(_ABOUT, dict(about))
        elif differing := [key for key in about if kept.get(key) != about[key]]:
            key = differing[0]
            raise UsageError(
                f"{folder} holds a search with another {key}: {kept.get(key)}, not {about[key]}",
                remedy="give another --output, or delete that folder",
            )
        for trial in self._study.get_trials(states=[TrialState.RUNNING]):  # one was interrupted
            self._study.tell(trial.number, state=TrialState.FAIL)
        for params in space.first():
            self._study.enqueue_trial(params, skip_if_exists=True)

    def tried(self) -> list[Tried]:
        """Return all that was tried to the end, in order."""
        done = [TrialState.COMPLETE, TrialState.PRUNED]
        kept = self._study.user_attrs
        return [
            _restored(each.number, self._space.candidate(each.params), kept[_key(each.number)])
            for each in self._study.get_trials(deepcopy=False, states=done)
        ]

    def ask(self) -> Tried | None:
        """Return what to try next; None where nothing new was found."""
        known = [each.candidate for each in self.tried()]
        for attempt in range(_MOST_REPEATS):
            # What is known may point at what was tried again and again.
            self._study.sampler = self._random if attempt > _MOST_REPEATS // 2 else self._informed
            trial = self._study.ask()
            candidate = self._space.candidate(self._drawn(trial))
            if candidate not in known:
                return Tried(trial.number, candidate)
            self._study.tell(trial, state=TrialState.FAIL)
        return None

    def tell(self, tried: Tried, score: Score | None, failure: str = "") -> Tried:
        """Keep what a candidate amounted to, and return it with that.

        Args:
            tried: what was asked for, or tried before.
            score: what it amounted to; None where the server did not run.
            failure: why it did not.
        """
        now = replace(tried, scores=(*tried.scores, *([score] if score else [])), failure=failure)
        self._study.set_user_attr(_key(tried.number), now.as_data())
        if not tried.scores:
            value = score.value if score else None
            state = TrialState.PRUNED if value is None else TrialState.COMPLETE
            self._study.tell(tried.number, value, state=state, skip_if_finished=True)
        return now

    def pairs(self, winner: int) -> list[tuple[float, float]]:
        """Return the proof of a candidate as far as it went: values of the default, and of it."""
        kept = self._study.user_attrs.get(_PAIRS, {})
        return [(before, after) for before, after in kept.get(str(winner), [])]

    def keep_pairs(self, winner: int, pairs: Sequence[tuple[float, float]]) -> None:
        """Keep the proof of a candidate."""
        self._study.set_user_attr(_PAIRS, {str(winner): list(pairs)})

    def _drawn(self, trial: optuna.Trial) -> dict[str, Value]:
        chosen: dict[str, Any] = {}
        for name, choices in self._space.axes().items():
            if chosen.get(BATCHING, True) or not self._space.needs_batching(name):
                value = trial.suggest_categorical(name, choices)
                chosen[name] = value
        return chosen


def _opened(folder: Path, direction: Direction) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        storage = JournalStorage(JournalFileBackend(str(folder / JOURNAL)))
        study = optuna.create_study(
            storage=storage, study_name=_NAME, direction=direction, load_if_exists=True
        )
    except OSError as error:
        raise UsageError(
            f"cannot keep a search in {folder}: {error.strerror}",
            remedy="give a folder that this user may write to: --output FOLDER",
        ) from error
    return study


def _restored(number: int, candidate: Candidate, kept: Mapping[str, Any]) -> Tried:
    scores = tuple(Score.from_data(each) for each in kept["scores"])
    return Tried(number, candidate, scores, kept["failure"])


def _key(number: int) -> str:
    return f"candidate {number}"
