"""Makes `schema.binpb`, the FileDescriptorSet that the package speaks TensorFlow Serving with.

Runs where tensorflow-serving-api, tensorflow and grpcio-tools are installed (`make protos`). It
collects the descriptors of the official packages and compiles the .proto files in `config/` for the
messages those packages leave out. Beside it goes `ops.txt`, the names of the operations that
tensorflow registers. `--check` compares instead of writing (`make protos-check`).
"""

import argparse
import importlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

HERE = Path(__file__).parent
SCHEMA = HERE / "schema.binpb"
OPS = HERE / "ops.txt"

# The roots; everything they import comes along. PlatformConfigMap is in the official package.
OFFICIAL = (
    "tensorflow_serving.apis.model_service_pb2",
    "tensorflow_serving.apis.prediction_log_pb2",
    "tensorflow_serving.apis.prediction_service_pb2",
    "tensorflow_serving.config.model_server_config_pb2",
    "tensorflow_serving.config.platform_config_pb2",
    "tensorflow.core.protobuf.saved_model_pb2",
    "tensorflow.core.protobuf.tensor_bundle_pb2",
    "tensorflow.core.protobuf.config_pb2",
    "tensorflow.core.protobuf.named_tensor_pb2",
    "google.protobuf.wrappers_pb2",
)
# Our own files, and the path under which upstream imports each.
OWN = {
    "session_bundle_config.proto": "tensorflow_serving/servables/tensorflow",
    "saved_model_bundle_source_adapter.proto": "tensorflow_serving/servables/tensorflow",
    "ssl_config.proto": "tensorflow_serving/config",
    "monitoring_config.proto": "tensorflow_serving/config",
}


def official_files() -> dict[str, FileDescriptorProto]:
    """Return the descriptors of the official packages and all they depend on, by path."""
    found: dict[str, FileDescriptorProto] = {}

    def collect(descriptor: object) -> None:
        name = descriptor.name  # type: ignore[attr-defined]
        if name in found:
            return
        proto = FileDescriptorProto()
        descriptor.CopyToProto(proto)  # type: ignore[attr-defined]
        found[name] = proto
        for dependency in descriptor.dependencies:  # type: ignore[attr-defined]
            collect(dependency)

    for module in OFFICIAL:
        collect(importlib.import_module(module).DESCRIPTOR)
    return found


def own_files(known: dict[str, FileDescriptorProto]) -> dict[str, FileDescriptorProto]:
    """Compile the .proto files of `config/` against the official descriptors."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        official = root / "official.binpb"
        official.write_bytes(FileDescriptorSet(file=known.values()).SerializeToString())
        sources = []
        for name, folder in OWN.items():
            (root / folder).mkdir(parents=True, exist_ok=True)
            shutil.copy(HERE / "config" / name, root / folder / name)
            sources.append(f"{folder}/{name}")
        output = root / "own.binpb"
        # A process of its own: the compiler and tensorflow crash when they share one.
        protoc = [sys.executable, "-m", "grpc_tools.protoc", f"-I{root}"]
        options = [f"--descriptor_set_in={official}", f"--descriptor_set_out={output}"]
        subprocess.run([*protoc, *options, *sources], check=True)
        compiled = FileDescriptorSet.FromString(output.read_bytes())
    return {file.name: file for file in compiled.file if file.name in sources}


def ordered(files: dict[str, FileDescriptorProto]) -> Iterator[FileDescriptorProto]:
    """Yield the files so that each comes after all it imports, else by name."""
    done: set[str] = set()

    def visit(name: str) -> Iterator[FileDescriptorProto]:
        if name in done:
            return
        done.add(name)
        for dependency in sorted(files[name].dependency):
            yield from visit(dependency)
        yield files[name]

    for name in sorted(files):
        yield from visit(name)


def build() -> bytes:
    """Return the serialized FileDescriptorSet; the same bytes for the same packages."""
    files = official_files()
    files |= own_files(files)
    for file in files.values():
        file.ClearField("source_code_info")
    return FileDescriptorSet(file=ordered(files)).SerializeToString(deterministic=True)


def operations() -> bytes:
    """Return the names of the operations that tensorflow registers, one a line.

    The wheel registers the operations of its own tests as well; those are left out.
    """
    import tensorflow as tf
    from tensorflow.core.framework.op_def_pb2 import OpList
    from tensorflow.python.client import pywrap_tf_session
    from tensorflow.python.framework import test_ops

    registered = pywrap_tf_session.TF_GetBuffer(pywrap_tf_session.TF_GetAllOpList())
    names = {op.name for op in OpList.FromString(registered).op}
    tests = (set(dir(test_ops)) - set(dir(tf.raw_ops))) | {"Namespace>TestStringOutput"}
    return "".join(f"{name}\n" for name in sorted(names - tests)).encode()


def main() -> int:
    """Write or check the files; exit status 1 when the check finds a difference."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    check = parser.parse_args().check
    status = 0
    for file, content in ((SCHEMA, build()), (OPS, operations())):
        if not check:
            file.write_bytes(content)
        elif content != resources.files(__package__).joinpath(file.name).read_bytes():
            sys.stderr.write(f"{file} differs from the official packages: run `make protos`\n")
            status = 1
    return status


if __name__ == "__main__":
    raise SystemExit(main())
