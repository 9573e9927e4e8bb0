"""What the rules look at: the deployment, the flags it becomes, its base paths, the machine."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tfserve_kit import protos, savedmodel
from tfserve_kit.deployment import flags
from tfserve_kit.deployment.spec import Batching, Model, Spec
from tfserve_kit.errors import Problem
from tfserve_kit.repository import Version, list_versions
from tfserve_kit.savedmodel import Signature
from tfserve_kit.savedmodel.scan import Scan, scan_graph

# Source: tensorflow_serving/servables/tensorflow/saved_model_bundle_factory.cc.
TFLITE_FILE = "model.tflite"


@dataclass(frozen=True, slots=True)
class Machine:
    """Where the server will run: its CPUs, and the memory that is still available, in bytes."""

    cpus: int
    memory_bytes: int

    @classmethod
    def here(cls) -> "Machine":
        """Return this machine."""
        import psutil

        return cls(os.cpu_count() or 1, psutil.virtual_memory().available)


@dataclass(frozen=True)
class Base:
    """A base path that can be read, as the server will see it.

    Attributes:
        name: name of the model.
        model: its section of the deployment.
        children: what lies in the base path, by name.
        versions: which of it counts as a version, lowest first.
        tag: the graph that will be loaded.
        prefers_tflite: whether a `model.tflite` is loaded instead of the graph.
    """

    name: str
    model: Model
    children: tuple[Path, ...]
    versions: tuple[Version, ...]
    tag: str
    prefers_tflite: bool

    @property
    def place(self) -> str:
        """Where it stands in the deployment."""
        return f"models.{self.name}"

    @property
    def numbers(self) -> list[int]:
        """The numbers of its versions, lowest first."""
        return [version.number for version in self.versions]

    @cached_property
    def loaded(self) -> tuple[Version, ...]:
        """The versions that the policy chooses, lowest first."""
        numbers = self.model.versions.loads(self.numbers)
        return tuple(each for each in self.versions if each.number in numbers)

    @cached_property
    def newest(self) -> Version | None:
        """The newest loaded version, if it is whole and its graph is what is loaded of it."""
        found = self.loaded[-1] if self.loaded else None
        is_other = found is None or found in self.faults or self.serves_tflite(found)
        return None if is_other else found

    @cached_property
    def signatures(self) -> Mapping[str, Signature]:
        """The signatures of that version, by name; none without one."""
        if self.newest is None:
            return {}
        return savedmodel.read_signatures(self.newest.path, tag=self.tag)

    @cached_property
    def faults(self) -> Mapping[Version, list[Problem]]:
        """What is wrong with each loaded version that is not whole."""
        found = {version: self._faults(version) for version in self.loaded}
        return {version: problems for version, problems in found.items() if problems}

    @cached_property
    def fatal(self) -> tuple[Version, ...]:
        """The faulty versions that keep the model from answering.

        While another version is whole a failed load is an error in the log. Without its variables
        a version does not fail: it replaces the others and answers with errors. Source:
        tensorflow/cc/saved_model/loader.cc (RunRestore).
        """
        if len(self.faults) == len(self.loaded):
            return tuple(self.faults)
        newest = self.loaded[-1]
        index = savedmodel.VARIABLES_INDEX
        named = any(fault.path == str(index) for fault in self.faults.get(newest, ()))
        return (newest,) if named and not (newest.path / index).exists() else ()

    @cached_property
    def scan(self) -> Scan | None:
        """What is found in the graph of the newest version; None where none would be loaded."""
        if self.newest is None:
            return None
        return scan_graph(savedmodel.meta_graph(self.newest.path, tag=self.tag))

    def described(self, version: Version | None = None) -> str:
        """Return what a version is called in findings, the newest if none is given."""
        return f"version {(version or self.loaded[-1]).number} in {self.model.base_path}"

    def problem(self, text: str, remedy: str) -> Problem:
        """Return a finding about the base path."""
        return Problem(f"{self.place}.base_path", text, remedy)

    def serves_tflite(self, version: Version) -> bool:
        """Say whether a version is loaded from `model.tflite`."""
        return self.prefers_tflite and (version.path / TFLITE_FILE).is_file()

    def is_untagged(self, version: Version) -> bool:
        """Say whether a version's file is good, but no graph in it bears the tag."""
        try:
            graphs = savedmodel.parse(version.path).meta_graphs
        except (OSError, ValueError):
            return False
        return all(set(self.tag.split(",")) != set(graph.meta_info_def.tags) for graph in graphs)

    def _faults(self, version: Version) -> list[Problem]:
        if not version.path.is_dir():
            kind = "a link to nowhere" if version.path.is_symlink() else "a file"
            return [Problem(version.path.name, f"is {kind}, not a folder", "remove it")]
        try:
            if self.serves_tflite(version):
                return []
            return savedmodel.problems(version.path, tag=self.tag)
        except OSError as error:
            text = f"cannot be read ({error.strerror})"
            return [Problem(version.path.name, text, "let the server's user read it")]


@dataclass(frozen=True)
class Facts:
    """A deployment and what there is to know about it without a server."""

    spec: Spec
    machine: Machine

    @cached_property
    def flags(self) -> Mapping[str, Any]:
        """The value of every flag, as the server will read it."""
        return flags.parse(self.spec.argv([], "")).values

    @cached_property
    def tag(self) -> str:
        """The tags of the graph that will be loaded, separated by commas.

        Source: tensorflow_serving/model_servers/server.cc: a platform file replaces the flag.
        """
        file = self.flags["platform_config_file"]
        tags = _platform_tags(Path(file)) if file else self.flags["saved_model_tags"]
        return tags or "serve"

    @property
    def batching(self) -> Batching | None:
        """How requests are batched, None if they are not."""
        return self.spec.batching

    @property
    def max_batch_size(self) -> int:
        """Most rows in a batch."""
        return (self.batching or Batching()).most_rows

    @property
    def handlers(self) -> Mapping[str, int]:
        """How many requests are handled at once, by the flag that says so."""
        given: Mapping[str, Any] = self.spec.server.flags
        threads = flags.handler_threads(self.machine.cpus)
        return {name: given.get(name, threads) for name in flags.HANDLERS}

    @cached_property
    def remote(self) -> Mapping[str, str]:
        """Base paths with a scheme, such as gs://, by model."""
        models = self.spec.models.items()
        return {
            name: model.base_path
            for name, model in models
            if not self.spec.is_here(model.base_path)
        }

    @cached_property
    def unreadable(self) -> Mapping[str, OSError]:
        """Why a base path on this machine cannot be read, by model."""
        looks = self._looks
        return {name: seen for name, seen in looks.items() if isinstance(seen, OSError)}

    @cached_property
    def bases(self) -> tuple[Base, ...]:
        """The base paths that can be read."""
        return tuple(seen for seen in self._looks.values() if isinstance(seen, Base))

    @cached_property
    def _looks(self) -> Mapping[str, Base | OSError]:
        here = {name: each for name, each in self.spec.models.items() if name not in self.remote}
        return {name: self._look(name, model) for name, model in here.items()}

    def _look(self, name: str, model: Model) -> Base | OSError:
        path = Path(model.base_path)
        try:
            children = tuple(sorted(path.iterdir(), key=lambda child: child.name))
            versions = tuple(list_versions(path))
        except OSError as error:
            return error
        prefers_tflite = self.flags["prefer_tflite_model"]
        return Base(name, model, children, versions, self.tag, prefers_tflite)


def _platform_tags(file: Path) -> str:
    """Return the tags that a PlatformConfigMap asks for; nothing where it does not say."""
    try:
        message = protos.from_text("PlatformConfigMap", file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, protos.TextFormatError):
        return ""  # perhaps it lies where only the server sees it
    adapter = protos.SavedModelBundleSourceAdapterConfig()
    message.platform_configs["tensorflow"].source_adapter_config.Unpack(adapter)
    return ",".join(adapter.legacy_config.saved_model_tags)
