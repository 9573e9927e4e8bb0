"""Engines run model servers: as processes or in containers."""

from tfserve_kit.engines.base import (
    Availability,
    Endpoints,
    Engine,
    Phase,
    Plan,
    RunningServer,
    ServerHandle,
    State,
)

__all__ = [
    "Availability",
    "Endpoints",
    "Engine",
    "Phase",
    "Plan",
    "RunningServer",
    "ServerHandle",
    "State",
]
