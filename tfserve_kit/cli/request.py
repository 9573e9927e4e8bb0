"""`tfkit request`."""

from pathlib import Path
from typing import Any

import click

from tfserve_kit.cli import output
from tfserve_kit.cli.options import (
    ServerChoice,
    base_path_option,
    json_option,
    server_options,
    signature_option,
    version_options,
)
from tfserve_kit.cli.output import force_option, require_writable
from tfserve_kit.cli.target import destination
from tfserve_kit.clients import Prediction
from tfserve_kit.clients.files import describe, read_inputs, require_few, values, write_npz
from tfserve_kit.errors import UsageError
from tfserve_kit.pictures.graph import PictureGraph
from tfserve_kit.pictures.inputs import body_of
from tfserve_kit.pictures.preprocessing import Preprocessing
from tfserve_kit.savedmodel import choose_signature


@click.command("request")
@click.argument("inputs", nargs=-1, metavar="[FILE]...",
                type=click.Path(path_type=Path))  # fmt: skip
@server_options
@version_options
@signature_option
@base_path_option
@click.option("--output-filter", "wanted", multiple=True, metavar="NAME",
              help="Output to return; may be repeated; default: all.")  # fmt: skip
@click.option("--output", "file", type=click.Path(path_type=Path), metavar="FILE.npz",
              help="Write the outputs to a file for numpy.load.")  # fmt: skip
@force_option
@json_option
def request_command(
    inputs: tuple[Path, ...],
    server: ServerChoice,
    timeout_s: float,
    version: int | None,
    label: str | None,
    signature: str,
    base_path: Path | None,
    wanted: tuple[str, ...],
    file: Path | None,
    as_json: bool,
) -> None:
    """Call any signature with the contents of files and show its outputs.

    FILE is JSON (the body of a REST request: "instances", "inputs" or "examples"), .npy for a
    signature's one input, .npz with an array per input, or a picture. Files with the same input
    are joined, row after row. A signature without inputs takes no FILE.
    """
    require_writable(file)
    where = destination(*server)
    target = where.target(version, label, signature)
    with where.connect() as client:
        found = client.metadata(target, timeout_s=timeout_s)
        chosen = choose_signature(found.signatures, signature)
        folder = base_path or where.base_path
        version_dir = folder / str(found.version) if folder else None
        note = Preprocessing.read(version_dir) if version_dir else Preprocessing()
        graph = PictureGraph(version_dir, chosen.name)
        if not inputs and (needed := chosen.inputs.keys() - chosen.optional):
            text = f"signature {chosen.name!r} needs {', '.join(sorted(needed))}"
            raise UsageError(
                f"Missing argument 'FILE...': {text}",
                remedy=f"give a FILE.json with {body_of(chosen.inputs)}, .npy, .npz or a picture",
            )
        arrays = read_inputs(inputs, chosen, note, graph=graph, tell=output.note)
        answer = client.predict(target, arrays, output_filter=wanted, timeout_s=timeout_s)
    if file:
        write_npz(file, answer.outputs)
        output.note(f"Wrote {file}")
    version = answer.version if answer.version is not None else found.version
    head = {"model": where.model, "version": version, "signature": chosen.name}
    data = {**head, "request_ms": round(answer.duration_s * 1e3, 3), "replica": answer.replica}
    if as_json:
        require_few(answer.outputs)
        data["outputs"] = {alias: values(array) for alias, array in answer.outputs.items()}
    output.result("request", data, as_json=as_json, text=_text(data, answer, where.url))


def _text(data: dict[str, Any], answer: Prediction, url: str) -> str:
    who = "" if answer.replica == url else f" by {answer.replica}"
    head = (
        f"{data['model']} version {data['version']}, {data['signature']}, "
        f"answered{who} in {data['request_ms']:.1f} ms"
    )
    return head + "\n" + output.table(("OUTPUT", "TYPE", "VALUES"), describe(answer.outputs))
