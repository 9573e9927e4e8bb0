"""`tfkit inspect`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from tfserve_kit import processes
from tfserve_kit.cli import output
from tfserve_kit.cli.options import json_option
from tfserve_kit.errors import Problem, PushRefused, listed
from tfserve_kit.repository import Gate
from tfserve_kit.repository.inspection import Inspection, Model, find, inspect, refusals
from tfserve_kit.repository.refusals import refusing
from tfserve_kit.savedmodel import Signature, TensorSpec
from tfserve_kit.savedmodel.batch_axes import obstacles

_TOP_OPS = 10
_COLUMNS = ("SIGNATURE", "BATCHES", "DIRECTION", "NAME", "TYPE", "TENSOR")


@click.command("inspect")
@click.argument("place", metavar="MODEL", type=click.Path(path_type=Path))
@click.option("--against", type=click.Path(path_type=Path), metavar="OTHER",
              help="Show what changes for callers of another version.")  # fmt: skip
@click.option("--ops", "all_ops", is_flag=True, help="Show all operations, not just the top ones.")
@click.option("--tag", default="serve", show_default=True, help="The graph a server will load.")
@click.option("--strict", is_flag=True, help="Fail if a push would be refused.")
@json_option
def command(
    place: Path, against: Path | None, all_ops: bool, tag: str, strict: bool, as_json: bool
) -> None:
    """Show what a model holds and what a push would say of it.

    Nothing of the model is run. MODEL is a SavedModel directory, a base path, whose highest version
    is meant, or the name of a model below models/.
    """
    gate = Gate(tag=tag)
    with processes.bounded_memory(), refusing("inspect", place):
        found = inspect(find(place), gate, against=against and find(against))
    refused = refusals(found, gate)
    if strict and refused:
        lines = listed(refused)
        raise PushRefused(f"a push of {found.path} would be refused:{lines}")
    text = "\n\n".join(_sections(found, None if all_ops else _TOP_OPS))
    output.result("inspection", _data(found), as_json=as_json, text=text)


def _sections(found: Inspection, most_ops: int | None) -> list[str]:
    rows = [(each["severity"], each["where"], each["what"], each["remedy"])
            for each in _findings(found)]  # fmt: skip
    sections = [] if found.model is None else _model_sections(found.model, most_ops)
    if rows:
        sections.append(output.table(("SEVERITY", "WHERE", "WHAT", "REMEDY"), rows))
    if found.changes:
        changed = [("breaks" if each.breaking else "fits", each.place, each.text)
                   for each in found.changes]  # fmt: skip
        sections.append(output.table(("CALLERS", "WHERE", "WHAT"), changed))
    return [str(found.path), *sections]


def _model_sections(model: Model, most_ops: int | None) -> list[str]:
    counts = list(model.scan.operations.items())
    ops = output.table(("OPERATION", "NODES"), counts[:most_ops])
    if most_ops is not None and len(counts) > most_ops:
        ops += f"\n({len(counts) - most_ops} more with --ops)"
    signatures = [list(row.values()) for row in _signature_rows(model)]
    hindered = [(name, why) for name, each in model.signatures.items() for why in _hindered(each)]
    whys = [output.table(("SIGNATURE", "CANNOT BE BATCHED, BECAUSE"), hindered)] if hindered else []
    facts = output.table(("WHAT", "VALUE"), _facts(model))
    return [facts, output.table(_COLUMNS, signatures), *whys, ops]


def _hindered(signature: Signature) -> list[str]:
    """Return why a server cannot put requests for a signature into one batch."""
    return list(obstacles(signature))


def _facts(model: Model) -> list[tuple[str, object]]:
    facts = model.facts
    return [
        ("tags", ", ".join(model.tags)),
        ("written by", f"tensorflow {facts.tensorflow_version or '(does not say)'}"),
        ("parameters", f"{facts.parameters:,} ({facts.parameter_bytes:,} bytes)"),
        ("functions", model.scan.functions),
        ("assets", ", ".join(facts.assets) or "none"),
        ("warm-up requests", _yes_no(facts.warmup)),
        ("preprocessing note", _yes_no(facts.note)),
        ("fingerprint", _yes_no(facts.fingerprint)),
    ]


def _yes_no(value: bool) -> str:
    return "yes" if value else "no"


def _signature_rows(model: Model) -> list[dict[str, str]]:
    return [
        {
            "signature": signature.name,
            "batches": _yes_no(not _hindered(signature)),
            "direction": direction,
            "name": alias,
            "type": str(spec) + (", optional" if (name, alias) in optional else ""),
            "tensor": spec.name,
        }
        for name, signature in model.signatures.items()
        for direction, specs, optional in (
            ("in", signature.inputs, model.defaults),
            ("out", signature.outputs, frozenset[tuple[str, str]]()),
        )
        for alias, spec in specs.items()
    ]


def _findings(found: Inspection) -> list[dict[str, str]]:
    """Return refusals and remarks of the gate, and what the scan says beside them."""
    told = [("error", each) for each in found.verdict.refusals]
    told += [("warning", each) for each in found.verdict.remarks]
    if found.model is not None:
        scanned = found.model.scan.findings
        told += [("info", each.problem) for each in scanned if each.severity == "info"]
    return [_finding(severity, problem) for severity, problem in told]


def _finding(severity: str, problem: Problem) -> dict[str, str]:
    return {
        "severity": severity,
        "where": problem.path,
        "what": problem.message,
        "remedy": problem.remedy,
    }


def _data(found: Inspection) -> dict[str, Any]:
    changed = [
        {"breaking": each.breaking, "where": each.place, "what": each.text}
        for each in found.changes
    ]
    data = {"path": str(found.path), "findings": _findings(found), "changes": changed}
    return data | ({} if found.model is None else _model_data(found.model))


def _model_data(model: Model) -> dict[str, Any]:
    facts = model.facts
    return {
        "tags": list(model.tags),
        "tensorflow_version": facts.tensorflow_version,
        "signatures": {
            name: {
                "method_name": signature.method_name,
                "batchable": not (hindered := _hindered(signature)),
                **({"not_batchable_because": hindered} if hindered else {}),
                "inputs": _tensors(signature.inputs),
                "outputs": _tensors(signature.outputs),
                "optional": sorted(alias for each, alias in model.defaults if each == name),
            }
            for name, signature in model.signatures.items()
        },
        "parameters": facts.parameters,
        "parameter_bytes": facts.parameter_bytes,
        "variables": {
            name: {
                "dtype": variable.dtype.name if variable.dtype else None,
                "shape": list(variable.shape),
                "size_bytes": variable.size_bytes,
            }
            for name, variable in facts.variables.items()
        },
        "assets": list(facts.assets),
        "warmup": facts.warmup,
        "note": facts.note,
        "fingerprint": facts.fingerprint,
        "functions": model.scan.functions,
        "operations": dict(model.scan.operations),
    }


def _tensors(specs: Mapping[str, TensorSpec]) -> dict[str, dict[str, Any]]:
    return {
        alias: {
            "dtype": spec.dtype.name if spec.dtype else None,
            "shape": None if spec.shape is None else list(spec.shape),
            "tensor": spec.name,
        }
        for alias, spec in specs.items()
    }
