"""Warm-up requests stored with a model: read from files, or drawn at random."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from tfserve_kit import savedmodel, tfrecord
from tfserve_kit.clients.files import Arrays, read_inputs_for
from tfserve_kit.errors import UsageError
from tfserve_kit.perf.payloads import assumptions, random_inputs
from tfserve_kit.repository.versions import parse_version
from tfserve_kit.savedmodel import DEFAULT_SIGNATURE, Signature, choose_signature, warmup
from tfserve_kit.savedmodel.signatures import batch_axes


def store(
    model: Path,
    sizes: Sequence[int],
    *,
    names: Sequence[str] | None = (),
    files: Sequence[Path] = (),
    replace: bool = False,
    tell: Callable[[str], None] = lambda _: None,
) -> tuple[Path, list[str], list[int], int]:
    """Store warm-up requests with a model; servers replay them when loading it.

    Args:
        model: a SavedModel directory.
        sizes: batch sizes; a signature with a fixed number of rows, or none, keeps to that.
        names: signatures to call; None for all, `serving_default` if empty.
        files: what the requests hold; see `read_inputs`. Random numbers if there are none.
        replace: replace the requests that are there already.
        tell: told what was assumed.

    Returns:
        The file they are stored in, the signatures they are for, the numbers of rows they have, and
        how many there are.

    Raises:
        UsageError: the model or a file cannot be read, or the model has no such signature.
    """
    found = _read(model)
    chosen = [
        choose_signature(found, name)
        for name in (found if names is None else dict.fromkeys(names or [DEFAULT_SIGNATURE]))
    ]
    records = _records(model, chosen, files, sizes, tell)
    file = warmup.write(model, records, replace=replace)
    assumed = [] if files else [each for signature in chosen for each in assumptions(signature)]
    for text in dict.fromkeys(assumed):
        tell(f"Note: {text}")
    signatures = [signature.name for signature in chosen]
    rows = sorted({each for signature in chosen for each in _rows(signature, sizes)})
    return file, signatures, rows, _count(file)


def check(model: Path) -> tuple[Path, int]:
    """Check the requests that are stored with a model; return their file and how many they are.

    Raises:
        PushRefused: a server could not replay them.
        UsageError: the model cannot be read.
    """
    _read(model)
    if found := warmup.problems(model):
        raise warmup.refusal(found)
    file = model / savedmodel.WARMUP_FILE
    return file, _count(file) if file.exists() else 0


def refuse_version(model: Path) -> None:
    """Refuse the folder of a version: what a server may have loaded must not change.

    A server takes every folder whose name is a number for a version, so its parent is a base path.

    Raises:
        UsageError: it is one.
    """
    for folder in (model.absolute(), model.resolve()):
        if parse_version(folder.name) is not None:
            raise UsageError(
                f"{folder} looks like version {folder.name} of the base path {folder.parent}, "
                "and versions in service should not change",
                remedy="warm up the model before you push it; or give --in-place",
            )


def _count(file: Path) -> int:
    return sum(1 for _ in tfrecord.read(file))


def _read(model: Path) -> Mapping[str, Signature]:
    try:
        return savedmodel.read_signatures(model)
    except OSError as error:
        text = f"cannot read the SavedModel in {model}: {error.strerror}"
        raise UsageError(text, remedy="give the folder that holds saved_model.pb") from error
    except ValueError as error:
        raise UsageError(
            f"{model / savedmodel.GRAPH_FILE} {error}", remedy="export the model again"
        ) from error


def _records(
    model: Path,
    signatures: Sequence[Signature],
    files: Sequence[Path],
    sizes: Sequence[int],
    tell: Callable[[str], None],
) -> Iterator[bytes]:
    path = model.resolve()
    name = path.name if parse_version(path.name) is None else path.parent.name
    for signature in signatures:
        for arrays, rows in _arrays(model, signature, files, sizes, tell):
            yield from warmup.build(arrays, signature, model=name, sizes=rows)


def _arrays(
    model: Path,
    signature: Signature,
    files: Sequence[Path],
    sizes: Sequence[int],
    tell: Callable[[str], None],
) -> Iterator[tuple[Arrays, Sequence[int]]]:
    """Yield inputs, and how many rows the requests that are made of them have."""
    if files:
        yield read_inputs_for(model, files, signature, any_rows=True, tell=tell), sizes
        return
    try:
        for size in _rows(signature, sizes) or (1,):
            yield random_inputs(signature, size, seed=0), (size,)
    except UsageError as error:
        text = f"signature {signature.name!r}: {error.message}"
        remedy = "give files with --input, or other signatures with --signature"
        raise UsageError(text, remedy=remedy) from error


def _rows(signature: Signature, sizes: Sequence[int]) -> Sequence[int]:
    """Return how many rows the requests for a signature have; nothing where it has no rows."""
    axes = batch_axes(signature)
    if axes.fixed_rows is not None:
        return (axes.fixed_rows,)
    return sizes if axes.rows or axes.composites else ()
