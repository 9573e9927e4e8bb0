"""Whether an answer is one: each is held against what its request implies, as quickly as can be.

That is outputs, their types, ranks and rows.

The first answer is decoded in full. From it a pattern is kept of all that is not a number: names,
types, shapes, version. Most others fit a pattern, byte for byte, and need no decoding: in protobuf
the numbers have places of their own; in JSON, which must be valid, they are left out of the
comparison. What fits none is decoded, and so is one of a thousand that do.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Self

from numpy.typing import NDArray

from tfserve_kit import protos
from tfserve_kit.perf.load import Payload, Tally
from tfserve_kit.perf.samples import (
    EMPTY_ANSWER,
    ERROR_AS_ANSWER,
    MISSING_OUTPUT,
    OK,
    PAGE_AS_ANSWER,
    UNREADABLE_ANSWER,
    WRONG_DTYPE,
    WRONG_RANK,
    WRONG_ROWS,
    WRONG_SHAPE,
)
from tfserve_kit.savedmodel import Signature
from tfserve_kit.savedmodel.signatures import Arrays, batch_axes
from tfserve_kit.tensors import TensorError, dtypes, from_proto
from tfserve_kit.tensors import json as tensor_json
from tfserve_kit.tensors.json import read_json
from tfserve_kit.tensors.proto import decode_varint

_Axes = tuple[int | None, ...]
# Name of the type and shape of each output of an answer, by alias.
_Found = Mapping[str, tuple[str, tuple[int, ...]]]


class _Output(NamedTuple):
    """One output: `dtype` is empty, and `axes` or one of them None, where nothing is known."""

    alias: str
    dtype: str
    axes: _Axes | None

    def fault(self, dtype: str, shape: tuple[int, ...]) -> tuple[int, str]:
        """Return what is wrong with an output, as status and sentence; OK if nothing is."""
        status = OK
        if self.dtype and dtype != self.dtype:
            status = WRONG_DTYPE
        elif self.axes is not None and len(shape) != len(self.axes):
            status = WRONG_RANK
        elif wrong := list(self._wrong(shape)):
            status = WRONG_ROWS if wrong[0] == 0 else WRONG_SHAPE
        if status == OK:
            return OK, ""
        return status, f"output {self.alias!r:.80} is {_shown(dtype, shape)}, not {self}"

    def doubts(self, shape: tuple[int, ...]) -> frozenset[int]:
        """Return the axes that a shape contradicts; all of them where the rank is another."""
        if self.axes is not None and len(shape) != len(self.axes):
            return frozenset(range(len(self.axes) + 1))
        return frozenset(self._wrong(shape))

    def without(self, axes: frozenset[int] | None) -> Self:
        """Return this without some axes, or without any where the rank is in doubt."""
        if not axes or self.axes is None:
            return self
        if len(axes) > len(self.axes):
            return self._replace(axes=None)
        sizes = enumerate(self.axes)
        return self._replace(axes=tuple(None if at in axes else size for at, size in sizes))

    def _wrong(self, shape: tuple[int, ...]) -> Iterator[int]:
        for axis, wanted in enumerate(self.axes or ()):
            if wanted not in {None, shape[axis]}:
                yield axis

    def __str__(self) -> str:
        return _shown(self.dtype, self.axes)


class Expected(NamedTuple):
    """What the answer to one request must hold; two that are equal expect the same."""

    outputs: tuple[_Output, ...]

    @classmethod
    def of(cls, signature: Signature, inputs: Arrays) -> Self:
        """Return what a request implies.

        Args:
            signature: the one that is called.
            inputs: array per input alias; rows are counted where the signature's batch axes are.
        """
        axes = batch_axes(signature)
        counts = set(axes.row_counts(inputs).values())
        rows = counts.pop() if len(counts) == 1 and not axes.composites else None
        found = []
        for alias, spec in signature.outputs.items():
            shape = spec.shape
            if shape and shape[0] is None and alias not in axes.whole:
                shape = (rows, *shape[1:])
            found.append(_Output(alias, spec.dtype.name if spec.dtype else "", shape))
        return cls(tuple(found))

    def doubted(self, doubts: Mapping[str, frozenset[int]]) -> Self:
        """Return this without the axes, by output, that an answer has contradicted."""
        return self._replace(
            outputs=tuple(each.without(doubts.get(each.alias)) for each in self.outputs)
        )

    def doubts(self, trial: Arrays) -> dict[str, frozenset[int]]:
        """Return the axes, by output, that an answer contradicts; see `doubted`."""
        return {
            each.alias: each.doubts(trial[each.alias].shape)
            for each in self.outputs
            if each.alias in trial
        }

    def fault(self, found: _Found) -> tuple[int, str]:
        """Return what is wrong with an answer, as status and sentence; OK if nothing is."""
        for output in self.outputs:
            if output.alias not in found:
                return MISSING_OUTPUT, f"the answer lacks output {output.alias!r:.80}"
            status, why = output.fault(*found[output.alias])
            if status != OK:
                return status, why
        return OK, ""

    def fault_of(self, outputs: Arrays) -> tuple[int, str]:
        """Return what is wrong with the outputs of an answer that a client has decoded."""
        known = {each.alias: each.dtype for each in self.outputs}
        return self.fault(
            {
                alias: (_type_name(array, known.get(alias)), array.shape)
                for alias, array in outputs.items()
            }
        )

    @property
    def without_rows(self) -> tuple[str, ...]:
        """The outputs whose rows are not known beforehand."""
        return tuple(each.alias for each in self.outputs if not each.axes or each.axes[0] is None)


def of_calls(calls: Sequence[tuple[Signature, Arrays]], trial: Arrays) -> list[Expected]:
    """Return what each of several requests implies.

    Args:
        calls: signature and inputs of each request.
        trial: outputs of an answer to the first; sizes that it contradicts are not expected of any
            of that signature, for signatures are written by people.
    """
    expected = [Expected.of(*call) for call in calls]
    doubts = expected[0].doubts(trial)
    called = calls[0][0].name
    return [
        each.doubted(doubts) if signature.name == called else each
        for (signature, _), each in zip(calls, expected, strict=True)
    ]


def _type_name(array: NDArray[Any], wanted: str | None) -> str:
    """Return the name of an array's type; numpy may have had none for bfloat16."""
    name = dtypes.by_numpy(array.dtype).name
    return "bfloat16" if (name, wanted) == ("float", "bfloat16") else name


def _shown(dtype: str, axes: _Axes | None) -> str:
    if axes is None:
        return f"{dtype or 'anything'} of any shape"
    sizes = ["?" if size is None else str(size) for size in axes[:8]]
    return f"{dtype or 'anything'} [{', '.join(sizes)}{', ...' * (len(axes) > 8)}]"  # noqa: PLR2004 (enough)


_MOST_PATTERNS, _MOST_KEPT_BYTES = 64, 1 << 24  # of all patterns together
_SAMPLED = 0x3FF  # every 1,024th
# Numbers of TensorProto's fields (tensorflow/core/framework/tensor.proto) by how values lie there.
_FIXED = {4, 5, 6, 9, 12}
_VARINTS = {7, 10, 11, 13, 16, 17}
_LENGTH_KIND, _WIDTHS = 2, {1: 8, 5: 4}
_CONTINUED = bytes(range(0x80, 0x100))
_NUMBERS = b"0123456789.+-eE \t\r\n"

Judge = Callable[[int, bytes], int]  # key and body of an answer; returns its status


class Judges:
    """Judges the answers to some payloads.

    Args:
        payloads: what is sent in turn; those that expect nothing are not looked into.
        is_rest: whether answers are JSON.

    Attributes:
        judge: takes each answer; None if none is to be looked into.
        why: what was wrong with the last one that was.
    """

    def __init__(self, payloads: Sequence[Payload], *, is_rest: bool) -> None:
        kind = _RestJudge if is_rest else _GrpcJudge
        made = {each.expects: kind(each.expects) for each in payloads if each.expects}
        self._all = list(made.values())
        self._by_turn = [made.get(each.expects) for each in payloads]  # type: ignore[arg-type]
        self._last = self._all[0] if made else None
        self.judge: Judge | None = self._judge if made else None
        if len(made) == 1 and None not in self._by_turn:
            self.judge = self._all[0].judge

    @property
    def why(self) -> str:
        """What was wrong with the last answer that was."""
        return self._last.why if self._last else ""

    def _judge(self, key: int, body: bytes) -> int:
        judge = self._by_turn[key % len(self._by_turn)]
        if judge is None:
            return OK
        self._last = judge
        return judge.judge(key, body)

    def tally(self) -> Tally:
        """Return what was counted."""
        found = Tally()
        for each in self._all:
            found.add(each.tally())
        return found


class _Judge(ABC):
    """Judges answers of which the same is expected."""

    def __init__(self, expected: Expected) -> None:
        self._expected = expected
        self._tally = Tally(without_rows=set(expected.without_rows))
        self._patterns_left, self._bytes_left = _MOST_PATTERNS, _MOST_KEPT_BYTES
        self.why = ""

    @abstractmethod
    def judge(self, key: int, body: bytes) -> int:
        """Return the status of an answer that its protocol calls good."""

    @abstractmethod
    def _looked(self, body: bytes) -> tuple[int, int | None]:
        """Return the status of an answer, decoded in full, and its version."""

    @abstractmethod
    def _learn(self, body: bytes, version: int | None) -> None:
        """Keep a right answer as a pattern, if there is room."""

    def _decode(self, body: bytes) -> int:
        """Judge an answer that fits no pattern."""
        status, version = self._looked(body)
        self._tally.checked += 1
        self._tally.decoded += 1
        if status == OK and version is not None:
            self._tally.versions[version] += 1
        if status == OK and self._patterns_left:
            self._learn(body, version)
        return status

    def _sampled(self, body: bytes) -> int:
        """Decode an answer that fits a pattern, to be sure."""
        self._tally.decoded += 1
        return self._looked(body)[0]

    def _has_room(self, size: int) -> bool:
        """Say whether another pattern may be kept, and count it if so."""
        if not self._patterns_left or size > self._bytes_left:
            return False
        self._patterns_left -= 1
        self._bytes_left -= size
        return True

    def tally(self) -> Tally:
        """Return what was counted."""
        return self._tally


class _Pattern:
    """A right answer without its numbers.

    Attributes:
        pieces: what lies between the numbers, and where.
        varints: start, end and number of the values that have no fixed length.
        version: the one that answered.
        count: how many answers fitted.
    """

    __slots__ = ("count", "pieces", "varints", "version")

    def __init__(self, body: bytes, holes: "Sequence[_Hole]", version: int) -> None:
        ends = [0, *(hole.end for hole in holes)]
        starts = [*(hole.start for hole in holes), len(body)]
        pairs = zip(ends, starts, strict=True)
        self.pieces = tuple((start, body[start:end]) for start, end in pairs if end > start)
        self.varints = tuple(
            (hole.start, hole.end, _count(body, hole)) for hole in holes if hole.has_varints
        )
        self.version, self.count = version, 0


class _Hole(NamedTuple):
    """Where the numbers of an output lie."""

    start: int
    end: int
    has_varints: bool


class _GrpcJudge(_Judge):
    """Judges PredictResponses."""

    def __init__(self, expected: Expected) -> None:
        super().__init__(expected)
        self._response = protos.PredictResponse
        self._patterns: dict[int, list[_Pattern]] = {}  # by length

    def judge(self, key: int, body: bytes) -> int:
        """Return the status of an answer; see `_Judge.judge`."""
        del key
        for pattern in self._patterns.get(len(body), ()):
            for start, piece in pattern.pieces:
                if not body.startswith(piece, start):
                    break
            else:
                if pattern.varints and not _fits(body, pattern):
                    continue
                pattern.count += 1
                return OK if pattern.count & _SAMPLED else self._sampled(body)
        return self._decode(body)

    def tally(self) -> Tally:
        """Return what was counted, with the answers that fitted patterns."""
        found = Tally()
        found.add(self._tally)
        for pattern in (each for some in self._patterns.values() for each in some):
            found.checked += pattern.count
            found.versions[pattern.version] += pattern.count
        return found

    def _looked(self, body: bytes) -> tuple[int, int | None]:
        try:
            answer = self._response.FromString(body)
            found = {
                alias: (_name(tensor), from_proto(tensor, whole=True).shape)
                for alias, tensor in answer.outputs.items()
            }
        except (protos.DecodeError, TensorError) as error:
            self.why = str(error)
            return UNREADABLE_ANSWER, None
        if not found:
            self.why = "an answer without outputs"
            return EMPTY_ANSWER, None
        status, self.why = self._expected.fault(found)
        version: int = answer.model_spec.version.value
        return status, version

    def _learn(self, body: bytes, version: int | None) -> None:
        pattern = _Pattern(body, sorted(_holes(body)), version or 0)
        if self._has_room(sum(len(piece) for _, piece in pattern.pieces)):
            self._patterns.setdefault(len(body), []).append(pattern)


def _name(tensor: "protos.TensorProto") -> str:
    try:
        return dtypes.by_number(tensor.dtype).name
    except KeyError:
        return f"DataType {tensor.dtype}"


def _fits(body: bytes, pattern: _Pattern) -> bool:
    """Say whether there are as many values as there should be, where each ends by itself."""
    return all(
        len(body[start:end].translate(None, _CONTINUED)) == count and body[end - 1] < 0x80  # noqa: PLR2004 (varints end so)
        for start, end, count in pattern.varints
    )


def _count(body: bytes, hole: _Hole) -> int:
    return len(body[hole.start : hole.end].translate(None, _CONTINUED))


def _holes(body: bytes) -> Iterator[_Hole]:
    """Yield where numbers lie in a PredictResponse that was decoded before."""
    for number, start, end in _fields(body, 0, len(body)):
        if number != 1:
            continue
        for part, inner, inner_end in _fields(body, start, end):
            if part == 2:  # noqa: PLR2004 (the entry's value)
                yield from _holes_of_tensor(body, inner, inner_end)


def _holes_of_tensor(body: bytes, start: int, end: int) -> Iterator[_Hole]:
    if protos.TensorProto.FromString(body[start:end]).dtype == dtypes.STRING.number:
        return  # there is no telling lengths from letters
    for number, at, stop in _fields(body, start, end):
        if number in _VARINTS or number in _FIXED:
            yield _Hole(at, stop, number in _VARINTS)


def _fields(body: bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield number, start and end of each field that says its length."""
    while at < end:
        tag, at = decode_varint(body, at, bits=64)
        if tag & 7 == _LENGTH_KIND:
            size, at = decode_varint(body, at, bits=64)
            yield tag >> 3, at, at + size
            at += size
        elif (width := _WIDTHS.get(tag & 7)) is not None:
            at += width
        else:
            _, at = decode_varint(body, at, bits=64)


class _RestJudge(_Judge):
    """Judges the JSON of predict answers."""

    def __init__(self, expected: Expected) -> None:
        super().__init__(expected)
        self._dtypes = {
            each.alias: dtypes.by_name(each.dtype) for each in expected.outputs if each.dtype
        }
        self._starts: dict[bytes, bytes] = {}  # by what is left without numbers
        self._fitted = 0

    def judge(self, key: int, body: bytes) -> int:
        """Return the status of an answer; see `_Judge.judge`."""
        del key
        start = self._starts.get(body.translate(None, _NUMBERS))
        if start is None or not body.startswith(start) or not _is_json(body):
            return self._decode(body)
        self._fitted += 1
        return OK if self._fitted & _SAMPLED else self._sampled(body)

    def tally(self) -> Tally:
        """Return what was counted, with the answers that fitted patterns."""
        found = Tally(checked=self._fitted)
        found.add(self._tally)
        return found

    def _looked(self, body: bytes) -> tuple[int, int | None]:
        status, self.why = self._judged(body)
        return status, None

    def _learn(self, body: bytes, version: int | None) -> None:
        del version
        start, rest = body[: body.find(b"[") + 1], body.translate(None, _NUMBERS)
        if start and rest not in self._starts and self._has_room(len(rest)):
            self._starts[rest] = start

    def _judged(self, body: bytes) -> tuple[int, str]:
        shown = repr(body[:80])
        if not (text := body.lstrip()):
            return EMPTY_ANSWER, "an empty answer"
        if text.startswith(b"<"):
            return PAGE_AS_ANSWER, f"a page as the answer: {shown}"
        try:
            document = read_json(body)
        except (ValueError, RecursionError) as error:
            return UNREADABLE_ANSWER, f"{shown} is not valid JSON: {error}"
        if isinstance(document, dict) and "error" in document and "outputs" not in document:
            return ERROR_AS_ANSWER, f"an error as the answer: {shown}"
        try:
            found = tensor_json.answer(document, self._dtypes)
        except (TensorError, RecursionError) as error:
            return self._unfit(document), str(error)
        named = {alias: (self._name(alias), array.shape) for alias, array in found.items()}
        return self._expected.fault(named)

    def _name(self, alias: str) -> str:
        return self._dtypes[alias].name if alias in self._dtypes else ""

    def _unfit(self, document: object) -> int:
        """Return the status of an answer that is not of the types it should be."""
        if not isinstance(document, dict) or not document.keys() & {"outputs", "predictions"}:
            return EMPTY_ANSWER if document in ({}, [], None) else UNREADABLE_ANSWER
        untyped: Any = dict.fromkeys(self._dtypes)
        try:
            tensor_json.answer(document, untyped)
        except (TensorError, RecursionError):
            return UNREADABLE_ANSWER
        return WRONG_DTYPE


def _is_json(body: bytes) -> bool:
    """Say whether there is a number wherever one was left out of the comparison."""
    try:
        read_json(body)
    except (ValueError, RecursionError):
        return False
    return True
