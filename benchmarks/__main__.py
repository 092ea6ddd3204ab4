"""``python -m benchmarks``: measures ours, its peers and the limits of the machine, side by side in one run."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.catalogue import ROWS
from benchmarks.harness import machine
from benchmarks.harness.model import Row
from benchmarks.harness.payloads import Payloads
from benchmarks.harness.runner import Plan, run
from benchmarks.report.document import publish
from benchmarks.report.text import plain_report
from benchmarks.results import Results

LEAST_ROUNDS = 5
QUICK_SECONDS = 0.05
DOCUMENT = machine.ROOT / "docs" / "performance.md"
LATEST = machine.ROOT / "build" / "benchmarks" / "results.json"
SCRATCH = machine.ROOT / "build" / "benchmarks"
"""Where logs and servers write: on the file system of the checkout."""


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.partition(": ")[2])
    names = ", ".join(row.name for row in ROWS)
    parser.add_argument("--only", nargs="+", metavar="NAME", help=f"rows whose names begin so, out of: {names}")
    parser.add_argument("--rounds", type=int, default=LEAST_ROUNDS, help=f"rounds of each (default {LEAST_ROUNDS})")
    parser.add_argument("--seconds", type=float, default=1.0, help="about how long a round of one takes (default 1)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes and one round: a try, not a measurement")
    parser.add_argument("--payloads", type=Path, metavar="FILE", help="webhook bodies, a JSON object a line")
    parser.add_argument("--mpreg-source", metavar="DIR", help="a checkout of MPREG; without it, an installed one")
    parser.add_argument("--directory", type=Path, default=SCRATCH, help="where logs and servers write, for the run")
    parser.add_argument("--json", type=Path, default=LATEST, metavar="FILE", help=f"the results (default {LATEST})")
    parser.add_argument("--publish", action="store_true", help="write docs/performance.md, .svg and .json as well")
    parser.add_argument("--results", type=Path, metavar="FILE", help="measure nothing, show these results instead")
    options = parser.parse_args(arguments)
    for name in options.only or ():
        if not any(row.name.startswith(name) for row in ROWS):
            parser.error(f"--only: got {name}, expected the beginning of one of {names}")
    if options.rounds < 1:
        parser.error(f"--rounds: got {options.rounds}, expected 1 or more")
    if options.seconds <= 0:
        parser.error(f"--seconds: got {options.seconds}, expected more than 0")
    if options.mpreg_source is not None and not Path(options.mpreg_source, "mpreg").is_dir():
        parser.error(f"--mpreg-source: got {options.mpreg_source}, expected a directory that holds mpreg/")
    if options.publish and options.quick:
        parser.error("--publish: a quick run is a try and no measurement; leave out one of the two")
    if options.payloads is not None:
        try:
            Payloads.from_file(options.payloads)
        except (OSError, ValueError) as error:
            parser.error(f"--payloads: {error}")
    return options


def chosen(options: argparse.Namespace) -> list[Row]:
    """The rows to run; those of the webhooks only where there are some."""
    named = [row for row in ROWS if not options.only or any(row.name.startswith(name) for name in options.only)]
    return [row for row in named if not row.webhooks or options.payloads is not None]


def measure(options: argparse.Namespace) -> Results:
    """Run, and gather what the results need to be understood."""
    begun = time.monotonic()
    plan = Plan(
        rounds=1 if options.quick else options.rounds,
        seconds=QUICK_SECONDS if options.quick else options.seconds,
        directory=options.directory.resolve(),
        quick=options.quick,
        payloads=None if options.payloads is None else options.payloads.resolve(),
        mpreg_source=options.mpreg_source,
    )

    def say(what: str) -> None:
        print(f"{time.monotonic() - begun:7.1f} s  {what}", file=sys.stderr, flush=True)

    described = machine.describe()
    outcomes, servers = run(chosen(options), plan, say)
    settings = {
        "rounds": plan.rounds,
        "seconds": plan.seconds,
        "quick": options.quick,
        "took_seconds": round(time.monotonic() - begun),
    }
    if options.mpreg_source is not None:
        settings["mpreg_commit"] = machine.git("rev-parse", "--short", "HEAD", directory=Path(options.mpreg_source))
    return Results(described, {**machine.versions(), **servers}, settings, tuple(outcomes))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, show, keep; 1 when a measurement failed."""
    options = parse(arguments)
    if options.results is not None:
        results = Results.read(options.results)
    else:
        results = measure(options)
        results.write(options.json)
    print(plain_report(ROWS, results))
    if options.publish:
        publish(ROWS, results, DOCUMENT)
    return 1 if any(outcome.failed is not None for outcome in results.outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
