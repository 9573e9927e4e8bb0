"""Labelled sets on disk, told apart and opened: folders of pictures, tables, IDX and .npz files.

An IDX file, the format of MNIST, is `00 00 08 d`, then `d` sizes as big-endian 32-bit integers,
then the values, one byte each. It and .npz are read row by row, compressed or not.
"""

import gzip
import math
import os
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from tfserve_kit.errors import UsageError, file_error, missing
from tfserve_kit.evaluation import tables
from tfserve_kit.evaluation.examples import (
    Content,
    Dataset,
    Failure,
    Label,
    file_reader,
    row_reader,
)
from tfserve_kit.evaluation.tables import CsvOptions
from tfserve_kit.pictures.files import is_picture
from tfserve_kit.pictures.labels import shown
from tfserve_kit.tensors import numpy_files

# What operating systems leave in folders and archives, in lower case; hidden files beside it.
_DEBRIS = {"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "$recycle.bin",
           "system volume information", "lost+found"}  # fmt: skip
# How folders are called that hold a part of a set, and not a class.
_PARTS = {"train", "training", "val", "valid", "validation", "test", "testing", "dev", "eval",
          "holdout"}  # fmt: skip


@dataclass
class _Kind:
    """A folder that may be a class.

    Attributes:
        folder: where it is.
        pictures: in it and below, in order.
        left_out: other files, and why they are not examples.
        links: folders that are links, which are not followed.
        debris: names of what systems leave there.
    """

    folder: Path
    pictures: list[Path] = field(default_factory=list)
    left_out: list[Failure] = field(default_factory=list)
    links: list[Path] = field(default_factory=list)
    debris: list[str] = field(default_factory=list)

    @cached_property
    def below(self) -> set[str]:
        """The folders right in it that hold pictures; empty if some lie in it itself."""
        if any(each.parent == self.folder for each in self.pictures):
            return set()
        return {each.relative_to(self.folder).parts[0] for each in self.pictures}


def _open_folder(folder: Path) -> Dataset:
    """Open a folder with one folder per class; the names of those are the labels.

    Every picture below them counts, at any depth; links to folders below them are not followed.
    An empty folder is a class without examples.

    Raises:
        UsageError: there are no such folders, no pictures in them, or a folder cannot be read.
    """
    try:
        inside = sorted(folder.iterdir())
    except OSError as error:
        raise file_error(UsageError, "read", folder, error) from error
    visible = [each for each in inside if not _is_hidden(each.name)]
    kinds = [_walk(each) for each in visible if each.is_dir() and not _is_debris(each.name)]
    loose = [each for each in visible if each.is_file() and is_picture(each)]
    if not any(kind.pictures for kind in kinds):
        raise _no_pictures(folder, kinds, loose)
    doubt = _doubt(folder, [kind for kind in kinds if kind.pictures])
    remarks = list(_remarks(folder, kinds, loose, [each.name for each in visible]))
    if doubt is None:
        remarks += _remarks_on_depth(folder, kinds)
    entries = [(file, str(file), kind.folder.name) for kind in kinds for file in kind.pictures]
    return Dataset(
        str(folder),
        [label for _, _, label in entries],
        file_reader(entries),
        left_out=[each for kind in kinds for each in kind.left_out],
        remarks=remarks,
        empty_classes=frozenset(kind.folder.name for kind in kinds if not kind.pictures),
        doubt=doubt,
    )


def _is_hidden(name: str) -> bool:
    return name.startswith(".")


def _is_debris(name: str) -> bool:
    return name.lower() in _DEBRIS


def _walk(folder: Path) -> _Kind:
    def refuse(error: OSError) -> None:
        raise file_error(UsageError, "read", error.filename, error) from error

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
        reason = "is a broken link" if file.is_symlink() else "is not a file"
        kind.left_out.append(Failure(None, str(file), reason))
    elif is_picture(file):
        kind.pictures.append(file)
    else:
        kind.left_out.append(Failure(None, str(file), "is not a picture"))


def _no_pictures(folder: Path, kinds: list[_Kind], loose: list[Path]) -> UsageError:
    text = f"{folder} holds no folders with pictures"
    if loose:
        count = "1 picture" if len(loose) == 1 else f"{len(loose)} pictures"
        return UsageError(
            f"{text}, only {count}, without a class",
            remedy=f"move {'it' if len(loose) == 1 else 'them'} into a folder per class, or give a "
            "CSV file with path,label rows; "
            f"`tfkit predict {folder}` says what the model sees",
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
            f"the folders in {folder} ({shown(names)}) hold folders of pictures "
            f"({shown(sorted(below))}), not pictures: it is not known which are the classes",
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
        yield (
            f"{len(loose)} pictures right in {folder} belong to no class and are left out "
            "(change: move them into the folder of their class)"
        )
    if empty := [kind.folder.name for kind in kinds if not kind.pictures]:
        yield (
            f"empty folders count as classes with no examples: {shown(empty)} (change: remove the "
            "folders)"
        )
    if links := [str(each) for kind in kinds for each in kind.links]:
        yield (
            f"links to folders are not followed: {shown(links)} (change: put the folders "
            "themselves there)"
        )
    debris = [*filter(_is_debris, names), *(name for kind in kinds for name in kind.debris)]
    if debris:
        found = [f"{name} ({count})" for name, count in Counter(debris).items()]
        yield (
            f"files that operating systems leave are left out: {shown(found)} (change: rename "
            "what should count)"
        )


def _remarks_on_depth(folder: Path, kinds: list[_Kind]) -> Iterator[str]:
    if deep := [kind.folder.name for kind in kinds if kind.below]:
        yield (
            f"the class is the folder right in {folder}, though the pictures of {shown(deep)} lie "
            "in folders below it (change: give the folder that holds the classes)"
        )


_IDX_MAGIC = b"\x00\x00\x08"  # two zeros, then the code of unsigned bytes
_GZIP_MAGIC = b"\x1f\x8b"
_CHUNK_BYTES = 1 << 20
# Ranks of pictures: [height, width], [height, width, channels]; or their pixels in one row.
_PICTURE_RANKS = (1, 2, 3)
_COLOUR_RANK = 3
# What reading a damaged .npz file raises; a RuntimeError if it is encrypted, a KeyError for what is
# no array.
_UNREADABLE = (
    OSError,
    ValueError,
    KeyError,
    RuntimeError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
)
# Held out from training first: that is what an error rate is measured on.
_IDX_PARTS = ("t10k", "test", "")
_NPZ_PAIRS = (("x", "y"), ("x_test", "y_test"), ("test_images", "test_labels"))
_SHARE_TOLERANCE = 1e-3  # of a row of shares in 16 bits


def _idx_files_in(folder: Path) -> tuple[Path, Path] | None:
    """Return the IDX files of images and labels in a folder; None where there are none.

    Of MNIST's four files it is those of the test set.

    Raises:
        UsageError: there are images and no labels.
    """
    found = sorted(folder.glob("*images*idx3*"))
    for part in _IDX_PARTS:
        for images in found:
            if images.name.startswith(part):
                return images, _labels_beside(images)
    return None


def _labels_beside(images: Path) -> Path:
    """Return the file of labels that belongs to a file of images by its name.

    Raises:
        UsageError: there is none.
    """
    labels = images.with_name(images.name.replace("images", "labels").replace("idx3", "idx1"))
    if labels == images or not labels.is_file():
        raise UsageError(
            f"there is no file of labels beside {images}",
            remedy="give both files: IMAGES LABELS",
        )
    return labels


def _open_idx(first: Path, second: Path | None = None) -> Dataset:
    """Open two IDX files, images and labels in either order; or images with labels beside them.

    Raises:
        UsageError: a file is not an IDX file of bytes, is truncated or too long, or they do not
            belong together.
    """
    if second is not None and len(_idx_shape(first)) == 1:
        first, second = second, first
    shape = _idx_shape(first)
    second = second or _labels_beside(first)
    if len(shape) - 1 not in _PICTURE_RANKS:
        raise UsageError(
            f"{first} has the shape {list(shape)}, which is not the shape of images",
            remedy="give IMAGES LABELS: images are [n, height, width], labels [n]",
        )
    labels = np.frombuffer(_idx_values(second), np.uint8)
    if _idx_shape(second) != shape[:1]:
        found = list(_idx_shape(second))
        raise UsageError(
            f"{second}: labels of shape {found} for {shape[0]} images",
            remedy="give the two files that belong together: IMAGES LABELS",
        )
    _require_colours(first, shape[1:])
    known, source = _labels(labels), str(first)
    return Dataset(source, known, row_reader(source, known, lambda: _idx_rows(first, shape)))


_AGAIN = "download it again"


def _open_idx_stream(file: Path) -> IO[bytes] | gzip.GzipFile:
    """Open by content: some tools unpack a download and leave the `.gz` in its name."""
    try:
        raw = file.open("rb")
    except OSError as error:
        raise file_error(UsageError, "read", file, error) from error
    is_gzip = raw.read(2) == _GZIP_MAGIC
    raw.seek(0)
    if not is_gzip:
        return raw
    raw.close()
    return gzip.open(file)


def _idx_shape(file: Path) -> tuple[int, ...]:
    """Return the shape that a file states and holds."""
    try:
        with _open_idx_stream(file) as stream:
            shape = _idx_header(file, stream)
            size_bytes = 0
            while chunk := stream.read(_CHUNK_BYTES):
                size_bytes += len(chunk)
    except EOFError as error:
        text = f"{file}: truncated: its gzip data ends too early"
        raise UsageError(text, remedy=_AGAIN) from error
    except (OSError, zlib.error) as error:
        raise UsageError(f"{file}: damaged: {error}", remedy=_AGAIN) from error
    expected = math.prod(shape)
    if size_bytes != expected:
        fault = "truncated" if size_bytes < expected else "too long"
        text = f"{file}: {fault}: {size_bytes} values where shape {list(shape)} needs {expected}"
        raise UsageError(text, remedy=_AGAIN)
    return shape


def _idx_header(file: Path, stream: IO[bytes] | gzip.GzipFile) -> tuple[int, ...]:
    magic = stream.read(4)
    if len(magic) < 4 or not magic.startswith(_IDX_MAGIC) or not magic[3]:  # noqa: PLR2004
        text = (
            f"{file} is no set of labelled examples: by its name it is no table and no .npz file, "
            f"and it starts with {magic.hex(' ') or 'nothing'}, not with 00 00 08 as MNIST's files"
        )
        raise UsageError(text, remedy=_FORMS)
    sizes = stream.read(4 * magic[3])
    if len(sizes) < 4 * magic[3]:
        raise UsageError(f"{file}: truncated within its header", remedy=_AGAIN)
    return struct.unpack(f">{magic[3]}I", sizes)


def _idx_values(file: Path) -> bytes:
    with _open_idx_stream(file) as stream:
        _idx_header(file, stream)
        return stream.read()


def _idx_rows(file: Path, shape: tuple[int, ...]) -> Iterator[Content]:
    with _open_idx_stream(file) as stream:
        _idx_header(file, stream)
        yield from _rows(stream, shape, np.dtype(np.uint8))


def _rows(
    stream: IO[bytes] | gzip.GzipFile, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> Iterator[Content]:
    size_bytes = math.prod(shape[1:]) * dtype.itemsize
    for _ in range(shape[0]):
        yield np.frombuffer(stream.read(size_bytes), dtype).reshape(shape[1:])


def _require_colours(file: Path, shape: tuple[int, ...]) -> None:
    if len(shape) == _COLOUR_RANK and shape[-1] not in {1, 3}:
        raise UsageError(
            f"{file}: pictures of shape {list(shape)} have {shape[-1]} channels, not 1 or 3",
            remedy="store grey pictures [n, height, width] or colour ones [n, height, width, 3]; "
            "rows of the model's input that are no pictures as float32",
        )


def _labels(labels: NDArray[Any]) -> list[Label]:
    found: list[Label] = labels.tolist()
    return found


def open_npz(file: Path) -> Dataset:
    """Open an .npz file with `x`, [examples, ...], and `y`, [examples].

    They may be called as Keras's or MedMNIST's are, `x_test` and `y_test` or `test_images` and
    `test_labels`. An `x` of uint8 holds pictures, [height, width], [height, width, channels] or
    [pixels]; of any other type it holds rows of the model's input, to be sent as they are. `y`
    holds indices, names, or one-hot rows.

    Raises:
        UsageError: the file is damaged, or holds something else.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            x, y = _npz_pair(file, {name.removesuffix(".npy") for name in archive.namelist()})
            with archive.open(f"{y}.npy") as stream:
                stored = numpy_files.read_array(stream)
            with archive.open(f"{x}.npy") as stream:
                shape, dtype = _npy_header(stream)
                numpy_files.require_bytes(shape[1:], dtype, numpy_files.MAX_BYTES)
    except _UNREADABLE as error:
        raise _unreadable(file, error) from error
    labels, remarks = _npz_labels(file, stored)
    if not shape or shape[0] != len(labels):
        raise UsageError(
            f"{file}: {x} has the shape {list(shape)} for {len(labels)} labels in {y}",
            remedy=_SAVE_AGAIN,
        )
    is_picture = dtype == np.uint8
    if is_picture:
        if len(shape) - 1 not in _PICTURE_RANKS:
            raise UsageError(
                f"{file}: {x} has the shape {list(shape)}, which is not the shape of pictures",
                remedy="store uint8 pictures as [n, height, width] or [n, height, width, 3]; rows "
                "of the model's input that are no pictures as float32",
            )
        _require_colours(file, shape[1:])
    if x != "x":
        used = f"{file}: of its arrays, {x} and {y} are used (change: save others as x and y)"
        remarks = [used, *remarks]
    reader = row_reader(str(file), labels, lambda: _npz_rows(file, x))
    return Dataset(str(file), labels, reader, ready=not is_picture, remarks=remarks)


def _unreadable(file: Path, error: Exception) -> UsageError:
    if isinstance(error, OSError) and error.errno:
        return file_error(UsageError, "read", file, error)
    return UsageError(f"cannot read {file}: {error}", remedy=_SAVE_AGAIN)


_SAVE_AGAIN = "save it with np.savez(FILE, x=..., y=...): x of [examples, ...], y a class for each"


def _npz_pair(file: Path, names: set[str]) -> tuple[str, str]:
    """Return the names of the arrays with examples and labels; those of the test set, if any."""
    for pair in _NPZ_PAIRS:
        if names.issuperset(pair):
            return pair
    lacking = " and no ".join(sorted({*_NPZ_PAIRS[0]} - names))
    raise UsageError(
        f"{file} has no {lacking}; it has {', '.join(sorted(names)) or 'nothing'}",
        remedy=_SAVE_AGAIN,
    )


def _npz_labels(file: Path, labels: NDArray[Any]) -> tuple[list[Label], list[str]]:
    """Return a label for each example, and what was taken for granted to read them so."""
    remarks = []
    if labels.ndim == 2 and labels.shape[1] == 1:  # noqa: PLR2004 (a column, as keras keeps it)
        labels = labels[:, 0]
    elif labels.ndim == 2 and _are_shares(labels):  # noqa: PLR2004 ([examples, classes])
        if not np.isin(labels, (0, 1)).all():
            remarks.append(
                f"{file}: the class with the highest share in y is the true one (change: store "
                "class indices as y)"
            )
        labels = labels.argmax(axis=1)
    if labels.ndim == 1 and labels.dtype.kind == "f" and np.array_equal(labels, np.rint(labels)):
        labels = labels.astype(np.int64)
    if labels.ndim != 1 or labels.dtype.kind not in "iuU":
        raise UsageError(
            f"{file}: y is {labels.dtype} of shape {list(labels.shape)}, which cannot be labels",
            remedy="store in y a whole number or a name for each example: [examples]",
        )
    return _labels(labels), remarks


def _are_shares(labels: NDArray[Any]) -> bool:
    """Say whether each row of [examples, classes] is one-hot, or says how far it is which class."""
    return (
        labels.dtype.kind in "biuf"
        and bool((labels >= 0).all())
        and bool((abs(labels.sum(axis=1, dtype=np.float64) - 1) <= _SHARE_TOLERANCE).all())
    )


def _npy_header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    shape, is_fortran, dtype = numpy_files.read_header(stream)
    if is_fortran and len(shape) > 1:
        raise ValueError("x is stored column by column; save np.ascontiguousarray(x)")
    if dtype.hasobject:
        raise ValueError("x holds Python objects")
    return shape, dtype


def _npz_rows(file: Path, x: str) -> Iterator[Content]:
    try:
        with zipfile.ZipFile(file) as archive, archive.open(f"{x}.npy") as stream:
            yield from _rows(stream, *_npy_header(stream))
    except _UNREADABLE as error:
        raise _unreadable(file, error) from error


_FORMS = (
    "give a folder with one folder of pictures per class, MNIST's files, a .csv or an .npz file"
)


_TABLES = {".csv", ".tsv", ".tab", ".psv", ".txt"}
_AS_WRITTEN = CsvOptions()


def open_dataset(paths: Sequence[Path], given: CsvOptions = _AS_WRITTEN) -> Dataset:
    """Open a labelled set; nothing but labels and sizes is read yet.

    Args:
        paths: a folder with a folder per class; MNIST's two files, or the folder that holds them;
            a CSV file of `path,label` or `label,pixel,pixel,...`; or an .npz file with x and y.
        given: what is known of a CSV file.

    Raises:
        UsageError: there is no set, or it is damaged.
    """
    for path in paths:
        if not path.exists():
            raise missing(UsageError, path, _FORMS)
    if len(paths) == 1:
        (path,) = paths
        if path.is_dir():
            pair = _idx_files_in(path)
            return _open_idx(*pair) if pair else _open_folder(path)
        if path.suffix.lower() in _TABLES:
            return tables.open_csv(path, given)
        if path.suffix.lower() == ".npz":
            return open_npz(path)
    if len(paths) <= 2 and all(path.is_file() for path in paths):  # noqa: PLR2004 (images, labels)
        return _open_idx(*paths)
    raise UsageError(f"{len(paths)} paths are not a labelled set", remedy=_FORMS)
