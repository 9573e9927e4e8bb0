"""The deployment as data: `tfkit.toml` and what it means."""

from tfserve_kit.deployment.files import DEFAULT_FILE, build, load
from tfserve_kit.deployment.schema import (
    Batching,
    Client,
    Model,
    Monitoring,
    Server,
    Spec,
    VersionPolicy,
)

__all__ = [
    "DEFAULT_FILE",
    "Batching",
    "Client",
    "Model",
    "Monitoring",
    "Server",
    "Spec",
    "VersionPolicy",
    "build",
    "load",
]
