"""What the page asks: the models of a server, how one takes its input, and what it answers."""

import base64
import io
import json
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from tfserve_kit.clients import Client, Target, addresses
from tfserve_kit.clients.classifier import (
    Classified,
    Classifier,
    PreparedPicture,
    find_model,
    inputs_of,
)
from tfserve_kit.clients.files import describe, inputs_of_text
from tfserve_kit.clients.options import DEFAULT_TIMEOUT_S, Options
from tfserve_kit.engines.records import deployed_labels
from tfserve_kit.errors import InvalidRequest, RequestError, TfkitError, UsageError, did_you_mean
from tfserve_kit.perf import metrics
from tfserve_kit.pictures.inputs import ImageInput
from tfserve_kit.pictures.model import PictureOptions
from tfserve_kit.pictures.prepare import drawn
from tfserve_kit.playground import commands
from tfserve_kit.savedmodel import NOTE_PATH, Signature, choose_signature
from tfserve_kit.savedmodel.signatures import batch_axes
from tfserve_kit.serving.access import ServedModel, server_at
from tfserve_kit.tensors import dtypes

T = TypeVar("T")

_MOST_MODELS = 8  # whose input is remembered
_MOST_ROWS = 20  # of an answer that are shown
_MOST_SIDE = 512  # pixels of a prepared picture that is drawn
_MOST_EXAMPLE = 4096  # numbers in an example
_LOOKS, _LOOK_AGAIN_S = 5, 0.02  # a server may count a request after it has answered it


@dataclass(frozen=True, slots=True)
class RequestSettings:
    """What the command line says of all requests.

    Attributes:
        asked: how pictures become the input.
        base_path: where the versions are, if not where the server was started with.
        timeout_s: deadline of each request, in seconds.
        rest_url: address of the server's REST API, where the server's own does not tell it.
        start: what is chosen at first; a model without a name is the first one.
        top: how many classes are shown at first.
        argv: the options about pictures, for commands to copy.
        labels: the file with the names of classes and its encoding, if given.
    """

    asked: PictureOptions = field(default_factory=PictureOptions)
    base_path: Path | None = None
    timeout_s: float = DEFAULT_TIMEOUT_S
    rest_url: str | None = None
    start: Target = field(default_factory=lambda: Target(""))
    top: int = 5
    argv: tuple[str, ...] = ()
    labels: tuple[str, str | None] | None = None


class PlaygroundSession:
    """Asks a server for the page. Thread-safe; requests to the model go one after the other.

    Args:
        models: returns the models that the server has now; raises a TfkitError.
        settings: what the command line says.
    """

    def __init__(
        self, models: Callable[[], Sequence[ServedModel]], settings: RequestSettings | None = None
    ) -> None:
        self._models, self._settings = models, settings or RequestSettings()
        self._turn, self._guard = threading.Lock(), threading.Lock()
        self._clients: dict[str, Client] = {}
        self._found: dict[tuple[Any, ...], Classifier] = {}

    def close(self) -> None:
        """Close the connections."""
        with self._guard:
            for client in self._clients.values():
                client.close()
            self._clients.clear()

    def overview(self) -> dict[str, Any]:
        """Return the server's models with their versions and labels, and what is chosen at first.

        Raises:
            TfkitError: it cannot be told which models there are.
        """
        served = self._models()
        start = self._settings.start
        names = [each.model for each in served]
        return {
            "server": served[0].url,
            "rest": self._rest(served[0]) is not None,
            "models": [self._of_model(each) for each in served],
            "start": {
                "model": start.model if start.model in names else names[0],
                "version": start.version,
                "label": start.label,
                "signature": start.signature,
                "top": self._settings.top,
            },
        }

    def _of_model(self, served: ServedModel) -> dict[str, Any]:
        found: dict[str, Any] = {"name": served.model, "versions": [], "labels": {}}
        server = server_at(addresses.read(served.url))
        if server:
            found["labels"] = dict(deployed_labels(server.home, served.model))
        try:
            known = self._client(served).status(
                Target(served.model), timeout_s=self._settings.timeout_s
            )
        except RequestError as error:
            return found | {"error": of_error(error)}
        found["versions"] = [
            {"version": each.version, "state": each.state, "error": each.error} for each in known
        ]
        return found

    def describe(self, target: Target) -> dict[str, Any]:
        """Return the signatures of a model, and how the chosen one takes its input.

        Returns:
            `version`, `signatures`, `signature`, `inputs` and `outputs` (`name` and `type`), and
            `takes`: `picture`, with `how` (see `Classifier.how`) and `classes`; or `values`, with
            `because` (why it is no picture), `forms` (of which `read_values` takes one) and an
            `example` of each.

        Raises:
            TfkitError: the server does not say.
        """
        served, client = self._reached(target)
        known = client.metadata(target, timeout_s=self._settings.timeout_s)
        signature = choose_signature(known.signatures, target.signature, of=str(target))
        found: dict[str, Any] = {
            "version": known.version,
            "signatures": sorted(known.signatures),
            "signature": signature.name,
            "inputs": _listed(signature.inputs),
            "outputs": _listed(signature.outputs),
        }
        try:
            classifier, _ = self._classifier(served, target, client)
        except UsageError as error:
            forms = _forms(signature)
            examples = {form: _example(signature, form) for form in forms}
            return found | {
                "takes": "values",
                "because": of_error(error),
                "forms": forms,
                "examples": examples,
            }
        return found | {
            "takes": "picture",
            "how": classifier.how,
            "classes": classifier.model.classes,
        }

    def picture(self, target: Target, top: int, data: bytes, name: str) -> dict[str, Any]:
        """Classify a picture, as `tfkit predict` does.

        Returns:
            What `Classified.said` returns, `model`, `version`, `latency`, `prepared`, `how`,
            `notes` and `commands`.

        Raises:
            TfkitError: it cannot be done.
        """
        served, client = self._reached(target)
        with self._turn:
            classifier, version = self._classifier(served, target, client)
            prepared, found, seen = self._classified(served, classifier, data, name, top)
            if found.version not in {None, version}:  # another one went into service meanwhile
                classifier, version = self._classifier(served, target, client)
                prepared, found, seen = self._classified(served, classifier, data, name, top)
        model = classifier.model
        inputs = inputs_of(model, [prepared])
        where = self._where(served, target, top)
        return {
            **found.said(),
            "model": target.model,
            "version": version if found.version is None else found.version,
            "latency": _latency(prepared.prepare_s, found.request_s, seen),
            "prepared": _prepared(prepared, model.input),
            "how": classifier.how,
            "notes": _notes(found, model.assumed, classifier),
            "commands": commands.for_picture(where, name, self._settings.asked, inputs, data),
        }

    def _classified(
        self, served: ServedModel, classifier: Classifier, data: bytes, name: str, top: int
    ) -> tuple[PreparedPicture, Classified, Mapping[str, Any] | str]:
        prepared = classifier.prepare(data, name=name)
        (found,), seen = self._watched(served, lambda: classifier.score([prepared], top=top))
        return prepared, found, seen

    def values(self, target: Target, top: int, text: str, form: str) -> dict[str, Any]:
        """Send values, as `tfkit request` does.

        Args:
            target: what was chosen.
            top: how many classes to show.
            text: the values.
            form: `numbers`, `text` or `json`; see `read_values`.

        Returns:
            `outputs` (`name`, `type` and `values`), `rows` (see `Classified.said`; empty unless the
            outputs are scores of classes), `model`, `version`, `latency` and `commands`.

        Raises:
            TfkitError: it cannot be done.
        """
        served, client = self._reached(target)
        timeout_s = self._settings.timeout_s
        known = client.metadata(target, timeout_s=timeout_s)
        signature = choose_signature(known.signatures, target.signature, of=str(target))
        began_s = time.perf_counter()
        inputs = read_values(text, form, signature)
        prepare_s = time.perf_counter() - began_s
        with self._turn:
            answer, seen = self._watched(
                served, lambda: client.predict(target, inputs, timeout_s=timeout_s)
            )
        rows = max(batch_axes(signature).row_counts(inputs).values(), default=1)
        return {
            "outputs": [
                {"name": name, "type": kind, "values": shown}
                for name, kind, shown in describe(answer.outputs)
            ],
            "rows": self._ranked(served, target, client, answer.outputs, rows, top),
            "model": target.model,
            "version": known.version if answer.version is None else answer.version,
            "latency": _latency(prepare_s, answer.duration_s, seen),
            "commands": commands.for_values(self._where(served, target, top), inputs),
        }

    def body(self, target: Target, data: bytes, name: str) -> bytes:
        """Return the REST request for a picture, for curl.

        Raises:
            TfkitError: it cannot be made.
        """
        served, client = self._reached(target)
        classifier, _ = self._classifier(served, target, client)
        prepared = classifier.prepare(data, name=name)
        where = self._where(served, target)
        return commands.body(where, inputs_of(classifier.model, [prepared]))[1]

    def _ranked(
        self,
        served: ServedModel,
        target: Target,
        client: Client,
        outputs: Mapping[str, NDArray[Any]],
        rows: int,
        top: int,
    ) -> list[dict[str, Any]]:
        """Return the best classes of each row, where it is certain that the outputs are scores."""
        try:
            classifier, _ = self._classifier(served, target, client, ready=True)
            if classifier.model.is_one_column:  # a measurement more likely than a probability
                return []
            said = classifier.read(outputs, rows, top=top)[:_MOST_ROWS]
        except TfkitError:
            return []  # the outputs are shown as they are
        return [
            Classified(**each, version=None, prepare_s=0, request_s=0, batch_rows=rows).said()
            for each in said
        ]

    def _reached(self, target: Target) -> tuple[ServedModel, Client]:
        served = {each.model: each for each in self._models()}
        if target.model not in served:
            raise UsageError(
                f"the server has no model {target.model!r}",
                remedy=did_you_mean(target.model, served),
            )
        chosen = served[target.model]
        return chosen, self._client(chosen)

    def _client(self, served: ServedModel) -> Client:
        with self._guard:
            if served.url not in self._clients:
                self._clients[served.url] = served.connect()
            return self._clients[served.url]

    def _classifier(
        self, served: ServedModel, target: Target, client: Client, *, ready: bool = False
    ) -> tuple[Classifier, int]:
        """Return what prepares and asks, and for which version; found out once for each version."""
        settings = self._settings
        base_path = settings.base_path or served.base_path
        version = client.metadata(target, timeout_s=settings.timeout_s).version
        key = (target, version, ready, _noted(base_path, version))
        with self._guard:
            known = self._found.get(key)
        if known is not None:
            return known, version
        model, version = find_model(
            client,
            target,
            settings.asked,
            base_path=base_path,
            timeout_s=settings.timeout_s,
            ready=ready,
        )
        found = Classifier(client, target, model, timeout_s=settings.timeout_s)
        with self._guard:
            while len(self._found) >= _MOST_MODELS:
                self._found.pop(next(iter(self._found)))
            self._found[target, version, ready, _noted(base_path, version)] = found
        return found, version

    def _where(self, served: ServedModel, target: Target, top: int = 5) -> commands.Where:
        settings = self._settings
        return commands.Where(
            served.url,
            self._rest(served),
            served.access,
            target,
            settings.base_path or served.base_path,
            settings.timeout_s,
            top,
            settings.argv,
            settings.labels,
        )

    def _rest(self, served: ServedModel) -> str | None:
        """Return an address of the server's REST API; None where it is not known."""
        if self._settings.rest_url:
            return self._settings.rest_url
        address = addresses.read(served.url)
        if address.is_rest:
            return address.members[0].url.removeprefix("dns+")
        server = server_at(address)
        return server.endpoints.rest if server else None

    def _watched(
        self, served: ServedModel, send: Callable[[], T]
    ) -> tuple[T, Mapping[str, Any] | str]:
        """Return what a request gave, and what the server says of it; or why that is not known."""
        rest_url = self._rest(served)
        if rest_url is None or addresses.read(served.url).is_fleet:
            return send(), "its REST address is not known here, where it says so"
        read = metrics.reader(rest_url, Options(**served.access.options(rest_url)))
        before = read()
        result = send()
        if before is None:
            return result, (
                "the server has no Prometheus page, which [monitoring] of its "
                "deployment file switches on"
            )
        first = metrics.parse(before)
        for _ in range(_LOOKS):
            seen = metrics.difference(first, metrics.parse(read() or ""))
            if count := sum(seen["requests"].values()):
                break
            time.sleep(_LOOK_AGAIN_S)
        if count == 1:
            return result, seen
        return result, "others asked it at the same time" if count else "it has not counted it"


def read_values(text: str, form: str, signature: Signature) -> dict[str, NDArray[Any]]:
    """Return the inputs that a text stands for.

    Args:
        text: what was typed or pasted.
        form: `numbers`: a row of the one input on each line, with spaces, commas or semicolons
            between; `text`: the one input's one string, as it is; `json`: the body of a REST
            request, or only the list of its instances.
        signature: the one that will be called.

    Raises:
        InvalidRequest: it does not fit the signature.
        UsageError: the form is unknown, or the signature has not one input.
    """
    if form not in _forms(signature):
        raise UsageError(
            f"{signature.name!r} takes no {form!r}",
            remedy=f"choose one of {', '.join(_forms(signature))}",
        )
    if form == "json":
        document = text if text.lstrip().startswith("{") else f'{{"instances": {text}}}'
        return inputs_of_text(document, signature, "the input")
    (alias,) = _needed(signature)
    if form == "text":
        shape = signature.inputs[alias].shape
        rows: Any = text
        for _ in (None,) if shape is None else shape:
            rows = [rows]
    else:
        rows = _numbers(text, signature.inputs[alias].shape)
    name = json.dumps(alias)
    return inputs_of_text(f'{{"inputs": {{{name}: {json.dumps(rows)}}}}}', signature, "the input")


def _numbers(text: str, shape: tuple[int | None, ...] | None) -> Any:
    """Return rows of numbers in the form of an input, as JSON holds them."""
    lines = [line for line in text.splitlines() if line.strip()]
    try:
        rows = [
            [_number(word) for word in re.split(r"[\s,;]+", line.strip(" \t,;"))] for line in lines
        ]
    except ValueError as error:
        raise InvalidRequest(
            f"the input is not made of numbers: {error}",
            remedy="write them with a point for decimals, and spaces or commas between",
        ) from None
    if not rows:
        raise InvalidRequest("the input is empty", remedy="write a row of numbers")
    rank = 2 if shape is None else len(shape)
    if rank == 0:
        return rows[0][0] if len(rows) == len(rows[0]) == 1 else rows
    if rank == 1:
        return [number for row in rows for number in row]
    inner = (shape or (None, None))[1:]
    if rank == 2 or None in inner:  # noqa: PLR2004 (rows of values)
        return rows
    try:
        return [np.array(row, object).reshape(inner).tolist() for row in rows]  # type: ignore[arg-type]
    except ValueError:
        wanted = int(np.prod(inner))  # type: ignore[arg-type]
        text = f"a line holds {len(rows[0])} numbers; a row of the input has {wanted}"
        raise InvalidRequest(text, remedy=f"write {wanted} numbers on each line") from None


def _number(word: str) -> int | float:
    """Read a number; whole ones stay exact."""
    try:
        return int(word)
    except ValueError:
        return float(word)


def of_error(error: TfkitError) -> dict[str, str]:
    """Return an error as the page shows it: its kind, its cause and the remedy."""
    from tfserve_kit.safe_text import redacted

    kind = type(error).__name__
    return {"kind": kind, "message": redacted(error.message), "remedy": error.remedy}


def _noted(base_path: Path | None, version: int) -> int | None:
    """Return when the note of a version was last changed."""
    try:
        return (base_path / str(version) / NOTE_PATH).stat().st_mtime_ns if base_path else None
    except OSError:
        return None


def _listed(specs: Mapping[str, Any]) -> list[dict[str, str]]:
    return [{"name": name, "type": str(spec)} for name, spec in specs.items()]


def _needed(signature: Signature) -> list[str]:
    return [each for each in signature.inputs if each not in signature.optional]


def _forms(signature: Signature) -> list[str]:
    """Return the forms in which its input may be typed, the easiest first."""
    needed = _needed(signature)
    if len(needed) != 1:
        return ["json"]
    is_text = signature.inputs[needed[0]].dtype is dtypes.STRING
    return ["text" if is_text else "numbers", "json"]


def _example(signature: Signature, form: str) -> str:
    """Return something that fits an input's form and shape, with zeros for numbers."""
    examples = {alias: _zeros(signature.inputs[alias]) for alias in _needed(signature)}
    if form == "json":
        return json.dumps({"inputs": examples})
    if form == "text":
        return ""
    (only,) = examples.values()
    return ", ".join(map(str, np.ravel(only).tolist()))


def _zeros(spec: Any) -> Any:
    sizes = [1 if size is None else size for size in spec.shape or ()]
    if int(np.prod(sizes)) > _MOST_EXAMPLE:
        return []
    value: Any = (
        ""
        if spec.dtype is dtypes.STRING
        else False
        if spec.dtype and spec.dtype.name == "bool"
        else 0
    )
    return np.full(sizes, value, object).tolist()


def _latency(prepare_s: float, request_s: float, seen: Mapping[str, Any] | str) -> dict[str, Any]:
    """Return where the time went, in milliseconds.

    Returns:
        `prepare` and `request`; where the server says how long it took, `send` and `server`, which
        add up to the latter, and `parts` of the server's: `messages`, `queue` and `compute`. Else
        `unknown` says why it is not known.
    """
    found: dict[str, Any] = {"prepare": prepare_s * 1e3, "request": request_s * 1e3}
    if isinstance(seen, str):
        return found | {"unknown": seen}
    parts = {name: each * 1e3 for name, each in metrics.split(request_s, 0.0, seen).items()}
    if "wire" not in parts:
        return found | {"unknown": "its metrics hold no latency"}
    inner = {name: parts[name] for name in ("server", "queue", "compute") if name in parts}
    return found | {"send": parts["wire"], "server": sum(inner.values()), "parts": inner}


def _prepared(picture: PreparedPicture, wanted: ImageInput) -> dict[str, Any]:
    """Return what the model sees: `type`, `low` and `high`, and `picture`, a PNG as a data URL."""
    pixels = drawn(picture.row, wanted)
    found: dict[str, Any] = {"input": wanted.alias, "type": str(wanted.spec)}
    if pixels is None:
        return found | {"encoding": wanted.how.encoding or "raw"}
    found |= {"low": float(np.min(picture.row)), "high": float(np.max(picture.row))}
    found |= {"height": pixels.shape[0], "width": pixels.shape[1]}
    return found | {"picture": _png(pixels)}


def _png(pixels: NDArray[np.uint8]) -> str:
    from PIL import Image

    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    image.thumbnail((_MOST_SIDE, _MOST_SIDE))
    data = io.BytesIO()
    image.save(data, "PNG")
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


def _notes(found: Classified, assumed: Sequence[str], classifier: Classifier) -> list[str]:
    """Return what to know about an answer: what was only assumed, and what scores are not."""
    notes = [f"Assumed: {each}" for each in assumed]
    labels = classifier.labels
    notes += [f"Assumed: {each}" for each in (labels.remarks if labels is not None else ())]
    if found.nan_scores:
        notes.append(f"Scores that are NaN: {found.nan_scores}")
    if found.meaning == "logits or other scores":
        notes.append(
            "The scores are not probabilities; if they are logits, --softmax converts them."
        )
    return notes
