"""What the manager knows of versions, and lends of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tfserve_kit.embedded.servable import Servable
from tfserve_kit.embedded.status import ServingError
from tfserve_kit.embedded.versions import State

# Versions of a model, and models, that have ended and are still known by their state.
MOST_ENDED = 1000


@dataclass(slots=True, eq=False)
class Entry:
    """One version of a model; guarded by the manager's lock."""

    model: str
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


def aspire(model: str, entries: dict[int, Entry], wanted: Mapping[int, Path]) -> None:
    """Mark what is wanted; a number that was unloaded in health may come back, a failed one not."""
    for entry in entries.values():
        entry.aspired = entry.number in wanted
    for number, path in wanted.items():
        known = entries.get(number)
        if known is None or (known.state is State.END and known.error is None):
            entries[number] = Entry(model, number, path)
    if len(entries) > MOST_ENDED:
        ended = sorted(n for n, e in entries.items() if e.state is State.END and not e.aspired)
        for number in ended[:-MOST_ENDED]:
            del entries[number]


def is_served(entries: Mapping[int, Entry]) -> bool:
    """Say whether a model can answer."""
    return any(entry.aspired and entry.state is State.AVAILABLE for entry in entries.values())


def failures(model: str, entries: Mapping[int, Entry]) -> list[str]:
    """Return what went wrong with each version, if all that a model needs have failed."""
    aspired = [entry for entry in entries.values() if entry.aspired]
    if not all(entry.state is State.END and entry.error for entry in aspired):
        return []
    return [
        f"{{{{name: {model} version: {entry.number}}} due to error: {entry.error}}}, "
        for entry in aspired
    ]
