"""The walks in docs/architecture.md: each function named is there, and called by one before it.

A walk is a numbered list below a heading; its steps begin with `module.function` or
`module.Class.method`, below tfserve_kit. A step may pass through other functions of its own module.
Where a function runs in another process, its line says *new process*, and a step before it must be
in the module that names the one to start.
"""

import ast
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "tfserve_kit"
PAGE = ROOT / "docs" / "architecture.md"
MOST_STEPS = 12
MOST_ROOMS = 17
WALKS = ("predict image.jpg", "push-model SRC", "serve --model", "REST predict", "perf --rate")

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Step:
    """One line of a walk: `clients.sync.Client.predict` and what is said of it."""

    name: str
    text: str

    @property
    def module(self) -> str:
        parts = self.name.split(".")
        known = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
        return next((each for each in known if _file(each)), "")

    @property
    def path(self) -> list[str]:
        """The names within the module, as ["Client", "predict"]."""
        return self.name.removeprefix(f"{self.module}.").split(".")


def _file(module: str) -> Path | None:
    base = PACKAGE.joinpath(*module.split("."))
    files = (base.with_suffix(".py"), base / "__init__.py")
    return next((file for file in files if file.is_file()), None)


def walks(text: str) -> dict[str, list[Step]]:
    """Return the steps below each heading that has a numbered list."""
    found = {}
    for section in re.split(r"^#+ ", text, flags=re.MULTILINE)[1:]:
        title, _, body = section.partition("\n")
        steps = re.findall(r"^\d+\. `([\w.]+)`(.*(?:\n   .*)*)", body, re.MULTILINE)
        if steps:
            found[title] = [Step(name, said) for name, said in steps]
    return found


@cache
def tree(module: str) -> ast.Module:
    file = _file(module)
    return ast.parse(file.read_text("utf-8") if file else "")


def defined(step: Step) -> ast.AST | None:
    """Return the function, method or class that a step names, None if there is none."""
    node: ast.AST | None = tree(step.module)
    for name in step.path:
        inner = getattr(node, "body", [])
        kinds = (*Function.__args__, ast.ClassDef)
        node = next((each for each in inner if isinstance(each, kinds) and each.name == name), None)
    return node


def mentioned(step: Step) -> set[str]:
    """Return the names and attributes that a function uses, itself or by others of its module."""
    helpers = {
        each.name: each
        for each in ast.walk(tree(step.module))
        if isinstance(each, (*Function.__args__, ast.ClassDef))
    }
    left, names, followed = [node for node in (defined(step), *fields(step)) if node], set(), set()
    while left:
        nodes = list(ast.walk(left.pop()))
        used = {each.id for each in nodes if isinstance(each, ast.Name)}
        attributes = {each for each in nodes if isinstance(each, ast.Attribute)}
        own = {each.attr for each in attributes if ast.unparse(each.value) in {"self", "cls"}}
        follow = {name for name in used | own if name in helpers} - followed
        followed |= follow
        names |= used | {each.attr for each in attributes}
        left += [helpers[name] for name in follow]
    return names


def fields(step: Step) -> list[ast.AST]:
    """Return what the class of a method declares; a field may hold a function."""
    if len(step.path) == 1:
        return []
    owner = defined(Step(f"{step.module}.{step.path[0]}", ""))
    return [each for each in getattr(owner, "body", []) if isinstance(each, ast.AnnAssign)]


def texts(module: str) -> str:
    constants = [each.value for each in ast.walk(tree(module)) if isinstance(each, ast.Constant)]
    return "\n".join(each for each in constants if isinstance(each, str))


def reached(step: Step, after: Step) -> bool:
    """Say whether a step leads to the one after it."""
    if "new process" in after.text:
        started = f"tfserve_kit.{after.module}".removesuffix(".__main__")
        return started in texts(step.module)
    names = mentioned(step)
    if len(after.path) > 1:  # a method; a constructor by the name of its class
        method = after.path[-1]
        return after.path[-2] in names if method in {"__init__", "__call__"} else method in names
    return after.path[0] in names and (after.module == step.module or imports(step, after))


def imports(step: Step, after: Step) -> bool:
    """Say whether the module of a step imports a function, or the module that has it."""
    found = set()
    for node in ast.walk(tree(step.module)):
        if isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    wanted = {f"tfserve_kit.{after.module}", f"tfserve_kit.{after.name}"}
    package = f"tfserve_kit.{after.module.rpartition('.')[0]}.{after.path[0]}"  # it passes it on
    return bool(found & {*wanted, package})


def led_to() -> list[tuple[list[Step], Step]]:
    """Return every step but the first of each walk, with those before it."""
    found = walks(PAGE.read_text("utf-8")).values()
    return [(steps[:at], steps[at]) for steps in found for at in range(1, len(steps))]


def test_the_five_walks_are_there_and_short():
    found = walks(PAGE.read_text("utf-8"))
    assert [title for title in WALKS if not any(title in each for each in found)] == []
    assert {title: len(steps) for title, steps in found.items() if len(steps) > MOST_STEPS} == {}
    assert all(len(steps) >= 5 for steps in found.values())


@pytest.mark.parametrize(
    "step", [step for steps in walks(PAGE.read_text("utf-8")).values() for step in steps],
    ids=lambda step: step.name,
)  # fmt: skip
def test_every_function_named_is_there(step):
    assert step.module
    assert defined(step) is not None, f"{step.module} has no {'.'.join(step.path)}"


@pytest.mark.parametrize(("before", "step"), led_to(), ids=lambda each: getattr(each, "name", ""))
def test_every_step_is_called_by_one_before_it(before, step):
    assert any(reached(each, step) for each in before)


def test_the_drawing_shows_every_room_and_few_of_them():
    drawing = re.search(r"^```text\n(.*?)^```", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)[
        1
    ]
    rooms = {each.parent.name for each in PACKAGE.glob("*/__init__.py")}
    assert {room for room in rooms if not re.search(rf"\b{room}/", drawing)} == set()
    assert len(set(re.findall(r"\b(\w+)/", drawing))) <= MOST_ROOMS


class TestTheCheckItself:
    """What it finds in the package where the answer is plain."""

    @pytest.mark.parametrize(
        ("name", "after", "told", "leads"),
        [
            ("__main__.main", "cli.main", "", True),
            ("__main__.main", "cli.nothing", "", False),
            ("__main__.main", "errors.main", "", False),
            ("engines.process.ProcessEngine", "embedded.__main__.main", "(new process)", True),
            ("engines.process.ProcessEngine", "doctor.main", "(new process)", False),
        ],
    )
    def test_next_step(self, name, after, told, leads):
        assert reached(Step(name, ""), Step(after, told)) is leads

    def test_steps_are_read_from_a_page(self):
        page = "# T\n\n## a\n\n1. `x.y` does\n   more\n2. `x.z`\n\n## b\n\ntext\n"
        assert walks(page) == {"a": [Step("x.y", " does\n   more"), Step("x.z", "")]}

    def test_functions_that_are_not_there_are_found_missing(self):
        assert defined(Step("errors.TfkitError", "")) is not None
        assert defined(Step("errors.NoSuchError", "")) is None
