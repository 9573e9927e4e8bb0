"""Programs that run beside a run, and what marks say of them."""

import os
import sys
import time

import pytest

from tfserve_kit.perf import measuring
from tfserve_kit.perf.measuring import Command, Disturbance, command_of


def marks(command, *, after_s=0.0):
    """Return what a drill marked, in a run that lasts as long as it does."""
    with Disturbance(command, after_s) as drill:
        drill.begin(time.monotonic_ns())
        if drill._thread:
            drill._thread.join()
    return [mark.what for mark in drill.marks]


def python(code, **others):
    return Command("name", [sys.executable, "-c", code], **others)


@pytest.mark.parametrize("during", ["", "poison", "overload"])
def test_what_changes_the_requests_is_no_command(during):
    assert command_of(during) is None


def test_a_shell_command_is_named_by_itself():
    assert command_of("exit 3") == Command("exit 3", "exit 3")
    assert marks(command_of("exit 3")) == ["begin: exit 3", "end: exit 3 (exit code 3)"]


def test_a_program_is_marked_with_its_name_and_its_exit_code():
    assert marks(python("print('hello')")) == ["begin: name", "end: name (exit code 0)"]


def test_what_a_program_prints_is_news_at_once(tmp_path):
    go_on = tmp_path / "go on"
    code = f"""
import pathlib, time
print("ready", flush=True)
while not pathlib.Path({str(go_on)!r}).exists(): time.sleep(0.01)
print("more")
"""

    def news(printed):
        go_on.touch()
        return f"it said {printed.strip()}"

    assert marks(python(code, news=news)) == [
        "begin: name", "it said ready", "end: name (exit code 0)",
    ]  # fmt: skip


def test_news_without_a_text_is_no_mark():
    assert len(marks(python("print('{}')", news=lambda printed: ""))) == 2


def test_a_program_that_fails_is_marked_with_why():
    code = "import sys; print('x ...', file=sys.stderr); sys.exit('Error: no\\n  Try: so')"
    assert marks(python(code))[1] == "end: name (exit code 1: no)"


def test_ctrl_c_does_not_reach_a_program():
    code = "import os; print(os.getpgid(0))"
    found = []
    marks(python(code, news=found.append))
    assert int(found[0]) != os.getpgid(0)


def test_what_outlives_the_run_too_long_is_killed(monkeypatch):
    monkeypatch.setattr(measuring, "_GRACE_S", 0.1)
    with Disturbance(python("import time; time.sleep(600)"), 0.0) as drill:
        drill.begin(time.monotonic_ns())
        while not drill.marks:
            time.sleep(0.01)
    assert drill.marks[-1].what == "end: name (killed: it outlived the run)"
