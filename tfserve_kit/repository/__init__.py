"""The model repository on disk: versions, and how a new one gets there."""

from tfserve_kit.repository.push import Pushed, VersionChoice, push
from tfserve_kit.repository.versions import Version, parse_version, scan

__all__ = ["Pushed", "Version", "VersionChoice", "parse_version", "push", "scan"]
