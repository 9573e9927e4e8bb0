"""Sets stored as folders of pictures, one per class; what lies about there besides is told."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from tfserve_kit.errors import UsageError
from tfserve_kit.evaluation.examples import About, Files, LeftOut
from tfserve_kit.pictures.files import SUFFIXES
from tfserve_kit.pictures.labels import shown

# What operating systems leave in folders and archives, in lower case; hidden files beside it.
_DEBRIS = {"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "$recycle.bin",
           "system volume information", "lost+found"}  # fmt: skip
# How folders are called that hold a part of a set, and not a class.
_PARTS = {"train", "training", "val", "valid", "validation", "test", "testing", "dev", "eval",
          "holdout"}  # fmt: skip
# How pictures begin whose names do not say what they are.
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM", b"II*\0", b"MM\0*",
          b"P1", b"P2", b"P3", b"P4", b"P5", b"P6")  # fmt: skip
_MAGIC_BYTES = 12


def is_picture(file: Path) -> bool:
    """Say whether a file is a picture by its name, or else by how it begins."""
    if file.suffix.lower() in SUFFIXES:
        return True
    try:
        with file.open("rb") as stream:
            head = stream.read(_MAGIC_BYTES)
    except OSError:
        return False
    return head.startswith(_MAGIC) or (head[:4], head[8:]) == (b"RIFF", b"WEBP")


@dataclass
class _Kind:
    """A folder that may be a class.

    Attributes:
        folder: where it is.
        pictures: in it and below, in order.
        left_out: other files, and why they are no examples.
        links: folders that are links, which are not followed.
        debris: names of what systems leave there.
    """

    folder: Path
    pictures: list[Path] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    links: list[Path] = field(default_factory=list)
    debris: list[str] = field(default_factory=list)

    @cached_property
    def below(self) -> set[str]:
        """The folders right in it that hold pictures; empty if some lie in it itself."""
        if any(each.parent == self.folder for each in self.pictures):
            return set()
        return {each.relative_to(self.folder).parts[0] for each in self.pictures}


def open_folder(folder: Path) -> Files:
    """Open a folder with one folder per class; the names of those are the labels.

    Every picture below them counts, at any depth; links to folders below them are not followed.
    An empty folder is a class without examples.

    Raises:
        UsageError: there are no such folders, no pictures in them, or a folder cannot be read.
    """
    try:
        inside = sorted(folder.iterdir())
    except OSError as error:
        raise UsageError(f"cannot read {folder}: {error.strerror}") from error
    visible = [each for each in inside if not _is_hidden(each.name)]
    kinds = [_walk(each) for each in visible if each.is_dir() and not _is_debris(each.name)]
    loose = [each for each in visible if each.is_file() and is_picture(each)]
    if not any(kind.pictures for kind in kinds):
        raise _no_pictures(folder, kinds, loose)
    doubt = _doubt(folder, [kind for kind in kinds if kind.pictures])
    remarks = list(_remarks(folder, kinds, loose, [each.name for each in visible]))
    if doubt is None:
        remarks += _remarks_on_depth(folder, kinds)
    return Files(
        str(folder),
        [(file, str(file), kind.folder.name) for kind in kinds for file in kind.pictures],
        about=About(
            [each for kind in kinds for each in kind.left_out],
            remarks,
            frozenset(kind.folder.name for kind in kinds if not kind.pictures),
            doubt,
        ),
    )


def _is_hidden(name: str) -> bool:
    return name.startswith(".")


def _is_debris(name: str) -> bool:
    return name.lower() in _DEBRIS


def _walk(folder: Path) -> _Kind:
    def refuse(error: OSError) -> None:
        raise UsageError(f"cannot read {error.filename}: {error.strerror}") from error

    kind = _Kind(folder)
    for place, folders, files in os.walk(folder, onerror=refuse):
        kind.debris += filter(_is_debris, [*folders, *files])
        folders[:] = [name for name in folders if not _is_hidden(name) and not _is_debris(name)]
        kind.links += (Path(place, name) for name in folders if Path(place, name).is_symlink())
        here = Path(place)
        for name in files:
            if not _is_hidden(name) and not _is_debris(name):
                _sort_in(here / name, kind)
    kind.pictures.sort()
    kind.left_out.sort(key=lambda each: each.name)
    return kind


def _sort_in(file: Path, kind: _Kind) -> None:
    if not file.is_file():
        reason = "is a link to nothing" if file.is_symlink() else "is no file"
        kind.left_out.append(LeftOut(str(file), reason))
    elif is_picture(file):
        kind.pictures.append(file)
    else:
        kind.left_out.append(LeftOut(str(file), "is not a picture"))


def _no_pictures(folder: Path, kinds: list[_Kind], loose: list[Path]) -> UsageError:
    text = f"{folder} holds no folders with pictures"
    if loose:
        return UsageError(
            f"{text}, but {len(loose)} pictures of its own, and what they show is not known",
            remedy="move them into a folder per class, or give a CSV file with path,label rows; "
            f"`tfkit predict {folder}` says what the model sees in them",
        )
    if kinds:
        text += f"; these are empty: {shown([kind.folder.name for kind in kinds])}"
    return UsageError(text, remedy="give a folder with one folder of pictures per class")


def _doubt(folder: Path, kinds: list[_Kind]) -> UsageError | None:
    """Return why the folders may be parts of a set, or one level too high, for classes."""
    names = [kind.folder.name for kind in kinds]
    below = Counter(name for kind in kinds for name in kind.below)
    are_parts = all(name.lower() in _PARTS for name in names)
    nested = all(kind.below for kind in kinds)
    if nested and (len(kinds) == 1 or are_parts or any(count > 1 for count in below.values())):
        part = next((each for each in names if each.lower() not in {"train", "training"}), names[0])
        return UsageError(
            f"the folders in {folder} ({shown(names)}) hold no pictures but folders of them "
            f"({shown(sorted(below))}): which are the classes is not known",
            remedy=f"give the folder that holds the classes, such as {folder / part}",
        )
    if are_parts:
        return UsageError(
            f"the folders in {folder} ({shown(names)}) are parts of a set by their names, no "
            "classes, and hold pictures without classes",
            remedy="sort the pictures into a folder per class, or give a CSV of path,label rows",
        )
    return None


def _remarks(
    folder: Path, kinds: list[_Kind], loose: list[Path], names: Iterable[str]
) -> Iterator[str]:
    if loose:
        yield f"{len(loose)} pictures right in {folder} belong to no class and are left out"
    if empty := [kind.folder.name for kind in kinds if not kind.pictures]:
        yield f"classes without any picture: {shown(empty)}"
    if links := [str(each) for kind in kinds for each in kind.links]:
        yield f"links to folders are not followed: {shown(links)}"
    debris = [*filter(_is_debris, names), *(name for kind in kinds for name in kind.debris)]
    if debris:
        found = [f"{name} ({count})" for name, count in Counter(debris).items()]
        yield f"what systems leave in folders is left out: {shown(found)}"


def _remarks_on_depth(folder: Path, kinds: list[_Kind]) -> Iterator[str]:
    if deep := [kind.folder.name for kind in kinds if kind.below]:
        yield (
            f"the pictures of {shown(deep)} lie in folders below; the class is the folder right "
            f"in {folder}"
        )
