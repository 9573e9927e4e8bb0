"""The error tree: how messages read, and that the drawing is the tree."""

import re

import pytest

from tfserve_kit import errors
from tfserve_kit.errors import Problem, ServerFailed, SpecError, TfkitError, did_you_mean


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
    assert {name for name, _ in drawn_tree()} == own


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
        ("zzz", "known: base_path, max_batch_size"),
    ],
)
def test_did_you_mean_names_the_nearest_or_all(name, hint):
    assert did_you_mean(name, ["max_batch_size", "base_path"]) == hint
