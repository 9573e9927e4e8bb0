"""`python -m bench`: measure, print a table, save it; see docs/performance.md."""

import argparse
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from bench import client, crosscheck, embedded, imports, launch, perf, push, report, tensors
from bench.harness import Benchmark, Unavailable, describe, measure

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "performance.md"
ROOMS = (client, crosscheck, embedded, imports, launch, perf, push, tensors)
BENCHMARKS: dict[str, Benchmark] = {
    each.id: each
    for each in sorted(
        (each for room in ROOMS for each in room.BENCHMARKS),
        key=lambda each: each.id,
    )
}


def main(argv: list[str]) -> int:
    """Measure (or read what was measured), print and save; goals missed are no failure."""
    options = _parser().parse_args(argv)
    if options.results:
        runs = [report.from_json(file.read_text("utf-8")) for file in options.results]
    else:
        run = _run(options)
        runs = [run]
        for file in report.write(run, options.out):
            sys.stderr.write(f"wrote {file}\n")
    table = report.as_markdown(runs)
    sys.stdout.write(table)
    if options.write_docs:
        page = PAGE.read_text("utf-8")
        table = report.with_others_kept(table, report.section(page))
        PAGE.write_text(report.replace_section(page, table), "utf-8")
    return 0


def _run(options: argparse.Namespace) -> report.Run:
    made = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    settings = f"{options.rounds} rounds of at least {options.seconds:g} s"
    run = describe(report.Run(made, settings))
    options.out.mkdir(parents=True, exist_ok=True)
    for name in sorted(options.only):
        # Beside the results: a folder for temporary files may be no disk at all.
        with tempfile.TemporaryDirectory(prefix=".scratch-", dir=options.out) as scratch:
            folder = Path(scratch).resolve()
            try:
                figure = measure(
                    BENCHMARKS[name], folder, rounds=options.rounds, seconds=options.seconds
                )
            except Unavailable as missing:
                run.skipped[name] = str(missing)
            else:
                run.figures.append(figure)
    return run


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    option = parser.add_argument
    option("--only", type=_ids, default=list(BENCHMARKS), metavar="ID,...",
           help=f"which benchmarks: {', '.join(BENCHMARKS)}, or how they begin (all)")  # fmt: skip
    option("--rounds", type=_positive, default=5, help="number of rounds (%(default)s)")
    option("--seconds", type=float, default=3.0, help="length of a round (%(default)s)")
    option("--out", type=Path, default=HERE / "results", metavar="DIR",
           help="folder of the results, on the disk to measure (bench/results)")  # fmt: skip
    option("--results", type=Path, nargs="+", metavar="JSON",
           help="measure nothing, show these saved results together")  # fmt: skip
    option(
        "--write-docs",
        action="store_true",
        help="put the table into docs/performance.md, beside the rows not measured now",
    )
    return parser


def _ids(text: str) -> list[str]:
    found: list[str] = []
    for name in map(str.strip, text.split(",")):
        begin_so = [each for each in BENCHMARKS if each.startswith(name)]
        if not begin_so:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(BENCHMARKS)}")
        found += begin_so
    return found


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of rounds")
    return int(text)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
