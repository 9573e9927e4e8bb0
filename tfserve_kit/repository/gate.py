"""What a version must satisfy before it gets its number."""

from dataclasses import dataclass
from pathlib import Path

from tfserve_kit import savedmodel
from tfserve_kit.errors import Problem


@dataclass(frozen=True, slots=True)
class Gate:
    """What is asked of a version."""

    tag: str = "serve"
    signatures: tuple[str, ...] = ()
    allow_breaking: bool = False
    allow_ops: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found."""

    refusals: tuple[Problem, ...]
    remarks: tuple[Problem, ...] = ()


def check(candidate: Path, gate: Gate, *, serving: Path | None) -> Verdict:
    """Look at a staged version."""
    return Verdict(tuple(savedmodel.problems(candidate, tag=gate.tag)))
