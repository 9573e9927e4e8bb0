"""Settings of a server found by trying them: which batching serves the most requests in time."""

from tfserve_kit.tuning.goals import Goal, HighestRate, LowestLatency
from tfserve_kit.tuning.study import Candidate, Space
from tfserve_kit.tuning.tune import CandidateServer, Effort, Tuned, tune, tune_deployment

__all__ = [
    "Candidate",
    "CandidateServer",
    "Effort",
    "Goal",
    "HighestRate",
    "LowestLatency",
    "Space",
    "Tuned",
    "tune",
    "tune_deployment",
]
