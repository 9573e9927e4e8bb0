"""The pure parts of the benchmarks: figures, verdicts, tables and the section in the docs."""

import dataclasses
import json

import pytest

from bench import report
from bench.report import Figure, Other, Run
from bench.stats import Compare, Goal, Spread, Turns, compared, spread, verdict

FIGURE = Figure(
    id="C1",
    what="messages",
    against="the runtime",
    goal="<= 1.3",
    unit="",
    result=Spread(1.0849, 1.0, 1.251),
    verdict="reached",
    others=[Other("a bare interpreter", Spread(0.25, 0.2, 0.3))],
    notes={"picture": "640x480"},
    run_s=7.5,
    rounds=[{"baseline": [0.1, 0.2], "subject": [0.1, 0.3]}],
)


def a_run(*figures, **changes):
    values = {"made": "2026-01-02T03:04:05Z", "settings": "5 rounds of at least 3 s"}
    return Run(**values | {"environment": {"cpu": "x", "cores": 2}} | changes, figures=[*figures])


class TestRound:
    def test_ratio_holds_all_turns_against_all_turns(self):
        assert compared(Turns([1.0, 3.0], [2.0, 10.0]), Compare.RATIO) == 3.0

    def test_slow_turn_is_not_dropped(self):
        assert compared(Turns([1.0] * 9, [1.0] * 8 + [91.0]), Compare.RATIO) == pytest.approx(11.0)

    def test_sides_may_have_different_numbers_of_turns(self):
        assert compared(Turns([2.0], [1.0, 1.0, 4.0]), Compare.RATIO) == 1.0

    def test_speed_is_how_many_times_as_fast_the_subject_is(self):
        assert compared(Turns([2.0, 4.0], [1.0, 2.0]), Compare.SPEED) == 2.0

    def test_percent_is_how_much_faster_the_subject_is(self):
        assert compared(Turns([2.06], [2.0]), Compare.PERCENT) == pytest.approx(3.0)
        assert compared(Turns([1.94], [2.0]), Compare.PERCENT) == pytest.approx(-3.0)

    def test_difference_is_in_seconds_and_may_be_negative(self):
        assert compared(Turns([2.0, 4.0], [1.0, 4.0]), Compare.DIFFERENCE) == -0.5


@pytest.mark.parametrize(
    ("values", "median", "low", "high"),
    [([2.0], 2, 2, 2), ([3.0, 1.0, 9.0], 3, 1, 9), ([1.0, 2.0, 4.0, 8.0], 3, 1, 8)],
)
def test_spread_is_median_minimum_and_maximum(values, median, low, high):
    assert spread(values) == Spread(median, low, high)


class TestVerdict:
    def test_percent_may_be_too_far_off_on_either_side(self):
        goal = Goal(3, Compare.PERCENT)
        assert [verdict(value, goal) for value in (-3.1, -3, 1, 3.1)] == [
            "missed", "reached", "reached", "missed"
        ]  # fmt: skip
        assert str(goal) == "within 3%"

    def test_speed_may_not_fall_below_its_limit(self):
        goal = Goal(0.8, Compare.SPEED)
        assert [verdict(value, goal) for value in (0.79, 0.8, 1.2)] == [
            "missed", "reached", "reached"
        ]  # fmt: skip
        assert str(goal) == ">= 0.8x"

    @pytest.mark.parametrize(
        ("value", "said"), [(0.1, "reached"), (1.5, "reached"), (1.5001, "missed"), (9, "missed")]
    )
    def test_ratio_may_equal_its_limit(self, value, said):
        assert verdict(value, Goal(1.5)) == said

    @pytest.mark.parametrize(
        ("value", "said"),
        [
            (0.76, "reached"),
            (0.78, "reached (equal)"),
            (1.0, "reached (equal)"),
            (1.15, "reached (equal)"),
            (1.16, "missed (equal)"),
            (1.29, "missed (equal)"),
            (1.3, "missed"),
        ],
    )
    def test_less_than_30_percent_is_equal_where_equality_is_the_goal(self, value, said):
        assert verdict(value, Goal(1.15, equality=True)) == said

    def test_seconds_have_no_notion_of_equal(self):
        assert verdict(0.9, Goal(1.0, Compare.DIFFERENCE)) == "reached"

    def test_goal_shows_its_unit(self):
        assert [str(Goal(4.0)), str(Goal(1.0, Compare.DIFFERENCE))] == ["<= 4", "<= 1 s"]


class TestMarkdown:
    def test_every_figure_has_a_row_and_what_was_compared_with_follows(self):
        lines = report.as_markdown([a_run(FIGURE)]).splitlines()
        assert lines[:4] == [
            "| id | what | ratio to | goal | measured median (min-max) | reached |",
            "| --- | --- | --- | --- | --- | --- |",
            "| C1 | messages | the runtime | <= 1.3 | 1.08 (1.00-1.25) | reached |",
            "|  | a bare interpreter | the same |  | 0.25 (0.20-0.30) |  |",
        ]

    def test_environment_settings_and_notes_stand_below(self):
        text = report.as_markdown([a_run(FIGURE)])
        assert "\n- C1: picture 640x480\n" in text
        assert (
            "C1: measured 2026-01-02T03:04:05Z, 5 rounds of at least 3 s. cpu x; cores 2." in text
        )

    def test_seconds_are_shown_as_such(self):
        figure = dataclasses.replace(FIGURE, unit=" s", result=Spread(-0.051, -0.1, 0.26))
        assert "| -0.05 s (-0.10-0.26) |" in report.as_markdown([a_run(figure)])

    def test_what_could_not_be_measured_is_named(self):
        text = report.as_markdown([a_run(skipped={"S1": "there is no tensorflow"})])
        assert "S1: not measured, there is no tensorflow." in text

    def test_later_run_replaces_the_figures_of_an_earlier_one(self):
        late = dataclasses.replace(FIGURE, result=Spread(2, 2, 2))
        other = dataclasses.replace(FIGURE, id="A1")
        text = report.as_markdown([a_run(FIGURE, other), a_run(late)])
        assert text.index("| A1 |") < text.index("| C1 |")
        assert text.count("| C1 |") == 1
        assert "2.00 (2.00-2.00)" in text

    def test_run_whose_figures_were_all_replaced_is_not_mentioned(self):
        late = a_run(dataclasses.replace(FIGURE), made="late")
        text = report.as_markdown([a_run(FIGURE, made="early"), late])
        assert "early" not in text
        assert "C1: measured late" in text


class TestOthersKept:
    def test_what_was_not_measured_anew_stays_with_its_notes_and_origin(self):
        other = dataclasses.replace(FIGURE, id="A1", what="other", others=[])
        old = report.as_markdown([a_run(FIGURE, other, made="early")])
        late = dataclasses.replace(FIGURE, result=Spread(2, 2, 2), notes={"picture": "1x1"})
        text = report.with_others_kept(report.as_markdown([a_run(late, made="late")]), old)
        both = [a_run(FIGURE, other, made="early"), a_run(late, made="late")]
        assert text == report.as_markdown(both)

    def test_all_measured_anew_are_as_they_are(self):
        new = report.as_markdown([a_run(FIGURE)])
        assert report.with_others_kept(new, "") == new
        assert report.with_others_kept(new, new) == new

    def test_what_could_not_be_measured_now_keeps_its_row(self):
        old = report.as_markdown([a_run(FIGURE)])
        new = report.as_markdown([a_run(skipped={"C1": "why", "S1": "there is no tensorflow"})])
        text = report.with_others_kept(new, old)
        assert "1.08 (1.00-1.25)" in text
        assert "C1: not measured" not in text
        assert "S1: not measured, there is no tensorflow." in text


class TestFiles:
    def test_saved_run_is_read_back_in_full(self):
        run = a_run(FIGURE, skipped={"S1": "why"})
        assert report.from_json(report.as_json(run)) == run

    def test_json_holds_every_turn(self):
        assert json.loads(report.as_json(a_run(FIGURE)))["figures"][0]["rounds"] == FIGURE.rounds

    def test_run_writes_one_json_and_one_table(self, tmp_path):
        run = a_run(FIGURE)
        written = report.write(run, tmp_path / "results")
        assert [file.name for file in written] == ["20260102T030405Z.json", "20260102T030405Z.md"]
        assert report.from_json(written[0].read_text()) == run
        assert written[1].read_text() == report.as_markdown([run])


class TestSection:
    PAGE = "# Title\n\n<!-- figures -->\nold\n<!-- /figures -->\n\nBy hand.\n"

    def test_text_between_the_markers_is_replaced_and_no_other(self):
        new = report.replace_section(self.PAGE, "\n| new |\n")
        assert new == ("# Title\n\n<!-- figures -->\n\n| new |\n\n<!-- /figures -->\n\nBy hand.\n")

    def test_replacing_twice_changes_nothing_more(self):
        once = report.replace_section(self.PAGE, "table\n")
        assert report.replace_section(once, "table\n") == once

    @pytest.mark.parametrize(
        "page",
        [
            "no markers",
            "<!-- figures --> only the first",
            "<!-- /figures --> <!-- figures -->",
            "<!-- figures --><!-- figures --><!-- /figures -->",
            "<!-- figures --><!-- /figures --><!-- /figures -->",
        ],
    )
    def test_page_with_other_markers_is_refused(self, page):
        with pytest.raises(ValueError, match="once, in this order"):
            report.replace_section(page, "table")
