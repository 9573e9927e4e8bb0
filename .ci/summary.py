"""Say what became of a CI run: the slowest tests, what was skipped, and last of all what failed.

Usage: summary.py FOLDER: one JUnit file for each segment, and all that was printed in output.txt.
"""

import re
import sys
import xml.etree.ElementTree as ET
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

SLOWEST, LINES = 30, 60
FAILED_TARGET = re.compile(r"^make\S*: \*\*\* \[\S+ (\S+)\] ")
TARGETS_OF_TARGETS = {"check", "check-style"}
AGAIN = "check-again"  # the segment of those that failed, once more


class Test(NamedTuple):
    """One test: where it is, how long it took, what it said if it failed, why it was skipped."""

    file: str
    name: str
    took_s: float
    told: str | None
    skipped: str | None


def tests_of(report: Path) -> list[Test]:
    """Return the tests of a segment."""
    return [_test(case) for case in ET.parse(report).iter("testcase")]  # noqa: S314


def _test(case: ET.Element) -> Test:
    parts = case.get("classname", "").split(".")
    file_ends = next((n for n, part in enumerate(parts, 1) if part.startswith("test_")), len(parts))
    file = "/".join(parts[:file_ends]) + ".py"
    name = "::".join((file, *parts[file_ends:], case.get("name", "")))
    faults = [each for each in case if each.tag in ("failure", "error")]
    told = "\n".join(each.text or each.get("message", "") for each in faults)
    skips = (each.get("message") for each in case.iterfind("skipped[@type='pytest.skip']"))
    took_s = float(case.get("time", "0"))
    return Test(file, name, took_s, told if faults else None, next(skips, None))


def broken_targets(output: list[str], explained: set[str]) -> dict[str, list[str]]:
    """Return what was printed last by targets that failed, but by no test: style, types, crashes.

    Args:
        output: all that was printed.
        explained: names of segments that have tests that failed.
    """
    found: dict[str, list[str]] = {}
    for number, line in enumerate(output):
        match = FAILED_TARGET.match(line)
        if match and match[1] not in explained | TARGETS_OF_TARGETS:
            found.setdefault(match[1], output[max(0, number - LINES) : number + 1])
    return found


def main(folder: Path) -> None:
    """Print the summary."""
    segments = {each.stem: tests_of(each) for each in sorted(folder.glob("*.xml"))}
    tests = [test for each in segments.values() for test in each]
    failed = [test for test in tests if test.told is not None]
    passed_again = {test.name for test in segments.get(AGAIN, ()) if test.told is None}
    explained = {name for name, each in segments.items() if set(each) & set(failed)}
    if failed:
        explained.add(AGAIN)
    output = (folder / "output.txt").read_text("utf-8", "replace").splitlines()
    broken = broken_targets(output, explained)

    files = defaultdict[str, float](float)
    for test in tests:
        files[test.file] += test.took_s
    _print_slowest("files", list(files.items()))
    _print_slowest("tests", [(test.name, test.took_s) for test in tests])
    print("=== Segments")
    for name, each in segments.items():
        lost, took_s = len(set(each) & set(failed)), sum(test.took_s for test in each)
        print(f"{took_s:8.1f} s  {name}: {len(each)} tests, {lost} failed")
    print("=== Skipped")
    for reason, count in Counter(test.skipped for test in tests if test.skipped).most_common():
        print(f"{count:8}    {reason}")
    for target, lines in broken.items():
        print(f"=== What {target} printed last", *lines, sep="\n")
    for test in failed:
        print(f"=== {test.name}", *(test.told or "").splitlines()[-LINES:], sep="\n")
    if passed_again:
        print("=== Failed once, and passed alone", *sorted(passed_again), sep="\n")
    lasting = dict.fromkeys(test.name for test in failed if test.name not in passed_again)
    names = [*broken, *lasting]
    print("=== Failed", *names, sep="\n") if names else print("=== Nothing failed")


def _print_slowest(what: str, took: list[tuple[str, float]]) -> None:
    print(f"=== Slowest {what}")
    for name, took_s in sorted(took, key=lambda each: -each[1])[:SLOWEST]:
        print(f"{took_s:8.1f} s  {name}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
