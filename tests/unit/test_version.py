"""The version that tfkit names is that of its installation."""

from importlib import metadata

from tfserve_kit.http.messages import user_agent
from tfserve_kit.version import VERSION


def test_the_version_is_that_of_the_installation():
    assert metadata.version("tfserve-kit") == VERSION
    assert user_agent() == f"tfkit/{VERSION} (tfserve-kit)"
