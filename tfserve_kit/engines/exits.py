"""What the exit status of a model server means: the one table of them.

A process that a signal ended has the status -N for its parent, and 128+N in a shell or container.
"""

from typing import NamedTuple

_SIGNALLED = 128


class Meaning(NamedTuple):
    """What an exit status says, and what to do about it."""

    meaning: str
    remedy: str


# By the status as a shell or container tells it.
EXITS = {
    126: Meaning(
        "the file cannot be executed",
        "`chmod +x` it, and check that it was built for this kind of machine",
    ),
    127: Meaning(
        "the command or a library it needs was not found",
        "check the path, and `ldd` on the binary",
    ),
    132: Meaning(
        "illegal instruction: the CPU lacks one that it was built with, most likely AVX",
        "use a machine with AVX, or a binary that was built without",
    ),
    134: Meaning(
        "aborted by one of its own checks",
        "look at the line of its log that starts with F: it names the value",
    ),
    137: Meaning(
        "killed: out of memory, or it did not end in time when it was stopped",
        "`dmesg` tells whether memory ran out; serve fewer models or versions, or raise the limit",
    ),
    139: Meaning(
        "segmentation fault: known for impossible batching values and far too many threads",
        "run `tfkit lint`, and try without batching and extra flags",
    ),
    143: Meaning(
        "ended by a polite signal: somebody stopped it",
        "start it again if that was not meant",
    ),
    255: Meaning(
        "refused to start: a flag, a configuration file, a port or a model is at fault",
        "its log says which; `tfkit lint` knows most reasons beforehand",
    ),
}


def explain(exit_code: int) -> Meaning | None:
    """Return what an exit status means, None where it says nothing in particular.

    Args:
        exit_code: as a parent sees it (-9), or as a shell or container does (137).
    """
    return EXITS.get(_SIGNALLED - exit_code if exit_code < 0 else exit_code)


def described(exit_code: int | None) -> str:
    """Return `exit status N` with its meaning where there is one."""
    if exit_code is None:
        return "an unknown exit status"
    found = explain(exit_code)
    return f"exit status {exit_code}" + (f" ({found.meaning})" if found else "")
