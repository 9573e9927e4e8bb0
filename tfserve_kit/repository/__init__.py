"""The model repository on disk: versions, and how a new one gets there."""

from tfserve_kit.repository.inspection import Gate
from tfserve_kit.repository.push import Pushed, push, push_to_places
from tfserve_kit.repository.sources import Source
from tfserve_kit.repository.staging import VersionChoice
from tfserve_kit.repository.versions import Version, list_versions, parse_version

__all__ = [
    "Gate",
    "Pushed",
    "Source",
    "Version",
    "VersionChoice",
    "list_versions",
    "parse_version",
    "push",
    "push_to_places",
]
