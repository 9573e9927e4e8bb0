"""Compile `services.proto` into the two Python files beside it; `--check` compares instead.

Run by `make protos` and `make protos-check`. Needs grpcio-tools, which `make setup` installs.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
# The compiler writes its own version into what it makes; another one may make the same code.
_VERSION = re.compile(r"\d+\.\d+\.\d+|^    \d+,$", re.MULTILINE)


def compile_into(folder: Path) -> list[Path]:
    """Write messages and service into a folder and return the two files."""
    outputs = [f"--python_out={folder}", f"--grpc_python_out={folder}"]
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{HERE}", *outputs, "services.proto"]
    subprocess.run(command, check=True)
    return [folder / "services_pb2.py", folder / "services_pb2_grpc.py"]


def outdated() -> list[str]:
    """Return the names of the files that the proto would now be compiled to differently."""
    with tempfile.TemporaryDirectory() as scratch:
        return [
            fresh.name
            for fresh in compile_into(Path(scratch))
            if _without_version(fresh) != _without_version(HERE / fresh.name)
        ]


def _without_version(file: Path) -> str:
    return _VERSION.sub("", file.read_text("utf-8")) if file.exists() else ""


def main() -> int:
    """Compile or check; exit status 1 when the check finds a difference."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    if not parser.parse_args().check:
        compile_into(HERE)
        return 0
    found = outdated()
    for name in found:
        sys.stderr.write(f"{HERE / name} differs from services.proto: run `make protos`\n")
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
