"""From one version to the next while requests come in: waiting for it, and the proof of it."""

from tfserve_kit.swap.proof import verify
from tfserve_kit.swap.report import Phase, SwapReport
from tfserve_kit.swap.traffic import Traffic
from tfserve_kit.swap.waiting import SwapTime, wait, wait_gone

__all__ = ["Phase", "SwapReport", "SwapTime", "Traffic", "verify", "wait", "wait_gone"]
