"""One measurement, with what sends it made up: schedules, marks, drills, and the search."""

import os
import sys
import threading
import time

import numpy as np
import pytest

from tests.unit.perf.runs import queued, run_of, sample
from tfserve_kit.errors import UsageError
from tfserve_kit.perf import gate, measuring
from tfserve_kit.perf.load import Closed, Load, Open, Payload
from tfserve_kit.perf.measuring import Bench, Command, _Disturbance, command_of, poisoned
from tfserve_kit.perf.samples import SAMPLE
from tfserve_kit.perf.stats import summarize

URL = "grpc://host:1"
PAYLOADS = [Payload("/a", (), b"a"), Payload("/b", (), b"b")]


class FakeSend:
    """Takes the place of `perf.sending.run`: answers everything at once, and keeps what it got."""

    def __init__(self, meanwhile=lambda: None):
        self.meanwhile = meanwhile

    def __call__(self, load, payloads, *, stop, progress, started):
        self.load, self.payloads = load, payloads
        started(time.monotonic_ns())
        self.meanwhile()
        samples = np.zeros(10, SAMPLE)
        samples["sequence"] = np.arange(10)
        samples["done_ns"] = 1000
        return samples


class TestLoad:
    def test_at_a_rate_sends_at_times(self):
        schedule = Open.at_rate(10, 1, max_in_flight=5)
        assert (len(schedule.due_ns), schedule.max_in_flight) == (10, 5)

    def test_sends_no_more_requests_than_asked_for(self):
        assert len(Open.at_rate(10).first(4).due_ns) == 4
        assert len(Open.at_rate(10).first(None).due_ns) == 100

    def test_with_two_rates_goes_from_one_to_the_other(self):
        schedule = Open.at_rate(10, 2, end_rate=30)
        counts = np.bincount((schedule.due_ns / 1e9 + 1e-9).astype(int))
        assert counts.tolist() == pytest.approx([15, 25], abs=1)

    def test_overload_doubles_the_middle_third(self):
        schedule = Open.at_rate(10, 3, is_overload=True)
        counts = np.bincount((schedule.due_ns / 1e9 + 1e-9).astype(int))
        assert counts.tolist() == [10, 20, 10]

    def test_that_would_never_send_is_refused(self):
        with pytest.raises(UsageError, match="no request was due"):
            Open.at_rate(0.1, 1, arrivals="poisson")

    @pytest.mark.parametrize(("schedule", "name", "there", "missing"), [
        (Closed(8, 10.0), "concurrency 8", "concurrency", "arrivals"),
        (Open.at_rate(5), "5/s", "arrivals", "concurrency"),
        (Open.at_rate(5, end_rate=9), "5/s to 9/s", "end_rate", "concurrency"),
    ])  # fmt: skip
    def test_is_kept_with_what_mattered(self, schedule, name, there, missing):
        load = Load(URL, "grpc", schedule)
        settings = load.settings()
        assert load.name == name
        assert there in settings
        assert missing not in settings
        assert settings["loop"] == ("closed" if isinstance(schedule, Closed) else "open")
        assert settings["duration_s"] == load.duration_s == 10.0
        assert settings["is_overload"] is False

    def test_over_tls_it_is_grpcio_that_sends_grpc_and_says_so(self):
        secure = Load("grpcs://host:1", "grpc")
        assert secure.uses_grpcio
        assert secure.settings()["sender"] == "grpcio"
        assert not Load("https://host:1", "rest").uses_grpcio
        assert not Load(URL, "grpc").uses_grpcio
        assert Load(URL, "grpc", sender="grpcio").uses_grpcio


class TestDisturbances:
    def test_every_hundredth_request_is_poisoned_and_the_others_keep_their_turn(self):
        bench = Bench(PAYLOADS, send := FakeSend(), during="poison")
        run = bench.measure(Load(URL, "grpc"))
        bad = [i for i, each in enumerate(send.payloads) if each.body not in {b"a", b"b"}]
        assert bad == [i for i in range(len(send.payloads)) if i % 100 == 99]
        assert [each.body for each in send.payloads[:3]] == [b"a", b"b", b"a"]
        assert len(send.payloads) % len(PAYLOADS) == 0
        assert run.settings["poison_every"] == 100

    def test_an_odd_number_of_payloads_is_poisoned_evenly_too(self):
        found = poisoned([*PAYLOADS, Payload("/c", (), b"c")])
        assert len(found) == 300

    def test_overload_is_marked(self):
        run = Bench(PAYLOADS, FakeSend(), during="overload").measure(
            Load(URL, "grpc", Open.at_rate(30, 3, is_overload=True))
        )
        assert [mark.at_ns for mark in run.marks] == [10**9, 2 * 10**9]
        assert run.settings["is_overload"] is True

    def test_a_command_runs_during_the_run_and_is_marked_with_its_end(self, tmp_path):
        file = tmp_path / "done"

        def until_it_ran():
            while not file.exists():
                threading.Event().wait(0.01)

        bench = Bench(PAYLOADS, FakeSend(until_it_ran), during=f"touch '{file}'; exit 3")
        begin, end = bench.measure(Load(URL, "grpc", Closed(8, 0.03))).marks
        assert begin.what.startswith("begin: touch")
        assert end.what.endswith("(exit code 3)")
        assert 10_000_000 <= begin.at_ns <= end.at_ns

    def test_a_run_that_ends_before_its_command_begins_runs_none(self, tmp_path):
        bench = Bench(PAYLOADS, FakeSend(), during=f"touch '{tmp_path / 'done'}'")
        assert bench.measure(Load(URL, "grpc", Closed(8, 600))).marks == ()
        assert not (tmp_path / "done").exists()


def test_a_run_keeps_what_it_was_made_with():
    run = Bench(PAYLOADS, FakeSend(), {"model": "m"}).measure(Load(URL, "grpc"))
    assert run.settings["model"] == "m"
    assert run.settings["url"] == URL
    assert run.environment["cores"] >= 1
    assert len(run.samples) == 10


class TestLimits:
    SLO = gate.parse("p99<50ms")

    def test_are_kept_by_a_server_that_is_quick_enough(self):
        assert gate.keeps(self.SLO, summarize(queued(rate=50, service_s=0.002, warmup_s=0.0)))

    def test_are_not_kept_by_a_slow_one(self):
        assert not gate.keeps(self.SLO, summarize(queued(rate=50, service_s=0.015, warmup_s=0.0)))

    def test_are_not_kept_by_one_that_fails_or_falls_behind(self):
        failing = queued(rate=50, service_s=0.002, warmup_s=0.0)
        failing.samples["status"][::200] = 8
        assert not gate.keeps(self.SLO, summarize(failing))
        behind = [sample(i, i, i, 40 + i * 1.1, free_ms=i) for i in range(1000)]
        assert not gate.keeps(gate.parse("p99<1s"), summarize(run_of(behind)))


class TestSearch:
    @pytest.mark.parametrize("limit", [3.0, 10.0, 137.0, 5000.0])
    @pytest.mark.parametrize("start", [1.0, 100.0, 150.0])
    def test_finds_a_limit_from_above_and_below(self, limit, start):
        found, trials = gate.find_max(lambda rate: rate <= limit, start=start)
        assert limit / 1.05 <= found <= limit
        assert [trial.rate for trial in trials[-2:]] == [found, found]
        assert all(trial.held == (trial.rate <= limit) for trial in trials)

    def test_says_zero_where_no_rate_holds(self):
        found, trials = gate.find_max(lambda _: False, start=10)
        assert found == 0
        assert [trial.rate for trial in trials] == [10 / 2**n for n in range(7)]

    def test_none_ends_it_with_the_highest_rate_that_held(self):
        answers = iter([True, True, False, None])
        found, trials = gate.find_max(lambda _: next(answers), start=10)
        assert found == 20
        assert [trial.rate for trial in trials] == [10, 20, 40]

    def test_grows_and_shrinks_by_the_factor_it_is_given(self):
        _, trials = gate.find_max(lambda _: False, start=9, growth=3)
        assert [trial.rate for trial in trials[:3]] == [9, 3, 1]

    def test_ends_where_every_rate_holds(self):
        found, trials = gate.find_max(lambda _: True, start=10, most_trials=12)
        assert found >= 10 * 2**10
        assert len(trials) <= 12

    def test_a_rate_that_held_by_luck_is_given_up(self):
        seen = set()

        def holds(rate):
            is_first = rate not in seen
            seen.add(rate)
            return rate <= 100 or (is_first and rate <= 130)

        found, _ = gate.find_max(holds, start=64)
        assert found <= 100

    def test_a_server_of_moods_ends_the_search_all_the_same(self):
        source = np.random.default_rng(0)
        for _ in range(50):
            _, trials = gate.find_max(lambda rate: source.random() < 50 / rate, start=20)
            assert len(trials) <= 45


def marks(command, *, after_s=0.0):
    """Return what a drill marked, in a run that lasts as long as it does."""
    with _Disturbance(command, after_s) as drill:
        drill.begin(time.monotonic_ns())
        if drill._thread:
            drill._thread.join()
    return [mark.what for mark in drill.marks]


def python(code, **others):
    return Command("name", [sys.executable, "-c", code], **others)


@pytest.mark.parametrize("during", ["", "poison", "overload"])
def test_what_changes_the_requests_is_no_command(during):
    assert command_of(during) is None


def test_a_shell_command_is_named_by_itself():
    assert command_of("exit 3") == Command("exit 3", "exit 3")
    assert marks(command_of("exit 3")) == ["begin: exit 3", "end: exit 3 (exit code 3)"]


def test_a_program_is_marked_with_its_name_and_its_exit_code():
    assert marks(python("print('hello')")) == ["begin: name", "end: name (exit code 0)"]


def test_what_a_program_prints_is_news_at_once(tmp_path):
    go_on = tmp_path / "go on"
    code = f"""
import pathlib, time
print("ready", flush=True)
while not pathlib.Path({str(go_on)!r}).exists(): time.sleep(0.01)
print("more")
"""

    def news(printed):
        go_on.touch()
        return f"it said {printed.strip()}"

    assert marks(python(code, news=news)) == [
        "begin: name", "it said ready", "end: name (exit code 0)",
    ]  # fmt: skip


def test_news_without_a_text_is_no_mark():
    assert len(marks(python("print('{}')", news=lambda printed: ""))) == 2


def test_a_program_that_fails_is_marked_with_why():
    code = "import sys; print('x ...', file=sys.stderr); sys.exit('Error: no\\n  Try: so')"
    assert marks(python(code))[1] == "end: name (exit code 1: no)"


def test_ctrl_c_does_not_reach_a_program():
    code = "import os; print(os.getpgid(0))"
    found = []
    marks(python(code, news=found.append))
    assert int(found[0]) != os.getpgid(0)


def test_what_outlives_the_run_too_long_is_killed(monkeypatch):
    monkeypatch.setattr(measuring, "_GRACE_S", 0.1)
    with _Disturbance(python("import time; time.sleep(600)"), 0.0) as drill:
        drill.begin(time.monotonic_ns())
        while not drill.marks:
            time.sleep(0.01)
    assert drill.marks[-1].what == "end: name (killed: it outlived the run)"
