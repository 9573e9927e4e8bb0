"""How tfkit names itself to servers: what they see as the User-Agent."""

from functools import cache


@cache
def user_agent() -> str:
    """Return `tfkit/VERSION (tfserve-kit)`."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"tfkit/{version('tfserve-kit')} (tfserve-kit)"
    except PackageNotFoundError:  # a checkout that was not installed
        return "tfkit (tfserve-kit)"
