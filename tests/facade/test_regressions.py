"""What simulations found, told once more as a short story each."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from random import Random

import pytest

from mpreg_mq.clock import VirtualClock
from mpreg_mq.configuration import QueueConfiguration
from mpreg_mq.errors import EventLogError
from mpreg_mq.events import types as e
from mpreg_mq.invariants import check_history
from mpreg_mq.manager import MessageQueueManager
from mpreg_mq.model import Callback, DeliveryGuarantee, Durability, OverflowPolicy, QueuedMessage
from mpreg_mq.queue import MessageQueue
from mpreg_mq.testing.disk import SimulatedDisk
from mpreg_mq.testing.loop import SimulatedClock, SimulatedLoop
from mpreg_mq.testing.seams import deterministic
from tests.support.running import make_queue


def test_o1_a_receiver_is_given_what_has_become_due_before_what_was_ready() -> None:
    """Given a message whose delay has just passed and a later one that is ready, when somebody fetches before the
    queue's timer has fired, then it gets the earlier one."""

    async def story() -> None:
        clock = VirtualClock()
        async with make_queue(clock) as queue:
            await queue.send_message("t", "first", delay_seconds=5)
            await queue.send_message("t", "second")
            clock.set(clock.now() + 5)
            (message,) = await queue.receive_messages("worker")
            assert message.payload == "first"

    asyncio.run(story())


def test_o1_a_receiver_is_given_what_a_lease_that_ran_out_gives_back() -> None:
    """Given a lease that has just run out, when somebody else fetches, then it gets that message first."""

    async def story() -> None:
        clock = VirtualClock()
        async with make_queue(clock, retry_backoff_seconds=0) as queue:
            await queue.send_message("t", "first")
            await queue.send_message("t", "second")
            await queue.receive_messages("slow", visibility_timeout_seconds=5)
            clock.set(clock.now() + 5)
            (message,) = await queue.receive_messages("worker")
            assert message.payload == "first"

    asyncio.run(story())


def test_g4_a_subscription_that_is_recorded_again_enters_open_quorums() -> None:
    """Given an open quorum, when a newcomer's subscription could not be stored and is recorded once more, then the
    newcomer is in the quorum's audience."""
    failing = False

    def fault() -> None:
        if failing:
            raise EventLogError("no space left")

    disk, loop = SimulatedDisk(fault=fault), SimulatedLoop()
    acknowledged: list[str] = []

    def takes(name: str) -> Callback:
        def take(message: QueuedMessage) -> None:
            acknowledged.append(name)

        return take

    async def story() -> None:
        nonlocal failing
        queue = MessageQueue(QueueConfiguration("q"), log=disk.open(loop), clock=SimulatedClock(loop))
        queue.subscribe("a", "#", takes("a"))
        await queue.send_message("t", 1, DeliveryGuarantee.QUORUM, required_acknowledgments=2)
        await asyncio.sleep(1)
        failing = True
        queue.subscribe("b", "#", takes("b"))
        await asyncio.sleep(1)
        failing = False
        await asyncio.sleep(60)
        assert queue.get_statistics().messages_acknowledged == 1
        await queue.shutdown()

    with deterministic(Random(1)):
        loop.run_until_complete(story())
    assert set(acknowledged) == {"a", "b"}
    assert check_history(disk.records()) == []


# --- queues that answer before the log has it ---------------------------------------------------------------

BUFFERED = QueueConfiguration("q", durability=Durability.BUFFERED)


class Disk(SimulatedDisk):
    """A disk that refuses while ``failing``."""

    failing = False

    def __init__(self, latency: float = 0.001) -> None:
        def fault() -> None:
            if self.failing:
                raise EventLogError("no space left")

        super().__init__(lambda: latency, fault)


def told(disk: Disk, story: Callable[[MessageQueueManager], Awaitable[None]], seed: int = 1) -> None:
    """Run a story with a manager whose log is on the disk, in the order that the seed says."""
    loop = SimulatedLoop(Random(seed))

    async def with_manager() -> None:
        manager = MessageQueueManager(log=disk.open(loop), clock=SimulatedClock(loop))
        await story(manager)
        await manager.shutdown()
        await asyncio.sleep(1)

    with deterministic(Random(seed)):
        loop.run_until_complete(with_manager())
    assert check_history(disk.records()) == []


def test_l2_an_id_that_a_client_may_hold_is_not_given_to_another_message() -> None:
    """Given a buffered queue that has answered a send which its disk then refuses, when the next message is sent, then
    it has another id, so that nobody who was given the first one can acknowledge the second."""
    disk = Disk()

    async def story(manager: MessageQueueManager) -> None:
        await manager.create_queue("q", BUFFERED)
        disk.failing = True
        lost = await manager.send_message("q", "t", 1)
        (message,) = await manager.receive_messages("q", "worker")
        await asyncio.sleep(1)
        disk.failing = False
        kept = await manager.send_message("q", "t", 2)
        await manager.receive_messages("q", "worker")
        assert (lost.success, kept.success) == (True, True)
        assert kept.message_id != lost.message_id
        assert not await manager.acknowledge_message("q", message.id, "worker")

    told(disk, story)


def test_s1_a_buffered_queue_that_is_made_again_begins_after_its_deletion() -> None:
    """Given a buffered queue on a slow disk, when it is deleted and made again at once, then what is accepted from then
    on is in the log, after the deletion."""
    disk = Disk(latency=0.5)

    async def story(manager: MessageQueueManager) -> None:
        for number in range(3):
            await manager.create_queue("q", BUFFERED)
            assert (await manager.send_message("q", "t", number)).success
            await manager.delete_queue("q")
        await manager.create_queue("q", BUFFERED)
        assert (await manager.send_message("q", "t", 3)).success
        await asyncio.sleep(2)

    told(disk, story)
    assert [type(record.event) for record in disk.records()] == [
        *[e.QueueCreated, e.MessageEnqueued, e.MessagesPurged, e.QueueDeleted] * 3,
        *[e.QueueCreated, e.MessageEnqueued],
    ]


def test_s1_a_buffered_queue_is_not_there_unless_its_creation_is_stored() -> None:
    """Given a disk that refuses, then a buffered queue cannot be created; once it does not, it takes messages."""
    disk = Disk()

    async def story(manager: MessageQueueManager) -> None:
        disk.failing = True
        with pytest.raises(EventLogError, match="no space left"):
            await manager.create_queue("q", BUFFERED)
        assert manager.list_queues() == []
        disk.failing = False
        await manager.create_queue("q", BUFFERED)
        assert (await manager.send_message("q", "t", 1)).success
        await asyncio.sleep(1)

    told(disk, story)
    assert [type(record.event) for record in disk.records()] == [e.QueueCreated, e.MessageEnqueued]


@pytest.mark.parametrize("seed", range(10))
def test_c3_what_was_answered_just_before_a_shutdown_is_in_the_log(seed: int) -> None:
    """Given a buffered queue, when a send is answered and the manager is shut down, then the message is in the log, in
    whatever order the loop does what is planned on it."""
    disk = Disk()

    async def story(manager: MessageQueueManager) -> None:
        await manager.create_queue("q", BUFFERED)
        assert (await manager.send_message("q", "t", 1)).success

    told(disk, story, seed)
    assert [type(record.event) for record in disk.records()] == [e.QueueCreated, e.MessageEnqueued]


def test_what_a_closed_queue_has_lost_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """Given a buffered queue whose disk refuses what was answered just before a shutdown, then a warning says so."""
    disk = Disk()

    async def story(manager: MessageQueueManager) -> None:
        await manager.create_queue("q", BUFFERED)
        disk.failing = True
        assert (await manager.send_message("q", "t", 1)).success

    told(disk, story)
    assert "queue q: closed without its last events, which are lost: EventLogError('no space left')" in caplog.text


def test_c1_a_send_that_waited_finds_the_room_that_a_rebuild_has_made() -> None:
    """Given a send that waits in a queue that is full because a lease ran out, when the disk refuses that and the queue
    is rebuilt, then the send is accepted when its time is up at the latest, and not refused for capacity."""
    disk = Disk()

    async def story(manager: MessageQueueManager) -> None:
        policy = OverflowPolicy.WAIT
        configuration = QueueConfiguration("q", max_size=1, overflow_policy=policy, overflow_wait_seconds=1.0)
        await manager.create_queue("q", configuration)
        await manager.send_message("q", "t", 1)
        await manager.receive_messages("q", "worker", visibility_timeout_seconds=5)
        await asyncio.sleep(4.9)
        disk.failing = True
        while not manager.queue("q").get_statistics().current_queue_size:
            await asyncio.sleep(0.0001)
        sending = asyncio.create_task(manager.send_message("q", "t", 2))
        await asyncio.sleep(0.95)
        disk.failing = False
        result = await sending
        assert result.success

    told(disk, story)
