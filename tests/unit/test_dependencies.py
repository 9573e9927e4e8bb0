"""Every declared dependency is imported somewhere in the package, and every import is declared."""

import ast
import re
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
# What a package is imported as, where that is not its own name.
IMPORTED_AS = {
    "google-crc32c": "google_crc32c",
    "grpcio": "grpc",
    "grpcio-tools": "grpc_tools",
    "opentelemetry-api": "opentelemetry",
    "pillow": "PIL",
    "protobuf": "google",
    "pysimdjson": "simdjson",
    "pyyaml": "yaml",
    "python-rapidjson": "rapidjson",
    "tensorflow-serving-api": "tensorflow_serving",
}
# fsspec imports these when a URL has their scheme.
BY_SCHEME = {"s3fs", "gcsfs"}
# Packages that come with a declared one: pydantic, requests and tensorflow.
ALONG = {"pydantic_core", "urllib3", "ml_dtypes"}


def names(requirements: list[str]) -> set[str]:
    """Return what the packages of some requirements are imported as."""
    found = {re.split(r"[^A-Za-z0-9._-]", each, maxsplit=1)[0] for each in requirements}
    return {IMPORTED_AS.get(name, name) for name in found}


@cache
def imported() -> set[str]:
    """Return the top-level names of others that the package imports, wherever that stands."""
    found: set[str] = set()
    for file in (ROOT / "tfserve_kit").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.partition(".")[0])
            elif (
                isinstance(node, ast.Call)
                and ast.unparse(node.func) == "importlib.import_module"
                and isinstance(node.args[0], ast.Constant)
            ):
                found.add(node.args[0].value.partition(".")[0])
    return found - set(sys.stdlib_module_names) - {"tfserve_kit"}


@pytest.mark.parametrize("extra", [None, "embedded", "tune", "cloud", "zst", "tracing"])
def test_every_declared_dependency_is_imported(extra):
    declared = names(PROJECT["dependencies"] if extra is None else EXTRAS[extra])
    assert declared - imported() - BY_SCHEME == set()


def test_every_imported_package_is_declared():
    every = [*PROJECT["dependencies"], *(each for extra in EXTRAS.values() for each in extra)]
    assert imported() - names(every) - ALONG == set()
