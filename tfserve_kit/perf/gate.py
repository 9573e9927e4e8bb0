"""Conditions that a run has to meet: `p99<50ms`, `rate>1000`, `errors<0.1%`, `p99<+5%`."""

import re
from dataclasses import dataclass

from tfserve_kit.errors import UsageError
from tfserve_kit.perf.stats import Summary

_NAME = r"(?P<name>mean|max|p\d+(?:\.\d+)?|rate|errors)"
_FORM = re.compile(
    _NAME + r"\s*(?P<sign>[<>])\s*(?P<number>[+-]?\d+(?:\.\d+)?)(?P<unit>us|ms|s|%|)"
)
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_EXAMPLES = "write p99<50ms, rate>1000 or errors<0.1%; against another run p99<+5% or rate>-3%"


@dataclass(frozen=True, slots=True)
class Gate:
    """One condition.

    Attributes:
        text: as it was written.
        name: `mean`, `max`, a quantile such as `p99`, `rate` (answers per second) or `errors`.
        below: whether the value must lie below the limit; above it otherwise.
        limit: seconds, answers per second, or a share.
        is_change: whether the limit is of the change from another run, as a share of that one.
    """

    text: str
    name: str
    below: bool
    limit: float
    is_change: bool

    def holds(self, value: float | None) -> bool:
        """Say whether a value meets the condition; an unknown one does not."""
        return value is not None and (value < self.limit if self.below else value > self.limit)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a gate made of a run.

    Attributes:
        gate: the condition.
        value: what it was held against, in the unit of its limit; None where it is unknown.
        passed: whether it was met.
        why: what a reader must know besides.
    """

    gate: Gate
    value: float | None
    passed: bool
    why: str = ""

    def __str__(self) -> str:
        word = "passed" if self.passed else "FAILED"
        reason = f" ({self.why})" if self.why else ""
        return f"{word}: {self.gate.text}, it is {_shown(self.gate, self.value)}{reason}"


def parse(text: str) -> Gate:
    """Return the condition that a text means.

    Raises:
        UsageError: it means none.
    """
    found = _FORM.fullmatch(text.strip())
    if found is None:
        raise UsageError(f"{text!r} is no condition", remedy=_EXAMPLES)
    name, unit, number = found["name"], found["unit"], found["number"]
    signed = number[0] in "+-"
    wanted = "%" if signed or name == "errors" else "" if name == "rate" else "us, ms or s"
    if unit not in wanted.replace(",", "").replace("or ", "").split(" "):
        raise UsageError(f"{text!r} has no unit that fits: {wanted or 'none'}", remedy=_EXAMPLES)
    if signed and name == "errors":
        raise UsageError(f"{text!r} compares errors", remedy="give their share: errors<0.1%")
    scale = 0.01 if unit == "%" else _SECONDS.get(unit, 1.0)
    return Gate(text.strip(), name, found["sign"] == "<", float(number) * scale, signed)


def value_of(summary: Summary, name: str) -> float | None:
    """Return a number of a run by its name: seconds, answers per second, or a share.

    Raises:
        UsageError: a run has no such number.
    """
    if name == "rate":
        return summary.achieved_rate
    if name == "errors":
        return summary.error_share
    try:
        return summary.latency.value_s(name)
    except KeyError:
        known = ", ".join(each.name for each in summary.latency.quantiles)
        raise UsageError(f"no run is asked for {name}", remedy=f"use one of {known}") from None


def judge(gate: Gate, after: Summary, before: Summary | None = None) -> Verdict:
    """Hold a condition against a run; a run that says nothing meets none.

    Args:
        gate: the condition.
        after: the run.
        before: what it is compared with, for a condition on the change.

    Raises:
        UsageError: a change is asked for and there is nothing to compare with.
    """
    value = value_of(after, gate.name)
    if gate.is_change:
        if before is None:
            raise UsageError(
                f"{gate.text!r} compares two runs", remedy="use it with `tfkit perf compare`"
            )
        base = value_of(before, gate.name)
        value = None if value is None or not base else value / base - 1
    for run in (before, after):
        if run is not None and run.invalid:
            return Verdict(gate, value, False, f"INVALID: {run.invalid}")
    unknown = "" if value is not None else "too few requests"
    return Verdict(gate, value, gate.holds(value), unknown)


def _shown(gate: Gate, value: float | None) -> str:
    if value is None:
        return "unknown"
    if gate.is_change:
        return f"{value:+.1%}"
    if gate.name == "errors":
        return f"{value:.3%}"
    return f"{value:,.1f}/s" if gate.name == "rate" else f"{value * 1e3:.3f} ms"
