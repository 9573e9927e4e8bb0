"""Engines run model servers: as processes now, in containers to come."""

from tfserve_kit.engines.base import (
    Availability,
    Endpoints,
    Engine,
    Phase,
    Plan,
    ServerHandle,
    State,
)

__all__ = ["Availability", "Endpoints", "Engine", "Phase", "Plan", "ServerHandle", "State"]
