"""What is tortured: operations on a base path that holds versions, and how each must end."""

import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.torture.versions_on_disk import left_overs, make_model, tree, violations
from tfserve_kit.repository import list_versions, push
from tfserve_kit.repository.versions import prune, retire, rollback


@dataclass(frozen=True)
class Scenario:
    """An operation on a base path.

    Attributes:
        act: the operation; given the base path and the source of a model.
        older: how many versions are there before; with 0 not even the base path is.
        ends: the visible versions once it is done.
        may_go: whether it takes versions away.
        partly: whether a refusal may leave some of it done.
        small_files: how many the model has; beyond 64 they are synced together.
        archive: whether the source is a .zip.
    """

    act: Callable[[Path, Path], object]
    older: int
    ends: tuple[int, ...]
    may_go: bool = False
    partly: bool = False
    small_files: int = 12
    archive: bool = False


def _push(base_path, source):
    return push(source, base_path)


SCENARIOS = {
    "push": Scenario(_push, 2, (1, 2, 3)),
    "push of many files": Scenario(_push, 2, (1, 2, 3), small_files=70),
    "push of an archive": Scenario(_push, 2, (1, 2, 3), archive=True),
    "first push": Scenario(_push, 0, (1,)),
    "retire": Scenario(lambda base_path, _: retire(base_path, 4), 4, (1, 2, 3), may_go=True),
    "rollback": Scenario(lambda base_path, _: rollback(base_path, to=2), 5, (1, 2), may_go=True),
    "prune": Scenario(
        lambda base_path, _: prune(base_path, 2), 5, (4, 5), may_go=True, partly=True
    ),
}


# What the tests must find fault with.
IN_PIECES = {
    "copy": Scenario(
        lambda base_path, _: shutil.copytree(base_path / "2", base_path / "3"), 2, (1, 2, 3)
    ),
    "delete": Scenario(
        lambda base_path, _: shutil.rmtree(base_path / "1"), 2, (2,), may_go=True, partly=True
    ),
}


class Stage:
    """A folder in which a scenario can be played again and again."""

    def __init__(self, root, scenario):
        self.scenario, self.root = scenario, root
        self.source = make_model(root / "source", small_files=scenario.small_files)
        if scenario.archive:
            self.source = _zipped(self.source, root / "source.zip")
        self.first = root / "new"  # what a push makes where there is nothing
        self.base = self.first / "deep" / "model"
        self._template = root / "template"
        if scenario.older:
            small = shutil.copytree(make_model(root / "small"), root / "older")
            (small / "assets" / "large.bin").unlink()
            for _ in range(scenario.older):
                push(small, self._template)
        self.older = {version.number: tree(version.path) for version in self._versions()}

    def _versions(self):
        return list_versions(self._template) if self.scenario.older else []

    def reset(self):
        """Put everything back to how it was before."""
        shutil.rmtree(self.first, ignore_errors=True)
        if self.scenario.older:
            shutil.copytree(self._template, self.base)

    def act(self):
        """Do what the scenario does."""
        return self.scenario.act(self.base, self.source)

    def visible(self):
        """Return the numbers a server would see."""
        return (
            tuple(version.number for version in list_versions(self.base))
            if self.base.exists()
            else ()
        )

    def harm(self):
        """Return what is wrong with what a server would see, at any moment."""
        seen = set(self.visible())
        there = {number: each for number, each in self.older.items() if number in seen}
        found = violations(self.base, older=there if self.scenario.may_go else self.older)
        missing = set(self.scenario.ends) & self.older.keys() - seen
        return found + [f"{number} must never go" for number in sorted(missing)]

    def unfinished(self):
        """Return what is wrong now that the operation has succeeded."""
        found = self.harm() + [f"left over: {name}" for name in left_overs(self.base)]
        if not set(self.scenario.ends) <= set(self.visible()):
            found.append(f"ended with {self.visible()}")
        return found


def _zipped(source, file):
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(source.rglob("*")):
            archive.write(path, path.relative_to(source))
    return file
