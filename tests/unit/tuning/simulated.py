"""Candidate servers that are simulated queues: settings decide how long a request takes."""

from contextlib import contextmanager

from tests.unit.perf.runs import queued
from tfserve_kit.deployment import build
from tfserve_kit.perf.stats import summarize
from tfserve_kit.progress import SILENT


def deployment(folder):
    return build({"models": {"m": {"base_path": "m"}}}, source="test", folder=folder)


class Bed:
    """Takes the place of `CandidateServer`.

    Args:
        service_s: how long a request takes with a candidate's settings, on average; may
            raise.
    """

    def __init__(self, service_s):
        self.progress = SILENT
        self._service_s = service_s
        self.started, self.running, self.rates = [], set(), []
        self.measured = []  # the name of the server that was, each time

    @contextmanager
    def serving(self, candidate, name="tune"):
        service_s = self._service_s(candidate)
        assert name not in self.running
        self.started.append(candidate)
        self.running.add(name)
        try:
            yield Running(service_s, self.rates, lambda: self.measured.append(name))
        finally:
            self.running.remove(name)


class Running:
    """Takes the place of `tune.Running`."""

    def __init__(self, service_s, rates, measured=lambda: None):
        self._service_s, self._rates, self._measured = service_s, rates, measured
        self.start_rate = 0.5 / service_s

    def measure(self, rate):
        self._rates.append(rate)
        self._measured()
        run = queued(rate=rate, service_s=self._service_s, count=800, warmup_s=0.0)
        return summarize(run)


def small_batches_are_best(candidate):
    """5 ms by default, 8 ms without batching, 2.5 ms with batches of at most eight."""
    if candidate.batching is None:
        return 0.008
    return 0.0025 if (candidate.batching.max_batch_size or 1000) <= 8 else 0.005
