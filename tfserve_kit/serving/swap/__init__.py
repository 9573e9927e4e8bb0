"""From one version to the next while requests come in: waiting for it, and the proof of it."""

from tfserve_kit.serving.swap.proof import verify
from tfserve_kit.serving.swap.report import Phase, SwapReport
from tfserve_kit.serving.swap.traffic import Traffic
from tfserve_kit.serving.swap.waiting import SwapTime, wait, wait_gone

__all__ = ["Phase", "SwapReport", "SwapTime", "Traffic", "verify", "wait", "wait_gone"]
