"""Whether a preprocessing note fits the signature that pictures are sent to."""

from collections.abc import Iterator, Mapping

from tfserve_kit.errors import Problem, UsageError
from tfserve_kit.pictures.labels import Labels
from tfserve_kit.pictures.outputs import choose_head, class_count, is_one_column
from tfserve_kit.pictures.preprocessing import Preprocessing
from tfserve_kit.savedmodel import DEFAULT_SIGNATURE, Signature, TensorSpec
from tfserve_kit.tensors import dtypes

_IMAGE_RANK = 4  # [batch, height, width, channels]
_FLAT_RANK = 2  # [batch, height * width * channels]


def problems(note: Preprocessing, signatures: Mapping[str, Signature]) -> list[Problem]:
    """Return where a note contradicts `serving_default`, or the only signature there is.

    A note that leaves something open contradicts nothing, and neither does an open shape.
    """
    signature = signatures.get(DEFAULT_SIGNATURE)
    if signature is None and len(signatures) == 1:
        (signature,) = signatures.values()
    if signature is None:
        return []
    note = note.resolved()
    found = list(_channel_problems(note))
    if len(signature.inputs) == 1:
        ((alias, spec),) = signature.inputs.items()
        found += _size_problems(note, alias, spec)
    return found + list(_label_problems(note, signature))


def _channel_problems(note: Preprocessing) -> Iterator[Problem]:
    for name, values in (("mean", note.mean), ("std", note.std)):
        if values and note.channels and len(values) not in {1, note.channels}:
            yield Problem(name, f"has {len(values)} values for {note.channels} channels")


def _size_problems(note: Preprocessing, alias: str, spec: TensorSpec) -> Iterator[Problem]:
    if spec.dtype is dtypes.STRING or spec.shape is None:
        return
    size = (note.height, note.width, note.channels)
    if len(spec.shape) == _IMAGE_RANK:
        names = ("height", "width", "channels")
        for name, wanted, have in zip(names, size, spec.shape[1:], strict=True):
            if wanted is not None and have not in {None, wanted}:
                yield Problem(name, f"is {wanted}, but input {alias!r} is {spec}")
    elif len(spec.shape) == _FLAT_RANK and None not in size:
        height, width, channels = (each or 0 for each in size)
        if spec.shape[1] not in {None, height * width * channels}:
            text = f"and width and channels are {height}, {width}, {channels}, "
            yield Problem("height", f"{text}but input {alias!r} is {spec}")


def _label_problems(note: Preprocessing, signature: Signature) -> Iterator[Problem]:
    if note.labels is None:
        return
    try:
        head = choose_head(signature)
    except UsageError:  # it is not clear which scores they are for; callers say it
        return
    classes = class_count(head, signature)
    spec = signature.outputs.get(head.scores)
    if classes is None or spec is None:
        return
    try:
        Labels.of(note.labels).fit(classes, is_one_column=is_one_column(head, spec))
    except UsageError:
        yield Problem("labels", f"are {len(note.labels)}, but output {head.scores!r} is {spec}")
