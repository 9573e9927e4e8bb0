"""The deployment as data: `tfkit.toml` and what it means."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tfserve_kit.deployment.spec import (
        DEFAULT_FILE,
        Batching,
        ClientSection,
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
    "ClientSection",
    "Model",
    "Monitoring",
    "Server",
    "Spec",
    "VersionPolicy",
    "build",
    "load",
]


def __getattr__(name: str) -> Any:
    """Import the spec when asked for: a server that takes flags needs no pydantic."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from tfserve_kit.deployment import spec

    return getattr(spec, name)
