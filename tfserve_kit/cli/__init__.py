"""The command line: each command parses, calls one function and renders one result."""

import contextlib
import sys
from importlib import import_module

import click

from tfserve_kit.cli import exits, output
from tfserve_kit.errors import ServerUnreachable, TfkitError

# Commands are imported when they are called, so that `tfkit --help` and `tfkit predict` are quick.
# So each has its module and its help text here; a test holds the text against the command's own.
COMMANDS = {
    "init": ("files", "Write a commented deployment file."),
    "render": (
        "files",
        "Show or write the server's configuration files, or those of what runs or watches it.",
    ),
    "lint": ("files", "Report problems before the server starts."),
    "push-model": ("models", "Add a model version to a base path, atomically."),
    "versions": ("models", "List the versions in a base path."),
    "inspect": ("models", "Show what a model contains and what a push would report."),
    "verify": ("models", "Check versions against what was pushed."),
    "rollback": ("models", "Go back to an earlier version of a model."),
    "prune": ("models", "Delete the oldest versions of a model."),
    "canary": ("servers", "Serve a version alongside the others, labelled canary."),
    "promote": ("servers", "Move a label of a running server to another version."),
    "warmup": (
        "models",
        "Store warm-up requests with a model, for servers to replay.",
    ),
    "build-image": ("files", "Build an image with the models inside."),
    "serve": ("servers", "Start a server and wait until its models are available."),
    "ps": ("servers", "List the servers that tfkit runs."),
    "status": ("servers", "Show the versions of a model and their states."),
    "top": ("top", "Show what servers do now, until Ctrl-C."),
    "logs": ("servers", "Show the log of a server."),
    "reload": ("servers", "Change the models of a running server."),
    "restart": ("servers", "Stop a server and start it again."),
    "scale": ("servers", "Change how many replicas a server has."),
    "stop": ("servers", "Stop servers."),
    "metadata": ("models", "Show the signatures of a model."),
    "predict": ("predict", "Classify pictures."),
    "playground": ("playground", "Serve a local page on which to try models."),
    "evaluate": ("evaluate", "Measure how good a model is on labelled examples."),
    "request": ("predict", "Call any signature with the contents of files and show its outputs."),
    "perf": ("perf", "Measure latency and throughput."),
    "capacity": (
        "perf",
        "Say how many replicas keep a limit on latency, from runs of one of them.",
    ),
    "tune": ("perf", "Find the batching parameters and thread flags that serve a model best."),
    "doctor": ("servers", "Check what this machine can run."),
    "completion": ("options", "Print the shell completion script."),
}


class _LazyGroup(click.Group):
    """A group that imports a command only when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order of a first use."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"tfserve_kit.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, f"{cmd_name.replace('-', '_')}_command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; name the nearest one for a mistyped name."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from tfserve_kit.errors import did_you_mean

            ctx.fail(f"No such command {args[0]!r}: {did_you_mean(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing them."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_text) for name, (_, help_text) in COMMANDS.items()])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="tfserve-kit", prog_name="tfkit")
def cli() -> None:
    """Render, stage, launch, call and measure TensorFlow Serving."""


def _looked_into(error: TfkitError) -> TfkitError:
    """Return an error that also says what answers in place of a server that could not be asked."""
    if not isinstance(error, ServerUnreachable) or not error.url:
        return error
    from tfserve_kit.clients import addresses

    found = addresses.other_protocol(addresses.read(error.url))
    if found is None:
        return error
    what, remedy = found
    text = f"no model server answers at {error.url}: {what}"
    return ServerUnreachable(text, remedy=remedy)


def main(argv: list[str] | None = None) -> None:
    """Run the command line and exit with the documented code."""
    arguments = sys.argv[1:] if argv is None else argv
    output.guard_streams()
    try:
        code = cli.main(arguments, prog_name="tfkit", standalone_mode=False)
    except TfkitError as error:
        output.failure(_looked_into(error), as_json="--json" in arguments)
        sys.exit(exits.exit_code(error))
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        with contextlib.suppress(OSError):
            output.note("Interrupted.")
        sys.exit(exits.INTERRUPTED)
    except OSError as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # click could not say so
            sys.exit(exits.INTERRUPTED)  # for the terminal is what is gone
        raise
    sys.exit(code if isinstance(code, int) else exits.OK)
