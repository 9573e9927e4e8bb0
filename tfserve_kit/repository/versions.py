"""Which versions a base path holds, and how one goes out of service, back, and off the disk.

Each change is one rename for whoever looks::

    7/  ──retire──▶  .tfkit-retired-7/  ──restore──▶  7/
    3/  ──prune───▶  .tfkit-pruned-3/   ──▶  deleted

A server takes neither hidden name for a version. Where it serves the latest one, it sees a retired
one gone, loads what is the latest now, and lets go of the other only then. A retired number stays
taken: a server that knew it does not look at its content anew.

Source: tensorflow_serving/sources/storage_path/file_system_storage_path_source.cc (every child
whose name is an integer counts, whether or not it is a directory; only the set of numbers is
compared) and tensorflow_serving/core/availability_preserving_policy.cc.
"""

import contextlib
import re
import shutil
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from tfserve_kit import savedmodel
from tfserve_kit.errors import PushRefused, UsageError, did_you_mean, file_error, listed
from tfserve_kit.repository.disk import rename, translate_os_errors

MAX_VERSION = 2**63 - 1
HIDDEN_PREFIX = ".tfkit-"  # of all that is ours in a base path and no version

# What absl::SimpleAtoi accepts: surrounding white space, a sign, decimal digits.
_INTEGER = re.compile(r"[ \t\n\v\f\r]*([+-]?[0-9]+)[ \t\n\v\f\r]*", re.ASCII)


@dataclass(frozen=True, slots=True, order=True)
class Version:
    """One version in a base path: its number and the directory that holds it."""

    number: int
    path: Path


def parse_version(name: str) -> int | None:
    """Return the version number a directory name stands for, None if it stands for none.

    `123`, `00123` and `+123` are version 123; `v1`, `1.0`, `.123` and `123.tmp` are none.
    """
    match = _INTEGER.fullmatch(name)
    number = int(match[1]) if match else None
    return number if number is not None and -MAX_VERSION - 1 <= number <= MAX_VERSION else None


def numbers_in(names: Iterable[str], hidden_prefix: str) -> set[int]:
    """Return the numbers that names stand for, as they are or behind a hidden prefix."""
    plain = (name.removeprefix(hidden_prefix) for name in names)
    return {number for name in plain if (number := parse_version(name)) is not None}


def list_versions(base_path: Path) -> list[Version]:
    """Return the versions of a base path, lowest first.

    Of two names for one number (`1` and `0001`) the lexicographically last counts.

    Raises:
        FileNotFoundError: the base path does not exist.
        NotADirectoryError: it is a file.
    """
    found: dict[int, Path] = {}
    for child in sorted(base_path.iterdir(), key=lambda path: path.name):
        if (number := parse_version(child.name)) is not None:
            found[number] = child
    return sorted(Version(number, path) for number, path in found.items())


def choose_versions(base_path: Path, numbers: Collection[int] = ()) -> list[Version]:
    """Return versions of a base path: those of some numbers in their order, or all of them.

    Raises:
        UsageError: the base path cannot be read, or holds no such version.
    """
    try:
        there = {version.number: version for version in list_versions(base_path)}
    except OSError as error:
        raise file_error(UsageError, "read", base_path, error) from error
    for number in numbers:
        if number not in there:
            known = did_you_mean(str(number), map(str, there))
            raise UsageError(f"there is no version {number} in {base_path}", remedy=known)
    return [there[number] for number in numbers or there]


RETIRED_PREFIX = f"{HIDDEN_PREFIX}retired-"
_PRUNED_PREFIX = f"{HIDDEN_PREFIX}pruned-"


def retire(base_path: Path, number: int) -> Path:
    """Take a version out of service; it stays on the disk under a hidden name.

    Args:
        base_path: the folder of the model's versions.
        number: the version, under whatever spellings it has.

    Returns:
        Where it lies now.

    Raises:
        PushRefused: there is no such version, or the file system refuses. Nothing has changed.
    """
    return _move(base_path, number, "", RETIRED_PREFIX)


def restore(base_path: Path, number: int) -> Path:
    """Bring a retired version back into service.

    Returns:
        Its directory.

    Raises:
        PushRefused: no version of this number is retired, it is there, or the file system refuses.
            Nothing has changed.
    """
    return _move(base_path, number, RETIRED_PREFIX, "")


def retired(base_path: Path) -> list[int]:
    """Return the numbers that are retired, lowest first; they must not be given out again.

    Raises:
        OSError: the base path cannot be read.
    """
    return sorted(_named(base_path, RETIRED_PREFIX))


def above(base_path: Path, to: int | None = None) -> tuple[int, list[int]]:
    """Return the version that a roll-back goes to, and what it would retire, lowest first.

    Raises:
        PushRefused: as for `rollback`.
    """
    with translate_os_errors("roll back", base_path):
        versions = {version.number: version.path for version in list_versions(base_path)}
        goal = _goal(base_path, list(versions), to)
        _require_sound(goal, versions[goal])
    return goal, [number for number in versions if number > goal]


def rollback(base_path: Path, to: int | None = None) -> list[int]:
    """Retire every version above one.

    The lowest goes first: until the last rename the highest stays where it is, so that a server
    that looks in between serves what it served, and never loads what lies between the two.

    Args:
        base_path: the folder of the model's versions.
        to: the version to go back to; None for the second highest.

    Returns:
        The numbers retired, lowest first.

    Raises:
        PushRefused: there is no version to go back to, it is damaged, or the file system refuses.
            Nothing has changed then.
    """
    _, going = above(base_path, to)
    done: list[int] = []
    try:
        for number in going:
            retire(base_path, number)
            done.append(number)
    except BaseException:
        for number in reversed(done):
            with contextlib.suppress(PushRefused):  # what failed before says more
                restore(base_path, number)
        raise
    return done


def prune(
    base_path: Path,
    keep: int,
    protected: Collection[int] = (),
    *,
    dry_run: bool = False,
) -> list[int]:
    """Delete the oldest versions.

    A version that is incomplete neither counts nor goes: somebody may be copying it. Retired ones
    go once they are older than all that is kept. Each is hidden before it is deleted, so that no
    server ever sees half of it.

    Args:
        base_path: the folder of the model's versions.
        keep: how many of the highest complete versions stay; at least 1.
        protected: further numbers that stay.
        dry_run: delete nothing.

    Returns:
        The numbers deleted, lowest first, or with `dry_run` those that would be.

    Raises:
        PushRefused: `keep` is below 1, or the file system refuses; what was deleted until then is
            gone.
    """
    if keep < 1:
        raise PushRefused(
            f"cannot keep {keep} versions: nothing would be left to serve",
            remedy="keep at least 1; `tfkit stop` ends a server",
        )
    with translate_os_errors("prune", base_path):
        surplus = _surplus(base_path, keep, protected)
        if not dry_run:
            _sweep(base_path)
            for children in surplus.values():
                for child in children:
                    rename(child, base_path / f"{_PRUNED_PREFIX}{child.name}")
            _sweep(base_path)
    return list(surplus)


def _surplus(base_path: Path, keep: int, protected: Collection[int]) -> dict[int, list[Path]]:
    """Return what may go, lowest number first: number to directories."""
    here, away = _named(base_path, ""), _named(base_path, RETIRED_PREFIX)
    complete = [v.number for v in list_versions(base_path) if not savedmodel.problems(v.path)]
    old, kept = complete[:-keep], complete[-keep:]
    going = {number: here[number] for number in old}
    for number in sorted(away):
        if kept and number < kept[0]:
            going[number] = [*going.get(number, []), *away[number]]
    return {number: going[number] for number in sorted(going) if number not in protected}


def _goal(base_path: Path, numbers: list[int], to: int | None) -> int:
    """Return the version to go back to."""
    listed = ", ".join(map(str, numbers)) or "no version"
    if to is None and len(numbers) < 2:  # noqa: PLR2004 (the one that goes, and one that stays)
        only = f"only version {listed}" if numbers else listed
        raise PushRefused(
            f"there is no older version to go back to: {base_path} holds {only}",
            remedy="push a good version instead",
        )
    goal = numbers[-2] if to is None else to
    if goal not in numbers:
        is_retired = goal in retired(base_path)
        raise PushRefused(
            f"there is no version {goal} to go back to: {base_path} holds {listed}",
            remedy=f"it is retired: --restore {goal}" if is_retired else "choose one of them",
        )
    if goal == numbers[-1]:
        raise PushRefused(
            f"version {goal} is the highest in {base_path}: there is nothing to roll back",
            remedy="`tfkit versions` lists them",
        )
    return goal


def _require_sound(number: int, version_dir: Path) -> None:
    if found := savedmodel.problems(version_dir):
        lines = listed(found)
        raise PushRefused(
            f"version {number} is not a complete SavedModel, so it was not rolled back to:{lines}",
            remedy="give another version with --to",
        )


def _named(base_path: Path, prefix: str) -> dict[int, list[Path]]:
    """Return what is called a prefix and a number, by number; a number has several spellings."""
    found: dict[int, list[Path]] = {}
    for child in sorted(base_path.iterdir()):
        number = parse_version(child.name.removeprefix(prefix))
        if number is not None and child.name.startswith(prefix):
            found.setdefault(number, []).append(child)
    return found


def _move(base_path: Path, number: int, old: str, new: str) -> Path:
    """Give every spelling of a version another prefix; all of them or none."""
    with translate_os_errors(f"{'retire' if new else 'restore'} a version of", base_path):
        there = _named(base_path, old)
        if number not in there:
            listed = ", ".join(map(str, sorted(there))) or "none"
            kind = "retired " if old else ""
            raise PushRefused(
                f"there is no {kind}version {number} in {base_path}",
                remedy=f"these are there: {listed}",
            )
        if number in _named(base_path, new):
            raise PushRefused(
                f"{base_path} holds version {number} twice, in service and retired",
                remedy=f"remove {RETIRED_PREFIX}{number} or rename it to a free number",
            )
        moves = [(each, _prefixed(each, old, new)) for each in there[number]]
        with contextlib.ExitStack() as undo:
            for before, after in moves:
                rename(before, after)
                undo.callback(rename, after, before)
            undo.pop_all()
    return moves[-1][1]


def _prefixed(path: Path, old: str, new: str) -> Path:
    return path.with_name(new + path.name.removeprefix(old))


def _sweep(base_path: Path) -> None:
    """Delete what is hidden to be deleted, also what an interrupted prune left."""
    for path in base_path.glob(f"{_PRUNED_PREFIX}*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
