"""``python -m benchmarks.record``: what this commit costs, kept in ``benchmarks/history.jsonl``, and what got worse.

It holds what hardly depends on the machine's mood: instructions for a fixed piece of work, and ours as a share of
the limit of the same machine, measured by turns in one run. 1 is returned where something got worse by more than
its tolerance, so that a release script can stop there.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs

from benchmarks.catalogue import row_named
from benchmarks.harness import machine
from benchmarks.harness.model import Row
from benchmarks.harness.runner import Plan, run
from benchmarks.instructions import counted
from benchmarks.report.text import Line, aligned
from benchmarks.results import Results

Record = dict[str, Any]

HISTORY = Path(__file__).parent / "history.jsonl"
ROUNDS = 5
SECONDS = 0.4
LIMITS = {
    "durable-64": "raw-sqlite",
    "durable-batch": "raw-sqlite",
    "durable-1": "raw-sqlite",
    "memory-64": "future-hop",
    "memory-1": "future-hop",
    "replay": "msgspec",
}
"""Rows whose ratio of ours to a limit is recorded, and which limit."""

INSTRUCTIONS_TOLERANCE = 0.05
RATIO_TOLERANCE = 0.25
"""Shares by which a figure may be worse than before; instructions repeat to the digit, ratios do not."""

COMPARABLE = ("processor", "python", "counter")
"""Records that differ in one of these are not compared."""


def limit_rows() -> list[Row]:
    """The rows with ours and their limit alone."""
    rows = []
    for name, limit in LIMITS.items():
        row = row_named(name)
        rows.append(attrs.evolve(row, entries=(row.entry("ours"), row.entry(limit))))
    return rows


def ratios(rows: Sequence[Row], results: Results) -> dict[str, float]:
    """Ours as a share of the limit, by row."""
    found = {}
    for row in rows:
        ours, limit = (results.summary(row.name, entry.name, row.metrics[0].name) for entry in row.entries)
        if ours is not None and limit is not None and limit.median:
            found[row.name] = round(ours.median / limit.median, 4)
    return found


def read_history(path: Path) -> list[Record]:
    """The records of a file, oldest first; none where there is no file.

    Raises:
        ValueError: a line is not a record.
    """
    if not path.exists():
        return []
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            record = json.loads(line)
            record["commit"]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}, line {number}: expected a record as JSON ({error!r})") from None
        records.append(record)
    return records


def with_record(history: Sequence[Record], record: Record) -> list[Record]:
    """The history with the record at its end; one of the same commit gives way."""
    return [*(old for old in history if old["commit"] != record["commit"]), record]


def write_history(path: Path, records: Sequence[Record]) -> None:
    """A line for each record."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def predecessor(history: Sequence[Record], record: Record) -> Record | None:
    """The latest record of another commit that this one can be compared with, or None."""
    for old in reversed(history):
        if old["commit"] != record["commit"] and all(old.get(key) == record[key] for key in COMPARABLE):
            return old
    return None


@attrs.frozen
class Change:
    """A figure now and before; ``worse`` is by which share, negative where it is better."""

    name: str
    before: float
    now: float
    worse: float
    tolerance: float

    @property
    def regressed(self) -> bool:
        """Whether it got worse by more than is tolerated."""
        return self.worse > self.tolerance

    @property
    def line(self) -> Line:
        """As a line of a table."""
        return (
            self.name,
            f"{self.before:,.6g}",
            f"{self.now:,.6g}",
            f"{self.now / self.before - 1:+.1%}",
            "WORSE" if self.regressed else "",
        )


def changes(before: Record, now: Record) -> list[Change]:
    """What both records hold, compared: more instructions are worse, and a smaller share of the limit is."""
    found = []
    for name, count in now["instructions"].items():
        if old := before["instructions"].get(name):
            found.append(Change(f"{name}, instructions", old, count, count / old - 1, INSTRUCTIONS_TOLERANCE))
    for name, ratio in now["ratios"].items():
        if old := before["ratios"].get(name):
            found.append(Change(f"{name}, of the limit", old, ratio, 1 - ratio / old, RATIO_TOLERANCE))
    return found


def measure(seconds: float, rounds: int) -> Record:
    """The record of the commit that is checked out."""
    rows = limit_rows()
    described = machine.describe()

    def say(what: str) -> None:
        print(f"... {what}", file=sys.stderr, flush=True)

    outcomes, _ = run(rows, Plan(rounds, seconds, machine.ROOT / "build" / "benchmarks"), say)
    for outcome in outcomes:
        if outcome.failed is not None:
            raise RuntimeError(f"{outcome.row} {outcome.entry} failed: {outcome.failed}")
    say("counting instructions")
    counter, instructions = counted()
    results = Results(described, {}, {}, tuple(outcomes))
    return {**described, "counter": counter, "instructions": instructions, "ratios": ratios(rows, results)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write, compare; 1 where something got worse."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.record", description=__doc__.partition(": ")[2])
    parser.add_argument("--history", type=Path, default=HISTORY, metavar="FILE", help=f"default {HISTORY}")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"rounds of each ratio (default {ROUNDS})")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"length of a round (default {SECONDS})")
    options = parser.parse_args(arguments)
    history = read_history(options.history)
    record = measure(options.seconds, options.rounds)
    if record["counter"] is None:
        print("instructions not counted: there is no valgrind, and perf cannot count here; apt-get install valgrind")
    write_history(options.history, with_record(history, record))
    before = predecessor(history, record)
    if before is None:
        print(f"recorded {record['commit']}; nothing before it was recorded on such a machine\n{json.dumps(record)}")
        return 0
    compared = changes(before, record)
    print(aligned([("", before["commit"], record["commit"], "change", ""), *(change.line for change in compared)], 1))
    return 1 if any(change.regressed for change in compared) else 0


if __name__ == "__main__":
    sys.exit(main())
