"""A summary as text and as data."""

from dataclasses import asdict
from typing import Any

from tfserve_kit.perf.stats import Summary


def as_data(summary: Summary, environment: dict[str, Any]) -> dict[str, Any]:
    """Return everything a report holds, for JSON."""
    return {**asdict(summary), "errors": dict(summary.errors), "environment": environment}


def as_text(summary: Summary, environment: dict[str, Any]) -> str:
    """Return a report for a terminal; latencies in milliseconds."""
    errors = ", ".join(f"{count} {kind}" for kind, count in sorted(summary.errors.items()))
    lines = [f"INVALID: {summary.invalid}"] if summary.invalid else []
    lines += [
        f"{summary.requests} requests, errors: {errors or 'none'}",
        f"offered {summary.offered_rate:,.1f}/s, achieved {summary.achieved_rate:,.1f}/s",
        "",
        _row("ms", list(summary.latency_s)),
        _row("latency (from due)", _ms(summary.latency_s)),
        _row("service (from sent)", _ms(summary.service_s)),
        "",
        f"harness lag p99 {summary.lag_p99_s * 1e3:.3f} ms",
        "; ".join(f"{key} {value}" for key, value in environment.items()),
    ]
    return "\n".join(lines)


def _ms(distribution: Any) -> list[str]:
    return [f"{value * 1e3:.3f}" for value in distribution.values()]


def _row(name: str, cells: list[str]) -> str:
    return f"{name:<20}" + "".join(f"{cell:>11}" for cell in cells)
