"""What happened to each request: raw, complete, and saved as it is."""

import csv
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Sample:
    """One request; times in nanoseconds since the start of the run.

    Attributes:
        sequence: number of the request, from 0.
        due_ns: when it should have been sent.
        free_ns: when the sender was free to send it.
        sent_ns: when it was sent.
        done_ns: when its answer was there.
        status: `OK`, or the name of the error.
    """

    sequence: int
    due_ns: int
    free_ns: int
    sent_ns: int
    done_ns: int
    status: str

    @property
    def latency_s(self) -> float:
        """From due to done: what a user waits, in seconds."""
        return (self.done_ns - self.due_ns) / 1e9

    @property
    def service_s(self) -> float:
        """From sent to done, in seconds."""
        return (self.done_ns - self.sent_ns) / 1e9

    @property
    def lag_s(self) -> float:
        """How late the sender was although it was free: the harness's own fault, in seconds."""
        return (self.sent_ns - max(self.due_ns, self.free_ns)) / 1e9


def write(samples: Iterable[Sample], file: Path) -> None:
    """Save all samples as CSV."""
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(field.name for field in fields(Sample))
        writer.writerows(astuple(sample) for sample in samples)
