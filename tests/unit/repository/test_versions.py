"""Which names are versions, and which versions a folder holds."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfserve_kit.repository import Version, list_versions, parse_version

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
