"""Runs rows: every entry in a process of its own, round after round, so that a disturbance meets all alike."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs

from benchmarks.harness.model import Entry, Outcome, Row, UnavailableError
from benchmarks.harness.processes import ContestantError, ContestantProcess
from benchmarks.servers import Servers

Say = Callable[[str], None]


@attrs.frozen
class Plan:
    """How a run is made; ``seconds`` is about how long a round of one entry takes."""

    rounds: int
    seconds: float
    directory: Path
    quick: bool = False
    payloads: Path | None = None
    mpreg_source: str | None = None


@attrs.define
class _Seat:
    """An entry while its row runs."""

    entry: Entry
    process: ContestantProcess | None = None
    values: dict[str, list[float]] = attrs.field(factory=dict)
    skipped: str | None = None
    failed: str | None = None

    @property
    def out(self) -> bool:
        return self.skipped is not None or self.failed is not None

    @contextlib.contextmanager
    def noting(self) -> Iterator[None]:
        """Whatever stops this entry stops only this entry."""
        try:
            yield
        except UnavailableError as error:
            self.skipped = str(error)
        except ContestantError as error:
            self.failed = str(error)

    def outcome(self, row: Row) -> Outcome:
        values = {metric: tuple(rounds) for metric, rounds in self.values.items()}
        return Outcome(row.name, self.entry.name, {} if self.out else values, self.skipped, self.failed)


class RowRun:
    """One row, from the start of its processes to their end."""

    def __init__(self, row: Row, plan: Plan, servers: Servers, scratch: Path, say: Say) -> None:
        self._row = row
        self._plan = plan
        self._servers = servers
        self._scratch = scratch
        self._say = say
        self._seats = [_Seat(entry) for entry in row.entries]

    def run(self) -> list[Outcome]:
        """Prepare all entries, then one round of each, ``rounds`` times."""
        try:
            if not self._row.fresh:
                self._each("preparing", self._start)
            for number in range(1, self._plan.rounds + 1):
                self._each(f"round {number} of {self._plan.rounds}", self._round)
        finally:
            for seat in self._seats:
                self._end(seat)
        return [seat.outcome(self._row) for seat in self._seats]

    def _each(self, what: str, step: Callable[[_Seat], None]) -> None:
        self._say(f"{self._row.name}: {what}")
        for seat in self._seats:
            if not seat.out:
                with seat.noting():
                    step(seat)
                if seat.skipped is not None:
                    self._say(f"{self._row.name}: {seat.entry.name} skipped: {seat.skipped}")
                if seat.failed is not None:
                    self._say(f"{self._row.name}: {seat.entry.name} FAILED: {seat.failed}")

    def _start(self, seat: _Seat) -> None:
        server = seat.entry.server
        address = None if server is None else self._servers.address_of(server)
        directory = Path(tempfile.mkdtemp(prefix=f"{seat.entry.name}-", dir=self._scratch))
        seat.process = ContestantProcess(self._task(seat, address, directory), directory / "errors.log")
        seat.process.ready()

    def _task(self, seat: _Seat, address: str | None, directory: Path) -> dict[str, Any]:
        payloads = self._plan.payloads if self._row.webhooks else None
        return {
            "row": self._row.name,
            "entry": seat.entry.name,
            "directory": str(directory),
            "payloads": None if payloads is None else str(payloads),
            "seconds": self._plan.seconds,
            "quick": self._plan.quick,
            "address": address,
            "mpreg_source": self._plan.mpreg_source,
        }

    def _round(self, seat: _Seat) -> None:
        if self._row.fresh:
            self._start(seat)
        assert seat.process is not None
        for metric, value in seat.process.measure().items():
            seat.values.setdefault(metric, []).append(value)
        if self._row.fresh:
            self._end(seat)

    def _end(self, seat: _Seat) -> None:
        if seat.process is not None:
            seat.process.close()
            seat.process = None


def run(rows: Sequence[Row], plan: Plan, say: Say) -> tuple[list[Outcome], dict[str, str]]:
    """Run the rows one after the other; outcomes, and the versions of the servers that ran.

    Everything is written below a new directory in ``plan.directory``, which is removed at the end. A server runs
    only while a row that is still to come needs it.
    """
    outcomes: list[Outcome] = []
    plan.directory.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="mpreg-mq-bench-", dir=plan.directory))
    # Servers that refuse to run as root run as somebody else, who has to get through.
    scratch.chmod(0o755)
    try:
        with Servers(scratch) as servers:
            for number, row in enumerate(rows):
                needed = {entry.server for later in rows[number:] for entry in later.entries}
                servers.stop_all_but(needed)
                outcomes += RowRun(row, plan, servers, scratch, say).run()
            return outcomes, servers.versions
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
