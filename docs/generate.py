"""Generates the reference pages from the code: `make docs`; a test compares them.

docs/cli.md from the commands, docs/spec.md from the schema, docs/flags.md from the table of flags,
docs/exit-codes.md from the table of exit codes, docs/lint.md from the tables of rules, docs/api.md
from the docstrings; the table of limits in docs/embedded.md from their constants.
"""

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, get_args, get_origin

import click
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from tfserve_kit.cli import COMMANDS, cli, exits
from tfserve_kit.deployment.flags import FLAGS
from tfserve_kit.deployment.lint import RULES, Severity
from tfserve_kit.deployment.spec import Spec
from tfserve_kit.embedded import limits
from tfserve_kit.embedded.settings import MOOT, OTHERWISE, REFUSED

HERE = Path(__file__).parent
MADE = "<!-- Made by `make docs`; do not edit. -->\n\n"


def cli_page() -> str:
    """Return the help of every command."""
    context = click.Context(cli, info_name="tfkit", **cli.context_settings)
    parts = ["# Command line\n", MADE, _block(cli.get_help(context))]
    for name in COMMANDS:
        command = cli.get_command(context, name)
        if command is not None:
            parts += _command_help(command, name, context)
    return "".join(parts)


def _command_help(command: click.Command, name: str, parent: click.Context) -> Iterator[str]:
    """Return the help of a command, and of those within it."""
    context = click.Context(command, info_name=name, parent=parent)
    command._help_option = None  # noqa: SLF001 (click keeps the names that it first had)
    yield f"\n## {context.command_path}\n\n{_block(command.get_help(context))}"
    if isinstance(command, click.Group):
        for inner, each in command.commands.items():
            yield from _command_help(each, inner, context)


def _block(text: str) -> str:
    return f"```text\n{text}\n```\n"


def spec_page() -> str:
    """Return every key of the deployment file."""
    parts = ["# Deployment file\n\n", MADE, "`tfkit init` writes a commented one.\n"]
    for title, section in _sections(Spec):
        summary = (section.__doc__ or "").split("\n")[0]
        parts.append(f"\n## `[{title}]`\n\n{summary}\n\n")
        parts.append("| key | default | meaning |\n|---|---|---|\n")
        parts += [_row(name, field) for name, field in section.model_fields.items()]
    return "".join(parts)


def _sections(parent: type[BaseModel], above: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield the sections within one, however deep, each with its name."""
    for key, field in parent.model_fields.items():
        for section in _classes(field.annotation):
            named = ".NAME" if get_origin(field.annotation) is dict else ""
            yield f"{above}{key}{named}", section
            yield from _sections(section, f"{above}{key}{named}.")


def _classes(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the section classes in an annotation, such as `Batching | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _classes(inner)


def _row(name: str, field: FieldInfo) -> str:
    if field.is_required():
        default = "required"
    elif field.default_factory is not None:
        value = field.get_default(call_default_factory=True, validated_data={})
        default = f"`{_plain(value)}`"
    else:
        default = f"`{_plain(field.default)}`"
    return f"| `{name}` | {default} | {(field.description or '').replace('|', '&#124;')} |\n"


def _plain(value: object) -> str:
    if isinstance(value, BaseModel):
        set_values = value.model_dump(exclude_defaults=True)
        return "{" + ", ".join(f"{key} = {_plain(each)}" for key, each in set_values.items()) + "}"
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(_plain, value))}]"
    return f'"{value}"' if isinstance(value, str) else str(value)


def exit_codes_page() -> str:
    """Return the table of exit codes."""
    rows = "".join(f"| {code} | {meaning} |\n" for code, meaning in exits.rows())
    return f"# Exit codes\n\n{MADE}| code | meaning |\n|---|---|\n{rows}"


# Defaults that depend on the machine.
_PER_CPU = {"rest_api_num_threads": "4 per CPU", "grpc_max_threads": "4 per CPU",
            "num_tflite_pools": "1 per CPU"}  # fmt: skip


def flags_page() -> str:
    """Return every flag of tensorflow_model_server and what the embedded engine makes of it."""
    parts = [
        "# Flag by flag\n\n",
        MADE,
        "The flags of `tensorflow_model_server`, which are also those of `tfkit-model-server`:\n",
        "how the embedded engine takes each of them. A server that tfkit starts gets 64 for\n",
        "`grpc_max_threads` and `rest_api_num_threads` (4 per CPU where that is more), unless\n",
        "`[server.flags]` says otherwise: it refuses calls beyond them.\n\n",
        "| flag | default | meaning | embedded engine |\n|---|---|---|---|\n",
    ]
    for name, (value, what) in FLAGS.items():
        default = _PER_CPU.get(name) or f"`{_plain(value)}`"
        parts.append(f"| `{name}` | {default} | {what} | {_here(name)} |\n")
    return "".join(parts)


def _here(name: str) -> str:
    for table, word in ((REFUSED, "refused: "), (MOOT, "changes nothing: "), (OTHERWISE, "")):
        if name in table:
            return word + table[name]
    return "the same"


def lint_page() -> str:
    """Return every rule of `tfkit lint`."""
    parts = [
        "# What `tfkit lint` looks for\n\n",
        MADE,
        "`tfkit serve` looks as well: errors stop it before anything starts.\n\n",
        "| rule | severity | meaning |\n|---|---|---|\n",
    ]
    rules = sorted(RULES, key=lambda rule: list(Severity).index(rule.severity))
    parts += [f"| `{rule.name}` | {rule.severity.value} | {rule.meaning} |\n" for rule in rules]
    return "".join(parts)


# What a program may use, in the order of a first use: module -> names, its `__all__` if empty.
API: dict[str, tuple[str, ...]] = {
    "tfserve_kit": (),
    "tfserve_kit.clients.aio": ("AsyncClient",),
    "tfserve_kit.clients.classifier": ("find_model", "Classifier", "Classified", "ClassScore"),
    "tfserve_kit.pictures.model": ("PictureOptions",),
    "tfserve_kit.errors": (),
    "tfserve_kit.pictures.labels": ("Labels", "read"),
    "tfserve_kit.pictures.preprocessing": ("Preprocessing",),
    "tfserve_kit.pictures.files": ("read_file",),
    "tfserve_kit.pictures.inputs": ("image_input",),
    "tfserve_kit.pictures.prepare": ("prepare",),
    "tfserve_kit.deployment": ("build", "load"),
    "tfserve_kit.deployment.render": ("render",),
    "tfserve_kit.repository": (),
    "tfserve_kit.savedmodel.warmup": ("build", "write", "problems"),
    "tfserve_kit.serving.launch": ("up", "plan", "check"),
    "tfserve_kit.serving.reload": ("reload",),
    "tfserve_kit.engines": (),
    "tfserve_kit.serving.swap": (),
    "tfserve_kit.embedded.server": ("EmbeddedServer",),
    "tfserve_kit.perf.payloads": ("Preparer", "Prepared"),
    "tfserve_kit.perf.load": ("Load", "Open", "Closed"),
    "tfserve_kit.perf.samples": ("Run", "read", "write"),
    "tfserve_kit.perf.measuring": ("PerfOptions", "Session", "Bench"),
    "tfserve_kit.perf.stats": ("summarize",),
    "tfserve_kit.perf.gate": ("compare", "find_max"),
    "tfserve_kit.perf.capacity": ("plan", "Need", "CapacityPlan", "Sizing", "profile", "Profile"),
    "tfserve_kit.perf.simulation": (
        "simulate",
        "SimulatedFleet",
        "SimulatedReplica",
        "Arrivals",
        "Outcome",
    ),
    "tfserve_kit.tuning": (),
    "tfserve_kit.pytest_plugin": ("tfkit_server",),
}


def api_page() -> str:
    """Return signature and docstring of all that a program may use."""
    parts = ["# Python API\n\n", MADE, "What the command line does, programs can do as well.\n"]
    for module, names in API.items():
        room = import_module(module)
        parts.append(f"\n## {module}\n\n{(room.__doc__ or '').split(chr(10))[0]}\n")
        for name in names or getattr(room, "__all__", None) or _own(room):
            parts += _documented(getattr(room, name), name)
    return "".join(parts)


def _own(room: ModuleType) -> list[str]:
    """Return the classes and functions that a module defines itself, in its order."""
    return [
        name
        for name, value in vars(room).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == room.__name__
    ]


def _documented(thing: Any, name: str) -> Iterator[str]:
    thing = inspect.unwrap(getattr(thing, "_get_wrapped_function", lambda: thing)())
    if not (inspect.isclass(thing) or inspect.isfunction(thing)):
        return  # an alias of a type
    yield f"\n### {name}\n\n"
    if inspect.isfunction(thing):
        yield _block(f"{_signature(thing)}\n\n{inspect.getdoc(thing)}")
        return
    yield _block(str(inspect.getdoc(thing)))
    for method in vars(thing).values():
        function = getattr(method, "__func__", method)
        if inspect.isfunction(function) and function.__doc__ and function.__name__[0] != "_":
            yield "\n" + _block(f"{_signature(function)}\n\n{inspect.getdoc(function)}")


def _signature(function: Callable[..., Any]) -> str:
    """Return the head of a function as its source has it: defaults have no address of memory."""
    source = textwrap.dedent(inspect.getsource(function))
    (node,) = ast.parse(source).body
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        raise TypeError(f"{function} is no plain function")
    start = "async " if isinstance(node, ast.AsyncFunctionDef) else ""
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"{start}{node.name}({ast.unparse(node.args)}){returns}"


_LIMITS = re.compile(r"(?<=<!-- limits: made by `make docs` -->\n).*?(?=\nIdle)", re.DOTALL)


def embedded_page() -> str:
    """Return the page of the embedded engine with its table of limits made anew."""
    table = "| what | limit | beyond |\n|---|---|---|\n"
    table += "".join(f"| {' | '.join(row)} |\n" for row in limits.rows())
    return _LIMITS.sub(table, (HERE / "embedded.md").read_text("utf-8"))


PAGES = {
    "embedded.md": embedded_page,
    "api.md": api_page,
    "cli.md": cli_page,
    "spec.md": spec_page,
    "flags.md": flags_page,
    "exit-codes.md": exit_codes_page,
    "lint.md": lint_page,
}


def main() -> int:
    """Write every page."""
    for name, page in PAGES.items():
        (HERE / name).write_text(page(), "utf-8")
        sys.stdout.write(f"wrote docs/{name}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
