"""Version labels: names for version numbers that a configuration gives out.

Source: tensorflow_serving/model_servers/server_core.cc (UpdateModelVersionLabelMap).
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tfserve_kit.embedded.status import Code, ServingError, invalid

LabelMap = Mapping[str, Mapping[str, int]]


def assign(
    configs: Iterable[Any],
    current: LabelMap,
    is_available: Callable[[str, int], bool],
    *,
    allow_unavailable: bool,
) -> LabelMap:
    """Return the labels that a new configuration gives out: model to label to version.

    Args:
        configs: ModelConfig messages.
        current: the labels that are given out now.
        is_available: whether a model's version can be called now.
        allow_unavailable: let a label that is new, or stays where it is, name any version.

    Raises:
        ServingError: FAILED_PRECONDITION, a label would name a version that cannot be called.
    """
    assigned: dict[str, dict[str, int]] = {}
    for config in configs:
        for label, version in sorted(config.version_labels.items()):
            before = current.get(config.name, {}).get(label)
            lenient = allow_unavailable and before in {None, version}
            if not lenient and not is_available(config.name, version):
                raise ServingError(
                    Code.FAILED_PRECONDITION,
                    f"Request to assign label to version {version} of model {config.name}, "
                    "which is not currently available for inference",
                )
            assigned.setdefault(config.name, {})[label] = version
    return assigned


def resolve(labels: LabelMap, model: str, label: str) -> int:
    """Return the version a label stands for.

    Raises:
        ServingError: the model has no such label.
    """
    try:
        return labels[model][label]
    except KeyError:
        raise invalid(f"Unrecognized servable version label: {label}") from None
