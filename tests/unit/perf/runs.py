"""Runs made up for tests: simulated servers, and samples written out in milliseconds."""

import numpy as np

from tfserve_kit.perf.samples import SAMPLE, Run

MS = 1_000_000


def sample(sequence, due_ms, sent_ms, done_ms, *, free_ms=0.0, first_ms=None, status=0):
    """Return one sample as a tuple in the order of SAMPLE."""
    first_ms = done_ms if first_ms is None else first_ms
    times = (round(ms * MS) for ms in (due_ms, free_ms, sent_ms, first_ms, done_ms))
    return (sequence, *times, status, 100, 200, 0, 0)


def run_of(samples, **settings):
    """Return a run of samples from `sample`; no warm-up is looked for unless asked."""
    settings = {"warmup_s": 0.0} | settings
    return Run(np.array(samples, SAMPLE), settings)


def queued(
    *, rate=200.0, service_s=0.003, count=2000, seed=0, slow_start=0, stall=None, **settings
):
    """Return an open-loop run against one server that takes one request at a time.

    Args:
        rate: Poisson arrivals per second.
        service_s: mean of exponential service times.
        count: requests.
        seed: of both.
        slow_start: how many first requests take ten times as long.
        stall: (request, seconds) that takes so much longer.
        settings: of the run.
    """
    source = np.random.default_rng(seed)
    due_s = np.cumsum(source.exponential(1 / rate, count))
    work_s = source.exponential(service_s, count)
    work_s[:slow_start] *= 10
    if stall:
        work_s[stall[0]] += stall[1]
    done_s, ready_s = np.empty(count), 0.0
    for i in range(count):
        ready_s = done_s[i] = max(due_s[i], ready_s) + work_s[i]
    samples = np.zeros(count, SAMPLE)
    samples["sequence"] = np.arange(count)
    for name, values in (("due_ns", due_s), ("free_ns", due_s), ("sent_ns", due_s + 2e-5)):
        samples[name] = np.round(values * 1e9)
    samples["done_ns"] = np.round(done_s * 1e9) + 40_000
    samples["first_byte_ns"] = samples["done_ns"] - 10_000
    samples["sent_bytes"], samples["received_bytes"] = 3000, 500
    return Run(samples, {"loop": "open", **settings}, {"cpu": "some cpu", "cores": 2})
