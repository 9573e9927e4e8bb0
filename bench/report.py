"""Figures as JSON, as a Markdown table, and in docs/performance.md."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.stats import Spread

BEGIN, END = "<!-- figures -->", "<!-- /figures -->"
_HEADER = ("id", "what", "ratio to", "goal", "measured median (min-max)", "reached")


@dataclass(frozen=True, slots=True)
class Other:
    """A figure beside the subject's, for comparison."""

    what: str
    result: Spread


@dataclass(frozen=True, slots=True)
class Figure:
    """What one benchmark amounts to.

    Attributes:
        id: its number in the table of goals.
        what: the subject.
        against: the baseline.
        goal: the goal as text.
        unit: of `result`: empty for a ratio, ` s` for seconds.
        result: over the rounds.
        verdict: `reached` or `missed`, perhaps ` (equal)`.
        others: the same for what was measured for comparison.
        notes: what a reader should know.
        run_s: how long the benchmark took with all its preparations, in seconds.
        rounds: the length of every turn of every side, in seconds.
    """

    id: str
    what: str
    against: str
    goal: str
    unit: str
    result: Spread
    verdict: str
    others: Sequence[Other]
    notes: dict[str, str]
    run_s: float
    rounds: list[dict[str, list[float]]]


@dataclass(slots=True)
class Run:
    """Everything measured in one go.

    Attributes:
        made: when, ISO 8601 in UTC.
        settings: number of rounds and their length.
        environment: where.
        figures: what came out.
        skipped: why a benchmark was not measured, by id.
    """

    made: str
    settings: str
    environment: dict[str, Any] = field(default_factory=dict)
    figures: list[Figure] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)


def as_json(run: Run) -> str:
    """Return all of a run; `from_json` reads it."""
    return json.dumps(asdict(run), indent=1) + "\n"


def from_json(text: str) -> Run:
    """Return a run that was saved."""
    values: dict[str, Any] = json.loads(text)
    values["figures"] = [_figure(figure) for figure in values["figures"]]
    return Run(**values)


def _figure(values: dict[str, Any]) -> Figure:
    others = [Other(each["what"], Spread(**each["result"])) for each in values["others"]]
    return Figure(**values | {"result": Spread(**values["result"]), "others": others})


def as_markdown(runs: Iterable[Run]) -> str:
    """Return one table over several runs, and under it where each was made.

    Where two runs have a figure of the same benchmark, the later run's counts.
    """
    runs = list(runs)
    figures = {figure.id: figure for run in runs for figure in run.figures}
    origins = [text for run in runs if (text := _origin(run, list(figures.values())))]
    rows = [_HEADER, tuple("---" for _ in _HEADER)]
    for name in sorted(figures):
        rows += _rows(figures[name])
    table = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    notes = [
        f"- {figure.id}: {key} {value}\n"
        for figure in sorted(figures.values(), key=lambda figure: figure.id)
        for key, value in figure.notes.items()
    ]
    return "\n".join([table, *(["".join(notes)] if notes else []), *origins])


def _rows(figure: Figure) -> list[tuple[str, ...]]:
    measured = _cell(figure.result, figure.unit)
    others: list[tuple[str, ...]] = [
        ("", each.what, "the same", "", _cell(each.result, figure.unit), "")
        for each in figure.others
    ]
    first = (figure.id, figure.what, figure.against, figure.goal, measured, figure.verdict)
    return [first, *others]


def _cell(values: Spread, unit: str) -> str:
    return f"{values.median:.2f}{unit} ({values.low:.2f}-{values.high:.2f})"


def _origin(run: Run, shown: list[Figure]) -> str:
    """Say where and when the figures were made that a run contributes; empty if it gives none."""
    where = "; ".join(f"{key} {value}" for key, value in run.environment.items())
    known = {figure.id: figure for figure in shown}
    ids = ", ".join(figure.id for figure in run.figures if known[figure.id] is figure)
    lines = [f"{ids}: measured {run.made}, {run.settings}. {where}.\n"] if ids else []
    lines += [
        f"{name}: not measured, {reason}.\n"
        for name, reason in run.skipped.items()
        if name not in known
    ]
    return "\n".join(lines)


@dataclass(slots=True)
class _Entry:
    """What a table says of one benchmark: its lines, its notes, and where it was measured."""

    lines: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    origin: str = ""


def _entries(markdown: str) -> dict[str, _Entry]:
    """Return by id what a text says that `as_markdown` made."""
    found: dict[str, _Entry] = {}
    name = ""
    for line in markdown.splitlines():
        if line.startswith("|"):
            name = line.split("|")[1].strip() or name
            if name not in {_HEADER[0], "---"}:
                found.setdefault(name, _Entry()).lines.append(line)
        elif line.startswith("- "):
            found[line[2:].partition(":")[0]].notes.append(line)
        elif ": " in line:
            names, _, origin = line.partition(": ")
            for each in names.split(", "):
                found.setdefault(each, _Entry()).origin = origin
    return found


def with_others_kept(new: str, old: str) -> str:
    """Return a table with what an older one says of benchmarks that were not measured anew.

    Args:
        new: what `as_markdown` returned.
        old: the same of earlier runs, or nothing.
    """
    entries = _entries(old)
    entries |= {
        name: entry for name, entry in _entries(new).items() if entry.lines or name not in entries
    }
    shown = [entries[name] for name in sorted(entries)]
    made: dict[str, list[str]] = {}
    for name in sorted(entries):
        made.setdefault(entries[name].origin, []).append(name)
    parts = [
        [*new.splitlines()[:2], *(line for each in shown for line in each.lines)],
        [note for each in shown for note in each.notes],
        *([f"{', '.join(names)}: {origin}"] for origin, names in made.items()),
    ]
    return "\n".join("".join(f"{line}\n" for line in lines) for lines in parts if lines)


def section(page: str) -> str:
    """Return the text between the two markers of a page; raises as `replace_section`."""
    return _around_section(page)[1]


def replace_section(page: str, text: str) -> str:
    """Return a page with the text between the two markers replaced.

    Raises:
        ValueError: the page does not hold each marker once, in order.
    """
    head, _, tail = _around_section(page)
    return f"{head}{BEGIN}\n\n{text.strip()}\n\n{END}{tail}"


def _around_section(page: str) -> tuple[str, str, str]:
    head, begin, rest = page.partition(BEGIN)
    text, end, tail = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in head + tail:
        raise ValueError(f"the page must hold {BEGIN} and {END} once, in this order")
    return head, text, tail


def write(run: Run, folder: Path) -> list[Path]:
    """Save a run as JSON and as Markdown under its time; return the two files."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = run.made.replace(":", "").replace("-", "")
    written = []
    for suffix, text in ((".json", as_json(run)), (".md", as_markdown([run]))):
        file = folder / f"{stem}{suffix}"
        file.write_text(text, "utf-8")
        written.append(file)
    return written
