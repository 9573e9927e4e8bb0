"""`tfkit playground`."""

import os
import sys
import warnings
import webbrowser
from pathlib import Path

import click

from tfserve_kit.cli import output
from tfserve_kit.cli.options import (
    ServerChoice,
    base_path_option,
    server_options,
    signature_option,
    version_options,
)
from tfserve_kit.cli.picture_options import given, picture_options
from tfserve_kit.cli.target import destinations
from tfserve_kit.pictures.model import PictureOptions
from tfserve_kit.serving.access import ServedModel

_DEFAULT_PORT = 8580


@click.command("playground")
@server_options
@version_options
@signature_option
@click.option("--top", type=click.IntRange(1, 100), default=5, show_default=True, metavar="K",
              help="How many classes to show at first.")  # fmt: skip
@base_path_option
@click.option("--rest-url", metavar="URL",
              help="REST address of the same server, where --url is gRPC: for curl, and for the "
              "server's own times.")  # fmt: skip
@picture_options
@click.option("--host", default="127.0.0.1", show_default=True, metavar="HOST",
              help="Address to serve the page at.")  # fmt: skip
@click.option("--port", type=click.IntRange(0, 65535), default=_DEFAULT_PORT, show_default=True,
              metavar="PORT", help="Port of the page; 0 for any that is free.")  # fmt: skip
@click.option("--open/--no-open", "is_opened", default=None,
              help="Open a browser; if left out, where there is a desktop.")  # fmt: skip
def playground_command(
    server: ServerChoice,
    timeout_s: float,
    version: int | None,
    label: str | None,
    signature: str,
    top: int,
    base_path: Path | None,
    rest_url: str | None,
    asked: PictureOptions,
    host: str,
    port: int,
    is_opened: bool | None,
) -> None:
    """Serve a local page on which to try models.

    Drop, paste or choose pictures, or type values for other signatures, and see classes, latency
    and the prepared input; compare two versions; copy the request as a command. The page is for
    whoever can reach HOST: by default, this machine alone. It loads nothing from elsewhere. Ctrl-C
    ends it.
    """
    from tfserve_kit.playground.server import Playground, is_loopback
    from tfserve_kit.playground.session import PlaygroundSession, RequestSettings

    first = destinations(*server)[0]
    target = first.target(version, label, signature)
    named = server.model or (first.model if first.version is not None or first.label else None)

    def models() -> list[ServedModel]:
        return destinations(first.url, server.protocol, named, server.access)

    settings = RequestSettings(
        asked=asked,
        base_path=base_path.absolute() if base_path else None,
        timeout_s=timeout_s,
        rest_url=rest_url.rstrip("/") if rest_url else None,
        start=target,
        top=top,
        argv=given(),
        labels=_labels(),
    )
    warnings.filterwarnings("ignore", module="PIL")  # errors alone speak of a picture
    with Playground(PlaygroundSession(models, settings), host, port) as page:
        output.result("playground", None, as_json=False, text=f"Playground: {page.url}")
        if not is_loopback(host):
            output.note("Note: whoever can reach this address can use the models as you can.")
        output.note("Ctrl-C ends it.")
        if _is_desktop() if is_opened is None else is_opened:
            webbrowser.open(page.url)
        page.wait()


def _is_desktop() -> bool:
    """Say whether a browser would not open in this very terminal, or nowhere."""
    has_windows = sys.platform in {"darwin", "win32"}
    return sys.stdout.isatty() and (
        has_windows or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    )


def _labels() -> tuple[str, str | None] | None:
    """Return the file with the names of classes and its encoding, as they were given."""
    given_ones = click.get_current_context().params
    file = given_ones["labels_file"]
    return (str(file.absolute()), given_ones["text_encoding"]) if file else None
