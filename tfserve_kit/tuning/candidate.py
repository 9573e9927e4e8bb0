"""Settings to try, and the space they are drawn from: pure data.

What the parameters do, and their defaults: tensorflow_serving/servables/tensorflow/
session_bundle_config.proto and tensorflow_serving/model_servers/main.cc.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tfserve_kit.deployment.flags import handler_threads
from tfserve_kit.deployment.spec import Batching, Spec
from tfserve_kit.perf.load import Protocol

BATCHING = "batching"

# What a parameter is where nobody sets it; None depends on the machine.
_SERVER_DEFAULTS = {
    "max_batch_size": 1000,
    "batch_timeout_micros": 0,
    "max_enqueued_batches": 10,
    "num_batch_threads": None,
}
_THREAD_FLAGS = ("tensorflow_intra_op_parallelism", "tensorflow_inter_op_parallelism")
_FRONT_FLAG = {"grpc": "grpc_max_threads", "rest": "rest_api_num_threads"}
_MOST_DOUBLINGS = 7
_TIMEOUTS_MICROS = (0, 200, 500, 1000, 2000, 5000, 10_000, 20_000)
_SMALL_BATCH = 4

Value = bool | int | str
Params = Mapping[str, Value]


@dataclass(frozen=True, slots=True)
class Candidate:
    """Settings of a server that are tried together.

    Attributes:
        batching: how requests are grouped; None runs each by itself.
        flags: flags of tensorflow_model_server that differ from the deployment's.
    """

    batching: Batching | None = field(default_factory=Batching)
    flags: Mapping[str, int] = field(default_factory=dict)

    def applied(self, spec: Spec) -> Spec:
        """Return a deployment with these settings in the place of its own."""
        server = spec.server.model_copy(update={"flags": spec.server.flags | dict(self.flags)})
        return spec.model_copy(update={"batching": self.batching, "server": server})

    def batching_set(self) -> dict[str, Any]:
        """Return the batching parameters that are not left to the server."""
        return self.batching.model_dump(exclude_defaults=True) if self.batching else {}

    def __str__(self) -> str:
        flags = [f"{name} {value}" for name, value in self.flags.items()]
        if self.batching is None:
            return ", ".join(["no batching", *flags])
        sizes = self.batching.allowed_batch_sizes
        values = self.batching_set() | ({"allowed_batch_sizes": list(sizes)} if sizes else {})
        parts = [f"{name} {value}" for name, value in values.items()] or ["batching by default"]
        return ", ".join(parts + flags)


@dataclass(frozen=True, slots=True)
class Space:
    """What may be tried on a machine for a workload.

    Attributes:
        cpus: processors of the machine.
        rows: rows of each request; no batch may be smaller.
        protocol: whose threads are varied.
        patience_s: no batch waits longer than half of this.
        batches: whether the models can be batched at all.
    """

    cpus: int
    rows: int
    protocol: Protocol
    patience_s: float
    batches: bool = True

    def axes(self) -> dict[str, tuple[Value, ...]]:
        """Return the choices for each parameter; all but the threads need `batching`."""
        largest = [self.rows * 2**power for power in range(_MOST_DOUBLINGS)]
        most_micros = self.patience_s * 1e6 / 2
        counts = _rising(1, 2, self.cpus // 2, self.cpus, 2 * self.cpus)
        return {
            BATCHING: (True, False) if self.batches else (False,),
            "max_batch_size": _rising(*largest, max(_SMALL_BATCH, self.rows), 1000),
            "batch_timeout_micros": tuple(t for t in _TIMEOUTS_MICROS if t <= most_micros),
            "max_enqueued_batches": (10, 100),
            "num_batch_threads": counts,
            "sizes": ("any", "doubling", "largest"),
            **{name: (0, *_rising(1, self.cpus)) for name in _THREAD_FLAGS},
            _FRONT_FLAG[self.protocol]: (0, 4 * handler_threads(self.cpus)),
        }

    def needs_batching(self, name: str) -> bool:
        """Say whether a parameter says nothing where requests are not batched."""
        return name == "sizes" or name in _SERVER_DEFAULTS

    def candidate(self, params: Params) -> Candidate:
        """Return the settings that chosen values mean; the server's defaults are left out."""
        flags = {name: int(params[name]) for name in self._flag_names() if params.get(name)}
        if not params[BATCHING]:
            return Candidate(None, flags)
        defaults = _SERVER_DEFAULTS | {"num_batch_threads": self.cpus}
        chosen = {name: params[name] for name in defaults if params[name] != defaults[name]}
        sizes = self._sizes(str(params["sizes"]), int(params["max_batch_size"]))
        return Candidate(Batching.model_validate(chosen | {"allowed_batch_sizes": sizes}), flags)

    def first(self) -> list[dict[str, Value]]:
        """Return what is tried before anything else.

        The server's default batching, and no batching. One thread that runs batches, which leaves
        all processors to each and lets the next one gather meanwhile; and the opposite: many
        threads that run small batches, each on one processor. For models that cannot be batched:
        the server's default, and each request on one processor.
        """
        unset: dict[str, Value] = dict.fromkeys(self._flag_names(), 0)
        without = {BATCHING: False, **unset}
        if not self.batches:
            return [without, without | {"tensorflow_intra_op_parallelism": 1}]
        default = {
            name: self.cpus if value is None else value for name, value in _SERVER_DEFAULTS.items()
        }
        by_default = {BATCHING: True, "sizes": "any", **default, **unset}
        narrow = {"num_batch_threads": 2 * self.cpus, "tensorflow_intra_op_parallelism": 1}
        return [
            by_default,
            without,
            by_default | {"num_batch_threads": 1},
            by_default | narrow | {"max_batch_size": max(_SMALL_BATCH, self.rows)},
        ]

    def _flag_names(self) -> tuple[str, ...]:
        return (*_THREAD_FLAGS, _FRONT_FLAG[self.protocol])

    def _sizes(self, which: str, largest: int) -> tuple[int, ...]:
        if which == "any":
            return ()
        if which == "largest":
            return (largest,)
        return _rising(
            *(self.rows * 2**n for n in range(32) if self.rows * 2**n < largest), largest
        )


def _rising(*values: int) -> tuple[int, ...]:
    return tuple(sorted({value for value in values if value > 0}))
