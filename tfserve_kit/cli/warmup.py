"""`tfkit warmup`."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from tfserve_kit import savedmodel
from tfserve_kit.cli import deployment, output
from tfserve_kit.cli.options import json_option
from tfserve_kit.clients.classifier import choose_signature
from tfserve_kit.clients.inputs import Arrays, read_inputs
from tfserve_kit.errors import UsageError
from tfserve_kit.perf.payloads import assumptions, random_inputs
from tfserve_kit.pictures.graph import PictureGraph
from tfserve_kit.pictures.preprocessing import Preprocessing
from tfserve_kit.repository.versions import parse_version
from tfserve_kit.savedmodel import DEFAULT_SIGNATURE, Signature, tfrecord, warmup
from tfserve_kit.savedmodel.batch_axes import batch_axes


@click.command("warmup")
@click.argument("model", metavar="MODEL", type=click.Path(path_type=Path))
@click.option("--input", "inputs", type=click.Path(path_type=Path), multiple=True, metavar="FILE",
              help="Picture, .json (body of a REST request), .npy or .npz; may be "
              "repeated.")  # fmt: skip
@click.option("--random", "at_random", is_flag=True,
              help="Random numbers, as without --input.")  # fmt: skip
@click.option("--batch-size", "batch_sizes", type=click.IntRange(min=1), multiple=True, metavar="N",
              help="Rows of a request; may be repeated; 1 if left out.")  # fmt: skip
@click.option("--batching-config", type=click.Path(path_type=Path), metavar="FILE",
              help="Take the batch sizes from the server's batching parameters.")  # fmt: skip
@click.option("--config", type=click.Path(path_type=Path), metavar="FILE",
              help="Take the batch sizes from the deployment file's [batching].")  # fmt: skip
@click.option("--signature", "names", multiple=True, metavar="NAME",
              help="Signature to call; may be repeated; serving_default if left out.")  # fmt: skip
@click.option("--all-signatures", is_flag=True, help="Call every signature.")
@click.option("--replace", is_flag=True, help="Replace the requests that are there already.")
@click.option("--in-place", is_flag=True, help="Change a version in a base path.")
@click.option("--check", is_flag=True, help="Write nothing; check the requests that are there.")
@json_option
def command(
    model: Path,
    inputs: tuple[Path, ...],
    at_random: bool,
    batch_sizes: tuple[int, ...],
    batching_config: Path | None,
    config: Path | None,
    names: tuple[str, ...],
    all_signatures: bool,
    replace: bool,
    in_place: bool,
    check: bool,
    as_json: bool,
) -> None:
    """Store requests with a model, for the server to replay when it loads it.

    MODEL is a SavedModel directory about to be pushed. Without --input, the requests hold random
    numbers: floats from 0 to 1, integers from 0 to 9.
    """
    if check:
        _check(model, as_json=as_json)
        return
    if at_random and inputs:
        raise UsageError("give --random or --input, not both")
    if not in_place:
        _refuse_version(model)
    sizes = _sizes(batch_sizes, batching_config, config)
    signatures = _signatures(model, names, all_signatures=all_signatures)
    records = _records(model, signatures, inputs, sizes)
    file = warmup.write(model, records, replace=replace)
    data = {
        "file": str(file.absolute()),
        "signatures": [signature.name for signature in signatures],
        "batch_sizes": sorted({each for chosen in signatures for each in _rows(chosen, sizes)}),
        "records": sum(1 for _ in tfrecord.read(file)),
        "size_bytes": file.stat().st_size,
    }
    made_up = [] if inputs else [each for chosen in signatures for each in assumptions(chosen)]
    for text in dict.fromkeys(made_up):
        output.note(f"Note: {text}")
    output.result("warmup", data, as_json=as_json, text=_text(data))


def _check(model: Path, *, as_json: bool) -> None:
    _read(model)
    if found := warmup.problems(model):
        raise warmup.refusal(found)
    file = model / warmup.WARMUP_FILE
    count = sum(1 for _ in tfrecord.read(file)) if file.exists() else 0
    data = {"file": str(file.absolute()), "records": count}
    text = f"{file}: {_counted(count)}, fine" if count else f"{model} has no warm-up requests."
    output.result("warmup-check", data, as_json=as_json, text=text)


def _refuse_version(model: Path) -> None:
    """Refuse the folder of a version: what a server may have loaded must not change.

    A server takes every folder whose name is a number for a version, so its parent is a base path.
    """
    for folder in (model.absolute(), model.resolve()):
        if parse_version(folder.name) is not None:
            raise UsageError(
                f"{folder} looks like version {folder.name} of the base path {folder.parent}, "
                "and versions in service should not change",
                remedy="warm up the model before you push it; or give --in-place",
            )


def _sizes(
    given: Sequence[int], batching_config: Path | None, config: Path | None
) -> tuple[int, ...]:
    """Return the batch sizes that the options ask for, each once."""
    if sum(map(bool, (given, batching_config, config))) > 1:
        raise UsageError("give one of --batch-size, --batching-config and --config")
    sizes = tuple(given) or (1,)
    if batching_config:
        sizes = warmup.read_sizes(batching_config)
    elif config:
        batching = deployment.load(config, ()).batching
        largest = (batching.max_batch_size,) if batching and batching.max_batch_size else ()
        sizes = (batching.allowed_batch_sizes if batching else ()) or largest
    if not sizes:
        raise UsageError(
            f"{batching_config or config} sets neither allowed_batch_sizes nor max_batch_size",
            remedy="give --batch-size",
        )
    return tuple(dict.fromkeys(sizes))


def _read(model: Path) -> Mapping[str, Signature]:
    try:
        return savedmodel.read(model).signatures
    except OSError as error:
        text = f"cannot read the SavedModel in {model}: {error.strerror}"
        raise UsageError(text, remedy="give the folder that holds saved_model.pb") from error
    except ValueError as error:
        raise UsageError(f"{model / savedmodel.GRAPH_FILE} {error}") from error


def _signatures(model: Path, names: Sequence[str], *, all_signatures: bool) -> list[Signature]:
    if names and all_signatures:
        raise UsageError("give --signature or --all-signatures, not both")
    found = _read(model)
    chosen = found if all_signatures else dict.fromkeys(names or [DEFAULT_SIGNATURE])
    return [choose_signature(found, name) for name in chosen]


def _records(
    model: Path, signatures: Sequence[Signature], files: Sequence[Path], sizes: Sequence[int]
) -> Iterator[bytes]:
    note = Preprocessing.read(model) if files else Preprocessing()
    path = model.resolve()
    name = path.name if parse_version(path.name) is None else path.parent.name
    for signature in signatures:
        graph = PictureGraph(model, signature.name)
        for arrays, rows in _arrays(signature, files, note, graph, sizes):
            yield from warmup.build(arrays, signature, model=name, sizes=rows)


def _arrays(
    signature: Signature,
    files: Sequence[Path],
    note: Preprocessing,
    graph: PictureGraph,
    sizes: Sequence[int],
) -> Iterator[tuple[Arrays, Sequence[int]]]:
    """Yield inputs, and how many rows the requests that are made of them have."""
    if files:
        tell = output.note
        yield read_inputs(files, signature, note, graph=graph, any_rows=True, tell=tell), sizes
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


def _text(data: Mapping[str, Any]) -> str:
    sizes = ", ".join(map(str, data["batch_sizes"]))
    rows = f", batch sizes {sizes}" if sizes else ""
    return f"Wrote {data['file']}: {_counted(data['records'])}{rows} ({data['size_bytes']:,} bytes)"


def _counted(records: int) -> str:
    return f"{records} request" if records == 1 else f"{records} requests"
