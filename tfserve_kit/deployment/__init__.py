"""The deployment as data: `tfkit.toml` and what it means."""

from tfserve_kit.deployment.spec import (
    DEFAULT_FILE,
    Batching,
    Client,
    Model,
    Monitoring,
    Server,
    Spec,
    VersionPolicy,
    build,
    load,
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
