"""What the server would stumble over, known before anything starts.

::

    spec ──▶ facts (flags, disk, machine) ──▶ every rule of RULES ──▶ [Finding]

A rule says what tensorflow_model_server really does; where that is written upstream, its docstring
names the file. `docs/lint.md` is generated from the tables of rules.
"""

from tfserve_kit.deployment.lint import base_paths, batching, models, settings, tls
from tfserve_kit.deployment.lint.batching import hindrances
from tfserve_kit.deployment.lint.facts import Facts, Machine
from tfserve_kit.deployment.lint.findings import Finding, Rule, Severity
from tfserve_kit.deployment.schema import Spec

RULES: tuple[Rule, ...] = (
    base_paths.RULES + models.RULES + batching.RULES + settings.RULES + tls.RULES
)


def lint(spec: Spec, *, machine: Machine | None = None) -> list[Finding]:
    """Return everything about a deployment that will or may go wrong, the worst first.

    Args:
        spec: a checked deployment; its base paths are looked at, nothing is changed.
        machine: where it will run; this one if left out.
    """
    facts = Facts(spec, machine or Machine.here())
    found = [
        Finding(rule.severity, rule.name, problem.path, problem.message, problem.remedy)
        for rule in RULES
        for problem in rule.look(facts)
    ]
    worst_first = list(Severity)
    return sorted(found, key=lambda finding: worst_first.index(finding.severity))


__all__ = ["RULES", "Facts", "Finding", "Machine", "Rule", "Severity", "hindrances", "lint"]
