"""Pages whose blocks are run word for word, and that show what the commands really print.

A `text` block right after a `bash` or `python` block is the output. Numbers, units, hashes and the
widths of columns vary and are not compared; a line `...` stands for any lines, and of a block
`text varies` only the first line is compared. With TFKIT_PASTE=1 (`make tutorials`) the page gets
what was printed now, and keeps its `...` where the rest still fits.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from tests.system.shell import Shell

_FENCE = re.compile(r"^```(\w+)( varies)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_RUN = {"bash": ["bash", "-e", "-o", "pipefail", "-c"], "python": ["python", "-c"]}
_CUT = "..."
# What differs from run to run, in this order, and what stands for it in a comparison.
_VARIES = (
    (re.compile(r"\b[0-9a-f]{12,}\b"), "HASH"),
    (re.compile(r"\d[\d,]*(\.\d+)?(e[+-]?\d+)?"), "0"),
    (re.compile(r"\b0 (ns|us|µs|ms|s)\b"), "0 s"),
    (re.compile(r"\b0 (bytes|kB|MB|GB|KiB|MiB|GiB)\b"), "0 bytes"),
    (re.compile(r"[ ─━-]+"), " "),
)


@dataclass
class Block:
    """Commands of a page, and the lines that it shows for them; None if it shows none."""

    language: str
    code: str
    shown: list[str] | None
    # Where the lines stand in the page, and whether the first is all that can be expected again.
    span: tuple[int, int]
    varies: bool

    def fitted(self, printed: list[str]) -> list[str] | None:
        """Return what the page should show, None if it shows something else."""
        fresh = fitted(self.shown, printed)
        if fresh is None and self.varies and fitted([*self.shown[:1], _CUT], printed):
            return printed
        return fresh


def runnable(text: str) -> list[Block]:
    """Return the blocks of a page that can be run, in their order."""
    fences = list(_FENCE.finditer(text))
    made = []
    for fence, after in zip(fences, [*fences[1:], None], strict=True):
        language, code = fence[1], fence[3]
        if language not in _RUN:
            continue
        follows = (
            after is not None
            and after[1] == "text"
            and not text[fence.end() : after.start()].strip()
        )
        shown, span = (after[3].splitlines(), after.span(3)) if follows else (None, (0, 0))
        made.append(Block(language, code, shown, span, bool(follows and after[2])))
    return made


def run(page: Path, shell: Shell) -> None:
    """Run a page from top to bottom and compare what it shows, or paste."""
    text = page.read_text("utf-8")
    paste = os.environ.get("TFKIT_PASTE") == "1"
    pasted, faults = [], []
    for block in runnable(text):
        printed = shell.typed([*_RUN[block.language], block.code]).rstrip().splitlines()
        if block.shown is None:
            continue
        fresh = None if paste and block.shown == [_CUT] else block.fitted(printed)
        if fresh is None:
            faults.append(f"$ {block.code}prints\n{chr(10).join(printed)}\n")
        pasted.append((block.span, printed if fresh is None else fresh))
    if paste:
        for (start, end), lines in reversed(pasted):
            text = text[:start] + "".join(f"{line}\n" for line in lines) + text[end:]
        page.write_text(text, "utf-8")
        return
    assert not faults, f"{page.name} shows something else (`make tutorials`):\n{''.join(faults)}"


def fitted(shown: list[str], printed: list[str]) -> list[str] | None:
    """Return the lines that a page shows as they were printed now, None if others were printed."""
    fresh, at, anything = [], 0, False
    for line in shown:
        if line == _CUT:
            fresh.append(line)
            anything = True
            continue
        while at < len(printed) and _same(line) != _same(printed[at]) and anything:
            at += 1
        if at == len(printed) or _same(line) != _same(printed[at]):
            return None
        fresh.append(printed[at])
        at, anything = at + 1, False
    return fresh if at == len(printed) or anything else None


def _same(line: str) -> str:
    """Return what of a line is the same in every run."""
    for varying, stands_for in _VARIES:
        line = varying.sub(stands_for, line)
    return line.strip()
