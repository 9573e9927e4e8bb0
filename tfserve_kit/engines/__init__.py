"""Engines run model servers: as processes or in containers."""

from tfserve_kit.engines.base import (
    Availability,
    Endpoints,
    Engine,
    FleetHandle,
    Phase,
    Plan,
    Replica,
    RunningServer,
    ServerHandle,
    State,
)

__all__ = [
    "Availability",
    "Endpoints",
    "Engine",
    "FleetHandle",
    "Phase",
    "Plan",
    "Replica",
    "RunningServer",
    "ServerHandle",
    "State",
]
