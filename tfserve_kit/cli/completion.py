"""`tfkit completion`."""

import click
from click.shell_completion import get_completion_class

from tfserve_kit.cli import output


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(context: click.Context, shell: str) -> None:
    """Print what makes a shell complete commands.

    For bash: eval "$(tfkit completion bash)" in ~/.bashrc.
    """
    kind = get_completion_class(shell)
    assert kind is not None  # noqa: S101 (the choices are click's own shells)
    root = context.find_root()
    output.line(kind(root.command, {}, "tfkit", "_TFKIT_COMPLETE").source())
