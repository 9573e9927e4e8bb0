"""What a rule is and what it finds."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum

from tfserve_kit.deployment.lint.facts import Facts
from tfserve_kit.errors import Problem


class Severity(Enum):
    """How bad a finding is, the worst first."""

    ERROR = "error"
    """The server would not start, would wait without end, or could not answer."""
    WARNING = "warning"
    """It starts, but something is not as it was probably meant."""
    INFO = "info"
    """Good to know."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing a rule found.

    Attributes:
        severity: how bad it is.
        rule: name of the rule; stable.
        path: where in the deployment, dotted, such as `models.resnet.labels.stable`.
        message: what is so, with its values.
        remedy: what to do about it.
    """

    severity: Severity
    rule: str
    path: str
    message: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Rule:
    """One thing to look for: a stable name, its severity, what it means, and who looks."""

    name: str
    severity: Severity
    meaning: str
    look: Callable[[Facts], Iterable[Problem]]
