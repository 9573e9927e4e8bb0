"""Options that say how a picture becomes a model's input; they win over the stored note."""

import math
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, get_args

import click
from click.core import ParameterSource

from tfserve_kit.cli.options import finite
from tfserve_kit.pictures.preprocessing import (
    ChannelOrder,
    Encoding,
    Framing,
    Layout,
    Mode,
    Preprocessing,
    ResizeMethod,
)


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
        found = tuple(float(part) for part in value.split(","))
        if not all(map(math.isfinite, found)):
            raise ValueError  # noqa: TRY301 (said below)
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list of numbers, such as 0,1") from None
    return found


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


_OPTIONS = (
    click.option("--labels", "labels_file", type=click.Path(path_type=Path), metavar="FILE",
                 help="Class names: lines, index,name rows, JSON or a labels_map.pbtxt."),
    click.option("--text-encoding", metavar="NAME",
                 help="Encoding of text files that are not UTF-8 and not marked, such as "
                 "latin-1."),
    click.option("--size", callback=_size, metavar="HEIGHTxWIDTH",
                 help="Size of the model's input."),
    click.option("--channels", type=click.Choice(["1", "3"]), help="1 for grey, 3 for colour."),
    click.option("--resize", type=click.Choice(get_args(ResizeMethod)),
                 help="Resizing method of tf.image.resize; bilinear if left out."),
    click.option("--antialias/--no-antialias", default=None,
                 help="Whether bilinear and bicubic use all pixels when shrinking; no if left "
                 "out."),
    click.option("--framing", type=click.Choice(get_args(Framing)),
                 help="How to fit another aspect ratio; stretch if left out."),
    click.option("--crop-fraction", type=finite(min=0, max=1, min_open=True), metavar="PART",
                 help="Keep only the central part of height and width, such as 0.875."),
    click.option("--mode", type=click.Choice(get_args(Mode)),
                 help="Range, mean, std and channel order as in preprocess_input of Keras."),
    click.option("--range", "value_range", callback=_numbers, metavar="LOW,HIGH",
                 help="What black and white become, such as 0,1 or -1,1 or 0,255."),
    click.option("--mean", callback=_numbers, metavar="M[,M,M]",
                 help="Mean to subtract after scaling."),
    click.option("--std", callback=_numbers, metavar="S[,S,S]",
                 help="Standard deviation to divide by, after the mean."),
    click.option("--channel-order", type=click.Choice(get_args(ChannelOrder)),
                 help="Channel order of the model; rgb if left out."),
    click.option("--layout", type=click.Choice(get_args(Layout)),
                 help="Position of the channels; taken from the input's shape if left out."),
    click.option("--encoding", type=click.Choice(get_args(Encoding)),
                 help="What to send to a string input: the file itself (raw), or base64 text."),
    click.option("--softmax", is_flag=True,
                 help="Turn scores into probabilities; a single column by the logistic "
                 "function."),
    click.option("--output", "output_alias", default="", metavar="NAME",
                 help="Output to show, where it is not clear which one is meant."),
    click.option("--picture-input", default="", metavar="NAME",
                 help="Input that takes the pictures, where it is not clear."),
    click.option("--set", "companions", multiple=True, callback=_assignments,
                 metavar="NAME=VALUE",
                 help="Value of an input beside the picture; {name}, {stem} and {index} stand "
                 "for the picture's own. May be repeated."),
)  # fmt: skip


def picture_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options about pictures and the model's answer, and collect them as `asked`."""

    @wraps(function)
    def collected(
        *,
        labels_file: Path | None,
        text_encoding: str | None,
        size: tuple[int, int] | None,
        channels: str | None,
        softmax: bool,
        output_alias: str,
        picture_input: str,
        companions: dict[str, str],
        **others: Any,
    ) -> Any:
        from tfserve_kit.pictures.model import PictureOptions

        height, width = size or (None, None)
        preprocessing = Preprocessing(
            height=height,
            width=width,
            channels=int(channels) if channels else None,
            labels=_labels(labels_file, text_encoding) if labels_file else None,
            **{name: others.pop(name) for name in _SAME},
        )
        asked = PictureOptions(
            options=preprocessing,
            output=output_alias,
            softmax=softmax,
            picture_input=picture_input,
            companions=companions,
        )
        return function(asked=asked, **others)

    for option in reversed(_OPTIONS):
        option(collected)
    return collected


def _labels(file: Path, encoding: str | None) -> tuple[str, ...]:
    from tfserve_kit.pictures import labels

    return labels.read(file, encoding)


# Options that are called as the fields of `Preprocessing` that they set.
_SAME = ("resize", "antialias", "framing", "crop_fraction", "mode", "value_range", "mean", "std",
         "channel_order", "layout", "encoding")  # fmt: skip


def given() -> tuple[str, ...]:
    """Return the options of the running command about pictures, as another command takes them.

    Paths are absolute, so that it can run in any folder.
    """
    context = click.get_current_context()
    words: list[str] = []
    for option in context.command.params:
        is_given = context.get_parameter_source(option.name or "") is ParameterSource.COMMANDLINE
        if is_given and isinstance(option, click.Option) and option.name in _ABOUT_PICTURES:
            words += _words(option, context.params[option.name])
    return tuple(words)


_ABOUT_PICTURES = {"base_path", "labels_file", "text_encoding", "size", "channels", "softmax",
                   "output_alias", "picture_input", "companions", *_SAME}  # fmt: skip


def _words(option: click.Option, value: Any) -> list[str]:
    name = option.opts[0]
    if isinstance(value, bool):
        return [name if value else option.secondary_opts[0]]
    if isinstance(value, dict):
        return [word for key, each in value.items() for word in (name, f"{key}={each}")]
    if isinstance(value, tuple):
        return [name, ("x" if option.name == "size" else ",").join(map(str, value))]
    return [name, str(value.absolute() if isinstance(value, Path) else value)]
