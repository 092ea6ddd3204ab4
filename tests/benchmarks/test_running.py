"""Running rows: processes, rounds, servers, and what is skipped."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import attrs
import pytest

from benchmarks.__main__ import main, parse
from benchmarks.catalogue import ROWS, row_named
from benchmarks.contestants import limits
from benchmarks.contestants.bare_queues import ManyBareQueues
from benchmarks.contestants.base import RATE, AsyncQueue, Countdown, Load, QueueUnderLoad, library
from benchmarks.contestants.latency import MESSAGES_PER_SECOND, PacedQueue
from benchmarks.contestants.limits import FutureHop, RawAppend, RawSqlite, RawSqliteTogether
from benchmarks.contestants.many_queues import MESSAGES_A_QUEUE, QUICK_QUEUES, SPREAD
from benchmarks.contestants.queue_api import QueueApi
from benchmarks.harness import metronome
from benchmarks.harness.model import Context, UnavailableError
from benchmarks.harness.payloads import Message, Payloads
from benchmarks.harness.processes import ContestantError, ContestantProcess
from benchmarks.results import Results
from benchmarks.servers import Servers
from benchmarks.servers.base import Server, program


def context_in(directory: Path) -> Context:
    return Context(directory, Payloads.small(), seconds=0.01, quick=True)


def task_for(row: str, entry: str, directory: Path) -> dict[str, Any]:
    return {
        "row": row,
        "entry": entry,
        "directory": str(directory),
        "payloads": None,
        "seconds": 0.01,
        "quick": True,
        "address": None,
        "mpreg_source": None,
    }


class AbsentServer(Server):
    """A server that nobody has; it remembers how often it was tried."""

    name = "absent"
    package = "get it somewhere"
    tried: ClassVar[int] = 0

    def launch(self) -> subprocess.Popen[bytes]:
        AbsentServer.tried += 1
        raise AssertionError(program("mpreg-mq-no-such-program", self.package))


class DyingServer(Server):
    """A server that says why and ends."""

    name = "dying"
    package = ""

    def launch(self) -> subprocess.Popen[bytes]:
        return self.spawn("sh", "-c", "echo no room; exit 3")


def test_a_missing_server_is_skipped_with_a_word_and_tried_once(tmp_path: Path) -> None:
    """Given a server that is not installed, when two entries want it, then both hear why, after one try."""
    AbsentServer.tried = 0
    with Servers(tmp_path, {"absent": AbsentServer}) as servers:
        for _ in range(2):
            with pytest.raises(UnavailableError, match="there is no mpreg-mq-no-such-program; get it somewhere"):
                servers.address_of("absent")
    assert AbsentServer.tried == 1
    assert servers.versions == {}


def test_a_server_that_ends_is_skipped_with_what_it_said(tmp_path: Path) -> None:
    """Given a server that ends at once, then whoever needs it is told its last line."""
    with Servers(tmp_path, {"dying": DyingServer}) as servers, pytest.raises(UnavailableError, match="no room"):
        servers.address_of("dying")


def test_a_missing_library_is_skipped_with_a_word() -> None:
    """Given a module that is not installed, then the word says how to get it."""
    with pytest.raises(UnavailableError, match="pip install the-thing"):
        library("mpreg_mq_no_such_module", "the-thing")


@pytest.mark.parametrize("load", [Load(), Load(senders=4), Load(batch=5)])
@pytest.mark.parametrize("log", ["memory:", "sqlite"])
def test_our_queue_runs_under_each_load(tmp_path: Path, load: Load, log: str) -> None:
    """Given a load, when a round is run, then it counts whole steps, and cleans up behind itself."""

    async def run() -> float:
        queue = QueueApi(context_in(tmp_path), load, log=log)
        await queue.prepare()
        values = await queue.measure()
        await queue.close()
        assert (queue.bytes_used > 0) is (log == "sqlite")
        return values[RATE]

    assert asyncio.run(run()) > 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("limit", [RawSqlite, RawSqliteTogether, RawAppend, FutureHop])
def test_limits_run_and_clean_up(tmp_path: Path, limit: type[QueueUnderLoad]) -> None:
    """Given a limit of the machine, when a round is run, then it has a rate and leaves nothing."""

    async def run() -> float:
        contestant = limit(context_in(tmp_path), Load(senders=4))
        await contestant.prepare()
        return (await contestant.measure())[RATE]

    assert asyncio.run(run()) > 0
    assert list(tmp_path.iterdir()) == []


def test_raw_limits_write_the_events_of_a_batch_together(tmp_path: Path) -> None:
    """Given 10 messages and batches of 4, then there are 3 parts with three events a message."""
    parts = RawSqlite(context_in(tmp_path), Load(batch=4)).parts(Payloads.small().take(10))
    assert [len(part) for part in parts] == [12, 12, 6]


def test_raw_sqlite_on_the_loop_writes_what_was_sent_together_in_one_transaction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given 4 senders of 3 messages each, then there are 3 transactions, with three events a message."""
    written: list[int] = []
    insert = limits.insert

    def counted(connection: sqlite3.Connection, bodies: Sequence[bytes]) -> None:
        written.append(len(bodies))
        insert(connection, bodies)

    monkeypatch.setattr(limits, "insert", counted)
    context = context_in(tmp_path)
    asyncio.run(RawSqliteTogether(context, Load(senders=4)).run(context.payloads.take(12)))
    assert written == [12, 12, 12]


def test_bare_queues_deliver_each_message_once(tmp_path: Path) -> None:
    """Given as many bare queues as in a quick run, then a ratio is measured, and every message has come once."""

    class Counting(ManyBareQueues):
        count = 0

        def delivered(self, message: Any) -> None:
            self.count += 1
            super().delivered(message)

    async def ratio() -> float:
        queues = Counting(context_in(tmp_path))
        await queues.prepare()
        values = await queues.measure()
        # Two that warm up, two by two that count.
        assert queues.count == 6 * QUICK_QUEUES * MESSAGES_A_QUEUE
        return values[SPREAD]

    assert asyncio.run(ratio()) > 0


def test_a_countdown_that_is_not_reached_says_how_many_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given messages that do not come, when their time is up, then the error counts them."""
    monkeypatch.setattr("benchmarks.contestants.base.DONE_TIMEOUT_SECONDS", 0.001)
    countdown = Countdown(3)
    countdown.count(1)
    with pytest.raises(TimeoutError, match="2 messages not done"):
        asyncio.run(countdown.wait())


def test_the_metronome_tells_the_moment_of_each_message() -> None:
    """Given a rate that cannot be kept, then it catches up: as many moments as messages, all of them in between."""
    begun = time.perf_counter()
    ticking = metronome.start(rate=1e7, count=1_234)
    output, _ = ticking.communicate()
    ticks = metronome.ticks_in(output)
    assert len(ticks) == 1_234
    assert ticks == sorted(ticks)
    assert begun <= ticks[0] <= ticks[-1] <= time.perf_counter()


class HoldingUp(AsyncQueue):
    """A queue that delivers at once, and once holds its loop up for so many seconds."""

    held_up_seconds = 0.05

    async def connect(self) -> None:
        pass

    async def begin(self, count: int) -> None:
        self._sent = 0

    async def send(self, sender: int, message: Message) -> None:
        self._sent += 1
        if self._sent == 200:
            over = time.perf_counter() + self.held_up_seconds
            while time.perf_counter() < over:
                pass
        self.handle(message[1])

    async def send_batch(self, sender: int, messages: Sequence[Message]) -> None:
        raise AssertionError("messages are sent singly")

    async def finished(self) -> None:
        pass


def test_the_time_in_which_a_loop_was_held_up_counts_for_what_was_due_then(tmp_path: Path) -> None:
    """Given a loop that is busy for 50 ms, then the latency of the messages that were due meanwhile tells it."""
    context = attrs.evolve(context_in(tmp_path), seconds=0.2)
    paced = PacedQueue(HoldingUp(context, Load(senders=4)))

    async def latencies() -> Sequence[float]:
        paced._queue.handle = paced._arrived
        return await paced._paced(context.seconds)

    late = [latency for latency in asyncio.run(latencies()) if latency > HoldingUp.held_up_seconds / 2]
    assert len(late) >= MESSAGES_PER_SECOND * HoldingUp.held_up_seconds / 4


def test_every_entry_can_be_made(tmp_path: Path) -> None:
    """Given the catalogue, when every contestant is made, then none needs its library or server yet."""
    for row in ROWS:
        for entry in row.entries:
            assert entry.make(context_in(tmp_path)) is not None


def test_a_process_that_fails_says_so(tmp_path: Path) -> None:
    """Given an entry that cannot be, when its process is started, then the error holds what it said."""
    process = ContestantProcess(task_for("memory-1", "no-such-entry", tmp_path), tmp_path / "errors.log")
    with pytest.raises(ContestantError, match="no-such-entry"):
        process.ready()
    process.close()


def test_a_run_from_its_command_to_its_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Given two rounds of one row, when they are run, then each entry has two values or a reason, and no files."""
    scratch, kept = tmp_path / "scratch", tmp_path / "results.json"
    arguments = ["--only", "append", "--rounds", "2", "--seconds", "0.01"]
    status = main([*arguments, "--directory", str(scratch), "--json", str(kept)])
    results = Results.read(kept)
    assert status == 0, results
    assert {outcome.entry for outcome in results.outcomes} == {entry.name for entry in row_named("append").entries}
    for outcome in results.outcomes:
        assert outcome.skipped or [len(rounds) for rounds in outcome.values.values()] == [2]
    summary = results.summary("append", "ours", "events/s")
    assert summary is not None
    assert summary.median > 0
    assert results.settings["rounds"] == 2
    assert list(scratch.iterdir()) == []
    shown = capsys.readouterr().out
    assert "append events" in shown
    assert main(["--results", str(kept)]) == 0
    assert capsys.readouterr().out == shown


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "nothing"], "--only: got nothing"),
        (["--rounds", "0"], "--rounds: got 0"),
        (["--seconds", "-1"], "--seconds: got -1"),
        (["--mpreg-source", "/nowhere"], "--mpreg-source: got /nowhere"),
        (["--payloads", "/nowhere"], "--payloads"),
        (["--publish", "--quick"], "--publish"),
    ],
)
def test_a_bad_command_line_says_what_is_wrong(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Given a bad argument, then nothing is run and the error names it."""
    with pytest.raises(SystemExit) as ended:
        parse(arguments)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
