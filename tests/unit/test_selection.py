"""What `make test` runs is what tests/selection.py says, and all of it is there."""

from pathlib import Path

import pytest

from tests.selection import (
    ALONE,
    QUICK,
    SLOW,
    holds_quick_tests,
    holds_slow_tests,
    is_alone,
    is_of_swarm,
    is_slow,
)

TESTS = Path(__file__).parents[1]


def test_every_folder_and_file_is_there_and_named_once():
    named = QUICK + SLOW + ALONE
    assert [each for each in named if not (TESTS / each.partition("::")[0]).exists()] == []
    inner = [
        (file, name) for file, *names in (each.split("::") for each in named) for name in names
    ]
    assert [name for file, name in inner if name not in (TESTS / file).read_text("utf-8")] == []
    assert len(set(named)) == len(named)


def test_every_folder_of_tests_is_named():
    folders = {file.relative_to(TESTS).parts[0] for file in TESTS.glob("*/**/test_*.py")}
    assert folders <= {each.split("/")[0] for each in QUICK + SLOW}


@pytest.mark.parametrize(
    ("test", "uses", "slow"),
    [
        ("unit/perf/test_stats.py::test_mean", {"tmp_path"}, False),
        ("unit/embedded/test_fuzz_models.py::test_json[1]", set(), True),
        ("unit/repository/test_sources.py::TestKerasExport::test_it", set(), True),
        ("unit/repository/test_sources.py::TestKerasExporter::test_it", set(), False),
        ("integration/test_docker.py", set(), True),
        ("integration/test_cli.py", set(), False),
        ("integration/test_cli.py", {"docker_image"}, True),
        ("contract/test_engine_contract.py", {"docker"}, True),
        ("elsewhere/test_new.py", set(), True),
    ],
)
def test_longest_path_decides(test, uses, slow):
    assert is_slow(test, uses) is slow


@pytest.mark.parametrize(
    ("test", "uses", "alone", "apart"),
    [
        ("integration/test_fleet.py::test_it", set(), True, False),
        ("integration/test_fleet_names.py::test_it", set(), False, False),
        ("contract/test_engine_contract.py", {"docker"}, False, False),
        ("contract/test_engine_contract.py", {"swarm"}, False, True),
        ("integration/test_swarm.py::TestUnderLoad::test_it", {"swarm"}, True, False),
        ("integration/test_swarm.py::test_it", {"swarm"}, False, True),
        ("integration/test_docker_faults.py::test_it", set(), False, True),
        ("unit/perf/test_stats.py::test_mean", {"tmp_path"}, False, False),
    ],
)
def test_what_measures_time_shares_no_machine_and_what_has_a_swarm_is_apart(
    test, uses, alone, apart
):
    assert (is_alone(test), is_of_swarm(test, uses)) == (alone, apart)


@pytest.mark.parametrize(
    ("place", "text", "slow"),
    [
        ("unit/perf/test_stats.py", "", False),
        ("unit/perf/test_stats.py", "def test_docker_engine(tmp_path)", False),
        ("unit/perf/test_stats.py", "def test_image(docker)", True),
        ("unit/embedded/test_fuzz_models.py", "", True),
        ("unit/repository/test_sources.py", "", True),
        ("integration/test_cli.py", "", True),
    ],
)
def test_files_of_quick_tests_alone_are_not_looked_at_for_slow_ones(place, text, slow):
    assert holds_slow_tests(place, text) is slow


def test_nothing_that_wants_the_machine_is_in_make_test():
    assert [each for each in ALONE if not is_slow(each, set())] == []


@pytest.mark.parametrize(
    ("place", "quick"),
    [
        ("unit/perf", True),
        ("integration", True),
        ("integration/test_cli.py", True),
        ("integration/test_docker.py", False),
        ("unit/embedded/test_fuzz_models.py", False),
        ("unit/repository/test_sources.py", True),
        ("system", False),
    ],
)
def test_places_without_quick_tests_are_not_even_looked_at(place, quick):
    assert holds_quick_tests(place) is quick
