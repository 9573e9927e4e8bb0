"""Runs as one page of HTML that needs nothing else: no script, no font; plots are SVG."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from tfserve_kit.perf import capacity, report
from tfserve_kit.perf.samples import latency_ns, succeeded
from tfserve_kit.perf.stats import CONFIDENCE, NamedRun, Summary, measured
from tfserve_kit.safe_text import printable, printable_html

if TYPE_CHECKING:
    import jinja2

# Drawn this wide, letters stay readable on a telephone and do not shout on a desk.
_WIDTH, _HEIGHT = 480, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 26, 36
_MOST_TICKS = 6

_Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class _Axis:
    """One axis of a plot.

    Attributes:
        title: what it shows, with its unit.
        low: smallest value.
        high: largest value, above `low`.
        is_log: whether equal steps are equal factors; `low` is above 0 then.
        ticks: values with their labels; round numbers if left out.
    """

    title: str
    low: float
    high: float
    is_log: bool = False
    ticks: tuple[tuple[float, str], ...] = ()

    def place(self, value: float) -> float:
        """Return where a value lies, from 0 to 1."""
        value = min(max(value, self.low), self.high)
        if self.is_log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def marks(self) -> Sequence[tuple[float, str]]:
        """Return the values to label."""
        if self.ticks:
            return [(value, label) for value, label in self.ticks if self.low <= value <= self.high]
        values = _log_ticks(self.low, self.high) if self.is_log else _ticks(self.low, self.high)
        return [(value, f"{value:,.10g}") for value in values]


def _covering(title: str, values: Iterable[float], *, is_log: bool = False) -> _Axis:
    """Return an axis long enough for some values; a linear one begins at 0."""
    known = [value for value in values if math.isfinite(value) and (value > 0 or not is_log)]
    high = max(known, default=1.0)
    if not is_log:
        return _Axis(title, 0.0, high * 1.05 or 1.0)
    low = min(known, default=0.1)
    return _Axis(title, low / 1.3, high * 1.3, is_log=True)


@dataclass(frozen=True, slots=True)
class _Line:
    """Points to connect.

    Attributes:
        label: what it is, for a legend; empty for none.
        points: x and y in the units of the axes.
        tone: number of its colour, see the style sheet of the report.
        dots: texts beside each point; without them only the line is drawn.
    """

    label: str
    points: Sequence[_Point]
    tone: int = 1
    dots: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class _Plot:
    """Lines over two axes.

    Attributes:
        title: for those who hear the page instead of seeing it.
        x: the axis below.
        y: the axis at the left.
        lines: what is drawn.
        marks: places of x, each with a short label.
        until: everything left of this x is shaded, and named by `shade`.
        shade: name of that part.
        bands: areas behind the lines: their corners, and the number of their colour.
    """

    title: str
    x: _Axis
    y: _Axis
    lines: Sequence[_Line]
    marks: Sequence[tuple[float, str]] = ()
    until: float | None = None
    shade: str = ""
    bands: Sequence[tuple[Sequence[_Point], int]] = field(default=())

    def svg(self) -> str:
        """Return the plot as an SVG element with classes `tone1` and so on."""
        parts = [*self._shade(), *self._axes(), *self._bands()]
        for line in self.lines:
            parts += self._line(line)
        return _svg(self.title, [*parts, *self._marks()], _HEIGHT)

    def _at(self, point: _Point) -> _Point:
        x = _LEFT + self.x.place(point[0]) * (_WIDTH - _LEFT - _RIGHT)
        return x, _HEIGHT - _BOTTOM - self.y.place(point[1]) * (_HEIGHT - _TOP - _BOTTOM)

    def _axes(self) -> list[str]:
        floor, parts = _HEIGHT - _BOTTOM, []
        for value, label in self.y.marks():
            _, y = self._at((self.x.low, value))
            parts.append(_stroke("grid", [(_LEFT, y), (_WIDTH - _RIGHT, y)]))
            parts.append(_text(_LEFT - 6, y + 4, label, anchor="end"))
        for value, label in self.x.marks():
            x, _ = self._at((value, self.y.low))
            parts.append(_stroke("axis", [(x, floor), (x, floor + 4)]))
            parts.append(_text(x, floor + 16, label, anchor="middle"))
        parts.append(_stroke("axis", [(_LEFT, floor), (_WIDTH - _RIGHT, floor)]))
        parts.append(_text(_WIDTH - _RIGHT, _HEIGHT - 4, self.x.title, anchor="end"))
        parts.append(_text(2, 11, self.y.title))
        return parts

    def _line(self, line: _Line) -> list[str]:
        places = [self._at(point) for point in line.points]
        parts = [_stroke(f"line tone{line.tone}", places)]
        for (x, y), text in zip(places, line.dots, strict=False):
            parts.append(f'<circle class="dot tone{line.tone}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>')
            anchor = "end" if x > _WIDTH * 0.8 else "middle"
            parts.append(_text(x, y - 7, text, anchor=anchor))
        return parts

    def _bands(self) -> list[str]:
        places = [(" ".join(_pair(self._at(point)) for point in band), n) for band, n in self.bands]
        return [f'<polygon class="band tone{n}" points="{points}"/>' for points, n in places]

    def _shade(self) -> list[str]:
        if self.until is None:
            return []
        x, _ = self._at((self.until, self.y.low))
        size = f'width="{max(0.0, x - _LEFT):.1f}" height="{_HEIGHT - _TOP - _BOTTOM}"'
        shade = f'<rect class="shade" x="{_LEFT}" y="{_TOP}" {size}/>'
        return [shade, _text(_LEFT + 4, _HEIGHT - _BOTTOM - 6, self.shade, kind="faint")]

    def _marks(self) -> list[str]:
        parts = []
        for at, label in self.marks:
            x, _ = self._at((at, self.y.low))
            parts.append(_stroke("mark", [(x, _TOP), (x, _HEIGHT - _BOTTOM)]))
            parts.append(_text(x, _TOP - 3, label, anchor="middle"))
        return parts


def _bars(title: str, rows: Sequence[tuple[str, float, str]]) -> str:
    """Return horizontal bars as an SVG element.

    Args:
        title: for those who hear the page.
        rows: label, length, and the text behind each bar.
    """
    most = max((length for _, length, _ in rows), default=0) or 1.0
    step, parts = 24, []
    for number, (label, length, text) in enumerate(rows):
        y, width = number * step + 4, length / most * (_WIDTH - 230)
        parts.append(_text(96, y + 13, label, anchor="end"))
        parts.append(f'<rect class="bar" x="104" y="{y}" width="{width:.1f}" height="17"/>')
        parts.append(_text(110 + width, y + 13, text))
    return _svg(title, parts, len(rows) * step + 8)


def _svg(title: str, parts: Iterable[str], height: int) -> str:
    name = escape(printable(title), quote=True)
    head = f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{name}">'
    return "".join([head, f"<title>{name}</title>", *parts, "</svg>"])


def _stroke(kind: str, points: Sequence[_Point]) -> str:
    return f'<polyline class="{kind}" points="{" ".join(map(_pair, points))}"/>'


def _pair(point: _Point) -> str:
    return f"{point[0]:.1f},{point[1]:.1f}"


def _text(x: float, y: float, text: str, *, anchor: str = "start", kind: str = "label") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text class="{kind}" {place}>{escape(printable(text))}</text>'


def _ticks(low: float, high: float) -> list[float]:
    rough = (high - low) / _MOST_TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first = math.ceil(low / step)
    return [round(n * step, 12) for n in range(first, math.floor(high / step) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        found = [10.0**power * factor for power in powers for factor in factors]
        inside = [round(value, 12) for value in found if low <= value <= high]
        if len(inside) <= _MOST_TICKS + 2:
            break
    return inside


_DECADES = ((0.5, "50 %"), (0.9, "90 %"), (0.99, "99 %"), (0.999, "99.9 %"), (0.9999, "99.99 %"))
_TONES = 6
_SHOWN_POINTS = 300
_FIRST = 1 / (1 - 0.1)  # the quickest tenth would stretch the plot for nothing


@dataclass(frozen=True, slots=True)
class _Figure:
    """A plot with what to say about it."""

    title: str
    svg: str
    caption: str = ""
    legend: tuple[tuple[str, int], ...] = ()  # labels and the numbers of their colours


def _figure(plot: _Plot, title: str, caption: str) -> _Figure:
    legend = tuple((line.label, line.tone) for line in plot.lines if line.label)
    return _Figure(title, plot.svg(), caption, legend)


def page(runs: Sequence[NamedRun], *, title: str = "Performance report") -> str:
    """Return a page about one run, or several side by side.

    Args:
        runs: at least one.
        title: of the page.
    """
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            title=title,
            runs=[_section(each) for each in runs],
            overview=_overview(runs),
            confidence=f"{CONFIDENCE:.0%}",
            replica_columns=report.REPLICA_COLUMNS,
        )
    )


def _environment() -> "jinja2.Environment":
    import jinja2

    made = jinja2.Environment(
        loader=jinja2.PackageLoader("tfserve_kit.perf", "."),
        autoescape=True,
        finalize=printable_html,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"ms": report.ms, "rate": report.rate, "counted": report.counted}
    return made


def capacity_page(found: capacity.CapacityPlan) -> str:
    """Return a page about how many replicas a need takes."""
    name = found.need.limit.name
    return (
        _environment()
        .get_template("capacity.html.j2")
        .render(
            title="How many replicas",
            conclusions=capacity.conclusions(found),
            figure=_by_replicas(found),
            facts=capacity.facts(found),
            notes=capacity.notes(found),
            tables=[
                ("Replicas", [each.format(name) for each in capacity.COLUMNS],
                 capacity.rows(found)),
                ("Runs beside their simulation", [each.format(name) for each in
                 capacity.CHECK_COLUMNS], capacity.check_rows(found)),
            ],
        )
    )  # fmt: skip


def _by_replicas(found: capacity.CapacityPlan) -> _Figure:
    """Return the quantile by replicas in service, for each policy, and the limit."""
    limit, lines, bands = found.need.limit, [], []
    full = math.floor(found.need.rate / found.profile.replica.full_rate)
    for tone, (policy, curve) in enumerate(found.curves.items(), start=1):
        known = {count: each for count, each in curve.items() if each.value_s}
        lines.append(_Line(policy, [(n, _ms(each.value_s)) for n, each in known.items()], tone))
        above = [(n, _ms(each.high_s)) for n, each in known.items()]
        below = [(n, _ms(each.low_s)) for n, each in known.items()]
        bands.append(([*above, *reversed(below)], tone))
    counts = [x for line in lines for x, _ in line.points] or [full + 1]
    x = _Axis("replicas in service", max(0, full - 1), max(*counts, full + 1) + 1)
    ends = [(x.low, _ms(limit.limit)), (x.high, _ms(limit.limit))]
    lines = [*(line for line in lines if line.points), _Line(limit.text, ends, 3)]
    values = [y for line in lines for _, y in line.points]
    y = _covering(f"{limit.name}, ms", values, is_log=True)
    bands = [band for band in bands if band[0]]
    plot = _Plot(f"{limit.name} by replicas", x, y, lines, until=full, shade="full", bands=bands)
    caption = f"at {found.need.rate:,.10g} requests/s; shaded: {CONFIDENCE:.0%} intervals"
    return _figure(plot, f"{limit.name} by replicas in service", caption)


def _section(named: NamedRun) -> dict[str, Any]:
    summary, run = named.summary, named.run
    return {
        "name": named.name,
        "summary": summary,
        "figures": list(_figures(named)),
        "notes": [*summary.notes, report.answers_text(run), *report.answers_notes(run)],
        "marks": run.marks,
        "replicas": report.replica_rows(run),
        "settings": run.settings,
        "environment": run.environment,
        "batches": (run.server.get("difference") or {}).get("batches"),
    }


def _overview(runs: Sequence[NamedRun]) -> list[_Figure]:
    """Return what only several runs can show: all quantiles, and what throughput costs."""
    if len(runs) == 1:
        return []
    known = [
        (each.name, each.summary.achieved_rate, each.summary.latency)
        for each in runs
        if each.summary.achieved_rate
        and each.summary.latency.value_s("p50")
        and not each.summary.invalid
    ]
    found = [_quantiles(runs)]
    if len(known) > 1:
        lines = [
            _Line(
                name,
                [(rate, _ms(latency.value_s(name))) for _, rate, latency in known
                 if latency.value_s(name)],
                tone,
                dots=[label if tone == 1 else "" for label, _, latency in known
                      if latency.value_s(name)],
            )
            for tone, name in ((1, "p50"), (2, "p99"))
        ]  # fmt: skip
        x = _covering("answers per second", [rate for _, rate, _ in known if rate])
        y = _covering("latency, ms", [y for line in lines for _, y in line.points], is_log=True)
        plot = _Plot("Latency by throughput", x, y, [line for line in lines if line.points])
        found.append(_figure(plot, "Throughput and latency", "a point for each valid run"))
    return found


def _figures(named: NamedRun) -> Iterator[_Figure]:
    run = named.run
    yield _quantiles([named])
    yield _over_time(named)
    yield _rates(named)
    if parts := report.parts_s(run):
        rows = [(name, value, f"{value * 1e3:.3f} ms") for name, value in parts.items()]
        yield _Figure(
            "Where the mean latency went",
            _bars("Parts of the mean latency", rows),
            "of the whole run, warm-up included",
        )
    server = run.server
    if batches := (server.get("difference") or {}).get("batches"):
        rows = [(f"under {le} rows", count, f"{count:,}") for le, count in batches["sizes"].items()]
        caption = (
            f"{batches['count']:,} batches of {batches['mean_rows']:.2f} rows on average, "
            f"{batches['padding_share']:.1%} of the computed rows were padding"
        )
        yield _Figure("Batches", _bars("Sizes of batches", rows), caption)
    if len(usage := server.get("usage") or []) > 1:
        yield _usage(usage)


def _quantiles(runs: Sequence[NamedRun]) -> _Figure:
    """Return latency by quantile, where each decade of slow requests takes equal room."""
    lines, bands, most, highest = [], [], 0.5, []
    for number, each in enumerate(runs):
        _, samples, _ = measured(each.run)
        values = np.sort(latency_ns(succeeded(samples))) / 1e6
        if not len(values):
            continue
        tone = number % _TONES + 1
        places = _places(len(values))
        points = [(len(values) / (len(values) - i), float(values[i])) for i in places]
        points = [point for point in points if point[0] >= _FIRST] or points[-1:]
        lines.append(_Line(each.name if len(runs) > 1 else "", points, tone))
        most = max(most, points[-1][0])
        highest += [y for _, y in points]
        if len(runs) == 1:
            bands.append((_band(each.summary), tone))
    ticks = tuple((1 / (1 - q), label) for q, label in _DECADES)
    x = _Axis("share of requests that took no longer", _FIRST, max(most, 10.0), True, ticks)
    y = _covering("latency, ms", highest, is_log=True)
    plot = _Plot("Latency by quantile", x, y, lines, bands=[band for band in bands if band[0]])
    caption = (
        f"from due to done; shaded: {CONFIDENCE:.0%} intervals" if bands else "from due to done"
    )
    return _figure(plot, "Latency distribution", caption)


def _places(count: int) -> list[int]:
    """Return which of the sorted values to draw: evenly spaced on the axis of decades."""
    slower = np.geomspace(count, 1, _SHOWN_POINTS)
    return sorted({count - max(1, round(float(each))) for each in slower})


def _band(summary: Summary) -> list[_Point]:
    known = [each for each in summary.latency.quantiles if each.low_s and each.high_s]
    above = [(1 / (1 - each.q), _ms(each.high_s)) for each in known]
    below = [(1 / (1 - each.q), _ms(each.low_s)) for each in reversed(known)]
    return above + below


def _over_time(named: NamedRun) -> _Figure:
    summary = named.summary
    lines = [
        _Line(label, [(at, _ms(value)) for at, value in found if value], tone)
        for label, found, tone in (
            ("max", _column(summary, "max_s"), 5),
            ("p99", _column(summary, "p99_s"), 2),
            ("p50", _column(summary, "p50_s"), 1),
        )
    ]
    y = _covering("latency, ms", [y for line in lines for _, y in line.points], is_log=True)
    plot = _timed("Latency over time", named, y, [line for line in lines if line.points])
    caption = f"by when requests were due, each {summary.width_s:g} s"
    return _figure(plot, "Latency over time", caption)


def _rates(named: NamedRun) -> _Figure:
    summary = named.summary
    lines = [
        _Line(label, [(at, value / summary.width_s) for at, value in found], tone)
        for label, found, tone in (
            ("due", _column(summary, "due"), 5),
            ("answered", _column(summary, "answered"), 1),
            ("failed", _column(summary, "failed"), 3),
        )
        if any(value for _, value in found)
    ]
    y = _covering("per second", [y for line in lines for _, y in line.points])
    plot = _timed("Requests per second over time", named, y, lines)
    caption = f"by when they were due and when they ended, each {summary.width_s:g} s"
    return _figure(plot, "Requests and answers", caption)


def _timed(title: str, named: NamedRun, y: _Axis, lines: Sequence[_Line]) -> _Plot:
    last = named.summary.series[-1].at_s + named.summary.width_s
    start_s = named.summary.steady.start_ns / 1e9
    return _Plot(
        title,
        _Axis("seconds", 0.0, last),
        y,
        lines,
        marks=[(mark.at_ns / 1e9, str(n)) for n, mark in enumerate(named.run.marks, start=1)],
        until=start_s or None,
        shade="warm-up",
    )


def _usage(usage: Sequence[dict[str, float]]) -> _Figure:
    gpus = [(each["at_s"], each["gpus_busy"]) for each in usage if "gpus_busy" in each]
    busy = [(each["at_s"], each["processors"]) for each in usage]
    lines = [_Line("processors" if gpus else "", busy)]
    lines += [_Line("GPUs of the machine", gpus, 2)] if gpus else []
    x = _Axis("seconds", 0.0, max(each["at_s"] for each in usage) or 1.0)
    y = _covering("busy" if gpus else "processors busy", [value for _, value in busy + gpus])
    most = max(each["memory_bytes"] for each in usage) / 1e6
    caption = f"memory: {most:,.0f} MB at most"
    if gpus:
        caption += f"; GPUs: {report.gpus_text(usage)}"
    plot = _Plot("Processors that the server kept busy", x, y, lines)
    return _figure(plot, "Server process", caption)


def _column(summary: Summary, name: str) -> list[tuple[float, float]]:
    return [(each.at_s, getattr(each, name)) for each in summary.series]


def _ms(value_s: float | None) -> float:
    return (value_s or 0.0) * 1e3
