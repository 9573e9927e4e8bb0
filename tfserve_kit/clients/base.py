"""What every client offers, whatever the protocol, and what its callers need for it."""

from tfserve_kit.errors import UsageError

DEFAULT_TIMEOUT_S = 30.0


def closed(url: str) -> UsageError:
    """Return what a client says that is used after it was closed."""
    return UsageError(
        f"the client of {url} was closed",
        remedy="make another with connect, and use it inside its `with` block",
    )
