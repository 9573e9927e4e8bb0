"""Which builder writes which model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

BUILDERS: dict[str, Callable[[Path], Any]] = {}


def model(name):
    """Let a function of a folder, which it creates, build the model of this name."""

    def register(build):
        assert name not in BUILDERS, f"two models are called {name}"
        BUILDERS[name] = build
        return build

    return register
