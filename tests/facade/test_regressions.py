"""What simulations found, told once more as a short story each."""

from __future__ import annotations

import asyncio
from random import Random

from mpreg_mq.clock import VirtualClock
from mpreg_mq.configuration import QueueConfiguration
from mpreg_mq.errors import EventLogError
from mpreg_mq.invariants import check_history
from mpreg_mq.model import Callback, DeliveryGuarantee, QueuedMessage
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
