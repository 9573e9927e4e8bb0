"""What is said about exit statuses."""

import signal
import subprocess

import pytest

from tfserve_kit.engines.process import EXITS, exit_meaning, exit_text


@pytest.mark.parametrize(
    ("number", "word"),
    [
        (signal.SIGILL, "AVX"),
        (signal.SIGABRT, "checks"),
        (signal.SIGKILL, "out of memory"),
        (signal.SIGSEGV, "segmentation fault"),
        (signal.SIGTERM, "stopped"),
    ],
)
def test_signal_means_the_same_to_a_parent_and_to_a_shell(number, word):
    assert word in exit_meaning(-number)[0]
    assert exit_meaning(-number) == exit_meaning(128 + number)


def test_status_of_a_killed_process_is_explained():
    done = subprocess.run(["sh", "-c", "kill -SEGV $$"], check=False)
    assert "segmentation fault" in exit_meaning(done.returncode)[0]


@pytest.mark.parametrize(
    ("code", "word"), [(255, "refused to start"), (127, "not found"), (126, "executed")]
)
def test_status_that_a_shell_or_the_server_chose_is_explained(code, word):
    assert word in exit_meaning(code)[0]


@pytest.mark.parametrize("code", [0, 1, 3, 130, -1, -2])
def test_status_that_says_nothing_is_not_explained(code):
    assert exit_meaning(code) is None
    assert exit_text(code) == f"exit status {code}"


def test_every_meaning_comes_with_a_remedy():
    assert all(meaning and remedy for meaning, remedy in EXITS.values())


def test_description_has_the_status_and_its_meaning():
    assert exit_text(-6) == "exit status -6 (aborted by one of its own checks)"
    assert exit_text(None) == "an unknown exit status"
