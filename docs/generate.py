"""Generates the reference pages from the code: `make docs`; a test compares them.

docs/cli.md from the commands, docs/spec.md from the schema, docs/flags.md from the table of flags,
docs/exit-codes.md from the table of exit codes, docs/lint.md from the tables of rules.
"""

import sys
from pathlib import Path
from typing import Any

import click
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from tfserve_kit.cli import COMMANDS, cli, exit_codes
from tfserve_kit.embedded.settings import MOOT, OTHERWISE, REFUSED
from tfserve_kit.flags import FLAGS
from tfserve_kit.lint import RULES, Severity
from tfserve_kit.spec.schema import Spec

HERE = Path(__file__).parent
MADE = "<!-- Made by `make docs`; do not edit. -->\n\n"


def cli_page() -> str:
    """Return the help of every command."""
    context = click.Context(cli, info_name="tfkit", **cli.context_settings)
    parts = ["# Command line\n", MADE, _block(cli.get_help(context))]
    for name in COMMANDS:
        command = cli.get_command(context, name)
        if command is not None:
            text = command.get_help(click.Context(command, info_name=name, parent=context))
            parts.append(f"\n## tfkit {name}\n\n{_block(text)}")
    return "".join(parts)


def _block(text: str) -> str:
    return f"```text\n{text}\n```\n"


def spec_page() -> str:
    """Return every key of the deployment file."""
    parts = ["# Deployment file\n\n", MADE, "`tfkit init` writes a commented one.\n"]
    sections: list[tuple[str, type[BaseModel]]] = [
        ("[server]", _class("server")),
        ("[models.NAME]", _class("models")),
        ("[models.NAME.versions]", _class("versions", _class("models"))),
        ("[docker]", _class("docker")),
        ("[batching]", _class("batching")),
        ("[monitoring]", _class("monitoring")),
    ]
    for title, section in sections:
        summary = (section.__doc__ or "").split("\n")[0]
        parts.append(f"\n## `{title}`\n\n{summary}\n\n| key | default | meaning |\n|---|---|---|\n")
        parts += [_row(name, field) for name, field in section.model_fields.items()]
    return "".join(parts)


def _class(key: str, parent: type[BaseModel] = Spec) -> type[BaseModel]:
    """Return the section class behind a key."""
    found: list[type[BaseModel]] = []

    def visit(annotation: Any) -> None:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            found.append(annotation)
        for inner in getattr(annotation, "__args__", ()):
            visit(inner)

    visit(parent.model_fields[key].annotation)
    return found[0]


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
    return f'"{value}"' if isinstance(value, str) else str(value).replace("()", "[]")


def exit_codes_page() -> str:
    """Return the table of exit codes."""
    rows = "".join(f"| {code} | {meaning} |\n" for code, meaning in exit_codes.rows())
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
        "how the embedded engine takes each of them.\n\n",
        "| flag | default | meaning | embedded engine |\n|---|---|---|---|\n",
    ]
    for flag in FLAGS.values():
        default = _PER_CPU.get(flag.name) or f"`{_plain(flag.default)}`"
        parts.append(f"| `{flag.name}` | {default} | {flag.help} | {_here(flag.name)} |\n")
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


PAGES = {
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
