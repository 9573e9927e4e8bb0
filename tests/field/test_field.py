"""Every command says of every model what its row expects; docs/field.md shows the table."""

import pytest

from tests.field import cells
from tests.field.rows import BY_NAME

pytestmark = pytest.mark.tensorflow

ALL = list(BY_NAME.values())
SERVED = [row for row in ALL if not row.pushed]


def of(rows):
    return pytest.mark.parametrize("row", rows, ids=lambda row: row.name)


@of(ALL)
def test_inspect_shows_what_goes_in_and_comes_out_or_refuses(field, row):
    cells.inspect(field, row)


@of(ALL)
def test_push_takes_what_can_answer_and_refuses_the_others(field, row):
    cells.push(field, row)


@of(ALL)
def test_lint_says_what_the_server_would_stumble_over(field, row):
    cells.lint(field, row)


@of([row for row in ALL if row.served or not row.pushed])
def test_serve_has_the_model_available_or_does_not_start(field, row):
    cells.serve(field, row)


@of(SERVED)
def test_metadata_shows_what_goes_in_and_comes_out(field, row):
    cells.metadata(field, row)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        pytest.param(row, each, id=f"{row.name}-{number}")
        for row in SERVED
        for number, each in enumerate(row.asks)
    ],
)
def test_question_is_answered_rightly_or_refused(field, row, expected):
    cells.ask(field, row, expected)


@of(SERVED)
def test_warmup_stores_requests_that_the_load_replays(field, row):
    cells.warmup(field, row)


@of(SERVED)
def test_perf_gets_an_answer_to_every_request(field, row):
    cells.perf(field, row)


@of(SERVED)
def test_evaluate_counts_what_is_wrong_or_refuses(field, row):
    cells.evaluate(field, row)


def test_every_model_that_is_built_is_in_the_table(field):
    assert {each.name for each in field.zoo.iterdir() if each.is_dir()} == set(BY_NAME)
