"""The version that tfkit names is that of its installation, and stands in one place."""

import re
import tomllib
from importlib import metadata
from pathlib import Path

from tfserve_kit.http.messages import user_agent
from tfserve_kit.version import VERSION


def test_the_version_is_that_of_the_installation():
    assert metadata.version("tfserve-kit") == VERSION
    assert user_agent() == f"tfkit/{VERSION} (tfserve-kit)"


ROOT = Path(__file__).parents[2]


def test_no_other_file_of_a_release_names_a_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["hatch"]["version"] == {"path": "tfserve_kit/version.py"}
    assert not re.search(
        r"^(version|date-released):", (ROOT / "CITATION.cff").read_text(), re.MULTILINE
    )


def test_the_newest_release_in_the_changelog_is_this_version_or_yet_to_come():
    newest = re.search(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)[
        1
    ]
    assert newest in {"Unreleased", VERSION}
