"""Plots as SVG texts, made here, so that a report needs nothing from elsewhere."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape

from tfserve_kit.safe_text import printable

# Drawn this wide, letters stay readable on a telephone and do not shout on a desk.
_WIDTH, _HEIGHT = 480, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 26, 36
_MOST_TICKS = 6

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Axis:
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


def covering(title: str, values: Iterable[float], *, is_log: bool = False) -> Axis:
    """Return an axis long enough for some values; a linear one begins at 0."""
    known = [value for value in values if math.isfinite(value) and (value > 0 or not is_log)]
    high = max(known, default=1.0)
    if not is_log:
        return Axis(title, 0.0, high * 1.05 or 1.0)
    low = min(known, default=0.1)
    return Axis(title, low / 1.3, high * 1.3, is_log=True)


@dataclass(frozen=True, slots=True)
class Line:
    """Points to connect.

    Attributes:
        label: what it is, for a legend; empty for none.
        points: x and y in the units of the axes.
        tone: number of its colour, see the style sheet of the report.
        dots: texts beside each point; without them only the line is drawn.
    """

    label: str
    points: Sequence[Point]
    tone: int = 1
    dots: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Plot:
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
    x: Axis
    y: Axis
    lines: Sequence[Line]
    marks: Sequence[tuple[float, str]] = ()
    until: float | None = None
    shade: str = ""
    bands: Sequence[tuple[Sequence[Point], int]] = field(default=())

    def svg(self) -> str:
        """Return the plot as an SVG element with classes `tone1` and so on."""
        parts = [*self._shade(), *self._axes(), *self._bands()]
        for line in self.lines:
            parts += self._line(line)
        return _svg(self.title, [*parts, *self._marks()], _HEIGHT)

    def _at(self, point: Point) -> Point:
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

    def _line(self, line: Line) -> list[str]:
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


def bars(title: str, rows: Sequence[tuple[str, float, str]]) -> str:
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


def _stroke(kind: str, points: Sequence[Point]) -> str:
    return f'<polyline class="{kind}" points="{" ".join(map(_pair, points))}"/>'


def _pair(point: Point) -> str:
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
