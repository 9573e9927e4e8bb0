"""The table of the field as a page: what the rows expect, which the tests hold the commands to."""

from pathlib import Path

from tests.field import messages
from tests.field.expected import Refusal
from tests.field.rows import BY_NAME, FAMILIES, ROWS

PAGE = Path(__file__).parents[2] / "docs" / "field.md"

_INTRODUCTION = """\
# Models of the field

<!-- Made by `TFKIT_PASTE=1 .venv/bin/python -m pytest tests/field/test_page.py`; do not edit. -->

{models} small SavedModels of the kinds that people have, built by TensorFlow and Keras 3 whenever
`tests/field` runs, and what every command says of each. No cell is an opinion: the tests push the
models, serve all of them with one embedded server, and hold each command to its cell. Questions go
over gRPC and over REST, and get the same answer unless the table says otherwise. {answering} models
answer.

| column | what it shows |
|---|---|
| model | what goes in and what comes out, as `inspect` and `metadata` show it |
| inspect | whether requests can be batched |
| predict, request | class and score of a picture, and what decided how it was read; or values |
| warmup, perf | what is sent: random numbers, or a file; each load replays it |
| evaluate | how many examples of a set are taken for another class |
| refused (exit N) | this message, and N as the [exit code](exit-codes.md) |

Pictures are of one colour: `red.png`, `mid.png` (half as bright as white) and so on. Brightnesses
are told apart only by a model that gets the range it was made for.

To add a model:

1. write its builder in the family's file in `tests/field/zoo/`, under `@model("its_name")`;
2. write its row in the file of the same name in `tests/field/rows/`: what each command should say;
3. run `TFKIT_PASTE=1 .venv/bin/python -m pytest tests/field`.
"""

_HEAD = ("model", "inspect", "push-model", "lint", "serve", "metadata", "predict, request",
         "warmup", "perf", "evaluate")  # fmt: skip


def render():
    """Return the page."""
    answering = sum(1 for row in BY_NAME.values() if any(not _refused(each) for each in row.asks))
    parts = [_INTRODUCTION.format(models=len(BY_NAME), answering=answering)]
    for family, title in FAMILIES.items():
        parts.append(f"\n## {title}\n\n")
        parts.append(f"| {' | '.join(_HEAD)} |\n{'|---' * len(_HEAD)}|\n")
        parts += [f"| {' | '.join(map(_escaped, _cells(row)))} |\n" for row in ROWS[family]]
    return "".join(parts)


def _cells(row):
    head = f"**{row.name}**<br>{row.what}<br>{_types(row.takes)} → {_types(row.gives)}"
    yield head
    yield _told(row, row.inspected, "inspect") or ("batches" if row.batches else "no batches")
    yield _told(row, row.pushed, "push-model") or "pushed"
    yield _told(row, row.linted, "lint") or (f"warns: {row.linted}" if row.linted else "nothing")
    yield _told(row, row.served, "serve") or ("-" if row.pushed else "AVAILABLE")
    if row.pushed:
        yield from "-----"
        return
    yield "as inspect"
    yield "<br>".join(_asked(row, each) for each in row.asks)
    yield _told(row, row.warmed, "warmup") or f"{row.input}: fine"
    yield _told(row, row.loaded, "perf") or f"{row.input}: fine"
    yield _told(row, row.evaluated, "evaluate") or str(row.evaluated)


def _told(row, expected, what):
    """Return a refusal with its whole message; None for anything else."""
    return f"{expected}{messages.of(row, what)}" if _refused(expected) else None


def _asked(row, expected):
    if not _refused(expected):
        return str(expected)
    return f"{expected}{messages.of(row, expected.asked(expected.protocol or 'grpc'))}"


def _types(tensors):
    return ", ".join(f"`{alias}` {spec}" for alias, spec in tensors.items()) or "nothing"


def _escaped(text):
    return text.replace("|", "&#124;")


def _refused(expected):
    return isinstance(expected, Refusal)
