"""What `make test` runs is what tests/selection.py says, and all of it is there."""

from pathlib import Path

import pytest

from tests.selection import QUICK, SLOW, is_slow

TESTS = Path(__file__).parents[1]


def test_every_folder_and_file_is_there_and_named_once():
    named = QUICK + SLOW
    assert [each for each in named if not (TESTS / each).exists()] == []
    assert len(set(named)) == len(named)


def test_every_folder_of_tests_is_named():
    folders = {file.relative_to(TESTS).parts[0] for file in TESTS.glob("*/**/test_*.py")}
    assert folders <= {each.split("/")[0] for each in QUICK + SLOW}


@pytest.mark.parametrize(
    ("file", "uses", "slow"),
    [
        ("unit/perf/test_stats.py", {"tmp_path"}, False),
        ("unit/embedded/test_fuzz_models.py", set(), True),
        ("integration/test_docker.py", set(), True),
        ("integration/test_cli.py", set(), False),
        ("integration/test_cli.py", {"docker_image"}, True),
        ("contract/test_engine_contract.py", {"docker"}, True),
        ("elsewhere/test_new.py", set(), True),
    ],
)
def test_longest_path_decides(file, uses, slow):
    assert is_slow(file, uses) is slow
