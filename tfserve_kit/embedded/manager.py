"""Loads and unloads model versions in the background and lends them to requests.

From bottom to top: what a base path holds and a policy asks for; the threads that look; which
version to load or unload next; version labels; and the `Manager` that does it all.

Source: tensorflow_serving/core/aspired_versions_manager.cc, basic_manager.cc and
availability_preserving_policy.cc, sources/storage_path/file_system_storage_path_source.cc,
model_servers/server_core.cc (labels). One deviation, on purpose: a failed load waits for its next
try without holding up the loads of other models.
"""

import logging
import re
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from concurrent import futures
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from pathlib import Path
from typing import Any, Self

from tfserve_kit.clock import Clock, SystemClock
from tfserve_kit.embedded.ledger import Call
from tfserve_kit.embedded.metrics import VERSION_AVAILABLE, VERSIONS, Reading
from tfserve_kit.embedded.servable import Loader, Servable
from tfserve_kit.embedded.settings import (
    ServerSettings,
    check_changes,
    check_logging,
    check_platforms,
)
from tfserve_kit.embedded.status import Code, ServingError, invalid
from tfserve_kit.repository.versions import list_versions


def aspired_versions(config: Any) -> dict[int, Path]:
    """Return the versions a model should have loaded now: number to directory.

    Args:
        config: a ModelConfig message.

    Raises:
        ServingError: NOT_FOUND, the base path does not exist.
    """
    try:
        found = {
            version.number: version.path for version in list_versions(_local(config.base_path))
        }
    except OSError as error:
        raise ServingError(
            Code.NOT_FOUND,
            f"Could not find base path {config.base_path} for servable {config.name} "
            f"with error NOT_FOUND: {config.base_path} not found",
        ) from error
    policy = config.model_version_policy
    match policy.WhichOneof("policy_choice"):
        case "all":
            wanted = list(found)
        case "specific":
            wanted = [number for number in policy.specific.versions if number in found]
        case _:
            wanted = sorted(found)[-max(1, policy.latest.num_versions) :]
    return {number: found[number] for number in wanted}


def _local(base_path: str) -> Path:
    """Return where a base path is on this machine; other schemes than `file` lead nowhere."""
    return Path(re.sub(r"^file://[^/]*", "", base_path))


def check_directory(version_dir: Path, servable: str) -> None:
    """Refuse what is no directory as the official server does when it reserves memory for it.

    Args:
        version_dir: what bears the version's name.
        servable: how messages call it.

    Raises:
        ServingError: it is a file, or a link to nothing.
    """
    text = f"Error while attempting to reserve resources to load servable {servable}: "
    if not version_dir.exists():
        raise ServingError(Code.NOT_FOUND, f"{text}{version_dir} not found")
    if not version_dir.is_dir():
        raise ServingError(Code.FAILED_PRECONDITION, f"{text}{version_dir}; Not a directory")


_log = logging.getLogger(__name__)

# So many base paths may hang before the others are not looked at any more.
_MOST_THREADS = 16


class Poller:
    """Has every model looked at once a round. Thread-safe.

    A model whose configuration is replaced while it is looked at is looked at once more afterwards.
    Each round adds a thread if those before are still busy; so a base path that hangs costs one
    thread, and the models beside it are looked at by the next.

    Args:
        look: told a model's name and its ModelConfig message.
    """

    def __init__(self, look: Callable[[str, Any], object]) -> None:
        self._look = look
        self._lock = threading.Lock()
        self._due: OrderedDict[str, Any] = OrderedDict()
        self._busy: dict[str, Any] = {}
        self._threads = 0

    def ask(self, configs: Mapping[str, Any]) -> None:
        """Begin a round; returns at once.

        Args:
            configs: ModelConfig message by name; models being looked at are left out.
        """
        with self._lock:
            self._due = OrderedDict(
                (name, config)
                for name, config in configs.items()
                if self._busy.get(name) is not config
            )
            if self._due.keys() <= self._busy.keys() or self._threads >= _MOST_THREADS:
                return
            self._threads += 1
        try:
            threading.Thread(target=self._work, name="poll", daemon=True).start()
        except RuntimeError:  # the system has no more; the next round tries again
            with self._lock:
                self._threads -= 1
            raise

    def stop(self) -> None:
        """Look at no further model."""
        self.ask({})

    def _work(self) -> None:
        while found := self._take():
            name, config = found
            try:
                self._look(name, config)
            except Exception:  # noqa: BLE001 (the other models want to be looked at)
                _log.exception("looking at the base path of %s failed", name)
            with self._lock:
                del self._busy[name]

    def _take(self) -> tuple[str, Any] | None:
        with self._lock:
            name = next((name for name in self._due if name not in self._busy), None)
            if name is None:
                self._threads -= 1
                return None
            config = self._busy[name] = self._due.pop(name)
            return name, config


class VersionState(IntEnum):
    """Life of a version; the numbers are those of ModelVersionStatus.State."""

    UNKNOWN = 0
    START = 10
    LOADING = 20
    AVAILABLE = 30
    UNLOADING = 40
    END = 50


_AVAILABLE, _UNLOADING = VersionState.AVAILABLE, VersionState.UNLOADING  # quicker to find


# What has ended says nothing of what is served.
_TOLD = (VersionState.START, VersionState.LOADING, VersionState.AVAILABLE, VersionState.UNLOADING)

# Versions of a model, and models, that have ended and are still known by their state.
MOST_ENDED = 1000


@dataclass(slots=True, eq=False)
class Entry:
    """One version of a model; guarded by the manager's lock."""

    model: str
    number: int
    path: Path
    state: VersionState = VersionState.START
    aspired: bool = True
    error: ServingError | None = None
    failures: int = 0
    retry_at_s: float | None = None
    lease: "Lease | None" = None
    leases: int = 0


@dataclass(frozen=True, slots=True)
class ServableStatus:
    """State of a version, and why its load failed if it did."""

    number: int
    state: VersionState
    error: ServingError | None


class Lease:
    """A version on loan to a request during a `with` block; it is not unloaded before that ends.

    Attributes:
        model: name of the model.
        version: the version.
        servable: what answers.
        plans: what was worked out for it once, by whoever borrows it.
    """

    __slots__ = ("_give_back", "model", "plans", "servable", "version")

    def __init__(
        self, model: str, version: int, servable: Servable, give_back: Callable[[], object]
    ) -> None:
        self.model, self.version, self.servable = model, version, servable
        self._give_back = give_back
        self.plans: dict[str, Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._give_back()


def next_step(entries: Iterable[Entry]) -> tuple[Entry, VersionState] | None:
    """Return the next step towards the aspired versions, None if there is nothing to do now.

    Versions nobody aspires to are unloaded, lowest first, once an aspired one is available or none
    is aspired at all; then aspired ones are loaded, highest first.

    Returns:
        A version, and the state it is to enter: LOADING or UNLOADING.
    """
    by_number = sorted(entries, key=lambda entry: entry.number)
    aspired = [entry for entry in by_number if entry.aspired]
    surplus = [e for e in by_number if not e.aspired and e.state is VersionState.AVAILABLE]
    if surplus and (not aspired or any(entry.state is VersionState.AVAILABLE for entry in aspired)):
        return surplus[0], VersionState.UNLOADING
    waiting = [entry for entry in aspired if entry.state is VersionState.START]
    return (waiting[-1], VersionState.LOADING) if waiting else None


def mark_aspired(model: str, entries: dict[int, Entry], wanted: Mapping[int, Path]) -> None:
    """Mark what is wanted; a number that was unloaded in health may come back, a failed one not."""
    for entry in entries.values():
        entry.aspired = entry.number in wanted
    for number, path in wanted.items():
        known = entries.get(number)
        if known is None or (known.state is VersionState.END and known.error is None):
            entries[number] = Entry(model, number, path)
    if len(entries) > MOST_ENDED:
        ended = sorted(
            n for n, e in entries.items() if e.state is VersionState.END and not e.aspired
        )
        for number in ended[:-MOST_ENDED]:
            del entries[number]


def is_served(entries: Mapping[int, Entry]) -> bool:
    """Say whether a model can answer."""
    return any(
        entry.aspired and entry.state is VersionState.AVAILABLE for entry in entries.values()
    )


def load_failures(model: str, entries: Mapping[int, Entry]) -> list[str]:
    """Return what went wrong with each version, if all that a model needs have failed."""
    aspired = [entry for entry in entries.values() if entry.aspired]
    if not all(entry.state is VersionState.END and entry.error for entry in aspired):
        return []
    return [
        f"{{{{name: {model} version: {entry.number}}} due to error: {entry.error}}}, "
        for entry in aspired
    ]


LabelMap = Mapping[str, Mapping[str, int]]


def assign_labels(
    configs: Iterable[Any],
    current: LabelMap,
    is_available: Callable[[str, int], bool],
    *,
    allow_unavailable: bool,
) -> LabelMap:
    """Return the labels that a new configuration gives out: model to label to version.

    Args:
        configs: ModelConfig messages.
        current: the labels that are given out now.
        is_available: whether a model's version can be called now.
        allow_unavailable: let a label that is new, or stays where it is, name any version.

    Raises:
        ServingError: FAILED_PRECONDITION, a label would name a version that cannot be called.
    """
    assigned: dict[str, dict[str, int]] = {}
    for config in configs:
        for label, version in sorted(config.version_labels.items()):
            before = current.get(config.name, {}).get(label)
            lenient = allow_unavailable and before in {None, version}
            if not lenient and not is_available(config.name, version):
                raise ServingError(
                    Code.FAILED_PRECONDITION,
                    f"Request to assign label to version {version} of model {config.name}, "
                    "which is not currently available for inference",
                )
            assigned.setdefault(config.name, {})[label] = version
    return assigned


def resolve_label(labels: LabelMap, model: str, label: str) -> int:
    """Return the version a label stands for.

    Raises:
        ServingError: the model has no such label.
    """
    try:
        return labels[model][label]
    except KeyError:
        raise invalid(f"Unrecognized servable version label: {label}") from None


# How long the background thread rests when nothing is due, in seconds.
_TICK_S = 0.05
_GRACE_S = 10.0


class Manager:
    """Keeps the loaded versions in line with what the models' base paths hold.

    `start` begins a background thread and `stop` ends it; between the two every method may be
    called from any thread.
    """

    def __init__(
        self, settings: ServerSettings, loader: Loader, *, clock: Clock | None = None
    ) -> None:
        self._settings = settings
        self._loader = loader
        self._clock = clock or SystemClock()
        self._configs = {config.name: config for config in settings.models}
        self._entries: dict[str, dict[int, Entry]] = {name: {} for name in self._configs}
        self._labels: LabelMap = {}
        self._lock = threading.RLock()  # taken twice by each request: quicker than the condition
        self._changed = threading.Condition(self._lock)
        self._newest: dict[str, Entry] = {}  # the highest available version, once asked for
        self._touched: dict[str, None] = {}  # models that something has happened to, in order
        self._troubled: set[str] = set()  # models with a version that failed for good
        self._retrying: set[Entry] = set()
        self._reloading = threading.Lock()  # while a configuration is checked and put in place
        self._reloads = 0
        self._stopping = False
        self._poll_at_s: float | None = None
        self._loads = futures.ThreadPoolExecutor(settings.load_threads, "load")
        self._loading: set[futures.Future[None]] = set()
        # Apart from the loads, so that memory is freed while a model loads.
        self._unloads = futures.ThreadPoolExecutor(1, "unload")
        self._poller = Poller(self._poll)
        self._thread = threading.Thread(target=self._run, name="manager", daemon=True)

    def start(self) -> None:
        """Begin to watch the base paths and to load.

        Raises:
            ServingError: a label although no version is loaded yet.
        """
        with self._changed:
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
        self._poller.stop()
        self._loads.shutdown(wait=False, cancel_futures=True)
        futures.wait(self._loading, timeout=grace_s)
        with self._changed:
            for entry in self._everything():
                if entry.state is VersionState.AVAILABLE:
                    self._submit_unload(entry)
            self._changed.wait_for(
                lambda: all(e.state is not VersionState.UNLOADING for e in self._everything()),
                grace_s,
            )
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
            version = resolve_label(self._labels, model, label)
        with self._lock:
            entry = (
                self._newest.get(model) or self._find_newest(model)
                if version is None
                else self._entries.get(model, {}).get(version)
            )
            if entry is None or entry.state is not _AVAILABLE or entry.lease is None:
                which = f"Latest({model})" if version is None else f"Specific({model}, {version})"
                raise ServingError(Code.NOT_FOUND, f"Servable not found for request: {which}")
            entry.leases += 1
            return entry.lease

    def _give_back(self, entry: Entry) -> None:
        with self._lock:
            entry.leases -= 1
            if entry.state is _UNLOADING:
                self._unload_if_idle(entry)

    def _find_newest(self, model: str) -> Entry | None:
        """Return the highest available version of a model; the caller holds the lock."""
        entries = self._entries.get(model, {})
        ready = [n for n, entry in entries.items() if entry.state is VersionState.AVAILABLE]
        if not ready:
            return None
        newest = self._newest[model] = entries[max(ready)]
        return newest

    def status(self, model: str) -> list[ServableStatus]:
        """Return the state of every version the manager has seen, highest first."""
        with self._changed:
            entries = sorted(self._entries.get(model, {}).values(), key=lambda e: -e.number)
            return [ServableStatus(e.number, e.state, e.error) for e in entries]

    def readings(self) -> list[Reading]:
        """Return how many versions of each model are in each state, and which can answer."""
        with self._changed:
            entries = [each for each in self._everything() if each.state in _TOLD]
            models = {*self._configs, *(each.model for each in entries)}
        found = Counter((each.model, each.state.name) for each in entries)
        counts: list[Reading] = [
            (VERSIONS, (model, state.name), found[model, state.name])
            for model in models
            for state in _TOLD
        ]
        available = [each for each in entries if each.state is _AVAILABLE]
        return counts + [(VERSION_AVAILABLE, (e.model, str(e.number)), 1) for e in available]

    def reload(
        self,
        configs: Sequence[Any],
        *,
        timeout_s: float | None = None,
        call: Call | None = None,
    ) -> None:
        """Replace the whole set of served models, and wait until the new names can answer.

        Args:
            configs: ModelConfig messages, checked by `settings.check_models`.
            timeout_s: longest wait, in seconds; None waits without end.
            call: whose client waits, no longer than that; the configuration stays.

        Raises:
            ServingError: a platform changes or does not exist, or a label names a version that
                cannot be called. Or, and then the configuration stays: a new model failed to load,
                requests are to be logged; ABORTED, another reload came first.
        """
        with self._reloading:
            check_changes(self._configs, configs)
            given = self._assigned_labels(configs)
            check_platforms(configs)
            by_name = {config.name: config for config in configs}
            new = [name for name in by_name if name not in self._configs]
            with self._changed:
                self._reloads += 1
                this = self._reloads
                self._configs, self._labels = by_name, given
                self._drop(self._entries.keys() - by_name.keys())
                self._poll_at_s = self._clock.now_s()
                self._changed.notify_all()
        if call:
            timeout_s = call.timeout_s
            call.on_cancel(self._wake)
        with self._changed:
            self._await(new, "model(s)", timeout_s, partial(self._check_reload, this, call))
        check_logging(configs)

    def _check_reload(self, this: int, call: Call | None) -> None:
        """Raise where nobody waits for a reload any more; the caller holds the lock."""
        if self._reloads != this:
            raise ServingError(Code.ABORTED, "A newer configuration has replaced this one")
        if call:
            call.check()

    def _drop(self, models: AbstractSet[str]) -> None:
        """Have models unloaded, and forget those that ended long ago; the caller holds the lock."""
        for name in models:
            self._aspire(name, {})
        gone = [name for name in self._entries if name in models]
        ended = [
            n for n in gone if all(e.state is VersionState.END for e in self._entries[n].values())
        ]
        for name in ended[:-MOST_ENDED]:
            del self._entries[name]
            self._troubled.discard(name)

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def wait_until_serving(self) -> None:
        """Block until every model has an available version.

        As with the official server a model whose base path is missing or empty is waited for
        without end; `stop` ends the wait.

        Raises:
            ServingError: all versions that a model needs have finally failed to load, or the
                manager was stopped.
        """
        with self._changed:
            self._await(list(self._configs), "servable(s)", None, lambda: None)

    def _assigned_labels(self, configs: Iterable[Any]) -> LabelMap:
        """Return the labels of a configuration."""

        def is_available(model: str, version: int) -> bool:
            with self._changed:
                entry = self._entries.get(model, {}).get(version)
            return entry is not None and entry.state is VersionState.AVAILABLE

        lenient = self._settings.allow_labels_for_unavailable
        return assign_labels(configs, self._labels, is_available, allow_unavailable=lenient)

    def _await(
        self,
        models: Sequence[str],
        what: str,
        timeout_s: float | None,
        check: Callable[[], object],
    ) -> None:
        """Wait until models can answer, or `check` raises; the caller holds the lock."""
        end_s = None if timeout_s is None else self._clock.now_s() + timeout_s
        left = list(models)  # looked at from the end: thousands of models are not, each time
        while not self._stopping:
            check()
            bad = [name for name in models if name in self._troubled] if self._troubled else []
            failed = [
                text for name in bad for text in load_failures(name, self._entries.get(name, {}))
            ]
            if failed:
                text = f"{len(failed)} {what} did not become available: "
                raise ServingError(Code.UNKNOWN, text + "{" + "".join(failed) + "}")
            while left and is_served(self._entries.get(left[-1], {})):
                left.pop()
            if not left:
                return
            left_s = None if end_s is None else end_s - self._clock.now_s()
            if left_s is not None and left_s <= 0:
                raise ServingError(Code.DEADLINE_EXCEEDED, "Deadline Exceeded")
            self._changed.wait(left_s)
        raise ServingError(Code.CANCELLED, "stopped before every model was available")

    # The background thread

    def _run(self) -> None:
        wait_s = self._settings.poll_wait_s
        self._poll_at_s = self._clock.now_s() if wait_s >= 0 else None
        while not self._stopping:
            try:
                self._poll_if_due(wait_s)
                self._advance()
            except Exception:  # noqa: BLE001 (without this thread no model is ever loaded again)
                _log.exception("looking after the models failed")
            with self._changed:
                if not self._stopping:
                    self._changed.wait(_TICK_S)

    def _poll_if_due(self, wait_s: float) -> None:
        if self._poll_at_s is not None and self._clock.now_s() >= self._poll_at_s:
            self._poll_at_s = self._clock.now_s() + wait_s if wait_s > 0 else None
            self._poller.ask(self._configs)

    def _poll(self, name: str, config: Any) -> None:
        """Compare a base path with what is known; one that vanished changes nothing."""
        try:
            wanted = aspired_versions(config)
        except ServingError as error:
            _log.error("%s", error.message)
            return
        if not wanted:
            _log.warning(
                "No versions of servable %s found under base path %s", name, config.base_path
            )
        with self._changed:
            if self._configs.get(name) is config:  # not replaced meanwhile
                self._aspire(name, wanted)

    def _aspire(self, name: str, wanted: Mapping[int, Path]) -> None:
        """Note which versions of a model are wanted; the caller holds the lock."""
        entries = self._entries.setdefault(name, {})
        mark_aspired(name, entries, wanted)
        self._touched[name] = None
        self._changed.notify_all()

    def _advance(self) -> None:
        """Take every step that can be taken now."""
        for entry in self._due_retries():
            self._submit_load(entry)
        with self._changed:
            touched, self._touched = self._touched, {}
        for name in touched:
            while step := self._next(name):
                step()

    def _next(self, name: str) -> Callable[[], None] | None:
        """Return what is to be done for a model next."""
        with self._changed:
            step = next_step(self._entries.get(name, {}).values())
        if step is None:
            return None
        entry, state = step
        return partial(
            self._submit_load if state is VersionState.LOADING else self._submit_unload, entry
        )

    def _due_retries(self) -> list[Entry]:
        with self._changed:
            now_s = self._clock.now_s()
            due = [e for e in self._retrying if e.retry_at_s is not None and e.retry_at_s <= now_s]
            self._retrying.difference_update(due)
            return due

    def _submit_load(self, entry: Entry) -> None:
        self._enter(entry, VersionState.LOADING)
        self._loading = {load for load in self._loading if not load.done()}
        try:
            self._loading.add(self._loads.submit(self._load, entry))
        except RuntimeError as error:  # no thread is to be had
            self._failed(entry, ServingError(Code.RESOURCE_EXHAUSTED, str(error)))

    def _submit_unload(self, entry: Entry) -> None:
        with self._changed:
            self._enter(entry, VersionState.UNLOADING)
            self._unload_if_idle(entry)

    def _unload_if_idle(self, entry: Entry) -> None:
        """Unload once the last request is done; the unloads of others do not wait for it."""
        if entry.state is VersionState.UNLOADING and not entry.leases:
            try:
                self._unloads.submit(self._unload, entry)
            except RuntimeError:  # stopped meanwhile: this request has outlasted its grace
                self._unload(entry)

    def _everything(self) -> list[Entry]:
        return [entry for entries in self._entries.values() for entry in entries.values()]

    def _enter(self, entry: Entry, state: VersionState) -> None:
        with self._changed:
            entry.state = state
            self._newest.pop(entry.model, None)
            self._touched[entry.model] = None
            self._changed.notify_all()

    def _load(self, entry: Entry) -> None:
        name = f"{{name: {entry.model} version: {entry.number}}}"
        try:
            check_directory(entry.path, name)
            servable = self._loader(entry.path)
        except ServingError as error:
            _log.error("Loading servable: %s failed: %s", name, error)
            self._failed(entry, error)
        except BaseException as error:  # noqa: BLE001 (whatever ends a load, it is seen)
            _log.exception("Loading servable: %s failed", name)
            text = str(error) or type(error).__name__
            self._failed(entry, ServingError(Code.INTERNAL, text))
        else:
            _log.info("Successfully loaded servable version %s", name)
            with self._changed:
                give_back = partial(self._give_back, entry)
                entry.lease = Lease(entry.model, entry.number, servable, give_back)
                entry.error = None
                self._enter(entry, VersionState.AVAILABLE)

    def _failed(self, entry: Entry, error: ServingError) -> None:
        with self._changed:
            entry.error = error
            entry.failures += 1
            if entry.failures > self._settings.max_load_retries or not entry.aspired:
                self._troubled.add(entry.model)
                self._enter(entry, VersionState.END)
            else:
                entry.retry_at_s = self._clock.now_s() + self._settings.load_retry_interval_s
                self._retrying.add(entry)
                self._changed.notify_all()

    def _unload(self, entry: Entry) -> None:
        lease, entry.lease = entry.lease, None
        try:
            if lease is not None:
                lease.servable.close()
        finally:
            self._enter(entry, VersionState.END)
