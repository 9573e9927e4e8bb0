"""What a cell of the table may expect: an answer, or a refusal with its cause and its remedy."""

from dataclasses import dataclass, field
from typing import Any

BOTH = ("grpc", "rest")


@dataclass(frozen=True)
class Refusal:
    """A command that ends with a code and says why.

    Attributes:
        code: the exit code.
        words: what the message holds.
        remedy: what the remedy holds, if there is one.
        options: of the command.
        protocol: over which it is asked, where only one is refused.
    """

    code: int
    words: str
    remedy: str = ""
    options: tuple[str, ...] = ()
    file: str = ""
    protocol: str = ""

    def asked(self, protocol):
        """Return which question it is: the command's options, over a protocol."""
        return " ".join(("question over", protocol, *self.options))

    def __str__(self):
        where = f" over {self.protocol}" if self.protocol else ""
        return f"{_asked(self.options)}refused{where} (exit {self.code}): "


@dataclass(frozen=True)
class Class:
    """What `tfkit predict` says of a picture.

    Attributes:
        picture: file.
        index: of the best class; None where the model only names it.
        score: of the best class, to four digits; None where there is none.
        label: its name.
        told: what decided, by what it is about: `value (source)`.
        options: of the command.
        meaning: what the scores are.
        protocols: over which the question goes.
    """

    picture: str
    index: int | None
    score: float | None
    label: str | None = None
    told: dict[str, str] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    meaning: str = "probabilities"
    protocols: tuple[str, ...] = BOTH

    def __str__(self):
        number = "" if self.index is None else f"class {self.index}"
        score = "" if self.score is None else f"{self.score:.4f}"
        said = " ".join(each for each in (number, self.label, score) if each)
        told = "".join(f"; {what} {value}" for what, value in self.told.items())
        return f"{self.picture}{_with(self.options)}: {said}{told}"


@dataclass(frozen=True)
class Objects:
    """What `tfkit predict` finds in a picture: (class, score) of each, the surest first."""

    picture: str
    found: tuple[tuple[int, float], ...]
    options: tuple[str, ...] = ()

    def __str__(self):
        found = ", ".join(f"{index} {score:g}" for index, score in self.found)
        return f"{self.picture}{_with(self.options)}: objects {found}"


@dataclass(frozen=True)
class Answer:
    """What `tfkit request` answers.

    Attributes:
        inputs: by alias; of numpy arrays where the type cannot be told from JSON. A text is a file.
        outputs: by alias, as JSON has them; floats to five digits.
        options: of the command.
        protocols: over which the question goes.
    """

    inputs: dict[str, Any] | str
    outputs: dict[str, Any]
    options: tuple[str, ...] = ()
    protocols: tuple[str, ...] = BOTH

    def __str__(self):
        said = ", ".join(f"{alias} = {shortly(value)}" for alias, value in self.outputs.items())
        asked = self.inputs if isinstance(self.inputs, str) else ", ".join(
            f"{alias} = {shortly(value)}" for alias, value in self.inputs.items()
        )  # fmt: skip
        asked = asked or "nothing"
        return f"{asked}{_with(self.options)}: {said}"


@dataclass(frozen=True)
class AsTold:
    """`tfkit request` answers what the framework answered when it built the model."""

    def __str__(self):
        return "as Keras itself answers"


@dataclass(frozen=True)
class ErrorRate:
    """What `tfkit evaluate` says of a set.

    Attributes:
        dataset: folder of pictures.
        wrong: how many are answered wrongly.
        options: of the command.
    """

    dataset: str
    wrong: int = 0
    options: tuple[str, ...] = ()

    def __str__(self):
        return f"{self.dataset}{_with(self.options)}: {self.wrong} wrong"


@dataclass(frozen=True)
class Row:
    """A model and what each command says of it.

    Attributes:
        name: of the model.
        what: what is special about it.
        takes: the inputs of its default signature, by alias.
        gives: its outputs.
        asks: what `tfkit predict` and `tfkit request` answer or refuse.
        evaluated: what `tfkit evaluate` says.
        input: what `perf` and `warmup` send: `random` or a file.
        drawn: what they say of random numbers where that is a file.
        batches: whether its requests may be batched.
        inspected, pushed, linted, served, warmed, loaded: a refusal where one is expected; a text
            is a warning. `loaded` is of `perf`.
        signature: the one that is asked; empty for the default.
    """

    name: str
    what: str
    takes: dict[str, str]
    gives: dict[str, str]
    asks: tuple[Any, ...] = ()
    evaluated: Any = None
    input: str = "random"
    drawn: Refusal = Refusal(2, "cannot be filled with random values", "--input")
    batches: bool = True
    inspected: Any = None
    pushed: Any = None
    linted: Any = None
    served: Any = None
    warmed: Any = None
    loaded: Any = None
    signature: str = ""


def _with(options):
    return f" {' '.join(options)}" if options else ""


def _asked(options):
    return f"{' '.join(options)}: " if options else ""


def shortly(value):
    """Return a value on little room."""
    text = str(value.tolist() if hasattr(value, "tolist") else value).replace("'", "")
    return text if len(text) <= 40 else f"{text[:36]} ..."
