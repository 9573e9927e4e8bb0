"""Which version to load or unload next: pure decisions, no side effects.

Source: tensorflow_serving/core/availability_preserving_policy.cc: what is served goes only after
what replaces it is there.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum


class State(IntEnum):
    """Life of a version; the numbers are those of ModelVersionStatus.State."""

    UNKNOWN = 0
    START = 10
    LOADING = 20
    AVAILABLE = 30
    UNLOADING = 40
    END = 50


@dataclass(frozen=True, slots=True)
class VersionView:
    """What a decision needs to know of a version."""

    number: int
    state: State
    aspired: bool


@dataclass(frozen=True, slots=True)
class Load:
    """Load this version."""

    number: int


@dataclass(frozen=True, slots=True)
class Unload:
    """Unload this version."""

    number: int


def next_action(versions: Iterable[VersionView]) -> Load | Unload | None:
    """Return the next step towards the aspired versions, None if there is nothing to do now.

    Versions nobody aspires to are unloaded, lowest first, once an aspired one is available or none
    is aspired at all; then aspired ones are loaded, highest first.
    """
    versions = list(versions)
    aspired = [version for version in versions if version.aspired]
    replaced = not aspired or any(version.state is State.AVAILABLE for version in aspired)
    surplus = [
        version.number
        for version in versions
        if not version.aspired and version.state is State.AVAILABLE
    ]
    if replaced and surplus:
        return Unload(min(surplus))
    waiting = [version.number for version in aspired if version.state is State.START]
    return Load(max(waiting)) if waiting else None
