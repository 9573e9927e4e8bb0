"""The error tree: how messages read, and that the drawing is the tree."""

import ast
import errno
import re
from pathlib import Path

import pytest

from tfserve_kit import errors
from tfserve_kit.errors import (
    InvalidRequest,
    Problem,
    ServerFailed,
    SpecError,
    TfkitError,
    UsageError,
    did_you_mean,
    file_error,
    missing,
)

ROOT = Path(errors.__file__).parent


def drawn_tree():
    """Return (class name, parent name) pairs from the drawing in the module docstring."""
    parents, pairs = {}, []
    for line in errors.__doc__.splitlines():
        if match := re.fullmatch(r"    ([ │├└─]*)([A-Z]\w+)\s{2,}\S.*", line):
            depth = len(match[1]) // 4
            parents[depth] = match[2]
            pairs.append((match[2], parents[depth - 1] if depth else "Exception"))
    return pairs


def subclasses(kind):
    return {kind} | {each for child in kind.__subclasses__() for each in subclasses(child)}


@pytest.mark.parametrize(("name", "parent"), drawn_tree())
def test_drawn_error_has_the_drawn_parent(name, parent):
    assert getattr(errors, name).__base__.__name__ == parent


def test_every_error_is_drawn():
    own = {kind.__name__ for kind in subclasses(TfkitError) if kind.__module__ == errors.__name__}
    assert {name for name, _ in drawn_tree()} == own, "draw it in the docstring of errors.py"


def test_remedy_follows_the_message_on_a_line_of_its_own():
    error = TfkitError("disk full", remedy="free some space")
    assert str(error).splitlines() == ["disk full", "  Try: free some space"]
    assert (error.message, error.remedy) == ("disk full", "free some space")
    assert error.args == ("disk full",)


def test_error_without_remedy_is_its_message():
    assert str(TfkitError("disk full")) == "disk full"


@pytest.mark.parametrize(
    ("problem", "text"),
    [
        (Problem("a.b", "is wrong", "fix it"), "a.b: is wrong (fix it)"),
        (Problem("a.b", "is wrong"), "a.b: is wrong"),
        (Problem("", "is wrong", "fix it"), "is wrong (fix it)"),
        (Problem("", "is wrong"), "is wrong"),
    ],
)
def test_problem_reads_as_path_message_and_remedy(problem, text):
    assert str(problem) == text


@pytest.mark.parametrize(("count", "noun"), [(1, "1 problem"), (2, "2 problems")])
def test_spec_error_counts_and_lists_every_problem(count, noun):
    problems = [Problem(f"key{i}", "is wrong") for i in range(count)]
    error = SpecError("tfkit.toml", problems)
    first, *others = str(error).splitlines()
    assert first == f"tfkit.toml: {noun}"
    assert others == [f"  - {problem}" for problem in problems]
    assert (error.source, error.problems) == ("tfkit.toml", problems)


def test_long_remedy_of_a_problem_has_a_line_of_its_own():
    remedy = "do this " * 12
    error = SpecError("tfkit.toml", [Problem("a", "is wrong", remedy), Problem("b", "too", "mend")])
    assert str(error).splitlines()[1:] == [
        "  - a: is wrong",
        f"    Try: {remedy}",
        "  - b: too (mend)",
    ]


def test_server_failed_shows_the_log_after_the_remedy():
    error = ServerFailed("it ended", exit_code=3, log_tail=["one", "two"], remedy="read this")
    assert str(error).splitlines() == [
        "it ended",
        "  Try: read this",
        "  Last lines of its log:",
        "  | one",
        "  | two",
    ]
    assert (error.exit_code, error.log_tail) == (3, ["one", "two"])


def test_server_failed_without_log_is_its_message():
    error = ServerFailed("it ended")
    assert str(error) == "it ended"
    assert (error.exit_code, error.log_tail) == (None, [])


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("max_batchsize", "did you mean max_batch_size?"),
        ("zzz", "choose one of: base_path, max_batch_size"),
    ],
)
def test_did_you_mean_names_the_nearest_or_all(name, hint):
    assert did_you_mean(name, ["max_batch_size", "base_path"]) == hint


def bare_errors():
    """Yield the places where an error is made that does not say what to do."""
    trees = {file: ast.parse(file.read_text("utf-8")) for file in sorted(ROOT.rglob("*.py"))}
    classes = [node for tree in trees.values() for node in ast.walk(tree) if is_class(node)]
    kinds, found = set(), {"TfkitError"}
    while found - kinds:
        kinds |= found
        found = {each.name for each in classes if kinds & set(map(ast.unparse, each.bases))}
    kinds.remove("SpecError")
    for file, tree in trees.items():
        for call in ast.walk(tree):
            if not isinstance(call, ast.Call) or ast.unparse(call.func) not in kinds:
                continue
            if not any(each.arg == "remedy" for each in call.keywords):
                yield f"{file.relative_to(ROOT)}: {ast.unparse(call.args[0])}"


def is_class(node):
    return isinstance(node, ast.ClassDef)


# The message itself is what to do, or holds what does: problems with a remedy each, another error.
TELLING = re.compile(r".*: '?give |.*\{(lines|listed\(.*\)|told|error)\}'$|serving/smoke.py: ")


def test_every_error_says_what_to_do():
    assert not [place for place in bare_errors() if not TELLING.match(place)]


class TestFiles:
    def test_missing_file_is_told_with_the_part_of_the_path_that_lacks(self, tmp_path):
        error = missing(UsageError, tmp_path / "no" / "such.csv", "give a table")
        assert error.message == f"cannot read {tmp_path}/no/such.csv: No such file or directory"
        assert error.remedy == (
            f"check the path: the folder {tmp_path} contains no 'no'; give a table"
        )

    def test_relative_path_is_told_from_the_root(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        error = missing(InvalidRequest, "x.json")
        assert error.message.startswith("cannot read x.json: ")
        assert f"the folder {tmp_path} contains no 'x.json'" in error.remedy

    def test_file_that_is_called_nearly_so_is_named(self, tmp_path):
        (tmp_path / "labels.txt").touch()
        remedy = missing(UsageError, tmp_path / "label.txt", "give a list of names").remedy
        assert remedy.endswith("did you mean labels.txt? Else: give a list of names")

    @pytest.mark.parametrize(
        ("name", "there"), [("labls.txt", "abc.txt"), ("a.npz", "sparse.npz"), ("x.png", "y.png")]
    )
    def test_file_that_has_only_the_ending_in_common_is_no_guess(self, tmp_path, name, there):
        (tmp_path / there).touch()
        assert "did you mean" not in missing(UsageError, tmp_path / name).remedy

    def test_file_in_the_place_of_a_folder_is_told(self, tmp_path):
        (tmp_path / "file").touch()
        error = missing(UsageError, tmp_path / "file" / "x")
        assert f"{tmp_path}/file is there, but is no folder" in error.remedy

    @pytest.mark.parametrize("name", ["{verb}", "a{}b", "caf\udce9"])
    def test_any_name_can_be_told(self, tmp_path, name):
        (tmp_path / "caf\udce8").touch()
        assert str(missing(UsageError, tmp_path / name)).encode()

    @pytest.mark.parametrize(
        ("code", "remedy"),
        [(errno.EACCES, "let the user who runs this write it"), (errno.EISDIR, "it is a folder"),
         (errno.ENOSPC, "free some space"), (errno.EIO, "check the path and its permissions")],
    )  # fmt: skip
    def test_remedy_is_that_of_the_error(self, code, remedy):
        error = file_error(UsageError, "write", "x", OSError(code, "words"))
        assert error.message == "cannot write x: words"
        assert remedy in error.remedy
