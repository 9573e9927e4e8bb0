"""tfkit: render, stage, launch, call and measure TensorFlow Serving.

Public API: `connect` (clients), `spec` (deployments), `render`, `repository` (push, scan),
`engines` and `launch` (servers), `errors`.
"""

from tfserve_kit.clients import Client, Metadata, Prediction, Target, VersionStatus, connect

__all__ = ["Client", "Metadata", "Prediction", "Target", "VersionStatus", "connect"]
