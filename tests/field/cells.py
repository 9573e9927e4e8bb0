"""What a command says of a model, held against what its row expects.

Each function checks one cell of the table.
"""

import json
import math

import numpy as np

from tests.field import messages
from tests.field.expected import (
    BOTH,
    Answer,
    AsTold,
    Class,
    ErrorRate,
    Objects,
    Refusal,
)

USAGE = 2
PERF = ("--duration", "0.3", "--concurrency", "2", "--json")


def refused(field, done, expected, place):
    """Hold the code, the cause and the remedy, and the whole message, against what is expected."""
    assert done.code == expected.code, f"{done.code}: {done.err}"
    assert expected.words in done.err
    assert expected.remedy in done.err
    messages.hold(place, field.plain(done.err))


def inspect(field, row):
    done = field.tfkit("inspect", field.zoo / row.name, "--strict", "--json")
    if row.inspected:
        refused(field, done, row.inspected, (row, "inspect"))
        return
    assert (done.code, done.err) == (0, "")
    signature = done.data["signatures"][row.signature or "serving_default"]
    assert _typed(signature["inputs"]) == row.takes
    assert _typed(signature["outputs"]) == row.gives
    assert signature["batchable"] == row.batches, signature
    assert row.batches or signature["not_batchable_because"]


def _typed(tensors):
    return {
        alias: f"{each['dtype']} {_shape(each['shape'])}" for alias, each in tensors.items()
    }  # fmt: skip


def _shape(sizes):
    if sizes is None:
        return "[...]"
    return f"[{', '.join('?' if size is None else str(size) for size in sizes)}]"


def push(field, row):
    done = field.pushed[row.name]
    if row.pushed:
        refused(field, done, row.pushed, (row, "push-model"))
        assert not (field.models / row.name / "1").exists()
        return
    assert done.code == 0, done.err
    assert "Pushed version 1" in done.out


def lint(field, row):
    done = field.tfkit("lint", "--model", f"{row.name}={field.base_path(row)}", "--json")
    if isinstance(row.linted, Refusal):
        assert done.code == row.linted.code
        (finding,) = done.data
        assert row.linted.words in finding["message"]
        assert row.linted.remedy in finding["remedy"]
        text = f"Error: {finding['message']}\n  Try: {finding['remedy']}"
        messages.hold((row, "lint"), field.plain(text))
        return
    assert done.code == 0, done.err
    assert [each["severity"] for each in done.data] == ["warning"] * bool(row.linted)
    assert all(row.linted in each["message"] for each in done.data)


def serve(field, row):
    if row.served:
        place = f"{row.name}={field.base_path(row)}"
        done = field.tfkit("serve", "--engine", "embedded", "--model", place)
        refused(field, done, row.served, (row, "serve"))
        return
    assert field.server_of(row) == {"1": "AVAILABLE"}


def metadata(field, row):
    for protocol in BOTH:
        done = field.tfkit("metadata", "--model", row.name, "--protocol", protocol, "--json")
        assert done.code == 0, done.err
        sides = {"in": {}, "out": {}}
        for each in done.data["tensors"]:
            if each["signature"] == (row.signature or "serving_default"):
                sides[each["direction"]][each["name"]] = each["type"]
        assert (sides["in"], sides["out"]) == (row.takes, row.gives)


def ask(field, row, expected):
    """Ask over each protocol; what is no picture's file goes through `tfkit request`."""
    if isinstance(expected, Refusal):
        command = "predict" if expected.file.endswith("png") or not expected.file else "request"
        file = expected.file or "red.png"
        for protocol in (expected.protocol,) if expected.protocol else BOTH:
            how = ("--model", row.name, "--protocol", protocol)
            done = field.tfkit(command, file, *how, *expected.options)
            refused(field, done, expected, (row, expected.asked(protocol)))
        return
    for protocol in getattr(expected, "protocols", BOTH):
        _ANSWERS[type(expected)](field, row, expected, ("--protocol", protocol, "--json"))


def _class(field, row, expected, how):
    how = ("--model", row.name, *expected.options, *how)
    done = field.tfkit("predict", expected.picture, *how)
    assert done.code == 0, done.err
    (said,) = done.data
    best = said["scores"][0]
    assert best["index"] == expected.index
    assert best["label"] == expected.label
    same(best["score"], expected.score, 1e-3)
    assert said["meaning"] == expected.meaning
    told = {what: f"{each['value']} ({each['source']})" for what, each in said["how"].items()}
    assert {what: told.get(what) for what in expected.told} == expected.told
    for value in expected.told.values():
        told = value.rstrip(")")  # more may follow: why, or what changes it
        assert told in done.err or told.replace(" (", " (from the ") + ": " in done.err


def _objects(field, row, expected, how):
    how = ("--model", row.name, *expected.options, *how)
    done = field.tfkit("predict", expected.picture, *how)
    assert done.code == 0, done.err
    found = done.data[0]["detections"]
    assert [each["index"] for each in found] == [index for index, _ in expected.found]
    same([each["score"] for each in found], [score for _, score in expected.found])


def _answer(field, row, expected, how):
    done = field.tfkit(
        "request", field.file_of(expected.inputs), "--model", row.name, *expected.options, *how
    )
    assert done.code == 0, done.err
    same(plain(done.data["outputs"]), expected.outputs)


def _as_told(field, row, expected, how):
    told = field.told[row.name]
    done = field.tfkit("request", field.file_of(told["inputs"]), "--model", row.name, *how)
    assert done.code == 0, done.err
    same(done.data["outputs"], told["outputs"])


_ANSWERS = {Class: _class, Objects: _objects, Answer: _answer, AsTold: _as_told}


def plain(value):
    """Return outputs with their bytes as texts."""
    if isinstance(value, dict) and set(value) == {"b64"}:
        import base64

        return base64.b64decode(value["b64"]).decode()
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list) else value


def same(value, expected, tolerance=1e-5):
    """Compare nested values: integers exactly, floats as far as 32 bits tell."""
    if isinstance(expected, dict):
        assert set(value) == set(expected)
        for key, each in expected.items():
            same(value[key], each, tolerance)
    elif isinstance(expected, list):
        assert len(value) == len(expected), (value, expected)
        for one, other in zip(value, expected, strict=True):
            same(one, other, tolerance)
    elif isinstance(expected, float) and isinstance(value, float):
        assert math.isclose(value, expected, rel_tol=tolerance, abs_tol=tolerance), (
            value, expected)  # fmt: skip
    else:
        assert (type(value), value) == (type(expected), expected)


def warmup(field, row):
    """Random requests, or those of a file; both check out, and the server replayed them."""
    done = field.warmed[row.name]
    if row.warmed:
        refused(field, done, row.warmed, (row, "warmup"))
        return
    assert done.code == 0, done.err
    signature = ("--signature", row.signature) if row.signature else ()
    if row.input != "random" and row.drawn.code == USAGE:
        done = field.tfkit("warmup", field.zoo / row.name, *signature)
        refused(field, done, row.drawn, (row, "warmup of random numbers"))
    checked = field.tfkit("warmup", "--check", field.models / row.name / "1", "--json")
    assert (checked.code, checked.data["records"]) == (0, 1)


def perf(field, row):
    signature = ("--signature", row.signature) if row.signature else ()
    how = ("--model", row.name, *signature)
    if row.input != "random":
        drawn = field.tfkit("perf", *how, *PERF)
        refused(field, drawn, row.drawn, (row, "perf of random numbers"))
    done = field.tfkit("perf", "--input", row.input, *how, *PERF)
    if row.loaded:
        refused(field, done, row.loaded, (row, "perf"))
        return
    assert done.code == 0, done.err
    assert done.data["requests"] > 0
    assert done.data["errors"] == {}


def evaluate(field, row):
    expected = row.evaluated
    dataset = expected.dataset if isinstance(expected, ErrorRate) else "colours"
    done = field.tfkit(
        "evaluate", f"sets/{dataset}", "--model", row.name, *expected.options, "--json"
    )
    if isinstance(expected, Refusal):
        refused(field, done, expected, (row, "evaluate"))
        return
    assert done.code == 0, done.err
    (result,) = done.data["results"]
    assert done.data["unusable"] == []
    assert (result["wrong"], result["answered"]) == (expected.wrong, done.data["examples"])


def written(inputs, file):
    """Write the inputs of a request: as .npz where one is an array, else as JSON."""
    arrays = [each for each in inputs.values() if isinstance(each, np.ndarray)]
    if arrays:
        np.savez(file.with_suffix(".npz"), **inputs)
        return file.with_suffix(".npz")
    file = file.with_suffix(".json")
    file.write_text(json.dumps({"inputs": inputs}))
    return file
