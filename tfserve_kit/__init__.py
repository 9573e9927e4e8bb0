"""tfkit: render, stage, launch, call and measure TensorFlow Serving.

Public API: `connect` (clients), `spec` (deployments), `render`, `repository` (push, scan),
`engines` and `launch` (servers), `errors`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tfserve_kit.clients import Client, Metadata, Prediction, Target, VersionStatus, connect

__all__ = ["Client", "Metadata", "Prediction", "Target", "VersionStatus", "connect"]


def __getattr__(name: str) -> Any:
    """Import the clients when asked for: `tfkit --help` needs neither numpy nor protobuf."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from tfserve_kit import clients

    return getattr(clients, name)
