"""What reports show, in a terminal, in a pull request and in a browser."""

import json
import re
import shutil
import subprocess
from array import array
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from tests.unit.perf.runs import queued, run_of, sample
from tfserve_kit.perf import measuring, report, report_html, stats
from tfserve_kit.perf.gate import compare
from tfserve_kit.perf.report import live_line
from tfserve_kit.perf.samples import Mark, Run
from tfserve_kit.perf.sending.driving import Snapshot

NASTY = "<script>alert('x')</script> & \"half\"|plus"
SERVER = {
    "difference": {
        "requests": {"OK": 10}, "request_s": 0.002, "runtime_s": 0.0015, "queue_s": 0.0005,
        "batches": {"count": 5, "rows": 30, "executed_rows": 40, "padding_share": 0.25,
                    "mean_rows": 6.0, "sizes": {"8": 4, "16": 1}},
    },
    "usage": [{"at_s": i, "processors": 0.5, "memory_bytes": 3e8} for i in range(3)],
    "pages": [],
}  # fmt: skip


def even(count=10):
    return run_of([sample(i, i, i, i + 2.5, free_ms=i) for i in range(count)])


def full(**settings):
    """A run with everything that a report can show, and names made to break it."""
    run = queued(count=3000, slow_start=100, stall=(2000, 0.3), url="grpc://localhost:1",
                 model=NASTY, poison_every=100, **settings)  # fmt: skip
    run.samples["status"][99::100] = 3
    run.samples["status"][1500:1530] = 8
    marks = (Mark(3_000_000_000, f"begin: {NASTY}"), Mark(5_000_000_000, "end"))
    return replace(run, marks=marks, server=SERVER, environment={"cpu": NASTY, "cores": 2})


def late():
    run = even(50)
    run.samples["sent_ns"] += 9_000_000
    run.samples["done_ns"] += 9_000_000
    return run


def named(run, name="a run"):
    return stats.NamedRun(name, run, stats.summarize(run))


def text_of(run):
    return report.as_text(stats.summarize(run), run)


class TestText:
    def test_shows_latency_in_milliseconds_rates_and_environment(self):
        run = replace(even(), environment={"cpu": "some cpu", "cores": 2})
        text = text_of(run)
        assert "2.500" in text
        assert "10 requests, errors: none" in text
        assert "cpu some cpu; cores 2" in text
        assert "INVALID" not in text
        assert "p99 528" in text

    def test_begins_with_the_reason_of_an_invalid_run_and_what_to_do(self):
        text = text_of(run_of([sample(0, 0, 0, 1, status=14)]))
        assert text.startswith("INVALID: no request succeeded\n  Try: ")
        assert "1 UNAVAILABLE" in text

    def test_tells_where_latency_went_batches_marks_and_poison(self):
        text = text_of(full())
        assert "queue 0.500 ms, compute 1.000 ms" in text
        assert "5 of 6.00 rows, 25.0% padding" in text
        assert "at 3.00 s: begin" in text
        assert "sent on purpose: 30 INVALID_ARGUMENT" in text

    def test_of_several_runs_has_a_line_for_each(self):
        runs = [(name, stats.summarize(run)) for name, run in (("a", even()), ("b", late()))]
        _, first, second = report.as_sweep(runs).splitlines()
        assert "INVALID" not in first
        assert second.startswith("b") and second.endswith("INVALID")


class TestData:
    def test_holds_every_number_and_what_it_was_made_of(self):
        run = full()
        data = report.as_data(stats.summarize(run), run)
        json.dumps(data, allow_nan=False)
        assert data["latency_s"]["p50"] > 0
        assert data["latency_interval_s"]["p50"][0] <= data["latency_s"]["p50"]
        assert data["environment"]["cores"] == 2
        assert data["marks"][0]["at_ns"] == 3_000_000_000
        assert data["poisoned"] == {"INVALID_ARGUMENT": 30}

    def test_of_a_run_without_success_is_data_all_the_same(self):
        run = run_of([sample(0, 0, 0, 1, status=14)])
        data = report.as_data(stats.summarize(run), run)
        json.dumps(data, allow_nan=False)
        assert data["latency_s"] == {}


class TestMarkdown:
    def test_is_a_table_whose_cells_nothing_breaks(self):
        run = full()
        text = report.as_markdown(stats.summarize(run), run)
        rows = [line for line in text.splitlines() if line.startswith("|")]
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1
        assert "<script" not in text

    def test_says_invalid_first(self):
        run = late()
        assert report.as_markdown(stats.summarize(run), run).startswith("> **INVALID**")

    def test_of_a_comparison_has_a_row_for_each_number(self):
        found = compare(queued(warmup_s=0.0), queued(seed=1, service_s=0.004, warmup_s=0.0))
        text = report.comparison_markdown(found)
        assert "| p50 |" in text and "| worse |" in text
        assert "worse" in report.comparison_text(found)
        # Differences are judged less strictly than quantiles.
        assert "95% interval" in report.comparison_text(found) and "95% interval" in text
        assert report.comparison_data(found)["confidence"] == 0.95
        json.dumps(report.comparison_data(found), allow_nan=False)


class Reader(HTMLParser):
    """Holds a page against the rules of well-formed markup, and gathers what it refers to."""

    VOID = {"meta", "br", "link", "img", "hr"}

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.links = [], [], []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for key, value in attrs if key in {"src", "href", "xlink:href"}]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


class TestPage:
    def test_is_well_formed_and_refers_to_nothing(self):
        found = Reader(page := report_html.page([named(full())], title=NASTY))
        assert not found.links
        assert "script" not in found.tags
        assert "url(" not in page and "@import" not in page

    def test_shows_texts_as_they_are_and_runs_none_of_them(self):
        page = report_html.page([named(full(), NASTY)], title=NASTY)
        assert "<script" not in page
        assert "&lt;script&gt;" in page

    def test_has_a_plot_for_everything_that_is_known(self):
        page = report_html.page([named(full())])
        for title in ("Latency distribution", "Latency over time", "Requests and answers",
                      "Where the mean latency went", "Batches", "Server process"):  # fmt: skip
            assert f"<h3>{title}</h3>" in page
        assert "nan" not in page.lower().replace("nanosecond", "")

    def test_says_invalid_only_where_a_run_is(self):
        assert "says nothing" not in report_html.page([named(even(50))])
        assert 'role="alert"' not in report_html.page([named(even(50))])
        assert 'role="alert"' in report_html.page([named(late())])

    def test_of_several_runs_sets_throughput_against_latency_without_the_invalid(self):
        runs = [named(queued(rate=rate, service_s=0.001, warmup_s=0.0), f"at {rate}")
                for rate in (100, 400)]  # fmt: skip
        page = report_html.page([*runs, named(late(), "late one")])
        assert "Throughput and latency" in page
        chart = page[page.index("Latency by throughput") : page.index("a point for each")]
        assert "at 400" in chart
        assert "late one" not in chart

    @pytest.mark.parametrize("run", [
        run_of([sample(0, 0, 0, 1, status=14)]), run_of([sample(0, 0, 0, 0)]),
        run_of([sample(0, 0, 0, 1)]), even(9), late(),
    ])  # fmt: skip
    def test_of_a_poor_run_is_a_page_too(self, run):
        for names, plots in ((["one"], 1), (["one", "two"], 3)):  # with one of both together
            found = Reader(page := report_html.page([named(run, each) for each in names]))
            assert not found.links
            assert page.count("<h3>Latency distribution</h3>") == plots
            assert found.tags.count("svg") >= 3 * len(names)
            assert not re.search(r'="[^"]*\b(nan|inf|None)\b', page)
            assert f">{stats.summarize(run).requests:,}<" in page.replace(" ", "").replace("\n", "")


class TestCharts:
    @pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 0.003), (0, 7e6), (3, 4)])
    def test_ticks_are_few_round_and_inside(self, low, high):
        values = [value for value, _ in report_html._Axis("x", low, high).marks()]
        assert 2 <= len(values) <= 8
        assert all(low <= value <= high for value in values)

    @pytest.mark.parametrize(("low", "high"), [(0.02, 3), (1e-5, 1e5), (7, 80), (0.9, 1.2)])
    def test_ticks_of_decades_are_inside(self, low, high):
        values = [value for value, _ in report_html._Axis("x", low, high, True).marks()]
        assert 1 <= len(values) <= 12
        assert all(low <= value <= high for value in values)

    def test_an_axis_keeps_its_ends_and_its_middle(self):
        log, even = report_html._Axis("x", 1, 100, True), report_html._Axis("x", 0, 10)
        assert [log.place(value) for value in (1, 10, 100, 1000)] == pytest.approx([0, 0.5, 1, 1])
        assert [even.place(value) for value in (-1, 0, 5, 10)] == pytest.approx([0, 0, 0.5, 1])


def test_environment_names_processor_cores_and_versions():
    found = measuring.describe_environment()
    assert found["cores"] >= 1
    assert {"cpu", "python", "tfkit", "grpcio"} <= found.keys()


@pytest.fixture(scope="module")
def chromium(require):
    """A browser without a window."""
    found = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if found is None:
        require("chromium", "no Chromium is installed")
    return found


def browsed(chromium, page, tmp_path, width):
    """Return the document after a browser has read it, and what it wrote on its console."""
    probe = (
        "<script>document.documentElement.dataset.wide = String(Math.max("
        "...Array.from(document.querySelectorAll('body, body *'), e => "
        "e.ownerSVGElement ? 0 : e.getBoundingClientRect().right)))</script>"
    )
    frame = f'<iframe id="f" src="page.html" width="{width}" height="3000"></iframe>'
    outer = (
        f"<!doctype html>{frame}<script>addEventListener('message', e => "
        "document.title = e.data)</script>"
    )
    inner = probe + (
        "<script>parent.postMessage(document.documentElement.scrollWidth + ' ' "
        "+ document.documentElement.dataset.wide, '*')</script>"
    )
    (tmp_path / "page.html").write_text(page.replace("</body>", inner + "</body>"))
    (tmp_path / "outer.html").write_text(outer)
    done = subprocess.run(
        [chromium, "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
         "--virtual-time-budget=5000", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom",
         (tmp_path / "outer.html").as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_the_page_without_complaint_and_without_scrolling_sideways(
    chromium, tmp_path, width
):
    runs = [named(full(), "a name of a run that is long enough to break " * 3), named(late())]
    shown, complaints = browsed(chromium, report_html.page(runs), tmp_path, width)
    assert not complaints
    scrolled, widest = map(float, re.search(r"<title>([\d.]+) ([\d.]+)</title>", shown).groups())
    assert scrolled <= width
    assert widest <= width


def test_a_run_is_reported_from_its_samples_alone():
    assert "requests, errors: none" in text_of(Run(even().samples))


MS = 1_000_000
LATENCIES = array("q", [2 * MS] * 98 + [15 * MS] * 2)
OPEN = Snapshot(3_200 * MS, 9_990 * MS, 1234, 2000, 1, 3, 120_000, LATENCIES)
CLOSED = Snapshot(500 * MS, None, 10, None, 0, 8, None, array("q"))
WIDE = 200


def test_everything_is_told_where_there_is_room():
    assert live_line("Sending, 200/s", OPEN, 199.6, WIDE) == (
        "Sending, 200/s: 3/10 s, 1,234/2,000 ended, 200/s, 1 error, p50 2.00 ms, p99 15 ms, "
        "3 in flight, 0.12 ms late"
    )


def test_what_is_unknown_is_left_out():
    assert live_line("Sending", CLOSED, None, WIDE) == (
        "Sending: 0 s, 10 ended, 0 errors, p50 -, p99 -, 8 in flight"
    )


@pytest.mark.parametrize("width", [*range(20, 120, 7), 80])
def test_a_line_never_fills_a_terminal(width):
    assert 0 < len(live_line("Sending, 200/s", OPEN, 199.6, width)) < width


def test_latency_errors_and_rate_outlive_all_else():
    text = live_line("Sending, 200/s", OPEN, 199.6, 50)
    assert text == "3/10 s, 200/s, 1 error, p50 2.00 ms, p99 15 ms"


def test_the_rate_is_that_since_the_last_line():
    later = OPEN._replace(at_ns=OPEN.at_ns + 500 * MS, ended=OPEN.ended + 100)
    assert later.rate_since(OPEN) == 200
    assert later.rate_since(None) is None
    assert later.rate_since(later) is None
