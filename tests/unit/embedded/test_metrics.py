"""Counters and histograms, and the page they make."""

import math
import re
import threading
import time

import pytest

from tfserve_kit.embedded import metrics as metrics_module
from tfserve_kit.embedded.metrics import (
    GRAPH_RUN_TIME,
    LOAD_ATTEMPTS,
    PADDING_SIZE,
    QUEUING_LATENCY,
    REQUEST_LATENCY,
    WRAPPED_RUN_COUNT,
    Metric,
    Metrics,
    exponential,
    micros_since,
    process_readings,
)
from tfserve_kit.perf.metrics import parse
from tfserve_kit.version import VERSION

SIZES = Metric(":sizes", ("model",), (1.0, 2.0, 4.0))
GAUGE = Metric(":gauge", ("a",), is_gauge=True)
COUNT = Metric(":count", ("a", "b"))

# What the page of a fresh official server says of serving.
FROM_THE_START = """
# TYPE :tensorflow:cc:saved_model:load_attempt_count counter
# TYPE :tensorflow:cc:saved_model:load_latency counter
# TYPE :tensorflow:serving:batching_session:queuing_latency histogram
# TYPE :tensorflow:serving:batching_session:wrapped_run_count counter
# TYPE :tensorflow:serving:model_warmup_latency histogram
# TYPE :tensorflow:serving:model_warmup_records_read counter
# TYPE :tensorflow:serving:request_count counter
# TYPE :tensorflow:serving:request_latency histogram
# TYPE :tensorflow:serving:runtime_latency histogram
"""


def lines(metrics, name):
    return [line for line in metrics.page().splitlines() if line.startswith(name)]


def test_page_without_values_names_the_metrics_the_official_one_names():
    assert Metrics().page() == FROM_THE_START.lstrip()


def test_size_of_batches_is_named_with_the_first_batch_only():
    metrics = Metrics()
    assert "padding_size" not in metrics.page()
    metrics.observe(PADDING_SIZE, 3, ("8",))
    assert f"# TYPE {PADDING_SIZE.name} histogram" in metrics.page().splitlines()
    assert lines(metrics, f"{PADDING_SIZE.name}_sum") == [
        f'{PADDING_SIZE.name}_sum{{execution_batch_size="8"}} 3'
    ]


def test_counter_adds_up_for_each_set_of_labels():
    metrics = Metrics()
    metrics.add(COUNT, ("x", "y"))
    metrics.add(COUNT, ["x", "y"], 4)
    metrics.add(COUNT, ("x", "a"), 2.4)
    assert lines(metrics, ":count") == [
        ':count{a="x",b="a"} 2',
        ':count{a="x",b="y"} 5',
    ]
    assert "# TYPE :count counter" in metrics.page().splitlines()


def test_counter_without_labels_has_empty_braces():
    metrics = Metrics()
    metrics.add(WRAPPED_RUN_COUNT)
    assert lines(metrics, WRAPPED_RUN_COUNT.name) == [f"{WRAPPED_RUN_COUNT.name}{{}} 1"]


def test_histogram_of_graph_runs_says_what_the_official_server_counts_beside_it():
    metrics = Metrics()
    for micros in (500, 1500):
        metrics.observe(GRAPH_RUN_TIME, micros)
    assert lines(metrics, ":tensorflow:core:graph_runs") == [":tensorflow:core:graph_runs{} 2"]
    assert lines(metrics, ":tensorflow:core:direct_session_runs") == [
        ":tensorflow:core:direct_session_runs{} 2"
    ]
    assert lines(metrics, ":tensorflow:core:graph_run_time_usecs{") == [
        ":tensorflow:core:graph_run_time_usecs{} 2000"
    ]
    assert lines(metrics, f"{GRAPH_RUN_TIME.name}_bucket")[:2] == [
        f'{GRAPH_RUN_TIME.name}_bucket{{le="1000"}} 1',
        f'{GRAPH_RUN_TIME.name}_bucket{{le="2000"}} 2',
    ]


def test_what_is_looked_up_is_as_it_is_when_the_page_is_asked_for():
    metrics, found = Metrics(), {"now": 1}
    metrics.look_up(lambda: [(GAUGE, ("x",), found["now"])])
    assert lines(metrics, ":gauge") == [':gauge{a="x"} 1']
    found["now"] = 2
    assert lines(metrics, ":gauge") == [':gauge{a="x"} 2']
    assert "# TYPE :gauge gauge" in metrics.page().splitlines()


def test_process_tells_its_start_memory_processor_time_and_program():
    metrics = Metrics()
    metrics.look_up(process_readings)
    page = parse(metrics.page())
    started_s = page["process_start_time_seconds", ()]
    assert 0 < time.time() - started_s < 86_400 * 30
    assert page["process_resident_memory_bytes", ()] > 1e7
    before = page["process_cpu_seconds_total", ()]
    end = time.process_time() + 0.05
    while time.process_time() < end:
        pass
    assert 0 < parse(metrics.page())["process_cpu_seconds_total", ()] - before < 60
    program = [dict(labels) for name, labels in page if name == "tfkit_build_info"]
    assert [each["version"] for each in program] == [VERSION]


def test_histogram_counts_up_and_puts_a_value_on_a_bound_above_it():
    metrics = Metrics()
    for value in (0.5, 1, 1.5, 4, 100):
        metrics.observe(SIZES, value, ("m",))
    assert lines(metrics, ":sizes") == [
        ':sizes_bucket{model="m",le="1"} 1',
        ':sizes_bucket{model="m",le="2"} 3',
        ':sizes_bucket{model="m",le="4"} 3',
        ':sizes_bucket{model="m",le="+Inf"} 5',
        ':sizes_sum{model="m"} 107',
        ':sizes_count{model="m"} 5',
    ]


def test_histograms_come_in_the_order_of_their_labels_each_with_its_own_values():
    metrics = Metrics()
    metrics.observe(SIZES, 3, ("b",))
    metrics.observe(SIZES, 1, ("a",))
    metrics.observe(SIZES, 1, ("a",))
    assert lines(metrics, ":sizes_count") == [
        ':sizes_count{model="a"} 2',
        ':sizes_count{model="b"} 1',
    ]


def test_metrics_come_in_the_order_of_their_names():
    metrics = Metrics()
    metrics.add(COUNT, ("x", "y"))
    metrics.observe(SIZES, 1, ("m",))
    named = re.findall(r"# TYPE (\S+)", metrics.page())
    assert named == sorted(named)
    assert named[0] == ":count"


def test_labels_are_escaped():
    metrics = Metrics()
    metrics.add(COUNT, ('say "hi"', "back\\slash\nnew line"))
    assert lines(metrics, ":count") == [
        ':count{a="say \\"hi\\"",b="back\\\\slash\\nnew line"} 1',
    ]


@pytest.mark.parametrize(("status", "latencies"), [("OK", 1), ("NOT_FOUND", 0)])
def test_request_is_counted_and_timed_only_if_it_succeeded(status, latencies):
    metrics = Metrics()
    metrics.count_request(
        "m", "predict", "REST", status, time.perf_counter_ns() - 3_600_000_000_000
    )
    assert lines(metrics, ":tensorflow:serving:request_count{") == [
        f':tensorflow:serving:request_count{{model_name="m",status="{status}"}} 1'
    ]
    found = lines(metrics, f"{REQUEST_LATENCY.name}_count")
    assert (
        found
        == [f'{REQUEST_LATENCY.name}_count{{model_name="m",API="predict",entrypoint="REST"}} 1']
        * latencies
    )


def test_latency_is_in_microseconds():
    assert 3.6e9 <= micros_since(time.perf_counter_ns() - 3_600_000_000_000) < 4e9


def test_bounds_grow_by_the_factor():
    assert exponential(10, 2, 4) == (10, 20, 40, 80)
    assert exponential(3, 7, 1) == (3,)


@pytest.mark.parametrize(
    ("metric", "first", "second", "last", "count"),
    [
        (REQUEST_LATENCY, 10, 18, 10 * 1.8**32, 33),
        (QUEUING_LATENCY, 100, 120, 100 * 1.2**51, 52),
        (PADDING_SIZE, 1, 2, 2**13, 14),
    ],
)
def test_buckets_are_the_official_ones(metric, first, second, last, count):
    assert metric.buckets[:2] == (first, second)
    assert math.isclose(metric.buckets[-1], last)
    assert len(metric.buckets) == count


def test_counter_that_counts_micros_is_a_whole_number():
    metrics = Metrics()
    metrics.add(LOAD_ATTEMPTS, ("/m/1", "success"), 12.7)
    assert lines(metrics, LOAD_ATTEMPTS.name)[-1].endswith(" 13")


def test_models_that_answer_keep_their_place_among_made_up_names():
    metrics = Metrics()
    for number in range(12_000):
        metrics.count_request(f"made up {number}", "Predict", "GRPC", "NOT_FOUND", 0)
    for status in ("OK", "INTERNAL"):
        metrics.count_request("digits", "Predict", "GRPC", status, 0)
    for size in range(12_000):  # sizes of batches, which clients choose
        metrics.observe(PADDING_SIZE, 1, (str(size),))
    page = metrics.page()
    for status in ("OK", "INTERNAL"):
        assert f'request_count{{model_name="digits",status="{status}"}} 1' in page
    assert "made up 11999" not in page
    assert 'execution_batch_size="11999"' not in page


def test_no_value_is_lost_or_counted_twice_while_threads_append_and_pages_are_read():
    metrics, threads, each = Metrics(), 4, 3000
    barrier = threading.Barrier(threads + 1)

    def work():
        barrier.wait()
        for value in range(each):
            metrics.observe(SIZES, value % 4 + 0.5, ("m",))
            metrics.count_request("m", "Predict", "GRPC", "OK", time.perf_counter_ns())

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    barrier.wait()
    while any(worker.is_alive() for worker in workers):
        metrics.page()
    expected = threads * each
    assert lines(metrics, ":sizes") == [
        f':sizes_bucket{{model="m",le="1"}} {expected // 4}',
        f':sizes_bucket{{model="m",le="2"}} {expected // 2}',
        f':sizes_bucket{{model="m",le="4"}} {expected}',
        f':sizes_bucket{{model="m",le="+Inf"}} {expected}',
        f':sizes_sum{{model="m"}} {2 * expected}',
        f':sizes_count{{model="m"}} {expected}',
    ]
    assert metrics.first("/tensorflow/serving/request_count") == expected


def test_requests_are_counted_though_there_is_no_room_for_their_latencies(monkeypatch):
    monkeypatch.setattr(metrics_module, "_MOST_LABEL_SETS", 1)
    metrics = Metrics()
    for api in ("Predict", "Classify", "Classify"):
        metrics.count_request("m", api, "GRPC", "OK", time.perf_counter_ns())
    assert lines(metrics, ":tensorflow:serving:request_count{") == [
        ':tensorflow:serving:request_count{model_name="m",status="OK"} 3'
    ]


def test_requests_that_are_answered_together_took_their_share_of_the_time_each():
    metrics, second_ns = Metrics(), 1_000_000_000
    metrics.count_requests("m", "p", "REST", ["OK"] * 4, time.perf_counter_ns() - second_ns)
    total, count = lines(metrics, ":tensorflow:serving:request_latency")[-2:]
    assert 1e6 <= float(total.rpartition(" ")[2]) < 1.5e6
    assert count.endswith(" 4")


def test_values_put_in_together_count_as_one_after_the_other():
    together, apart = Metrics(), Metrics()
    for value in [0.5, 1.0, 3.0, 9.0] * 200:
        together.observe(SIZES, value, ("m",), 7)
        for _ in range(7):
            apart.observe(SIZES, value, ("m",))
    began_ns = time.perf_counter_ns()
    for statuses in (["OK", "NOT_FOUND", "OK"], ["INTERNAL"], []):
        together.count_requests("m", "predict", "REST", statuses, began_ns)
        for status in statuses:
            apart.count_request("m", "predict", "REST", status, time.perf_counter_ns())
    assert lines(together, SIZES.name) == lines(apart, SIZES.name)
    assert lines(together, ":tensorflow:serving:request_count") == lines(
        apart, ":tensorflow:serving:request_count"
    )
