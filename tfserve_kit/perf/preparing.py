"""Requests for a server that runs, made before anything is measured; one goes ahead as a trial."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tfserve_kit.clients import Target, connect
from tfserve_kit.clients.classifier import choose_signature
from tfserve_kit.clients.options import OptionNames
from tfserve_kit.perf import expectations, payloads
from tfserve_kit.perf.load import Payload, Protocol
from tfserve_kit.perf.payloads import RANDOM, inputs_of
from tfserve_kit.pictures.graph import PictureGraph
from tfserve_kit.pictures.preprocessing import Preprocessing
from tfserve_kit.savedmodel.signatures import batch_axes

if TYPE_CHECKING:
    from tfserve_kit.perf.payloads import Inputs


@dataclass(frozen=True, slots=True)
class Asked:
    """What requests are to hold.

    Attributes:
        model: name of the model.
        signature: of the model; empty for the only one, or serving_default.
        source: what to send; see `inputs.inputs_of`.
        batch: rows in each request.
        base_path: of the model, for its note on how pictures are prepared; None if unknown.
        timeout_s: of the first request.
    """

    model: str
    signature: str = ""
    source: str = "random"
    batch: int = 1
    base_path: Path | None = None
    timeout_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Prepared:
    """Requests, and what they are for.

    Attributes:
        payloads: the requests, to be sent in turn.
        version: the version that answered.
        signature: the one that is called.
        rows: in each request.
        assumed: what was made up beside random rows, as sentences.
    """

    payloads: Sequence[Payload]
    version: int
    signature: str
    rows: int = 1
    assumed: Sequence[str] = ()


class Preparer:
    """Makes the same requests for one server after another.

    Args:
        asked: what they are to hold.
    """

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._inputs: Sequence[Inputs] | None = None

    def prepare(self, url: str, options: OptionNames | None = None) -> Prepared:
        """Make requests for the server at a URL, and send one.

        Args:
            url: its address.
            options: how it is reached; see `clients.connect`.

        Raises:
            UsageError: there is nothing to send.
            InvalidRequest: it does not fit the signature.
            RequestError: the server does not answer it.
        """
        asked = self._asked
        target = Target(asked.model, signature=asked.signature)
        with connect(url, **options or {}) as client:
            found = client.metadata(target, timeout_s=asked.timeout_s)
            chosen = choose_signature(found.signatures, asked.signature)
            if self._inputs is None:
                folder = asked.base_path / str(found.version) if asked.base_path else None
                note = Preprocessing.read(folder) if folder else Preprocessing()
                graph = PictureGraph(folder, chosen.name)
                self._inputs = inputs_of(asked.source, chosen, asked.batch, note, graph)
            trial = client.predict(target, self._inputs[0], timeout_s=asked.timeout_s)
        protocol: Protocol = "grpc" if url.startswith("grpc") else "rest"
        expected = expectations.of_calls([(chosen, each) for each in self._inputs], trial.outputs)
        headers = (options or {}).get("headers", {})
        encoded = payloads.encoded(protocol, url, target, self._inputs, expected, headers)
        assumed = payloads.assumptions(chosen, drawn=asked.source == RANDOM)
        rows = batch_axes(chosen).fixed_rows or asked.batch
        return Prepared(encoded, found.version, chosen.name, rows, assumed)
