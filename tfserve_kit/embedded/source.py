"""What is on disk: the versions that a model's policy asks for.

Source: tensorflow_serving/sources/storage_path/file_system_storage_path_source.cc.
"""

import re
from pathlib import Path
from typing import Any

from tfserve_kit.embedded.status import Code, ServingError
from tfserve_kit.repository.versions import scan


def aspired(config: Any) -> dict[int, Path]:
    """Return the versions a model should have loaded now: number to directory.

    Args:
        config: a ModelConfig message.

    Raises:
        ServingError: NOT_FOUND, the base path does not exist.
    """
    try:
        found = {version.number: version.path for version in scan(_local(config.base_path))}
    except OSError as error:
        raise ServingError(
            Code.NOT_FOUND,
            f"Could not find base path {config.base_path} for servable {config.name} "
            f"with error NOT_FOUND: {config.base_path} not found",
        ) from error
    policy = config.model_version_policy
    match policy.WhichOneof("policy_choice"):
        case "all":
            wanted = list(found)
        case "specific":
            wanted = [number for number in policy.specific.versions if number in found]
        case _:
            wanted = sorted(found)[-max(1, policy.latest.num_versions) :]
    return {number: found[number] for number in wanted}


def _local(base_path: str) -> Path:
    """Return where a base path is on this machine; other schemes than `file` lead nowhere."""
    return Path(re.sub(r"^file://[^/]*", "", base_path))


def check_directory(version_dir: Path, servable: str) -> None:
    """Refuse what is no directory as the official server does when it reserves memory for it.

    Args:
        version_dir: what bears the version's name.
        servable: how messages call it.

    Raises:
        ServingError: it is a file, or a link to nothing.
    """
    text = f"Error while attempting to reserve resources to load servable {servable}: "
    if not version_dir.exists():
        raise ServingError(Code.NOT_FOUND, f"{text}{version_dir} not found")
    if not version_dir.is_dir():
        raise ServingError(Code.FAILED_PRECONDITION, f"{text}{version_dir}; Not a directory")
