"""The guard against regression: instruction counts and ratios, commit by commit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import counted, instructions, record
from benchmarks.catalogue import row_named
from benchmarks.harness.model import Kind, Outcome
from benchmarks.results import Results

PERF = "12345678,,instructions:u,1000,100.00,,\n"
PERF_CANNOT = "<not supported>,,instructions:u,0,100.00,,\n"
VALGRIND = "==1== Events    : Ir\n==1== I   refs:      1,376,618,196\n"


def entry(commit: str, *, count: int = 100, ratio: float = 0.5, **machine: str) -> dict[str, Any]:
    known = {"processor": "x", "python": "3", "counter": "valgrind", **machine}
    return {"commit": commit, **known, "instructions": {"fold": count}, "ratios": {"replay": ratio}}


def test_counts_are_read_from_either_program() -> None:
    """Given what perf and valgrind say, then the count is found, and its absence too."""
    assert instructions.from_perf(PERF) == 12_345_678
    assert instructions.from_perf(PERF_CANNOT) is None
    assert instructions.from_valgrind(VALGRIND) == 1_376_618_196
    assert instructions.from_valgrind("valgrind: no such program") is None


def test_the_start_of_the_interpreter_is_taken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given counts with and without work, then the rest is what one unit costs; without a count there is none."""
    counter = instructions.Counter("valgrind")
    counts: dict[int, int | None] = {0: 1_000, 10: 1_500}
    monkeypatch.setattr(counter, "count", lambda workload, size: counts[size])
    assert counter.per_unit("fold-events", 10) == 50.0
    counts[10] = None
    assert counter.per_unit("fold-events", 10) is None


@pytest.mark.parametrize("name", counted.WORKLOADS)
def test_counted_workloads_do_their_work(name: str) -> None:
    """Given a piece of work, when a little of it is done, then it ends; the sizes name the same pieces."""
    counted.WORKLOADS[name](4)
    assert set(instructions.WORKLOADS) == set(counted.WORKLOADS)


def test_ratios_are_ours_over_the_limit() -> None:
    """Given a run of the limits, then each row's ratio is that of the medians, and a row without values has none."""
    rows = record.limit_rows()
    assert all([entry.kind for entry in row.entries] == [Kind.OURS, Kind.LIMIT] for row in rows)
    metric = row_named("durable-1").metrics[0].name
    outcomes = (
        Outcome("durable-1", "ours", {metric: (30.0, 40.0, 90.0)}),
        Outcome("durable-1", "raw-sqlite", {metric: (50.0, 50.0, 60.0)}),
    )
    assert record.ratios(rows, Results({}, {}, {}, outcomes)) == {"durable-1": 0.8}


def test_the_history_has_one_line_for_each_commit(tmp_path: Path) -> None:
    """Given a history, when a commit is recorded twice, then its latest record is the one that stays."""
    path = tmp_path / "history.jsonl"
    assert record.read_history(path) == []
    for new in (entry("a"), entry("b", count=1), entry("b", count=2)):
        record.write_history(path, record.with_record(record.read_history(path), new))
    assert record.read_history(path) == [entry("a"), entry("b", count=2)]
    assert len(path.read_text().splitlines()) == 2


def test_a_broken_history_is_refused_by_line(tmp_path: Path) -> None:
    """Given a line that is no record, then the error names it and nothing is overwritten."""
    path = tmp_path / "history.jsonl"
    path.write_text('{"commit": "a"}\n{"other": 1}\n')
    with pytest.raises(ValueError, match="line 2"):
        record.read_history(path)


def test_only_records_of_such_a_machine_are_compared() -> None:
    """Given records of several machines, then the latest of another commit on the same kind is the predecessor."""
    history = [entry("a"), entry("b"), entry("c", python="4"), entry("d")]
    assert record.predecessor(history, entry("d")) == entry("b")
    assert record.predecessor(history, entry("d", processor="y")) is None
    assert record.predecessor([], entry("d")) is None


@pytest.mark.parametrize(
    ("count", "ratio", "regressed"),
    [(100, 0.5, []), (104, 0.45, []), (106, 0.5, [True, False]), (50, 0.3, [False, True]), (90, 0.9, [])],
)
def test_more_instructions_or_a_smaller_share_is_worse(count: int, ratio: float, regressed: list[bool]) -> None:
    """Given a record after one of 100 instructions and half of the limit, then a change is judged by its tolerance."""
    found = record.changes(entry("a"), entry("b", count=count, ratio=ratio))
    assert [change.regressed for change in found] == (regressed or [False, False])
    assert all(("WORSE" in change.line) is change.regressed for change in found)


def test_recording_measures_writes_and_compares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Given a commit that takes a tenth more instructions, when it is recorded, then it is kept and 1 is returned."""
    path = tmp_path / "history.jsonl"
    made = iter([entry("a"), entry("b", count=110), entry("c", count=109)])
    monkeypatch.setattr(record, "measure", lambda seconds, rounds: next(made))
    assert [record.main(["--history", str(path)]) for _ in range(3)] == [0, 1, 0]
    assert [old["commit"] for old in record.read_history(path)] == ["a", "b", "c"]
    assert "WORSE" in capsys.readouterr().out
