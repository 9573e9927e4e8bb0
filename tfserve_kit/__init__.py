"""tfkit: render, stage, launch, call and measure TensorFlow Serving.

Public API: `connect` and `connect_async` (clients), `spec` (deployments), `render`, `repository`
(push, scan), `engines` and `launch` (servers), `errors`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tfserve_kit.clients import (
        BatchPrediction,
        Classification,
        Client,
        LabelScore,
        Metadata,
        Options,
        Prediction,
        Regression,
        Target,
        VersionStatus,
        connect,
        connect_async,
    )

__all__ = [
    "BatchPrediction",
    "Classification",
    "Client",
    "LabelScore",
    "Metadata",
    "Options",
    "Prediction",
    "Regression",
    "Target",
    "VersionStatus",
    "connect",
    "connect_async",
]


def __getattr__(name: str) -> Any:
    """Import the clients when asked for: `tfkit --help` needs neither numpy nor protobuf."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from tfserve_kit import clients

    return getattr(clients, name)
