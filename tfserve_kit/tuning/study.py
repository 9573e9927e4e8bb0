"""What may be tried and what was, kept so that a search can go on; Optuna chooses what is next.

What the parameters do, and their defaults: tensorflow_serving/servables/tensorflow/
session_bundle_config.proto and tensorflow_serving/model_servers/main.cc.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from tfserve_kit.deployment.flags import handler_threads
from tfserve_kit.deployment.spec import Batching, Spec
from tfserve_kit.errors import UsageError
from tfserve_kit.perf.load import Protocol
from tfserve_kit.tuning.goals import Direction, Point, Score

_BATCHING = "batching"

# What a parameter is where nobody sets it; None depends on the machine.
_SERVER_DEFAULTS = {
    "max_batch_size": 1000,
    "batch_timeout_micros": 0,
    "max_enqueued_batches": 10,
    "num_batch_threads": None,
}
_THREAD_FLAGS = ("tensorflow_intra_op_parallelism", "tensorflow_inter_op_parallelism")
_FRONT_FLAG = {"grpc": "grpc_max_threads", "rest": "rest_api_num_threads"}
_MOST_DOUBLINGS = 7
_TIMEOUTS_MICROS = (0, 200, 500, 1000, 2000, 5000, 10_000, 20_000)
_SMALL_BATCH = 4

Value = bool | int | str
Params = Mapping[str, Value]


@dataclass(frozen=True, slots=True)
class Candidate:
    """Settings of a server that are tried together.

    Attributes:
        batching: how requests are grouped; None runs each by itself.
        flags: flags of tensorflow_model_server that differ from the deployment's.
    """

    batching: Batching | None = field(default_factory=Batching)
    flags: Mapping[str, int] = field(default_factory=dict)

    def applied(self, spec: Spec) -> Spec:
        """Return a deployment with these settings in the place of its own."""
        server = spec.server.model_copy(update={"flags": spec.server.flags | dict(self.flags)})
        return spec.model_copy(update={"batching": self.batching, "server": server})

    def batching_set(self) -> dict[str, Any]:
        """Return the batching parameters that are not left to the server."""
        return self.batching.model_dump(exclude_defaults=True) if self.batching else {}

    def __str__(self) -> str:
        flags = [f"{name} {value}" for name, value in self.flags.items()]
        if self.batching is None:
            return ", ".join(["no batching", *flags])
        sizes = self.batching.allowed_batch_sizes
        values = self.batching_set() | ({"allowed_batch_sizes": list(sizes)} if sizes else {})
        parts = [f"{name} {value}" for name, value in values.items()] or ["batching by default"]
        return ", ".join(parts + flags)


@dataclass(frozen=True, slots=True)
class Space:
    """What may be tried on a machine for a workload.

    Attributes:
        cpus: processors of the machine.
        rows: rows of each request; no batch may be smaller.
        protocol: whose threads are varied.
        patience_s: no batch waits longer than half of this.
        batches: whether the models can be batched at all.
    """

    cpus: int
    rows: int
    protocol: Protocol
    patience_s: float
    batches: bool = True

    def axes(self) -> dict[str, tuple[Value, ...]]:
        """Return the choices for each parameter; all but the threads need `batching`."""
        largest = [self.rows * 2**power for power in range(_MOST_DOUBLINGS)]
        most_micros = self.patience_s * 1e6 / 2
        counts = _rising(1, 2, self.cpus // 2, self.cpus, 2 * self.cpus)
        return {
            _BATCHING: (True, False) if self.batches else (False,),
            "max_batch_size": _rising(*largest, max(_SMALL_BATCH, self.rows), 1000),
            "batch_timeout_micros": tuple(t for t in _TIMEOUTS_MICROS if t <= most_micros),
            "max_enqueued_batches": (10, 100),
            "num_batch_threads": counts,
            "sizes": ("any", "doubling", "largest"),
            **{name: (0, *_rising(1, self.cpus)) for name in _THREAD_FLAGS},
            _FRONT_FLAG[self.protocol]: (0, 4 * handler_threads(self.cpus)),
        }

    def needs_batching(self, name: str) -> bool:
        """Say whether a parameter says nothing where requests are not batched."""
        return name == "sizes" or name in _SERVER_DEFAULTS

    def candidate(self, params: Params) -> Candidate:
        """Return the settings that chosen values mean; the server's defaults are left out."""
        flags = {name: int(params[name]) for name in self._flag_names() if params.get(name)}
        if not params[_BATCHING]:
            return Candidate(None, flags)
        defaults = _SERVER_DEFAULTS | {"num_batch_threads": self.cpus}
        chosen = {name: params[name] for name in defaults if params[name] != defaults[name]}
        sizes = self._sizes(str(params["sizes"]), int(params["max_batch_size"]))
        return Candidate(Batching.model_validate(chosen | {"allowed_batch_sizes": sizes}), flags)

    def first(self) -> list[dict[str, Value]]:
        """Return what is tried before anything else.

        The server's default batching, and no batching. One thread that runs batches, which leaves
        all processors to each and lets the next one gather meanwhile; and the opposite: many
        threads that run small batches, each on one processor. For models that cannot be batched:
        the server's default, and each request on one processor.
        """
        unset: dict[str, Value] = dict.fromkeys(self._flag_names(), 0)
        without = {_BATCHING: False, **unset}
        if not self.batches:
            return [without, without | {"tensorflow_intra_op_parallelism": 1}]
        default = {
            name: self.cpus if value is None else value for name, value in _SERVER_DEFAULTS.items()
        }
        by_default = {_BATCHING: True, "sizes": "any", **default, **unset}
        narrow = {"num_batch_threads": 2 * self.cpus, "tensorflow_intra_op_parallelism": 1}
        return [
            by_default,
            without,
            by_default | {"num_batch_threads": 1},
            by_default | narrow | {"max_batch_size": max(_SMALL_BATCH, self.rows)},
        ]

    def _flag_names(self) -> tuple[str, ...]:
        return (*_THREAD_FLAGS, _FRONT_FLAG[self.protocol])

    def _sizes(self, which: str, largest: int) -> tuple[int, ...]:
        if which == "any":
            return ()
        if which == "largest":
            return (largest,)
        return _rising(
            *(self.rows * 2**n for n in range(32) if self.rows * 2**n < largest), largest
        )


def _rising(*values: int) -> tuple[int, ...]:
    return tuple(sorted({value for value in values if value > 0}))


_JOURNAL = "search.journal"
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
            if chosen.get(_BATCHING, True) or not self._space.needs_batching(name):
                value = trial.suggest_categorical(name, choices)
                chosen[name] = value
        return chosen


def _opened(folder: Path, direction: Direction) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        storage = JournalStorage(JournalFileBackend(str(folder / _JOURNAL)))
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
