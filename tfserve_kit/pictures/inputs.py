"""The inputs of a signature: how it wants its pictures, who says so, and what goes beside them."""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import PurePath
from shlex import quote
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tfserve_kit.errors import UsageError, did_you_mean
from tfserve_kit.pictures.graph import PictureFacts, PictureGraph
from tfserve_kit.pictures.preprocessing import Layout, Preprocessing
from tfserve_kit.savedmodel import Signature, TensorSpec
from tfserve_kit.tensors import dtypes

# Of a row: [height, width, channels], [height, width] of grey, or [values].
_IMAGE_RANK, GREY_RANK, FLAT_RANK = 3, 2, 1
_CHANNELS = {1, 3}  # grey and colour
Source = Literal["note", "option", "graph", "signature", "name", "assumed"]


# The option that decides what is assumed otherwise, by what it is about.
_OPTIONS = {
    "size": "--size HEIGHTxWIDTH",
    "channels": "--channel-order",
    "range": "--range LOW,HIGH",
    "encoding": "--encoding",
    "output": "--output NAME",
}


class Choice(NamedTuple):
    """One thing that was decided about the input, and what decided it.

    Attributes:
        what: what it is about, such as `range`.
        value: what was decided, such as `0 to 255`.
        source: `option`, `note` (stored with the version), `graph`, `signature`, `name` (of the
            input), or `assumed`.
        because: the place in the graph that shows it.
        option: what changes it, where it was assumed.
    """

    what: str
    value: str
    source: Source
    because: str = ""
    option: str = ""

    def __str__(self) -> str:
        source = f"from the {self.source}: {self.because}" if self.because else self.source
        about = "sent as" if self.what == "encoding" else self.what
        verb = " is" if self.what.startswith("input ") else ""
        return f"{about}{verb} {self.value} ({source})"

    @property
    def change(self) -> str:
        """Which option decides it."""
        return f"change: {self.option or _OPTIONS[self.what]}"


def told(alias: str, choices: Iterable[Choice], change: str = "") -> str:
    """Tell what was decided about an input, but for what its shape leaves no doubt about.

    Args:
        alias: of the input.
        choices: what was decided.
        change: what changes all that was assumed; an option for each if left out.
    """
    shown = [each for each in choices if each.what != "size"]
    is_assumed = any(each.source == "assumed" for each in shown)
    parts = [
        f"{str(each)[:-1]}; {each.change})" if each.source == "assumed" and not change else each
        for each in shown
    ]
    end = f" (change what is assumed: {change})" if change and is_assumed else ""
    return f"{alias!r}: {'; '.join(map(str, parts))}{end}"


@dataclass(frozen=True, slots=True)
class ImageInput:
    """The input of a signature that takes pictures.

    Attributes:
        alias: name of the input.
        spec: its dtype and shape.
        how: how to prepare them, complete and without a mode.
        choices: what was decided, and by what; what was assumed decides the answer as well.
    """

    alias: str
    spec: TensorSpec
    how: Preprocessing
    choices: tuple[Choice, ...] = ()

    @property
    def encoded(self) -> bool:
        """Whether the model decodes the picture itself: its input is a string."""
        return self.spec.dtype is dtypes.STRING

    @property
    def batched(self) -> bool:
        """Whether the input has an axis for several pictures."""
        return _is_batched(self.spec)

    @property
    def rows(self) -> int | None:
        """How many pictures each request must have; None if that is open."""
        if not self.batched:
            return 1
        return self.spec.shape[0] if self.spec.shape else None

    def join(self, rows: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """Return prepared pictures as the input's value.

        Raises:
            UsageError: there are several, and the input takes one.
        """
        if not self.batched:
            if len(rows) > 1:
                text = f"input {self.alias!r} takes one picture in a request, not {len(rows)}"
                raise UsageError(text, remedy="give --batch-size 1")
            return rows[0]
        return np.stack(rows) if len(rows) > 1 else rows[0][np.newaxis]


def _is_batched(spec: TensorSpec) -> bool:
    """Say whether the first axis counts pictures: [height, width, 3] has none that does."""
    if spec.shape is None:
        return True
    if spec.dtype is dtypes.STRING:
        return bool(spec.shape)
    if len(spec.shape) == _IMAGE_RANK:
        return spec.shape[0] is None and spec.shape[-1] not in _CHANNELS
    return len(spec.shape) != FLAT_RANK


def row_axes(spec: TensorSpec) -> tuple[int | None, ...] | None:
    """Return the axes of one picture; None if even their number is open."""
    if spec.shape is None:
        return None
    return spec.shape[1:] if _is_batched(spec) else spec.shape


def image_input(
    signature: Signature,
    note: Preprocessing,
    *,
    options: Preprocessing | None = None,
    graph: PictureGraph | None = None,
    alias: str = "",
    given: Collection[str] = (),
) -> ImageInput:
    """Find out how a signature wants its pictures.

    Args:
        signature: one of its inputs takes pictures: string of any shape with one element for each
            picture, number [b, height, width, channels], [b, channels, height, width],
            [b, height, width] or [b, height * width * channels]; without the first axis, one
            picture at a time.
        note: what is known beside the signature; it wins over what the graph and shape tell.
        options: what the caller says; it wins over the note.
        graph: the version's graph, which tells what the note leaves open.
        alias: the input for the pictures; empty to find it.
        given: the inputs that something else fills.

    Raises:
        UsageError: the signature takes no picture, or not enough is known about it.
    """
    alias = alias or _picture_alias(signature, given)
    if alias not in signature.inputs:
        raise UsageError(
            f"signature {signature.name!r} has no input {alias!r}",
            remedy=did_you_mean(alias, signature.inputs),
        )
    spec = signature.inputs[alias]
    said = _Said(note.resolved(), (options or Preprocessing()).resolved())
    how = note.overridden_by(options or Preprocessing()).resolved()
    facts = _Facts(graph, alias)
    if spec.dtype is dtypes.STRING:
        return _encoded_input(alias, spec, how, said, facts)
    axes = (None,) * _IMAGE_RANK if spec.shape is None else row_axes(spec) or ()
    if spec.dtype is None or spec.dtype.name == "bool" or not _is_picture(spec, axes):
        raise UsageError(
            f"input {alias!r} takes {spec}, not a picture",
            remedy=_instead(signature, alias, spec),
        )
    guess = _guess(axes, how.layout)
    value_range, range_choice = _value_range(spec, how, said, facts)
    how = replace(guess, value_range=value_range).overridden_by(how)
    if how.height is None or how.width is None or how.channels is None:
        what = "shape of" if spec.shape is None else "picture size for"
        raise UsageError(
            f"the {what} input {alias!r} ({spec}) is not known",
            remedy=f"for a picture, give {_open(how)}; else {_instead(signature, alias, spec)}",
        )
    _require_possible(signature, alias, how)
    _require_fit(alias, spec, axes, how)
    return ImageInput(alias, spec, how, (*_shape_choices(how, guess, said), range_choice))


def _open(how: Preprocessing) -> str:
    """Return the options for what is not known of the size."""
    size = "--size HEIGHTxWIDTH" if how.height is None or how.width is None else ""
    channels = "--channels 1 or 3" if how.channels is None else ""
    return " and ".join(filter(None, (size, channels)))


def _instead(signature: Signature, alias: str, spec: TensorSpec) -> str:
    """Return what to do with a signature whose input takes no picture."""
    others = ", ".join(sorted(each for each in signature.inputs if each != alias))
    choose = f"choose another input ({others}) with --picture-input, or " if others else ""
    sizes = ["?" if size is None else str(size) for size in spec.shape or ()]
    if sizes and sizes[0] == "?":
        sizes[0] = "rows"
    shape = "any shape" if spec.shape is None else f"shape [{', '.join(sizes)}]"
    kind = f", {spec.dtype.name}" if spec.dtype else ""
    return (
        f"{choose}send numbers: `tfkit request FILE.npy`, an array of {shape}{kind}, saved by "
        "numpy.save"
    )


def body_of(aliases: Iterable[str]) -> str:
    """Return how the JSON of a request names its inputs."""
    pairs = ", ".join(f"{json.dumps(alias, ensure_ascii=False)}: ..." for alias in aliases)
    return f'{{"inputs": {{{pairs}}}}}'


def _is_picture(spec: TensorSpec, axes: tuple[int | None, ...]) -> bool:
    if len(axes) == FLAT_RANK:
        return _is_batched(spec) or axes[0] is not None
    return len(axes) in {_IMAGE_RANK, GREY_RANK}


def _picture_alias(signature: Signature, given: Collection[str]) -> str:
    """Return the input that takes pictures, where only one can."""
    left = [
        each for each in signature.inputs if each not in given and each not in signature.optional
    ] or [each for each in signature.inputs if each not in given]
    able = [each for each in left if _may_be_picture(signature.inputs[each])]
    if len(left) == 1 or len(able) == 1:
        return (able or left)[0]
    telling = [each for each in able if any(word in each.lower() for word in _PICTURE_WORDS)]
    if len(telling) == 1:
        return telling[0]
    names = ", ".join(f"{each} {spec}" for each, spec in signature.inputs.items()) or "none"
    raise UsageError(
        f"signature {signature.name!r} has {len(signature.inputs)} inputs ({names}): it is not "
        "clear which takes the picture",
        remedy="give --picture-input NAME, and the others by --set NAME=VALUE; if none takes "
        f"pictures, send values: `tfkit request FILE.json`, with {body_of(signature.inputs)}",
    )


_PICTURE_WORDS = ("image", "picture", "photo", "img", "pixel", "jpeg", "jpg", "png", "bytes")


def _may_be_picture(spec: TensorSpec) -> bool:
    if spec.dtype is None or spec.dtype.name == "bool":
        return False
    if spec.dtype is dtypes.STRING:
        return _is_column(spec)
    axes = row_axes(spec)
    return axes is None or len(axes) in {_IMAGE_RANK, GREY_RANK}


def _is_column(spec: TensorSpec) -> bool:
    """Say whether a string input has one element for each row."""
    return all(size in {None, 1} for size in (spec.shape or ())[1:])


class _Said(NamedTuple):
    """What the note and the options say."""

    note: Preprocessing
    options: Preprocessing

    def source(self, *fields: str) -> Source | None:
        """Return who sets any of these fields."""
        for source, where in (("option", self.options), ("note", self.note)):
            if any(getattr(where, field) is not None for field in fields):
                return source  # type: ignore[return-value]  # one of Source's
        return None


class _Facts:
    """What the graph tells of the input, asked for only where nothing else decides."""

    def __init__(self, graph: PictureGraph | None, alias: str) -> None:
        self._graph, self._alias = graph, alias

    @cached_property
    def found(self) -> PictureFacts:
        return self._graph.input(self._alias) if self._graph else PictureFacts()

    @property
    def may_decode(self) -> bool:
        return self._graph is None or self._graph.may_decode


def _encoded_input(
    alias: str, spec: TensorSpec, how: Preprocessing, said: _Said, facts: _Facts
) -> ImageInput:
    if not _is_column(spec):
        raise UsageError(
            f"input {alias!r} is {spec}: more than one element for each picture",
            remedy="choose another input with --picture-input, or send values: `tfkit request "
            f"FILE.json`, with {body_of([alias])}",
        )
    source, because = said.source("encoding"), ""
    encoding = how.encoding
    if encoding is None and facts.found.encoding:
        encoding, source, because = facts.found.encoding, "graph", facts.found.because
    elif encoding is None:
        name = alias.lower()
        if not facts.may_decode:
            raise UsageError(
                f"input {alias!r} is {spec}, and nothing in the model decodes a picture: it takes "
                "text or other bytes",
                remedy=f"send texts: `tfkit request FILE.json`, with {body_of([alias])}; "
                "--encoding raw sends the picture's bytes anyway",
            )
        is_text = name.endswith("b64") or name.startswith("b64_") or "base64" in name
        encoding, source = ("websafe", "name") if is_text else ("raw", "assumed")
    value = {"raw": "the file's bytes", "base64": "base64", "websafe": "web-safe base64"}[encoding]
    choice = Choice("encoding", value, source or "assumed", because)
    return ImageInput(alias, spec, replace(how, encoding=encoding), (choice,))


def _value_range(
    spec: TensorSpec, how: Preprocessing, said: _Said, facts: _Facts
) -> tuple[tuple[float, float], Choice]:
    """Return what black and white become, and who says so: the graph or nobody, but for bytes."""
    is_float = spec.dtype is not None and spec.dtype.name in _FLOATS
    source, because = said.source("value_range"), ""
    found = how.value_range
    if found is None and spec.dtype is not None and spec.dtype.name == "uint8":
        found, source = (0.0, 255.0), "signature"
    elif found is None and (shown := facts.found.value_range) and (is_float or shown[1] > 1):
        found, source, because = shown, "graph", facts.found.because
    elif found is None:
        found, source = (0.0, 1.0 if is_float else 255.0), "assumed"
    value = " to ".join(f"{each:g}" for each in found)
    if how.mean or how.std:
        value += ", then mean and std"
    return found, Choice("range", value, source or "assumed", because)


_FLOATS = frozenset({"float", "double", "half", "bfloat16"})


def _shape_choices(how: Preprocessing, guess: Preprocessing, said: _Said) -> list[Choice]:
    guessed = guess.height is not None and guess.channels is not None
    from_shape: Source = "signature" if guessed else "assumed"
    size = f"{how.height}x{how.width}"
    found = [Choice("size", size, said.source("height", "width") or from_shape)]
    if how.channels == 1:
        found.append(Choice("channels", "grey", said.source("channels") or from_shape))
    else:
        order = (how.channel_order or "rgb").upper()
        found.append(Choice("channels", order, said.source("channel_order") or "assumed"))
    if how.layout == "channels_first":
        found.append(Choice("layout", "channels first", said.source("layout") or "signature"))
    return found


def _guess(axes: tuple[int | None, ...], layout: Layout | None) -> Preprocessing:
    """Return what the shape suggests."""
    if len(axes) == _IMAGE_RANK:
        if (layout or _layout(axes)) == "channels_first":
            return Preprocessing(axes[1], axes[2], axes[0], layout="channels_first")
        return Preprocessing(axes[0], axes[1], axes[2])
    if len(axes) == GREY_RANK:
        return Preprocessing(axes[0], axes[1], 1)
    values = axes[-1] if axes else None
    for channels in (1, 3):
        side = round((values / channels) ** 0.5) if values else 0
        if values and side * side * channels == values:
            return Preprocessing(side, side, channels)
    return Preprocessing()


def _layout(axes: tuple[int | None, ...]) -> Layout:
    """Return where the channels are: first, where only so their number is that of a picture."""
    first = axes[0] in _CHANNELS and axes[-1] not in _CHANNELS
    return "channels_first" if first else "channels_last"


def _require_possible(signature: Signature, alias: str, how: Preprocessing) -> None:
    """Refuse values that no picture can be brought to, from whichever source they came."""
    spec = signature.inputs[alias]
    if how.channels not in _CHANNELS or min(how.height or 0, how.width or 0) < 1:
        is_open = spec.shape is None or None in spec.shape[1:]
        options = "; for a picture, give its --size and --channels" if is_open else ""
        text = f"takes {how.channels} channels, but a picture has 1 (grey) or 3 (colour)"
        if how.channels in _CHANNELS:
            text = f"takes {how.height}x{how.width} with {how.channels} channels, as no picture is"
        raise UsageError(
            f"input {alias!r} ({spec}) {text}", remedy=_instead(signature, alias, spec) + options
        )
    for option, values in (("--mean", how.mean), ("--std", how.std)):
        if values and len(values) not in {1, how.channels}:
            text = f"{option} has {len(values)} values for {how.channels} channels"
            raise UsageError(text, remedy="give one value, or one for each channel")
    if 0 in (how.std or ()):
        text = "--std holds a zero, by which nothing can be divided"
        raise UsageError(text, remedy="give the standard deviations, above 0, or 1 for none")
    if how.crop_fraction is not None and not 0 < how.crop_fraction <= 1:
        text = f"--crop-fraction {how.crop_fraction:g} is not above 0 and up to 1"
        raise UsageError(text, remedy="give the part of height and width to keep, such as 0.875")
    low, high = range_of(how)
    limits = spec.dtype and spec.dtype.numpy and limits_of(spec.dtype.numpy)
    if limits and not limits[0] <= min(low, high) <= max(low, high) <= limits[1]:
        raise UsageError(
            f"pixels from {low:g} to {high:g} do not fit input {alias!r}, {spec}",
            remedy=f"give a --range within {limits[0]},{limits[1]}",
        )


def range_of(how: Preprocessing) -> tuple[float, float]:
    """Return what black and white become; 0 and 255 where nothing is said.

    Raises:
        UsageError: it is not a pair.
    """
    values = how.value_range or (0.0, 255.0)
    if len(values) != 2:  # noqa: PLR2004 (low, high)
        raise UsageError(f"--range has {len(values)} values", remedy="give two: LOW,HIGH")
    return values


def limits_of(dtype: np.dtype[Any]) -> tuple[int, int] | None:
    """Return the least and the greatest value of an integer type; None for others."""
    return (np.iinfo(dtype).min, np.iinfo(dtype).max) if dtype.kind in "iu" else None


def _require_fit(
    alias: str, spec: TensorSpec, axes: tuple[int | None, ...], how: Preprocessing
) -> None:
    size = (how.height, how.width, how.channels)
    if len(axes) == _IMAGE_RANK:
        first = how.layout == "channels_first"
        wanted = (how.channels, how.height, how.width) if first else size
        fits = all(want in {None, have} for want, have in zip(axes, wanted, strict=True))
    elif len(axes) == GREY_RANK:
        fits = all(want in {None, have} for want, have in zip((*axes, 1), size, strict=True))
    else:
        fits = axes[-1] in {None, np.prod([each or 0 for each in size])}
    if not fits:
        height, width, channels = size
        raise UsageError(
            f"a picture of {height}x{width} with {channels} channels does not fit "
            f"input {alias!r}, {spec}",
            remedy="leave out --size, --channels and --layout to use what the model says",
        )


# String inputs called so only come back in the answer, to tell rows apart.
_KEYS = frozenset(
    {"key", "keys", "id", "ids", "name", "names", "filename", "image_id", "image_key"}
)
_FLAGS = {"true": True, "1": True, "false": False, "0": False}


class Keys:
    """The inputs that nobody gives and that only come back in the answer.

    Args:
        signature: of the model.
        given: inputs that something else fills.

    Attributes:
        choices: what is sent without having been asked for.
        texts: of each of these inputs.
    """

    def __init__(self, signature: Signature, given: Collection[str]) -> None:
        self._signature = signature
        self.texts = {
            name: "{name}"
            for name, spec in signature.inputs.items()
            if spec.dtype is dtypes.STRING and name.lower() in _KEYS and name not in given
        }
        self.choices = tuple(
            Choice(f"input {name!r}", "the picture's name", "assumed", option=f"--set {name}=VALUE")
            for name in sorted(self.texts)
        )

    def values(self, pictures: Sequence[tuple[str, int]]) -> dict[str, NDArray[Any]]:
        """Return the value of each input, for pictures by name and index."""
        specs = self._signature.inputs
        return {name: _column(name, text, specs[name], pictures)
                for name, text in self.texts.items()}  # fmt: skip


class Companions:
    """Fills the inputs that no picture fills.

    Args:
        signature: of the model.
        picture: the input that takes the pictures.
        given: what `--set NAME=VALUE` says: a text, number, true or false, or a JSON list, in
            which {name}, {stem} and {index} stand for each picture's own.

    Attributes:
        choices: what is sent without having been asked for.

    Raises:
        UsageError: an input that does not exist, has no value, or cannot hold it.
    """

    def __init__(self, signature: Signature, picture: str, given: Mapping[str, str]) -> None:
        for name in given:
            if name not in signature.inputs:
                text = f"--set {name}: signature {signature.name!r} has no input {name!r}"
                others = signature.inputs.keys() - {picture}
                leave = f"leave out --set {quote(name)}"
                known = f"{did_you_mean(name, others)}; or {leave}" if others else leave
                alone = "" if others else ": the picture is the only input"
                raise UsageError(text, remedy=known + alone)
            if name == picture:
                text = f"--set {name}: the pictures fill this input"
                raise UsageError(text, remedy="name another one with --picture-input")
        rest = {name: spec for name, spec in signature.inputs.items() if name != picture}
        keys = Keys(signature, {picture, *given})
        self._texts = {**keys.texts, **given}
        self._specs = rest
        self.choices = keys.choices
        missing = rest.keys() - self._texts.keys() - signature.optional
        if missing:
            listed = ", ".join(f"{name} {rest[name]}" for name in sorted(missing))
            raise UsageError(
                f"signature {signature.name!r} needs more than a picture: {listed}",
                remedy=f"set {'it' if len(missing) == 1 else 'each'}: --set "
                f"{quote(min(missing))}=VALUE; in VALUE, {{name}}, {{stem}} and {{index}} are "
                "replaced by the picture's",
            )
        self.values([("name", 0)])

    def values(self, pictures: Sequence[tuple[str, int]]) -> dict[str, NDArray[Any]]:
        """Return the value of each input, for pictures by name and index.

        Raises:
            UsageError: an input cannot hold its value.
        """
        return {
            name: _column(name, text, self._specs[name], pictures)
            for name, text in self._texts.items()
        }


def _column(
    name: str, text: str, spec: TensorSpec, pictures: Sequence[tuple[str, int]]
) -> NDArray[Any]:
    rows = [_row(name, _filled(text, *picture), spec) for picture in pictures]
    row, shape = rows[0], spec.shape
    if shape is not None and shape == row.shape:
        return row  # it has no axis for pictures
    if shape is not None and shape[1:] != row.shape:
        if row.size == 1 and all(size in {None, 1} for size in shape[1:]):
            rows = [each.reshape((1,) * (len(shape) - 1)) for each in rows]
        else:
            text = f"--set {name}: a value of shape {list(row.shape)} does not fit {spec}"
            raise UsageError(text, remedy="give a JSON list of the input's own shape")
    return np.stack(rows)


def _filled(text: str, name: str, index: int) -> str:
    path = PurePath(name)
    for mark, value in (("{name}", path.name), ("{stem}", path.stem), ("{index}", str(index))):
        text = text.replace(mark, value)
    return text


def _row(name: str, text: str, spec: TensorSpec) -> NDArray[Any]:
    if spec.dtype is dtypes.STRING:
        value = np.empty((), object)
        value[()] = text.encode("utf-8", "surrogateescape")
        return value
    target = spec.dtype.numpy if spec.dtype else None
    if target is not None and target.kind == "b" and text.lower() in _FLAGS:
        return np.array(_FLAGS[text.lower()])
    try:
        plain = np.array(json.loads(text))
        exact = plain.astype(target) if target is not None else None
    except (ValueError, OverflowError, RecursionError):
        exact = None
    if exact is None or not _is_same(plain, exact):
        raise UsageError(
            f"--set {name}={text}: {name} is {spec}, which cannot hold it",
            remedy="give a number, true or false, or a JSON list of them",
        )
    return exact


def _is_same(plain: NDArray[Any], exact: NDArray[Any]) -> bool:
    """Say whether a value became itself; floats may be rounded."""
    if plain.dtype.kind not in "iufb" or (exact.dtype.kind == "b") != (plain.dtype.kind == "b"):
        return False
    return exact.dtype.kind not in "iu" or bool((exact == plain).all())
