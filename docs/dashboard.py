"""Draws the dashboard as a picture, panel by panel, from a Prometheus that has watched servers.

python docs/dashboard.py http://127.0.0.1:9090 dashboard.png --minutes 2
"""

import argparse
import json
import re
import time
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt

from tfserve_kit.deployment import monitoring

_COLUMNS, _POINTS, _MOST_LINES = 3, 120, 8
_STANDS_FOR = {"job": ".*", "gateway": ".*", "instance": ".*", "model": ".*"}


def series(url: str, query: str, minutes: float, rate_s: int) -> list[dict[str, Any]]:
    """Return the lines of a query over the last minutes, as Prometheus answers."""
    stands_for = _STANDS_FOR | {"__rate_interval": f"{rate_s}s"}
    text = re.sub(r"\$(\w+)", lambda name: stands_for[name[1]], query)
    end = time.time()
    arguments = {"query": text, "start": end - 60 * minutes, "end": end,
                 "step": 60 * minutes / _POINTS}  # fmt: skip
    place = f"{url}/api/v1/query_range?{urllib.parse.urlencode(arguments)}"
    with urllib.request.urlopen(place, timeout=30) as answer:  # noqa: S310 (given by who runs it)
        found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
    return found


def draw(url: str, file: str, minutes: float, rate_s: int) -> None:
    """Draw all panels into one picture."""
    mpl.use("agg")
    panels = [panel for row in monitoring.PANELS.values() for panel in row]
    rows = -(-len(panels) // _COLUMNS)
    figure, axes = plt.subplots(rows, _COLUMNS, figsize=(18, 3.2 * rows), squeeze=False)
    for place, panel in zip(axes.flat, panels, strict=False):
        _panel(place, url, panel, minutes, rate_s)
    for place in axes.flat[len(panels) :]:
        place.set_axis_off()
    figure.tight_layout()
    figure.savefig(file, dpi=80)


def _panel(place: Any, url: str, panel: monitoring.Panel, minutes: float, rate_s: int) -> None:
    title, unit, where, queries = panel
    place.set_title(f"{title} [{unit}]  ({', '.join(where)})", fontsize=9)
    lines = [
        (_filled(legend, each["metric"]), each["values"])
        for query, legend in queries
        for each in series(url, query, minutes, rate_s)
    ]
    for legend, values in lines:
        times = [(at - time.time()) / 60 for at, _ in values]
        place.plot(times, [float(value) for _, value in values], label=legend)
    place.set_ylim(bottom=0)
    place.set_xlim(-minutes, 0)
    if not lines:
        place.text(0.5, 0.5, "no data", transform=place.transAxes, ha="center")
    elif len(lines) <= _MOST_LINES:
        place.legend(fontsize=6, loc="upper left")


def _filled(legend: str, labels: Mapping[str, str]) -> str:
    return re.sub(r"{{(\w+)}}", lambda name: labels.get(name[1], ""), legend)


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", help="address of a Prometheus")
    parser.add_argument("file", help="picture to write")
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--rate-seconds", type=int, default=10)
    given = parser.parse_args(argv)
    draw(given.url, given.file, given.minutes, given.rate_seconds)


if __name__ == "__main__":
    main()
