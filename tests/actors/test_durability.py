"""What an answer has survived (S1), how a queue comes back, and what happens when the disk refuses."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mpreg_mq.actors.journal import Journal
from mpreg_mq.clock import VirtualClock
from mpreg_mq.configuration import QueueConfiguration, QueueManagerConfiguration
from mpreg_mq.errors import EventLogError, LogFullError
from mpreg_mq.events import Append, Snapshot, SQLiteEventLog
from mpreg_mq.events import types as e
from mpreg_mq.manager import MessageQueueManager
from mpreg_mq.model import Durability, RejectionReason
from mpreg_mq.projections import QueueState
from mpreg_mq.queue import MessageQueue
from tests.support.running import Recorder, assert_fold_equality, until

PATIENCE_SECONDS = 20.0


class SlowDisk(SQLiteEventLog):
    """A log whose disk can be held up, and filled up."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, synchronous="OFF")
        self.gate = threading.Event()
        self.gate.set()
        self.full = False

    def append(self, batch: Sequence[Append]) -> None:
        assert self.gate.wait(PATIENCE_SECONDS)
        if self.full and any(isinstance(event, e.MessageEnqueued) for one in batch for event in one.events):
            raise LogFullError("append: the disk is full; make room")
        super().append(batch)

    def has_room(self) -> bool:
        return not self.full


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SlowDisk]:
    log = SlowDisk(tmp_path / "log.db")
    yield log
    log.gate.set()
    log.close()


def flush(queue: MessageQueue) -> None:
    """Have everything in the log that was submitted."""
    queue._actor.send_off()
    journal = queue._actor._store.journal
    assert journal is not None
    journal.flush(PATIENCE_SECONDS)


def make_queue(log: Any, durability: Durability | None = None, **settings: Any) -> MessageQueue:
    return MessageQueue(QueueConfiguration("q", durability=durability, **settings), log=log, clock=VirtualClock())


# --- levels -------------------------------------------------------------------------------------------------


def test_s1_a_committed_send_is_answered_from_the_log(disk: SlowDisk) -> None:
    """Given a disk that is held up, then a send of a committed queue is answered when it is in the log, not before."""

    async def story() -> None:
        async with make_queue(disk) as queue:
            disk.gate.clear()
            sending = asyncio.ensure_future(queue.send_message("t", 1))
            for _ in range(50):
                await asyncio.sleep(0)
            assert not sending.done()
            disk.gate.set()
            result = await sending
            assert result.success
            assert any(isinstance(record.event, e.MessageEnqueued) for record in disk.read_all())

    asyncio.run(story())


def test_s1_a_buffered_send_does_not_wait_until_too_much_is_at_risk(
    disk: SlowDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a disk that is held up, then sends and acknowledgments of a buffered queue are answered at once, until the
    oldest has been on its way for as long as may be at risk; from then on they wait for the log."""
    now = 1000.0
    monkeypatch.setattr("mpreg_mq.actors.recording.time.monotonic", lambda: now)

    async def story() -> None:
        nonlocal now
        async with make_queue(disk, Durability.BUFFERED) as queue:
            queue.subscribe("s", "#")
            disk.gate.clear()
            assert (await queue.send_message("t", 1)).success
            (message,) = await queue.receive_messages("s")
            assert await queue.acknowledge_message(message.id, "s")
            now += 10.0
            sending = asyncio.ensure_future(queue.send_message("t", 2))
            for _ in range(50):
                await asyncio.sleep(0)
            assert not sending.done()
            disk.gate.set()
            assert (await sending).success
        assert QueueState.replay(record.event for record in disk.read_stream("queue:q")).messages.pending_count == 1

    asyncio.run(story())


def test_s1_what_is_awaited_needs_no_company_and_takes_the_rest_along(
    disk: SlowDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a journal that leaves what nobody waits for alone, then every answer comes, with all before it stored."""
    start = Journal.start
    monkeypatch.setattr(Journal, "start", lambda log: start(log, hold_seconds=3600.0))

    def stored() -> list[str]:
        return [type(record.event).__name__ for record in disk.read_stream("queue:q")]

    def has_acknowledged(queue: MessageQueue, messages: int) -> bool:
        return queue.get_statistics().messages_acknowledged == messages

    async def main() -> None:
        queue = make_queue(disk)
        delivered = Recorder()
        queue.subscribe("pushed", "pushed", callback=delivered)
        queue.subscribe("pulls", "pulled")
        for number in range(1, 4):
            assert (await queue.send_message("pushed", number)).success
            await until(partial(has_acknowledged, queue, number))
        assert stored().count("MessageAcknowledged") == 2
        assert (await queue.send_message("pulled", "x")).success
        assert stored().count("MessageAcknowledged") == 3
        (message,) = await queue.receive_messages("pulls")
        assert await queue.acknowledge_message(message.id, "pulls")
        assert stored().count("MessageAcknowledged") == 4
        assert (await queue.send_message("pushed", 4)).success
        await until(partial(has_acknowledged, queue, 5))
        await queue.shutdown()
        assert stored().count("MessageAcknowledged") == 5

    asyncio.run(main())


def test_a_memory_queue_writes_nothing_to_the_log(tmp_path: Path) -> None:
    """Given a queue of durability memory beside a committed one, then it works like any other, the log knows nothing of
    it, and after a restart it is not there."""

    async def story() -> None:
        async with MessageQueueManager(log=tmp_path / "log.db") as manager:
            await manager.create_queue("volatile", QueueConfiguration("volatile", durability=Durability.MEMORY))
            await manager.create_queue("kept")
            seen = Recorder()
            manager.subscribe_to_queue("volatile", "s", "#", seen)
            assert (await manager.send_message("volatile", "t", 1)).success
            await until(lambda: seen.payloads == [1])
            assert manager.log.streams() == ["queue:kept"]
        async with MessageQueueManager(log=tmp_path / "log.db") as manager:
            assert manager.list_queues() == ["kept"]

    asyncio.run(story())


def test_queues_have_the_managers_durability_unless_they_name_one(tmp_path: Path) -> None:
    """Given a manager whose default is memory, then a queue that says nothing is in memory, one that says so is not."""

    async def story() -> None:
        config = QueueManagerConfiguration(default_durability=Durability.MEMORY)
        async with MessageQueueManager(config, log=tmp_path / "log.db") as manager:
            await manager.send_message("a", "t", 1)
            await manager.create_queue("b", QueueConfiguration("b", durability=Durability.COMMITTED))
            assert manager.log.streams() == ["queue:b"]
        async with MessageQueueManager(config, log=tmp_path / "log.db") as manager:
            assert manager.list_queues() == ["b"]

    asyncio.run(story())


# --- snapshots ----------------------------------------------------------------------------------------------


def test_a_state_is_saved_as_the_queue_goes_on(tmp_path: Path) -> None:
    """Given a manager that saves often, then the log holds snapshots that equal the fold, while it runs and after
    (I4); what is folded at the next start are the events since."""

    async def story() -> None:
        config = QueueManagerConfiguration(snapshot_every_events=20)
        async with MessageQueueManager(config, log=tmp_path / "log.db") as manager:
            seen = Recorder()
            await manager.create_queue("q")
            manager.subscribe_to_queue("q", "s", "#", seen)
            for number in range(100):
                await manager.send_message("q", "t", number)
            await until(lambda: len(seen.payloads) == 100)
            flush(manager.queue("q"))
            assert_fold_equality(manager.queue("q"))
        with closing(SQLiteEventLog(tmp_path / "log.db", read_only=True)) as log:
            snapshots = log.snapshots("queue:q")
            assert len(snapshots) == 2
            events = [record.event for record in log.read_stream("queue:q")]
            for snapshot in snapshots:
                restored = QueueState.restore(snapshot.body)
                assert restored is not None
                assert restored.describe() == QueueState.replay(events[: snapshot.version]).describe()
            assert len(events) - snapshots[0].version < 100
        async with MessageQueueManager(config, log=tmp_path / "log.db") as manager:
            assert manager.queue("q").get_statistics().messages_acknowledged == 100
            flush(manager.queue("q"))
            assert_fold_equality(manager.queue("q"))

    asyncio.run(story())


def test_a_snapshot_is_never_believed_over_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Given snapshots that are no state, or of another release's format, then the queue is folded from its events."""

    async def fill() -> None:
        async with MessageQueueManager(log=tmp_path / "log.db") as manager:
            await manager.send_message("q", "t", 1)

    async def check() -> None:
        async with MessageQueueManager(log=tmp_path / "log.db") as manager:
            assert manager.queue("q").get_statistics().messages_sent == 1

    asyncio.run(fill())
    for body in (b"", b"\x92\x01\xc0", b"\x92\x7f\xc0"):
        with closing(SQLiteEventLog(tmp_path / "log.db")) as log:
            log.save_snapshot(Snapshot("queue:q", log.stream_version("queue:q"), body))
        asyncio.run(check())
    assert "cannot be read" in caplog.text


def test_a_state_that_was_not_stored_is_not_saved(disk: SlowDisk, caplog: pytest.LogCaptureFixture) -> None:
    """Given a state whose last events the disk refused, then the log takes no snapshot of it."""

    async def story() -> None:
        async with make_queue(disk) as queue:
            assert (await queue.send_message("t", 1)).success
            stored = QueueState.replay(map(_event, disk.read_stream("queue:q")))
            ahead = QueueState.replay(map(_event, disk.read_stream("queue:q")))
            ahead.apply(e.QueuePaused(at=ahead.last_at))
            for state in (ahead, stored):
                queue._actor._store.save("queue:q", state)
            flush(queue)
            assert [snapshot.version for snapshot in disk.snapshots("queue:q")] == [stored.version]

    with caplog.at_level(logging.CRITICAL):
        asyncio.run(story())


def _event(record: Any) -> e.Event:
    event: e.Event = record.event
    return event


# --- a full disk --------------------------------------------------------------------------------------------


def test_a_full_disk_refuses_sends_and_finishes_what_is_there(disk: SlowDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a disk that fills up, then sends are refused with the reason, messages that are there are delivered and
    acknowledged, and when there is room again sends are accepted."""
    now = 1000.0
    monkeypatch.setattr("mpreg_mq.actors.recording.time.monotonic", lambda: now)

    async def story() -> None:
        nonlocal now
        async with make_queue(disk) as queue:
            for number in range(3):
                assert (await queue.send_message("t", number)).success
            disk.full = True
            refused = await queue.send_message("t", 3)
            assert not refused.success
            assert refused.rejection is RejectionReason.STORE_ERROR
            assert "make room" in (refused.error_message or "")
            again = await queue.send_message("t", 3)
            assert again.rejection is RejectionReason.STORE_ERROR
            assert [result.success for result in await queue.send_messages([("t", 3), ("t", 4)])] == [False, False]
            queue.subscribe("s", "#")
            for message in await queue.receive_messages("s", 10):
                assert await queue.acknowledge_message(message.id, "s")
            assert queue.get_statistics().messages_acknowledged == 3
            disk.full = False
            assert not (await queue.send_message("t", 5)).success
            now += 2.0
            assert (await queue.send_message("t", 5)).success
            assert_fold_equality(queue)

    asyncio.run(story())


# --- coming back --------------------------------------------------------------------------------------------


def test_leases_of_dead_callbacks_end_and_those_of_pullers_run_on(tmp_path: Path) -> None:
    """Given a process that ended with a message at a callback and one at a puller, then at the next start the first is
    pending again, with its attempt counted and the reason logged, and the second stays leased to its deadline."""
    clock = VirtualClock()
    log = SQLiteEventLog(tmp_path / "log.db")
    subscription = {"subscription_id": "s/1", "topic_pattern": "push.#", "max_in_flight": 10}
    pulling = {"subscription_id": "p/1", "topic_pattern": "pull.#", "max_in_flight": 10, "pull": True}
    at = clock.now()
    events: list[e.Event] = [
        e.QueueCreated(at, "q", QueueConfiguration("q", enable_deduplication=True)),
        e.SubscriberJoined(at, "s", **subscription),  # type: ignore[arg-type]
        e.SubscriberJoined(at, "p", **pulling),  # type: ignore[arg-type]
        e.MessageEnqueued(at, "1-r", "push.a", b"\x01", deduplication_key="k"),
        e.MessageEnqueued(at, "2-r", "pull.a", b"\x02"),
        e.MessageDelivered(at, "1-r", "s", "s/1", 1, at + 300),
        e.MessageDelivered(at, "2-r", "p", "p/1", 1, at + 30, pull=True),
    ]
    log.append([Append("queue:q", 0, events)])

    async def story() -> None:
        async with MessageQueueManager(log=log, clock=clock) as manager:
            queue = manager.queue("q")
            flush(queue)
            ended = [record.event for record in log.read_stream("queue:q", len(events))]
            expired = [event for event in ended if isinstance(event, e.LeaseExpired)]
            assert [(event.message_id, event.attempt, event.process_ended) for event in expired] == [("1-r", 1, True)]
            assert queue.get_statistics().current_in_flight_count == 1
            assert queue.config.enable_deduplication
            assert queue._inspect(lambda state, now: state.deduplication.holder("k", now)) == "1-r"
            assert await queue.receive_messages("p", topic_pattern="pull.#") == []
            await clock.advance(31.0)
            (message,) = await queue.receive_messages("p", topic_pattern="pull.#")
            assert message.id.id == "2-r"

    asyncio.run(story())
    log.close()


def test_a_damaged_log_is_not_started_on(tmp_path: Path) -> None:
    """Given a queue whose log is damaged, then the manager does not start, and says position, reason and remedy."""

    async def fill() -> None:
        async with MessageQueueManager(log=tmp_path / "log.db") as manager:
            await manager.send_message("q", "t", 1)

    asyncio.run(fill())
    with closing(SQLiteEventLog(tmp_path / "log.db")) as log:
        assert log._file._writer is not None
        log._file._writer.execute("UPDATE records SET body = zeroblob(3) WHERE position = 1")
    for start in (
        lambda path: MessageQueueManager(log=path),
        lambda path: MessageQueue(QueueConfiguration("q"), log=path),
    ):
        with pytest.raises(EventLogError, match=r"damaged at position 1: the checksum .* repair"):
            start(tmp_path / "log.db")
        # Who could not start on it does not keep it.
        SQLiteEventLog(tmp_path / "log.db").close()


# --- failures of ours ---------------------------------------------------------------------------------------


def test_a_loop_that_ends_in_the_middle_of_sends_loses_none_that_was_acknowledged(disk: SlowDisk) -> None:
    """Given an event loop that is closed while sends wait for the disk, then what was submitted is committed, and the
    queue goes on in another loop from what the log holds."""
    queue = make_queue(disk)
    acknowledged: list[int] = []

    async def send(number: int) -> None:
        if (await queue.send_message("t", number)).success:
            acknowledged.append(number)

    async def interrupted() -> None:
        await send(0)
        disk.gate.clear()
        tasks = [asyncio.ensure_future(send(number)) for number in range(1, 20)]
        for _ in range(20):
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()

    asyncio.run(interrupted())
    disk.gate.set()

    async def later() -> None:
        assert (await queue.send_message("t", 99)).success
        stored = [record.event for record in disk.read_all() if isinstance(record.event, e.MessageEnqueued)]
        assert len(stored) == len({event.message_id for event in stored})
        assert len(stored) >= len(acknowledged) + 1
        assert_fold_equality(queue)
        await queue.shutdown(0.0)

    asyncio.run(later())


def test_a_sender_that_stops_waiting_leaves_the_others_their_answers(disk: SlowDisk) -> None:
    """Given senders that wait for one commit, when one of them is cancelled, then the others are answered, and its
    message is there as well, because it was on its way."""

    async def story() -> None:
        queue = make_queue(disk)
        disk.gate.clear()
        first, second, third = (asyncio.ensure_future(queue.send_message("t", number)) for number in range(3))
        for _ in range(5):
            await asyncio.sleep(0)
        second.cancel()
        await asyncio.sleep(0)
        assert second.cancelled()
        disk.gate.set()
        assert (await first).success
        assert (await third).success
        assert [message.payload for message in queue.pending_messages] == [0, 1, 2]
        assert_fold_equality(queue)
        await queue.shutdown(0.0)

    asyncio.run(story())


def test_time_that_jumps_does_not_break_a_restart(tmp_path: Path) -> None:
    """Given a clock that is a day behind, or ahead, at the next start, then the queue comes back, its events never run
    back in time, and it goes on."""
    for jump in (-86_400.0, 86_400.0):
        path = tmp_path / f"{jump}.db"

        async def run(start: float, expected: int, path: Path = path) -> None:
            async with MessageQueueManager(log=path, clock=VirtualClock(start)) as manager:
                assert (await manager.send_message("q", "t", 1)).success
                assert manager.queue("q").get_statistics().current_queue_size == expected
                assert_fold_equality(manager.queue("q"))

        asyncio.run(run(1_000_000.0, 1))
        asyncio.run(run(1_000_000.0 + jump, 2))
        with closing(SQLiteEventLog(path, read_only=True)) as log:
            times = [record.event.at for record in log.read_stream("queue:q")]
            assert times == sorted(times)
