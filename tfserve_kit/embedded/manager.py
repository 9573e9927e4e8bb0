"""Loads and unloads model versions in the background and lends them to requests.

Source: tensorflow_serving/core/aspired_versions_manager.cc and basic_manager.cc. One deviation, on
purpose: a failed load waits for its next try without holding up the loads of other models.
"""

import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent import futures
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

from tfserve_kit.clock import Clock, SystemClock
from tfserve_kit.embedded import labels, source
from tfserve_kit.embedded.model_config import platform
from tfserve_kit.embedded.servable import Loader, Servable
from tfserve_kit.embedded.settings import Settings
from tfserve_kit.embedded.status import Code, ServingError, invalid
from tfserve_kit.embedded.versions import Load, State, Unload, VersionView, next_action

_log = logging.getLogger(__name__)

# How long the background thread rests when nothing is due, in seconds.
_TICK_S = 0.05
_GRACE_S = 10.0


@dataclass(slots=True)
class _Entry:
    """One version of a model; guarded by the manager's lock."""

    number: int
    path: Path
    state: State = State.START
    aspired: bool = True
    servable: Servable | None = None
    error: ServingError | None = None
    failures: int = 0
    retry_at_s: float | None = None
    leases: int = 0


@dataclass(frozen=True, slots=True)
class VersionStatus:
    """State of a version, and why its load failed if it did."""

    number: int
    state: State
    error: ServingError | None


class Lease:
    """A version on loan to a request during a `with` block; it is not unloaded before that ends."""

    __slots__ = ("_give_back", "model", "servable", "version")

    def __init__(
        self, model: str, version: int, servable: Servable, give_back: Callable[[], object]
    ) -> None:
        self.model, self.version, self.servable = model, version, servable
        self._give_back = give_back

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._give_back()


class Manager:
    """Keeps the loaded versions in line with what the models' base paths hold.

    `start` begins a background thread and `stop` ends it; between the two every method may be
    called from any thread.
    """

    def __init__(self, settings: Settings, loader: Loader, *, clock: Clock | None = None) -> None:
        self._settings = settings
        self._loader = loader
        self._clock = clock or SystemClock()
        self._configs = {config.name: config for config in settings.models}
        self._entries: dict[str, dict[int, _Entry]] = {name: {} for name in self._configs}
        self._labels: labels.LabelMap = {}
        self._changed = threading.Condition()
        self._stopping = False
        self._poll_at_s: float | None = None
        self._loads = futures.ThreadPoolExecutor(settings.load_threads, "load")
        self._loading: set[futures.Future[None]] = set()
        # Apart from the loads, so that memory is freed while a model loads.
        self._unloads = futures.ThreadPoolExecutor(1, "unload")
        self._thread = threading.Thread(target=self._run, name="manager", daemon=True)

    def start(self) -> None:
        """Begin to watch the base paths and to load.

        Raises:
            ServingError: another platform, or a label although no version is loaded yet.
        """
        with self._changed:
            _refuse_other_platforms({}, self._configs.values())
            self._labels = self._assigned_labels(self._configs.values())
        self._thread.start()

    def interrupt(self) -> None:
        """End `wait_until_serving` and the background thread soon; returns at once."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def stop(self, grace_s: float = _GRACE_S) -> None:
        """Stop watching, wait for loads and requests in flight, and unload everything.

        Args:
            grace_s: how long each of the two may take, in seconds; what takes longer is left.
        """
        self.interrupt()
        if self._thread.is_alive():
            self._thread.join()
        self._loads.shutdown(wait=False, cancel_futures=True)
        futures.wait(self._loading, timeout=grace_s)
        for entries in self._entries.values():
            for entry in entries.values():
                if entry.state is State.AVAILABLE:
                    self._submit_unload(entry)
        with self._changed:
            self._changed.wait_for(lambda: not self._is_unloading(), timeout=grace_s)
        self._unloads.shutdown(wait=False)

    # Requests

    def lease(self, model: str, version: int | None = None, label: str | None = None) -> Lease:
        """Lend a version for the duration of a `with` block.

        Args:
            model: name of the model.
            version: its version; None for the highest that is available.
            label: a label of the model instead of a version.

        Raises:
            ServingError: no such version is available, or the model has no such label.
        """
        if label is not None:
            version = labels.resolve(self._labels, model, label)
        entry = self._take(model, version)
        assert entry.servable is not None  # noqa: S101 (available versions have one)
        return Lease(model, entry.number, entry.servable, partial(self._give_back, entry))

    def _give_back(self, entry: _Entry) -> None:
        with self._changed:
            entry.leases -= 1
            self._unload_if_idle(entry)

    def _take(self, model: str, version: int | None) -> _Entry:
        with self._changed:
            entries = self._entries.get(model, {})
            if version is None:
                ready = [n for n, entry in entries.items() if entry.state is State.AVAILABLE]
                entry = entries[max(ready)] if ready else None
            else:
                entry = entries.get(version)
            if entry is None or entry.state is not State.AVAILABLE:
                which = f"Latest({model})" if version is None else f"Specific({model}, {version})"
                raise ServingError(Code.NOT_FOUND, f"Servable not found for request: {which}")
            entry.leases += 1
            return entry

    def status(self, model: str) -> list[VersionStatus]:
        """Return the state of every version the manager has seen, highest first."""
        with self._changed:
            entries = sorted(self._entries.get(model, {}).values(), key=lambda e: -e.number)
            return [VersionStatus(e.number, e.state, e.error) for e in entries]

    def reload(self, configs: Sequence[Any], *, timeout_s: float | None = None) -> None:
        """Replace the whole set of served models, and wait until the new names can answer.

        Args:
            configs: ModelConfig messages, checked by `settings.check_models`.
            timeout_s: longest wait, in seconds; None waits without end.

        Raises:
            ServingError: a platform changes, a label names a version that cannot be called, or a
                new model failed to load.
        """
        with self._changed:
            _refuse_other_platforms(self._configs, configs)
            given = self._assigned_labels(configs)
            new = [config.name for config in configs if config.name not in self._configs]
            self._configs = {config.name: config for config in configs}
            for name, entries in self._entries.items():
                if name not in self._configs:
                    _aspire(entries, {})
            self._poll_at_s = self._clock.now_s()
            self._changed.notify_all()
            self._await(new, "model(s)", timeout_s)
            self._labels = given

    def wait_until_serving(self) -> None:
        """Block until every model has an available version.

        As with the official server a model whose base path is missing or empty is waited for
        without end; `stop` ends the wait.

        Raises:
            ServingError: all versions that a model needs have finally failed to load, or the
                manager was stopped.
        """
        with self._changed:
            self._await(list(self._configs), "servable(s)", None)

    def _assigned_labels(self, configs: Iterable[Any]) -> labels.LabelMap:
        """Return the labels of a configuration; the caller holds the lock."""

        def is_available(model: str, version: int) -> bool:
            entry = self._entries.get(model, {}).get(version)
            return entry is not None and entry.state is State.AVAILABLE

        lenient = self._settings.allow_labels_for_unavailable
        return labels.assign(configs, self._labels, is_available, allow_unavailable=lenient)

    def _await(self, models: Sequence[str], what: str, timeout_s: float | None) -> None:
        """Wait until models can answer; the caller holds the lock."""
        end_s = None if timeout_s is None else self._clock.now_s() + timeout_s
        while not self._stopping:
            failed = [text for name in models for text in self._failures(name)]
            if failed:
                text = f"{len(failed)} {what} did not become available: "
                raise ServingError(Code.UNKNOWN, text + "{" + "".join(failed) + "}")
            if all(_is_served(self._entries.get(name, {})) for name in models):
                return
            left_s = None if end_s is None else end_s - self._clock.now_s()
            if left_s is not None and left_s <= 0:
                raise ServingError(Code.DEADLINE_EXCEEDED, "Deadline Exceeded")
            self._changed.wait(left_s)
        raise ServingError(Code.CANCELLED, "stopped before every model was available")

    def _failures(self, model: str) -> list[str]:
        """Return what went wrong with each version, if all that a model needs have failed."""
        aspired = [entry for entry in self._entries.get(model, {}).values() if entry.aspired]
        if not all(entry.state is State.END and entry.error for entry in aspired):
            return []
        return [
            f"{{{{name: {model} version: {entry.number}}} due to error: {entry.error}}}, "
            for entry in aspired
        ]

    # The background thread

    def _run(self) -> None:
        wait_s = self._settings.poll_wait_s
        self._poll_at_s = self._clock.now_s() if wait_s >= 0 else None
        while not self._stopping:
            if self._poll_at_s is not None and self._clock.now_s() >= self._poll_at_s:
                self._poll_at_s = self._clock.now_s() + wait_s if wait_s > 0 else None
                self._poll()
            self._advance()
            with self._changed:
                if not self._stopping:
                    self._changed.wait(_TICK_S)

    def _poll(self) -> None:
        """Compare the base paths with what is known; one that vanished changes nothing."""
        for name, config in list(self._configs.items()):
            try:
                wanted = source.aspired(config)
            except ServingError as error:
                _log.error("%s", error.message)
                continue
            if not wanted:
                _log.warning(
                    "No versions of servable %s found under base path %s", name, config.base_path
                )
            with self._changed:
                if self._configs.get(name) is config:  # not replaced meanwhile
                    _aspire(self._entries.setdefault(name, {}), wanted)
                    self._changed.notify_all()

    def _advance(self) -> None:
        """Take every step that can be taken now."""
        for name, entries in list(self._entries.items()):
            for entry in self._due_retries(entries):
                self._submit_load(name, entry)
            while action := self._next(entries):
                entry = entries[action.number]
                if isinstance(action, Load):
                    self._submit_load(name, entry)
                else:
                    self._submit_unload(entry)

    def _next(self, entries: Mapping[int, _Entry]) -> Load | Unload | None:
        with self._changed:
            return next_action(VersionView(e.number, e.state, e.aspired) for e in entries.values())

    def _due_retries(self, entries: Mapping[int, _Entry]) -> list[_Entry]:
        with self._changed:
            now_s = self._clock.now_s()
            due = [
                e for e in entries.values() if e.retry_at_s is not None and e.retry_at_s <= now_s
            ]
            for entry in due:
                entry.retry_at_s = None
            return due

    def _submit_load(self, model: str, entry: _Entry) -> None:
        self._enter(entry, State.LOADING)
        self._loading = {load for load in self._loading if not load.done()}
        self._loading.add(self._loads.submit(self._load, model, entry))

    def _submit_unload(self, entry: _Entry) -> None:
        with self._changed:
            self._enter(entry, State.UNLOADING)
            self._unload_if_idle(entry)

    def _unload_if_idle(self, entry: _Entry) -> None:
        """Unload once the last request is done; the unloads of others do not wait for it."""
        if entry.state is State.UNLOADING and not entry.leases:
            try:
                self._unloads.submit(self._unload, entry)
            except RuntimeError:  # stopped meanwhile: this request has outlasted its grace
                self._unload(entry)

    def _is_unloading(self) -> bool:
        everything = (entry for entries in self._entries.values() for entry in entries.values())
        return any(entry.state is State.UNLOADING for entry in everything)

    def _enter(self, entry: _Entry, state: State) -> None:
        with self._changed:
            entry.state = state
            self._changed.notify_all()

    def _load(self, model: str, entry: _Entry) -> None:
        name = f"{{name: {model} version: {entry.number}}}"
        try:
            source.check_directory(entry.path, name)
            servable = self._loader(entry.path)
        except ServingError as error:
            _log.error("Loading servable: %s failed: %s", name, error)
            self._failed(entry, error)
        except Exception as error:  # noqa: BLE001 (a load that breaks must be seen)
            _log.exception("Loading servable: %s failed", name)
            self._failed(entry, ServingError(Code.INTERNAL, str(error)))
        else:
            _log.info("Successfully loaded servable version %s", name)
            with self._changed:
                entry.servable, entry.state, entry.error = servable, State.AVAILABLE, None
                self._changed.notify_all()

    def _failed(self, entry: _Entry, error: ServingError) -> None:
        with self._changed:
            entry.error = error
            entry.failures += 1
            if entry.failures > self._settings.max_load_retries or not entry.aspired:
                entry.state = State.END
            else:
                entry.retry_at_s = self._clock.now_s() + self._settings.load_retry_interval_s
            self._changed.notify_all()

    def _unload(self, entry: _Entry) -> None:
        servable, entry.servable = entry.servable, None
        try:
            if servable is not None:
                servable.close()
        finally:
            self._enter(entry, State.END)


def _aspire(entries: dict[int, _Entry], wanted: Mapping[int, Path]) -> None:
    """Mark what is wanted; a number that was unloaded in health may come back, a failed one not."""
    for entry in entries.values():
        entry.aspired = entry.number in wanted
    for number, path in wanted.items():
        known = entries.get(number)
        if known is None or (known.state is State.END and known.error is None):
            entries[number] = _Entry(number, path)


def _refuse_other_platforms(current: Mapping[str, Any], configs: Iterable[Any]) -> None:
    for config in configs:
        after = platform(config)
        before = platform(current[config.name]) if config.name in current else after
        if before != after:
            raise invalid(
                f"Illegal to change a model's platform. For model {config.name} platform was "
                f"{before} and new platform requested is {after}"
            )
        if after not in {"", "tensorflow"}:
            text = f"PlatformConfigMap has no entry for platform {after}"
            raise ServingError(Code.FAILED_PRECONDITION, text)


def _is_served(entries: Mapping[int, _Entry]) -> bool:
    """Say whether a model can answer."""
    return any(entry.aspired and entry.state is State.AVAILABLE for entry in entries.values())
