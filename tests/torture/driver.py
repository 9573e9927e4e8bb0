"""Plays a scenario many times in children of one process, each with a fault at another operation.

A child is forked when everything is imported and no thread runs, so that it costs no more than the
operation. Run as ``python -m tests.torture.driver JOB SCENARIO FOLDER``; prints its findings as
JSON.
"""

import argparse
import errno
import json
import os
import random
import signal
import traceback
from functools import partial
from pathlib import Path

from tests.torture.operations import Count, FailAt, KillAt, observed
from tests.torture.scenarios import IN_PIECES, SCENARIOS, Stage
from tests.torture.versions_on_disk import left_overs, tree
from tfserve_kit.clock import SystemClock, wait_until
from tfserve_kit.errors import PushRefused

ROOT = Path(__file__).parents[2]  # where to run it

CODES = tuple(
    getattr(errno, name) for name in ("ENOSPC", "EIO", "EROFS", "EXDEV", "EMFILE", "EACCES")
)


def environment():
    """Return what a process needs that must have one thread only."""
    return {**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def in_child(act):
    """Run a function in a forked process; return what it returned, None if that was killed."""
    reader, writer = os.pipe()
    if not (pid := os.fork()):
        try:
            answer = act()
        except BaseException:  # noqa: BLE001 (reported by the parent)
            answer = {"crash": traceback.format_exc()}
        os.write(writer, json.dumps(answer).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        text = stream.read()
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return None
    return json.loads(text)


def attempt(stage, observer):
    """Act under an observer; return what came of it."""
    answer = {}
    with observed(observer):
        try:
            stage.act()
            answer["done"] = True
        except PushRefused as refusal:
            answer |= {"refused": str(refusal), "remedy": refusal.remedy}
        except KeyboardInterrupt:
            answer["interrupted"] = True
        except Exception:  # noqa: BLE001 (a crash is what is looked for)
            answer["crash"] = traceback.format_exc()
    return answer | {"names": observer.names}


def names_of(stage, *, looks):
    """Return the operations of one undisturbed run, by name."""
    stage.reset()
    answer = in_child(lambda: attempt(stage, Count(looks=looks)))
    assert "done" in answer, answer
    assert not stage.unfinished(), stage.unfinished()
    return answer["names"]


def spread(names, points):
    """Return numbers of operations, from 1 on: one of each name, others at random; 0 means all."""
    numbers = range(1, len(names) + 1)
    if not points or points >= len(names):
        return numbers
    dice, chosen = random.Random(len(names)), set()
    for name in dict.fromkeys(names):
        chosen.add(dice.choice([number for number in numbers if names[number - 1] == name]))
    others = sorted(set(numbers) - chosen)
    return sorted(chosen.union(dice.sample(others, max(0, points - len(chosen)))))


def kill(stage, points, *, after):
    """Kill a run at each operation; the next run must find nothing in its way."""
    names, found, killed = names_of(stage, looks=False), [], 0
    numbers = spread(names, points)
    for nth in numbers:
        stage.reset()
        killed += in_child(lambda: attempt(stage, KillAt(nth, after=after))) is None  # noqa: B023
        found += [
            f"{nth} ({names[nth - 1]}): {each}" for each in (*stage.harm(), *afterwards(stage))
        ]
    return {"operations": len(names), "spared": len(numbers) - killed, "found": found}


def afterwards(stage):
    """Run once more, undisturbed; return what is wrong then."""
    once_only = stage.scenario.may_go and not left_overs(stage.base)
    if once_only and stage.visible() == stage.scenario.ends:
        return []  # it is done already
    again = in_child(lambda: attempt(stage, Count()))
    failed = [] if "done" in again else [again.get("crash") or again["refused"]]
    return [f"the next run: {each}" for each in (*failed, *stage.unfinished())]


def fail(stage, points, *, onwards):
    """Fail each operation of a run; it must be refused with a remedy and leave nothing."""
    names, found, outcomes = names_of(stage, looks=True), [], {}
    for turn, nth in enumerate(spread(names, points)):
        for code in [CODES[turn % len(CODES)]] if points else CODES:
            stage.reset()
            before = tree(stage.root)
            answer = in_child(lambda: attempt(stage, FailAt(nth, code, onwards=onwards)))  # noqa: B023
            (outcome,) = answer.keys() & {"done", "refused", "crash"}
            outcomes.setdefault(names[nth - 1], []).append(outcome)
            wrong = [*judge(stage, before, answer, onwards=onwards), *afterwards(stage)]
            where = f"{errno.errorcode[code]} at {nth} ({names[nth - 1]})"
            found += [f"{where}: {each}" for each in wrong]
    return {"operations": len(names), "outcomes": outcomes, "found": found}


def interrupt(stage, points):
    """Press Ctrl-C at each operation of a run; it must leave nothing, or all."""
    names, found = names_of(stage, looks=True), []
    for nth in spread(names, points):
        stage.reset()
        before = tree(stage.root)
        answer = in_child(lambda: attempt(stage, FailAt(nth, None)))  # noqa: B023
        wrong = stage.harm()
        if "interrupted" not in answer:
            wrong.append(str(answer))
        elif tree(stage.root) != before and stage.visible() != stage.scenario.ends:
            changed = sorted(tree(stage.root).keys() ^ before.keys())
            wrong.append(f"interrupted, but changed {changed}")
        where = f"{nth} ({names[nth - 1]})"
        found += [f"{where}: {each}" for each in (*wrong, *afterwards(stage))]
    return {"operations": len(names), "found": found}


def judge(stage, before, answer, *, onwards):
    """Return what is wrong with how a run ended in which operations failed."""
    found = stage.harm()
    if "crash" in answer:
        found.append(answer["crash"])
    if "refused" in answer:
        if not answer["remedy"] and "\n  - " not in answer["refused"]:
            found.append(f"no remedy: {answer['refused']}")
        changed = sorted(tree(stage.root).keys() ^ before.keys())
        if changed and not onwards and not stage.scenario.partly:
            found.append(f"refused, but changed {changed}: {answer['refused']}")
    return found


JOBS = {
    "kill-before": partial(kill, after=False),
    "kill-after": partial(kill, after=True),
    "interrupt": interrupt,
    "fail": partial(fail, onwards=False),
    "fail-onwards": partial(fail, onwards=True),
}


def is_single_threaded():
    """Say whether no other thread is left; one that was joined takes a moment to go."""
    tasks = Path("/proc/self/task")
    return not tasks.exists() or len(list(tasks.iterdir())) == 1 or None


def main():
    """Play one scenario in an empty folder."""
    parser = argparse.ArgumentParser()
    parser.add_argument("job", choices=JOBS)
    parser.add_argument("scenario", choices=SCENARIOS | IN_PIECES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--points", type=int, default=0, help="how many operations; 0 for all")
    options = parser.parse_args()
    stage = Stage(options.folder, (SCENARIOS | IN_PIECES)[options.scenario])
    stage.reset()
    stage.act()  # imports what is imported late
    alone = wait_until(is_single_threaded, timeout_s=10, interval_s=0.01, clock=SystemClock())
    assert alone, "a fork would lose threads"
    print(json.dumps(JOBS[options.job](stage, options.points)))


if __name__ == "__main__":
    main()
