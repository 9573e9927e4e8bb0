"""What stands at the end of CI's log, and what is run once more before."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SEGMENT = """
def test_good(): pass
class TestBad:
    def test_bad(self):
        assert 1 == 2, "that is not so"
"""
UNSTEADY = """
from pathlib import Path
def test_steady(): pass
def test_unsteady():
    seen = Path("seen")
    was_seen = seen.exists()
    seen.touch()
    assert was_seen
"""
SKIPPED = """
import pytest
@pytest.mark.parametrize("number", range(3))
def test_it(number): pytest.skip("no server" if number else "no model")
"""


@pytest.fixture(autouse=True)
def bare_pytest(monkeypatch):
    """Let pytest start quickly."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")


@pytest.fixture
def python(tmp_path):
    """Run Python with arguments where the segments' reports are."""

    def run(*arguments):
        command = [sys.executable, *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    return run


@pytest.fixture
def summary(python, tmp_path):
    """Run a segment of one file, and tell what is printed last after some output of make."""

    def run(code, output="All checks passed!\n", again=None):
        (tmp_path / "test_it.py").write_text(code)
        keeping = ("-o", "cache_dir=failed/test", "--junitxml=test.xml")
        python("-m", "pytest", *keeping, "test_it.py")
        if again is not None:
            options = ("failed", "--junitxml=check-again.xml")
            assert python(ROOT / ".ci" / "again.py", *options).returncode == again
        (tmp_path / "output.txt").write_text(output)
        return python(ROOT / ".ci" / "summary.py", tmp_path).stdout.splitlines()

    return run


def test_failed_tests_come_last_with_what_they_said(summary):
    printed = summary(SEGMENT, "make[1]: *** [Makefile:39: test] Error 1\n")
    assert printed[-2:] == ["=== Failed", "test_it.py::TestBad::test_bad"]
    assert "E       AssertionError: that is not so" in printed
    assert any(line.endswith(" s  test: 2 tests, 1 failed") for line in printed)


@pytest.mark.parametrize("target", ["lint", "check-beside"])  # style, and a segment that crashed
def test_what_fails_without_a_test_is_told_by_its_last_words(summary, target):
    output = f"too long: line 7\nmake[2]: *** [Makefile:57: {target}] Error 1\n"
    output += "make[1]: *** [Makefile:83: check-style] Error 2\nmake: *** [check] Error 2\n"
    printed = summary("def test_good(): pass", output)
    assert printed[-2:] == ["=== Failed", target]
    assert "too long: line 7" in printed


def test_success_says_so(summary):
    assert summary("def test_good(): pass", again=0)[-1] == "=== Nothing failed"


def test_skipped_tests_are_a_line_for_each_reason(summary):
    printed = summary(SKIPPED)
    at = printed.index("=== Skipped")
    assert [line.split(maxsplit=1) for line in printed[at + 1 : at + 3]] == [
        ["2", "no server"],
        ["1", "no model"],
    ]


def test_what_passes_the_second_time_fails_nothing_and_is_told(summary):
    printed = summary(UNSTEADY, again=0)
    assert printed[-3:] == [
        "=== Failed once, and passed alone",
        "test_it.py::test_unsteady",
        "=== Nothing failed",
    ]
    assert any("check-again: 1 tests, 0 failed" in line for line in printed)
    assert any(line.startswith("E       assert") for line in printed)


def test_what_fails_twice_is_told_once(summary):
    printed = summary(SEGMENT, "make[1]: *** [Makefile:39: check-again] Error 1\n", again=1)
    assert printed[-2:] == ["=== Failed", "test_it.py::TestBad::test_bad"]


def test_too_many_are_not_run_again(summary):
    code = "import pytest\n@pytest.mark.parametrize('n', range(13))\ndef test_it(n): assert 0"
    printed = summary(code, "make[1]: *** [Makefile:39: check-again] Error 1\n", again=1)
    assert printed[-14:] == ["=== Failed", *(f"test_it.py::test_it[{n}]" for n in range(13))]
    assert not any("check-again" in line for line in printed)


@pytest.mark.parametrize(
    ("code", "setting", "status"),
    [
        (SEGMENT, "FAILED=failed", 0),
        (SEGMENT, "FAILED=", 2),
        ("def test_it(:", "FAILED=failed", 2),
        ("import os\ndef test_it(): os._exit(1)", "FAILED=failed", 2),
    ],
)
def test_run_leaves_to_the_second_nothing_but_failed_tests(tmp_path, code, setting, status):
    (tmp_path / "test_it.py").write_text(
        f"import pytest\npytestmark = [pytest.mark.slow, pytest.mark.alone]\n{code}"
    )
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n  slow: s\n  alone: a\n")
    for folder in ("tfserve_kit", "venv"):
        (tmp_path / folder).mkdir()
    for file in ("pyproject.toml", "tfserve_kit/version.py", "venv/.dev"):
        (tmp_path / file).touch()
    variables = (f"BIN={Path(sys.executable).parent}", "VENV=venv", setting, "ARGS=test_it.py")
    command = ["make", "-f", ROOT / "Makefile", *variables, "check-alone"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    assert b"No rule" not in done.stderr, done  # that ends with 2, too, and runs no test
    assert done.returncode == status, done
