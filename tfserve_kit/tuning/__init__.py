"""Settings of a server found by trying them: which batching serves the most requests in time."""

from tfserve_kit.tuning.candidate import Candidate, Space
from tfserve_kit.tuning.goals import Goal, HighestRate, LowestLatency
from tfserve_kit.tuning.testbed import Testbed
from tfserve_kit.tuning.tune import Effort, Tuned, tune

__all__ = [
    "Candidate",
    "Effort",
    "Goal",
    "HighestRate",
    "LowestLatency",
    "Space",
    "Testbed",
    "Tuned",
    "tune",
]
