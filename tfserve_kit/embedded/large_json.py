"""Requests and answers of the REST API: small ones are read and written here, large ones elsewhere.

Python runs one thread at a time, and parsers keep it for the whole of a body: everybody would wait.
So what takes long is done in processes of its own, one for reading and one for writing, and with
the same words and results. Small requests pay no more than a comparison.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfserve_kit.embedded import examples, json_answer, json_request, json_text
from tfserve_kit.embedded.call import Call
from tfserve_kit.embedded.json_bulk import Bulk
from tfserve_kit.embedded.json_process import JsonProcess, Unusable
from tfserve_kit.embedded.process_pipe import packed, unpacked

# Bodies of so many bytes are read elsewhere; one array of numbers, which is read quickly, only from
# the second figure on.
LARGE_BYTES = 128 << 10
LARGE_BULK_BYTES = 4 << 20
# Answers are written elsewhere that take so much memory: eight thousand numbers.
LARGE_ANSWER_BYTES = 512_000

_PLAIN_KINDS = frozenset("fiubO")


class LargeJson:
    """Reads requests and writes answers, wherever that is best done. Thread-safe."""

    def __init__(self) -> None:
        self._reader, self._writer = JsonProcess(), JsonProcess()

    def stop(self) -> None:
        """End the processes; idempotent."""
        self._reader.stop()
        self._writer.stop()

    def predict_body(
        self, body: bytes, info: json_request.InputInfo, call: Call
    ) -> json_request.PredictBody | Bulk:
        """Read a predict request; arguments and errors as of `json_request.PredictBody`."""
        if len(body) < LARGE_BYTES:
            return json_request.PredictBody(body, info, call.account)
        if len(body) < LARGE_BULK_BYTES:
            found = json_request.bulk(body, info, call.account)
            if found:
                return found

        def inputs_of(signature: str) -> dict[str, tuple[int, str]]:
            return {alias: (each.dtype, each.name) for alias, each in info(signature).items()}

        answers = _account(call) | {"info": inputs_of}
        with suppress(Unusable):
            sent = np.frombuffer(body, np.uint8)
            signature, row_format, inputs = self._reader.run(call, answers, "predict", sent)
            return Bulk(signature, row_format, unpacked(inputs))
        return json_request.PredictBody(body, info, call.account)

    def examples(self, body: bytes, call: Call) -> tuple[str, NDArray[Any]]:
        """Read a classify or regress request.

        Args:
            body: the JSON.
            call: charged with what it becomes.

        Returns:
            The signature's name, and object [examples] of serialized tf.Example.

        Raises:
            ServingError: the body is no such request, or becomes too large.
        """
        if len(body) >= LARGE_BYTES:
            with suppress(Unusable):
                sent = np.frombuffer(body, np.uint8)
                signature, rows = self._reader.run(call, _account(call), "examples", sent)
                return signature, unpacked(rows)[""]
        document = json_text.parse_object(body, call.account)
        signature = json_request.signature_name(document)
        return signature, examples.from_json(document, call.account)

    def predictions(
        self, outputs: Mapping[str, NDArray[Any]], cost_bytes: int, call: Call, *, row_format: bool
    ) -> bytes:
        """Print the outputs of a predict call; see `json_answer.predictions`.

        Args:
            outputs: as there.
            cost_bytes: what that takes, by `claims.of_answer`.
            call: whose answer it is.
            row_format: as there.
        """
        is_plain = all(array.dtype.kind in _PLAIN_KINDS for array in outputs.values())
        if cost_bytes >= LARGE_ANSWER_BYTES and is_plain:
            with suppress(Unusable):
                sent = packed(outputs)
                return bytes(self._writer.run(call, {}, "answer", sent, row_format))
        return json_answer.predictions(outputs, row_format=row_format)


def _account(call: Call) -> dict[str, Callable[..., Any]]:
    return {"take": call.account.take, "give": call.account.give}
