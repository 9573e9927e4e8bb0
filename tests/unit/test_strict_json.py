"""JSON as the standard has it, whatever the values, and nobody who shows JSON writes another."""

import ast
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.test_architecture import modules, room, tree
from tfserve_kit import strict_json
from tfserve_kit.cli import output

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=12,
)
# Who shows results, or keeps them in files.
SHOWING = {"cli", "perf", "evaluation", "serving", "tuning"}
OURS = "perf.samples"  # within a file that only we read


def strict(text):
    """Read JSON as strict parsers do."""

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    return json.loads(text, parse_constant=refuse)


@settings(deadline=None)
@given(VALUES)
def test_any_value_becomes_json_by_the_standard(value):
    assert strict(strict_json.dumps(value)) is not ...


@settings(deadline=None)
@given(st.recursive(st.none() | st.integers() | st.floats(allow_nan=False, allow_infinity=False),
                    st.lists))  # fmt: skip
def test_what_is_finite_stays_what_it_is(value):
    assert strict(strict_json.dumps(value)) == value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ([math.nan, 1.5], '["NaN", 1.5]'),
        ({"a": (math.inf, -math.inf)}, '{"a": ["Infinity", "-Infinity"]}'),
        ({math.nan: {"b": [[math.nan]]}}, '{"NaN": {"b": [["NaN"]]}}'),
        (math.inf, '"Infinity"'),
    ],
)
def test_values_without_a_notation_are_texts(value, text):
    assert strict_json.dumps(value) == text


def test_what_holds_itself_is_still_refused():
    endless = []
    endless.append(endless)
    with pytest.raises((ValueError, RecursionError)):
        strict_json.dumps(endless)


@settings(deadline=None)
@given(VALUES)
def test_results_of_commands_are_json_by_the_standard(value):
    shown = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(output, "_emit", shown.append)
        output.result("any", value, as_json=True, text="")
    assert strict("".join(shown))["kind"] == "any"


@pytest.mark.parametrize(
    "module", sorted(each for each in modules() if room(each) in SHOWING and each != OURS)
)
def test_only_strict_json_is_written(module):
    calls = [node for node in ast.walk(tree(module)) if isinstance(node, ast.Call)]
    bare = [
        f"line {call.lineno}"
        for call in calls
        if ast.unparse(call.func) in {"json.dumps", "json.dump"}
    ]
    assert not bare, "write JSON with strict_json.dumps"
