"""From what a caller writes to the model a request is for."""

from dataclasses import replace
from functools import lru_cache

from tfserve_kit.clients.results import Target


def named(target: Target | str, signature: str) -> Target:
    """Return the target of a call.

    Args:
        target: a target, or the name of a model.
        signature: the signature to take in place of the target's; empty leaves it.
    """
    if isinstance(target, str):
        return _by_name(target, signature)
    return replace(target, signature=signature) if signature else target


@lru_cache(maxsize=256)
def _by_name(model: str, signature: str) -> Target:
    """Return a target; calls mostly repeat it, and nobody changes it."""
    return Target(model, signature=signature)
