"""The house rules: who may import whom, and how long a function may be."""

import ast
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

PACKAGE = "tfserve_kit"
ROOT = Path(__file__).parents[2] / PACKAGE

LAYERS = (
    {
        "input_files",
        "errors",
        "clock",
        "progress",
        "safe_text",
        "strict_json",
        "version",
    },
    {"protos", "tensors", "tfrecord", "savedmodel", "processes", "http"},
    {"pictures", "deployment", "repository"},
    {"clients", "engines", "embedded", "perf", "evaluation"},
    {"serving"},
    {"tuning", "doctor", "pytest_plugin", "playground"},
    {"__init__"},  # the public names, for users; nothing inside imports them
    {"cli"},
    {"__main__"},
)
LAYER = {room: number for number, rooms in enumerate(LAYERS) for room in rooms}
# Below this layer the rooms of a layer may use each other (without cycles); from it on only so:
APART = LAYER["clients"]
NEIGHBOURS = {
    ("perf", "clients"),
    ("evaluation", "clients"),
}

# Who may import what from outside: top-level name -> modules or packages of ours.
ONLY = {
    "tensorflow": {"embedded.loader", "protos.generate"},
    "tensorflow_serving": {"protos.generate"},
    "ngh2": {"embedded.http2"},
    "uvloop": {"embedded.front"},
    "google": {"protos"},
    "google_crc32c": {"tfrecord"},
    "docker": {"engines.docker", "engines.images", "engines.swarm"},
    "fsspec": {"repository.object_store"},
    "opentelemetry": {"clients.protocol"},
    "optuna": {"tuning.study"},
    "tomlkit": {"tuning.results"},
    "yaml": {"engines.manifests"},
    "click": {"cli"},
    "rich": {"cli.output"},
}
MAY_PRINT = {"cli", "__main__", "embedded.__main__", "protos.generate"}

MAX_FUNCTION_LINES = 50
MOST_FUNCTION_LINES = 25  # nine functions of ten
# A ratchet: what there is to know. A change that raises a number says why in its message.
MOST_FILES = 192
MOST_PUBLIC_CLASSES = 334


@dataclass(frozen=True)
class Import:
    """One imported module, seen from a module of ours."""

    target: str
    line: int
    typing_only: bool


@cache
def modules() -> dict[str, Path]:
    """Return every module below the package: `tensors.proto`, `tensors`, `__init__` -> file."""
    found = {}
    for file in sorted(ROOT.rglob("*.py")):
        parts = file.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)] = file
    return found


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(modules()[module].read_text("utf-8"))


@cache
def imports(module: str) -> tuple[Import, ...]:
    return tuple(_imports(tree(module), modules()))


def _imports(parsed, known) -> Iterator[Import]:
    """Yield what a module imports; `from package import module` counts for the module."""
    typing_only = {
        id(node)
        for test in ast.walk(parsed)
        if isinstance(test, ast.If) and "TYPE_CHECKING" in ast.unparse(test.test)
        for statement in test.body
        for node in ast.walk(statement)
    }
    for node in ast.walk(parsed):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: imports are absolute here"
            names = [
                f"{node.module}.{alias.name}"
                if f"{node.module}.{alias.name}".removeprefix(f"{PACKAGE}.") in known
                else str(node.module)
                for alias in node.names
            ]
        else:
            continue
        for name in names:
            yield Import(name, node.lineno, id(node) in typing_only)


def ours(name: str) -> str | None:
    """Return a module of ours without the package's name, None for others."""
    if name == PACKAGE:
        return "__init__"
    return name.removeprefix(f"{PACKAGE}.") if name.startswith(f"{PACKAGE}.") else None


def room(module: str) -> str:
    return module.partition(".")[0]


def within(module: str, places: set[str]) -> bool:
    return any(module == place or module.startswith(f"{place}.") for place in places)


def allowed(importer: str, imported: str) -> bool:
    """Say whether a module may import another: downwards, within its room, or as neighbours."""
    mine, theirs = room(importer), room(imported)
    if mine == theirs or LAYER[theirs] < LAYER[mine]:
        return True
    return LAYER[theirs] == LAYER[mine] and (LAYER[mine] < APART or (mine, theirs) in NEIGHBOURS)


def cycles(graph: dict[str, set[str]]) -> list[str]:
    """Return the nodes that can reach themselves."""

    def reachable(start):
        seen, left = set(), list(graph.get(start, ()))
        while left:
            if (node := left.pop()) not in seen:
                seen.add(node)
                left += graph.get(node, ())
        return seen

    return sorted(node for node in graph if node in reachable(node))


def functions() -> dict[str, int]:
    """Return the length of every function's body, without its docstring, in lines."""
    found = {}
    for module in modules():
        for node in ast.walk(tree(module)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.body[1:] if ast.get_docstring(node) is not None else node.body
                lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0
                found[f"{module}:{node.lineno} {node.name}"] = lines
    return found


@pytest.mark.parametrize("module", modules())
def test_every_module_has_its_layer(module):
    assert room(module) in LAYER, f"say in LAYERS where {room(module)} belongs"


@pytest.mark.parametrize("module", modules())
def test_imports_run_downwards_only(module):
    wrong = [
        f"line {each.line}: {module} must not import {each.target}"
        for each in imports(module)
        if (target := ours(each.target)) is not None and not allowed(module, target)
    ]
    assert not wrong


@pytest.mark.parametrize("module", modules())
def test_foreign_packages_stay_in_their_rooms(module):
    wrong = [
        f"line {each.line}: {each.target} is for {sorted(places)} only"
        for each in imports(module)
        if (places := ONLY.get(room(each.target))) and not within(module, places)
    ]
    assert not wrong


@pytest.mark.parametrize("module", sorted(LAYERS[0]))
def test_lowest_layer_imports_nothing_but_the_standard_library(module):
    foreign = {each.target for each in imports(module) if ours(each.target) is None}
    assert {room(name) for name in foreign} <= sys.stdlib_module_names


def test_no_module_imports_itself_around_a_corner():
    graph = {
        module: {
            target
            for each in imports(module)
            if not each.typing_only and (target := ours(each.target)) is not None
        }
        for module in modules()
    }
    assert not cycles(graph)


@pytest.mark.parametrize("module", modules())
def test_only_the_command_line_prints_and_exits(module):
    if within(module, MAY_PRINT):
        return
    calls = [node for node in ast.walk(tree(module)) if isinstance(node, ast.Call)]
    wrong = [
        f"line {call.lineno}: {ast.unparse(call.func)}"
        for call in calls
        if ast.unparse(call.func) in {"print", "sys.exit", "exit", "quit", "os._exit"}
    ]
    assert not wrong


@pytest.mark.parametrize("module", sorted(each for each in modules() if room(each) == "cli"))
def test_commands_show_nothing_but_through_output(module):
    """There texts from outside are made harmless, and secrets hidden."""
    if module == "cli.output":
        return
    shown = re.compile(
        r"click\.(s?echo|style|pause|prompt|confirm|clear|progressbar)|sys\.std(out|err)\..*write.*"
    )
    calls = [node for node in ast.walk(tree(module)) if isinstance(node, ast.Call)]
    names = [(call.lineno, ast.unparse(call.func)) for call in calls]
    assert not {each for each in names if shown.fullmatch(each[1])}


def public_classes():
    return [
        node.name
        for module in modules()
        for node in ast.walk(tree(module))
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    ]


def test_no_two_public_classes_have_one_name():
    assert not [name for name, times in Counter(public_classes()).items() if times > 1]


def test_files_and_public_classes_do_not_grow_unnoticed():
    classes = public_classes()
    assert len(modules()) <= MOST_FILES, "raise MOST_FILES, and say why in the commit message"
    assert len(classes) <= MOST_PUBLIC_CLASSES, (
        "raise MOST_PUBLIC_CLASSES, and say why in the commit message"
    )


def test_no_function_is_longer_than_a_screen():
    assert not {name: n for name, n in functions().items() if n > MAX_FUNCTION_LINES}


def test_nine_functions_of_ten_are_short():
    long = {name: n for name, n in functions().items() if n > MOST_FUNCTION_LINES}
    assert len(long) <= len(functions()) // 10, long


class TestTheRulesThemselves:
    """What the functions above find in code made up for it."""

    @pytest.mark.parametrize(
        ("importer", "imported", "fine"),
        [
            ("tensors.proto", "errors", True),
            ("tensors.proto", "tensors.dtypes", True),
            ("savedmodel.graph", "savedmodel.checkpoint", True),
            ("repository.gate", "pictures.preprocessing", True),
            ("perf.measuring", "clients.grpc", True),
            ("cli.serve", "serving.launch", True),
            ("errors", "protos", False),
            ("tensors.proto", "deployment", False),
            ("embedded.server", "clients.grpc", False),
            ("embedded.server", "engines.base", False),
            ("embedded.server", "serving.launch", False),
            ("engines.process", "embedded.server", False),
            ("engines.process", "clients", False),
            ("clients.sync", "perf.measuring", False),
            ("repository.push", "__init__", False),
            ("serving.launch", "cli", False),
        ],
    )
    def test_direction(self, importer, imported, fine):
        assert allowed(importer, imported) is fine

    @pytest.mark.parametrize(
        ("code", "found"),
        [
            ("import tensorflow as tf", {("tensorflow", False)}),
            ("def f():\n    import a.b", {("a.b", False)}),
            ("from tfserve_kit import protos", {("tfserve_kit.protos", False)}),
            ("from tfserve_kit import connect", {("tfserve_kit", False)}),
            ("from tfserve_kit.tensors import json", {("tfserve_kit.tensors.json", False)}),
            ("from tfserve_kit.tensors import DType", {("tfserve_kit.tensors", False)}),
            ("if TYPE_CHECKING:\n    import a\nelse:\n    import b", {("a", True), ("b", False)}),
        ],
    )
    def test_imports_are_found_wherever_they_stand(self, code, found):
        known = {"protos", "tensors", "tensors.json"}
        assert {
            (each.target, each.typing_only) for each in _imports(ast.parse(code), known)
        } == found

    @pytest.mark.parametrize(
        ("graph", "found"),
        [
            ({"a": {"b"}, "b": {"c"}, "c": set()}, []),
            ({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}, ["a", "b", "c"]),
            ({"a": {"a"}}, ["a"]),
        ],
    )
    def test_cycles_are_found(self, graph, found):
        assert cycles(graph) == found

    def test_the_package_is_looked_at(self):
        assert {"__init__", "errors", "protos", "protos.generate", "tensors.proto"} <= set(
            modules()
        )
        assert len(functions()) > 100
