"""What a search found, as files, as data and as text."""

import math
import os
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.items import Table

from tfserve_kit.deployment import DEFAULT_FILE, render
from tfserve_kit.deployment.flags import BATCHING_CONFIG
from tfserve_kit.deployment.spec import Spec
from tfserve_kit.errors import UsageError, file_error
from tfserve_kit.tuning.goals import CONFIDENCE, LEAST_ROUNDS, Goal, Point, Proof, front
from tfserve_kit.tuning.study import Candidate, Tried
from tfserve_kit.tuning.tune import DEFAULT, Tuned

# Begins the files that are tfkit's own: a deployment file that is rewritten in its place is not.
_HEAD = "# written by tfkit tune\n"
# What a server says that takes no more requests for now.
_REFUSALS = frozenset({"RESOURCE_EXHAUSTED", "UNAVAILABLE"})


def write(candidate: Candidate, spec: Spec, config: Path | None, folder: Path) -> list[Path]:
    """Write the deployment with a candidate's settings, and its batching file if it has one.

    Args:
        candidate: the settings.
        spec: the deployment they were found for.
        config: its file, whose comments are kept; None if there was none.
        folder: where to write `tfkit.toml` and `batching_config.txt`.

    Returns:
        The files.

    Raises:
        UsageError: they cannot be written.
    """
    texts = {DEFAULT_FILE: as_toml(candidate, spec, config, folder)}
    rendered = render.render(candidate.applied(spec))
    texts |= {name: text for name, text in rendered.items() if name == BATCHING_CONFIG}
    own = {name for name in texts if name != DEFAULT_FILE or not _is_same(config, folder / name)}
    try:
        for name in texts:
            head = _HEAD if name in own and not texts[name].startswith(_HEAD) else ""
            text = head + texts[name]
            # One of them may be the deployment file itself, which must not be lost halfway.
            (folder / f".{name}.new").write_text(text, "utf-8")
            (folder / f".{name}.new").replace(folder / name)
    except OSError as error:
        raise file_error(UsageError, "write", folder, error) from error
    return [folder / name for name in texts]


def replaced(config: Path | None, folder: Path) -> list[Path]:
    """Return the files that `write` may replace, but for the deployment file that is tuned."""
    files = [folder / DEFAULT_FILE, folder / BATCHING_CONFIG]
    return [file for file in files if not _is_same(config, file)]


def _is_same(config: Path | None, file: Path) -> bool:
    """Say whether a file is the deployment file that is tuned."""
    return config is not None and config.resolve() == file.resolve()


def as_toml(candidate: Candidate, spec: Spec, config: Path | None, folder: Path) -> str:
    """Return a deployment file with a candidate's settings; base paths are seen from `folder`."""
    document = tomlkit.parse(config.read_text("utf-8-sig")) if config else tomlkit.document()
    models = _table(document, "models")
    for name, model in spec.models.items():
        _table(models, name)["base_path"] = _seen_from(folder, model.base_path)
    document.pop("batching", None)
    if candidate.batching is not None:
        document["batching"] = {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in candidate.batching_set().items()
        }
    if candidate.flags:
        _table(_table(document, "server"), "flags").update(candidate.flags)
    return tomlkit.dumps(document)


def as_data(tuned: Tuned) -> dict[str, Any]:
    """Return what was found as JSON has it; rates per second, times in seconds."""
    goal, winner = tuned.goal, tuned.winner
    return {
        "goal": str(goal),
        "outcome": tuned.proof.outcome if tuned.proof else None,
        "winner": winner.number if winner else None,
        "default": DEFAULT,
        "interrupted": tuned.is_interrupted,
        "candidates": [_tried_as_data(each, goal) for each in tuned.tried],
        "front": [
            {"candidate": number, "rate": point.rate, "latency_s": point.latency_s}
            for number, point in _front(tuned)
        ],
        "proof": _proof_as_data(tuned.proof),
    }


def as_text(tuned: Tuned) -> str:
    """Return what was found for a terminal."""
    goal = tuned.goal
    shown = [_row(each, goal, tuned.winner) for each in tuned.tried]
    parts = [f"{goal}\n", *shown]
    if edge := _front(tuned):
        head = f"\nRuns that none beats in both rate and {goal.quantile} (Pareto front):"
        parts += [head, *_edge(edge)]
    return "\n".join([*parts, *_doubts(tuned), "", *_verdict(tuned)])


def _runs(tuned: Tuned) -> list[Point]:
    return [point for each in tuned.tried for point in each.points]


def _doubts(tuned: Tuned) -> list[str]:
    runs = _runs(tuned)
    invalid = [point.invalid for point in runs if point.invalid]
    full = [point.failure for point in runs if not point.held and point.failure in _REFUSALS]
    doubts = []
    if invalid:
        doubts.append(
            f"{len(invalid)} of {len(runs)} runs count as failed, being INVALID: {invalid[-1]}"
        )
    if full:
        doubts.append(
            f"In {len(full)} of {len(runs)} runs the server refused requests ({full[-1]}): "
            "too many at once for grpc_max_threads, or for max_enqueued_batches"
        )
    return ["", *doubts] if doubts else []


def _row(tried: Tried, goal: Goal, winner: Tried | None) -> str:
    mark = "*" if winner and tried.number == winner.number else " "
    return f"{mark}{tried.number:4d}  {_outcome(tried, goal):>10}  {tried.candidate}"


def _outcome(tried: Tried, goal: Goal) -> str:
    if tried.failure:
        return "failed"
    if any(score.beaten for score in tried.scores):
        return "beaten"
    value = tried.value(goal.direction)
    return "never" if value is None else goal.shown(value)


def _edge(edge: list[tuple[int, Point]]) -> list[str]:
    return [
        f" {number:4d}  {point.rate:>8,.4g}/s  {1e3 * (point.latency_s or 0):.4g} ms"
        for number, point in edge
    ]


def _verdict(tuned: Tuned) -> list[str]:
    winner, proof, goal = tuned.winner, tuned.proof, tuned.goal
    if winner is None:
        if (runs := _runs(tuned)) and all(point.invalid for point in runs):
            return ["Nothing could be measured."]
        return ["None of the settings tried meets this."]
    if winner.number == DEFAULT:
        by_default = "" if winner.candidate.batching is None else " batching"
        return [f"The server's default{by_default} was the best of all."]
    if proof is None:
        return [f"Best: {winner.candidate}; not compared with the default"]
    pairs = [f"  {goal.shown(before)} -> {goal.shown(after)}" for before, after in proof.pairs]
    head = "Default -> best, in turn:"
    if proof.low is not None and proof.high is not None:
        interval = f" (95 % interval {proof.low:.2f} to {proof.high:.2f})"
    else:
        return [head, *pairs, "", _too_few(proof), str(winner.candidate)]
    word = {"better": "Better", "worse": "Worse", "unclear": "Unclear"}[proof.outcome]
    return [head, *pairs, "", f"{word}: {proof.gain:.2f} times{interval}", str(winner.candidate)]


def _too_few(proof: Proof) -> str:
    rounds = "1 round is" if len(proof.pairs) == 1 else f"{len(proof.pairs)} rounds are"
    return (
        f"Not proved: {rounds} too few to tell (median {proof.gain:.2f} times); "
        f"{CONFIDENCE:.0%} certainty takes {LEAST_ROUNDS}: --rounds {LEAST_ROUNDS}"
    )


def _front(tuned: Tuned) -> list[tuple[int, Point]]:
    return front({each.number: each.points for each in tuned.tried})


def _tried_as_data(tried: Tried, goal: Goal) -> dict[str, Any]:
    candidate = tried.candidate
    return {
        "number": tried.number,
        "value": tried.value(goal.direction),
        "beaten": any(score.beaten for score in tried.scores),
        "batching": None if candidate.batching is None else candidate.batching_set(),
        "flags": dict(candidate.flags),
        "runs": [
            {
                "rate": each.rate,
                "latency_s": each.latency_s,
                "held": each.held,
                "invalid": each.invalid,
            }
            for each in tried.points
        ],
        "failure": tried.failure,
    }


def _proof_as_data(proof: Proof | None) -> dict[str, Any] | None:
    if proof is None:
        return None
    finite = {
        key: value if value is not None and math.isfinite(value) else None
        for key, value in (("gain", proof.gain), ("low", proof.low), ("high", proof.high))
    }
    rounds = [[value if math.isfinite(value) else None for value in pair] for pair in proof.pairs]
    return {"outcome": proof.outcome, **finite, "rounds": rounds}


def _table(parent: Any, key: str) -> Table:
    if key not in parent:
        parent[key] = tomlkit.table()
    found: Table = parent[key]
    return found


def _seen_from(folder: Path, base_path: str) -> str:
    """Return a base path relative to a folder; a URL as it is."""
    if "://" in base_path:
        return base_path
    return Path(os.path.relpath(base_path, folder.absolute())).as_posix()
