"""The model repository on disk: versions, and how a new one gets there."""

from tfserve_kit.repository.gate import Gate
from tfserve_kit.repository.push import Pushed, push
from tfserve_kit.repository.sources import Source
from tfserve_kit.repository.staging import VersionChoice
from tfserve_kit.repository.versions import Version, parse_version, scan

__all__ = [
    "Gate",
    "Pushed",
    "Source",
    "Version",
    "VersionChoice",
    "parse_version",
    "push",
    "scan",
]
