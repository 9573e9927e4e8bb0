"""Which versions a folder holds; retired, restored, rolled back and pruned ones."""

import errno
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfserve_kit.errors import PushRefused, UsageError
from tfserve_kit.repository import Version, list_versions, parse_version
from tfserve_kit.repository.versions import (
    choose_versions,
    prune,
    restore,
    retire,
    retired,
    rollback,
)

INT64 = st.integers(-(2**63), 2**63 - 1)
BLANK = st.text(st.sampled_from(" \t\n\v\f\r"), max_size=2)


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("1", 1),
        ("0", 0),
        ("00000123", 123),
        ("+7", 7),
        ("-7", -7),
        ("-0", 0),
        (" 5", 5),
        ("5 ", 5),
        ("\t5\r\n", 5),
        ("\v\f 5", 5),
        ("9223372036854775807", 2**63 - 1),
        ("-9223372036854775808", -(2**63)),
        ("0009223372036854775807", 2**63 - 1),
    ],
)
def test_integer_in_any_spelling_of_the_server_is_a_version(name, number):
    assert parse_version(name) == number


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        "v1",
        "1.0",
        "1e3",
        "0x1",
        "1_000",
        "1,000",
        ".1",
        "1.tmp",
        "tmp_1",
        "1 2",
        "+-1",
        "--1",
        "+ 1",
        "-",
        "latest",
        "\u0661",
        "\uff11",
        "\u00b2",
        "1\u00a0",
        "\u20031",
        "1\x1f",
        "1\0",
        "9223372036854775808",
        "-9223372036854775809",
        "99999999999999999999",
    ],
)
def test_any_other_name_is_none(name):
    assert parse_version(name) is None


@given(INT64, st.sampled_from(["", "+"]), st.text("0", max_size=5), BLANK, BLANK)
def test_every_int64_is_read_whatever_stands_around_it(number, sign, zeros, before, after):
    digits = f"-{zeros}{-number}" if number < 0 else f"{sign}{zeros}{number}"
    assert parse_version(before + digits + after) == number


@given(st.text(max_size=25) | st.text("0123456789+- ", max_size=25))
def test_any_name_is_none_or_the_number_python_reads(name):
    number = parse_version(name)
    assert number is None or (number == int(name) and -(2**63) <= number < 2**63)


class TestScan:
    def test_versions_come_lowest_first_with_their_folders(self, tmp_path):
        for name in ("10", "9", "0002", "v3", "1.tmp", ".tfkit-staging-1", "-1"):
            (tmp_path / name).mkdir()
        assert list_versions(tmp_path) == [
            Version(-1, tmp_path / "-1"),
            Version(2, tmp_path / "0002"),
            Version(9, tmp_path / "9"),
            Version(10, tmp_path / "10"),
        ]

    def test_plain_file_and_links_count_as_the_server_counts_them(self, tmp_path):
        (tmp_path / "1").touch()
        (tmp_path / "2").symlink_to(tmp_path / "1")
        (tmp_path / "3").symlink_to(tmp_path / "nothing")
        assert [version.number for version in list_versions(tmp_path)] == [1, 2, 3]

    @pytest.mark.parametrize(
        ("names", "winner"),
        [(["1", "0001"], "1"), (["01", "001", "0001"], "01"), (["+5", "5", "05"], "5")],
    )
    def test_lexicographically_last_spelling_of_a_number_wins(self, tmp_path, names, winner):
        for name in names:
            (tmp_path / name).mkdir()
        (version,) = list_versions(tmp_path)
        assert version.path.name == winner

    def test_empty_folder_holds_none(self, tmp_path):
        assert list_versions(tmp_path) == []

    def test_missing_folder_is_an_error(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            list_versions(tmp_path / "missing")

    def test_file_is_no_folder(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(NotADirectoryError):
            list_versions(tmp_path / "file")

    @settings(deadline=None)
    @given(st.sets(st.text("0123456789+-v", min_size=1, max_size=4), max_size=8))
    def test_each_number_is_found_once_in_rising_order(self, names):
        with tempfile.TemporaryDirectory() as folder:
            for name in names:
                (Path(folder) / name).touch()
            found = [version.number for version in list_versions(Path(folder))]
        wanted = {parse_version(name) for name in names} - {None}
        assert found == sorted(wanted)


SHARD = Path("variables") / "variables.data-00000-of-00001"


@pytest.fixture
def base(tmp_path, models):
    """Make a base path that holds these versions, all complete."""

    def make(*names):
        for name in names:
            shutil.copytree(models / "half_plus_two" / "1", tmp_path / "half" / str(name))
        return tmp_path / "half"

    return make


def visible(base_path):
    return [version.number for version in list_versions(base_path)]


def names(base_path):
    return sorted(each.name for each in base_path.iterdir())


def damage(base_path, number):
    (base_path / str(number) / SHARD).unlink()


@pytest.fixture
def looks(monkeypatch):
    """What a server that looks after every rename would see."""
    seen, rename = [], Path.rename

    def watched(self, target):
        result = rename(self, target)
        seen.append(visible(self.parent))
        return result

    monkeypatch.setattr(Path, "rename", watched)
    return seen


@pytest.fixture
def failing_fsync(monkeypatch):
    """Make the nth fsync from now on fail."""
    real = os.fsync

    def arm(nth):
        left = [nth]

        def fsync(descriptor):
            left[0] -= 1
            if left[0] == 0:
                raise OSError(errno.EIO, "Input/output error")
            real(descriptor)

        monkeypatch.setattr(os, "fsync", fsync)

    return arm


# One version


def test_retired_version_is_hidden_and_keeps_its_content(base):
    base_path = base(6, 7)
    place = retire(base_path, 7)
    assert place == base_path / ".tfkit-retired-7"
    assert (place / SHARD).is_file()
    assert visible(base_path) == [6]
    assert retired(base_path) == [7]


def test_restored_version_is_as_before(base):
    base_path = base(6, 7)
    retire(base_path, 7)
    assert restore(base_path, 7) == base_path / "7"
    assert names(base_path) == ["6", "7"]
    assert retired(base_path) == []


def test_every_spelling_of_a_number_goes_and_comes_back(base):
    base_path = base("7", "007")
    retire(base_path, 7)
    assert visible(base_path) == []
    assert retired(base_path) == [7]
    restore(base_path, 7)
    assert names(base_path) == ["007", "7"]


def test_what_is_no_version_is_never_taken_for_one(base):
    base_path = base(1)
    for name in (".tfkit-retired-x", ".tfkit-retired-", ".tfkit-staging-1.2.host.x", "notes"):
        (base_path / name).mkdir()
    assert retired(base_path) == []


@pytest.mark.parametrize("move", [retire, restore])
def test_version_that_is_not_there_is_refused(base, move):
    with pytest.raises(PushRefused, match="version 9 in"):
        move(base(1), 9)


def test_number_that_is_in_service_and_retired_moves_neither_way(base):
    base_path = base(7, ".tfkit-retired-7")
    for move in (retire, restore):
        with pytest.raises(PushRefused, match="holds version 7 twice"):
            move(base_path, 7)
    assert names(base_path) == [".tfkit-retired-7", "7"]


def test_retiring_that_cannot_be_made_durable_is_taken_back(base, failing_fsync):
    base_path = base("7", "007")
    failing_fsync(2)  # the first spelling was renamed already
    with pytest.raises(PushRefused, match="Input/output error"):
        retire(base_path, 7)
    assert names(base_path) == ["007", "7"]


def test_base_path_that_is_missing_is_refused(tmp_path):
    for act in (retire, restore):
        with pytest.raises(PushRefused, match="No such file or directory"):
            act(tmp_path / "none", 1)
    with pytest.raises(PushRefused, match="cannot roll back"):
        rollback(tmp_path / "none")
    with pytest.raises(PushRefused, match="cannot prune"):
        prune(tmp_path / "none", 1)


# Rolling back


def test_rollback_goes_to_the_second_highest(base):
    base_path = base(2, 9, 10)
    assert rollback(base_path) == [10]
    assert visible(base_path) == [2, 9]


def test_rollback_past_several_shows_the_highest_until_the_last_rename(base, looks):
    base_path = base(1, 2, 3, 4)
    assert rollback(base_path, to=1) == [2, 3, 4]
    assert looks == [[1, 3, 4], [1, 4], [1]]
    assert retired(base_path) == [2, 3, 4]


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_rollback_that_fails_halfway_restores_what_was_retired(base, failing_fsync, nth):
    base_path = base(1, 2, 3, 4)
    failing_fsync(nth)
    with pytest.raises(PushRefused, match="Input/output error"):
        rollback(base_path, to=1)
    assert names(base_path) == ["1", "2", "3", "4"]


@pytest.mark.parametrize(
    ("versions", "to", "text"),
    [
        ([7], None, "no older version to go back to: .* holds only version 7"),
        ([], None, "no older version to go back to: .* holds no version"),
        ([6, 7], 5, "no version 5 to go back to: .* holds 6, 7"),
        ([6, 7], 7, "version 7 is the highest"),
    ],
)
def test_rollback_to_what_is_not_there_is_refused(base, tmp_path, versions, to, text):
    (tmp_path / "half").mkdir()
    for version in versions:
        base(version)
    with pytest.raises(PushRefused, match=text):
        rollback(tmp_path / "half", to)
    assert visible(tmp_path / "half") == versions


def test_rollback_to_a_damaged_version_is_refused(base):
    base_path = base(6, 7)
    damage(base_path, 6)
    with pytest.raises(PushRefused, match="version 6 is not a complete SavedModel"):
        rollback(base_path)
    assert visible(base_path) == [6, 7]


def test_rollback_to_a_retired_version_says_how_it_comes_back(base):
    base_path = base(6, 7, 8)
    retire(base_path, 6)
    with pytest.raises(PushRefused) as caught:
        rollback(base_path, to=6)
    assert "--restore 6" in caught.value.remedy


# Pruning


def test_prune_keeps_the_highest_and_deletes_the_rest(base):
    base_path = base(1, 2, 9, 10)
    assert prune(base_path, 2) == [1, 2]
    assert names(base_path) == ["10", "9"]
    assert prune(base_path, 2) == []


def test_prune_spares_the_protected_and_deletes_no_other_for_it(base):
    base_path = base(1, 2, 3, 4)
    assert prune(base_path, 1, {1, 3}) == [2]
    assert visible(base_path) == [1, 3, 4]


def test_prune_neither_counts_nor_deletes_what_is_incomplete(base):
    base_path = base(1, 2, 3, 4)
    damage(base_path, 1)
    damage(base_path, 4)
    assert prune(base_path, 1) == [2]
    assert visible(base_path) == [1, 3, 4]


def test_prune_deletes_retired_ones_older_than_what_it_keeps(base):
    base_path = base(1, 2, 3, 4, 5)
    for number in (1, 2, 5):
        retire(base_path, number)
    assert prune(base_path, 2, {2}) == [1]
    assert names(base_path) == [".tfkit-retired-2", ".tfkit-retired-5", "3", "4"]


def test_prune_with_dry_run_changes_nothing(base):
    base_path = base(1, 2, 3)
    retire(base_path, 1)
    before = names(base_path)
    assert prune(base_path, 1, dry_run=True) == [1, 2]
    assert names(base_path) == before


def test_prune_shows_no_server_half_a_version(base, monkeypatch):
    base_path, seen = base(1, 2, 3), []
    rmtree = shutil.rmtree

    def watched(path, **options):
        seen.append((path.name, visible(base_path)))
        rmtree(path, **options)

    monkeypatch.setattr(shutil, "rmtree", watched)
    prune(base_path, 1)
    assert sorted(seen) == [(".tfkit-pruned-1", [3]), (".tfkit-pruned-2", [3])]


def test_prune_finishes_what_an_interrupted_one_left(base, monkeypatch):
    base_path = base(1, 2)

    def interrupted(path, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prune(base_path, 1)
    assert names(base_path) == [".tfkit-pruned-1", "2"]
    base(1)  # the same number again, before anybody cleaned up
    assert prune(base_path, 1) == [1]
    assert names(base_path) == ["2"]


def test_prune_takes_files_and_links_for_what_they_are(base, tmp_path):
    base_path = base(2, 3)
    outside = shutil.copytree(base_path / "2", tmp_path / "outside")
    (base_path / "1").symlink_to(outside)
    assert prune(base_path, 1) == [1, 2]
    assert (outside / SHARD).is_file()
    assert names(base_path) == ["3"]


def test_prune_that_would_keep_nothing_is_refused(base):
    base_path = base(1)
    with pytest.raises(PushRefused, match="cannot keep 0 versions"):
        prune(base_path, 0)
    assert visible(base_path) == [1]


NUMBERS = st.sets(st.integers(1, 30), max_size=8)


@settings(max_examples=60, deadline=None)
@given(NUMBERS, st.integers(1, 5), NUMBERS)
def test_prune_deletes_exactly_the_unprotected_below_the_kept(
    models, tmp_path_factory, versions, keep, protected
):
    base_path = tmp_path_factory.mktemp("base")
    for number in versions:
        (base_path / str(number)).symlink_to(models / "half_plus_two" / "1")
    gone = prune(base_path, keep, protected)
    kept = sorted(versions)[-keep:]
    assert gone == sorted(versions - set(kept) - protected)
    assert visible(base_path) == sorted(versions - set(gone))


def test_versions_are_chosen_by_their_numbers_or_all_of_them(tmp_path):
    for number in ("1", "02", "7"):
        (tmp_path / number).mkdir()
    every = list_versions(tmp_path)
    assert choose_versions(tmp_path) == every
    assert [each.number for each in every] == [1, 2, 7]
    assert [each.number for each in choose_versions(tmp_path, [7, 2])] == [7, 2]


def test_number_that_is_not_there_is_refused_with_those_that_are(tmp_path):
    (tmp_path / "3").mkdir()
    with pytest.raises(UsageError, match="there is no version 99 in") as caught:
        choose_versions(tmp_path, [99])
    assert "3" in caught.value.remedy


def test_base_path_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(UsageError, match="cannot read"):
        choose_versions(tmp_path / "none")
