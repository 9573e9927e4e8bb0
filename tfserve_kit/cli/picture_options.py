"""Options that say how a picture becomes a model's input; they win over the stored note."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import click

from tfserve_kit.pictures.preprocessing import (
    ChannelOrder,
    Encoding,
    Framing,
    Layout,
    Mode,
    Preprocessing,
)
from tfserve_kit.pictures.preprocessing import ResizeMethod as Resize


def _size(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    del ctx, param
    if value is None:
        return None
    try:
        height, width = (int(part) for part in value.lower().split("x"))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not HEIGHTxWIDTH, such as 224x224") from None
    return height, width


def _numbers(
    ctx: click.Context, param: click.Parameter, value: str | None
) -> tuple[float, ...] | None:
    del ctx, param
    if value is None:
        return None
    try:
        return tuple(float(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list of numbers, such as 0,1") from None


text_encoding_option = click.option(
    "--text-encoding", metavar="NAME",
    help="Of files with names that are neither UTF-8 nor marked, such as latin-1.",
)  # fmt: skip


def picture_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options; `preprocessing` takes what they were set to."""
    for option in (
        click.option("--encoding", type=click.Choice(get_args(Encoding)),
                     help="What a string input gets: the file itself (raw), or base64 text."),
        click.option("--layout", type=click.Choice(get_args(Layout)),
                     help="Where the channels are; told by the input's shape if left out."),
        click.option("--channel-order", type=click.Choice(get_args(ChannelOrder)),
                     help="What the model takes; rgb if left out."),
        click.option("--std", callback=_numbers, metavar="S[,S,S]", help="Divided by after that."),
        click.option("--mean", callback=_numbers, metavar="M[,M,M]",
                     help="Subtracted after scaling."),
        click.option("--range", "value_range", callback=_numbers, metavar="LOW,HIGH",
                     help="What black and white become, such as 0,1 or -1,1 or 0,255."),
        click.option("--mode", type=click.Choice(get_args(Mode)),
                     help="Range, mean, std and channel order as in preprocess_input of Keras."),
        click.option("--crop-fraction", type=click.FloatRange(0, 1, min_open=True), metavar="PART",
                     help="Use the middle part of height and width, such as 0.875."),
        click.option("--framing", type=click.Choice(get_args(Framing)),
                     help="What happens to other proportions; stretch if left out."),
        click.option("--antialias/--no-antialias", default=None,
                     help="Whether bilinear and bicubic weigh every pixel; no if left out."),
        click.option("--resize", type=click.Choice(get_args(Resize)),
                     help="As tf.image.resize; bilinear if left out."),
        click.option("--channels", type=click.Choice(["1", "3"]),
                     help="1 for grey, 3 for colour."),
        click.option("--size", callback=_size, metavar="HEIGHTxWIDTH",
                     help="Size of the model's input."),
        text_encoding_option,
        click.option("--labels", "labels_file", type=click.Path(path_type=Path), metavar="FILE",
                     help="Class names: lines, index,name rows, JSON or a labels_map.pbtxt."),
    ):  # fmt: skip
        function = option(function)
    return function


def model_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options about inputs and outputs; `asked` takes what they were set to."""
    for option in (
        click.option("--softmax", is_flag=True,
                     help="Turn scores into probabilities; of one column by the logistic "
                     "function."),
        click.option("--output", "output_alias", default="", metavar="NAME",
                     help="Output to show, where it is not clear which one is meant."),
        click.option("--picture-input", default="", metavar="NAME",
                     help="Input that takes the pictures, where it is not clear."),
        click.option("--set", "companions", multiple=True, callback=_assignments,
                     metavar="NAME=VALUE",
                     help="Value of an input beside the picture; {name}, {stem} and {index} stand "
                     "for the picture's own. May be repeated."),
    ):  # fmt: skip
        function = option(function)
    return function


def _assignments(
    ctx: click.Context, param: click.Parameter, values: tuple[str, ...]
) -> dict[str, str]:
    del ctx, param
    found: dict[str, str] = {}
    for text in values:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise click.BadParameter(f"{text!r} is not NAME=VALUE")
        if name in found:
            raise click.BadParameter(f"{name!r} is set twice")
        found[name] = value
    return found


def preprocessing(
    *,
    labels_file: Path | None,
    text_encoding: str | None,
    size: tuple[int, int] | None,
    channels: str | None,
    **same: Any,
) -> Preprocessing:
    """Return what the options of `picture_options` say.

    Raises:
        UsageError: the labels cannot be read.
    """
    from tfserve_kit.clients.classifier import read_labels

    height, width = size or (None, None)
    return Preprocessing(
        height=height,
        width=width,
        channels=int(channels) if channels else None,
        labels=read_labels(labels_file, text_encoding) if labels_file else None,
        **same,
    )
