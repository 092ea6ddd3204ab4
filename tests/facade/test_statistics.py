"""What the statistics of queues count adds up, whatever happens to messages, subscribers and queues."""

from __future__ import annotations

import asyncio
from collections import Counter
from random import Random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from mpreg_mq import (
    DeliveryGuarantee,
    MessageQueueManager,
    OverflowPolicy,
    QueueConfiguration,
    QueuedMessage,
    QueueStatistics,
    QueueType,
    VirtualClock,
)
from mpreg_mq.events import MemoryEventLog
from mpreg_mq.testing import check_history

QUEUES = ("a", "b")
STEPS = 60
VERBS = (
    *("send",) * 8,
    *("pull",) * 2,
    *("wait",) * 3,
    *("subscribe", "unsubscribe", "settle", "batch", "pause", "resume", "purge", "restart", "recreate"),
    *("redrive", "redrive elsewhere", "purge dead letters"),
)


def configuration(name: str, random: Random) -> QueueConfiguration:
    """A queue that fills up, gives up, expires and opens circuits soon."""
    choose = random.choice
    return QueueConfiguration(
        name,
        choose(list(QueueType)),
        max_size=choose((1, 3, 100)),
        max_retries=choose((0, 1, 2)),
        max_payload_bytes=choose((1, 100)),
        enable_dead_letter_queue=random.random() < 0.8,
        enable_deduplication=random.random() < 0.4,
        overflow_policy=choose(list(OverflowPolicy)),
        overflow_wait_seconds=2.0,
        message_ttl_seconds=choose((None, None, 5.0)),
        retry_backoff_seconds=choose((0.0, 0.5)),
        circuit_breaker_failure_threshold=choose((None, 2)),
        circuit_breaker_recovery_seconds=3.0,
        default_visibility_timeout_seconds=4.0,
        default_acknowledgment_timeout_seconds=4.0,
    )


class Story:
    """Two queues, to which anything happens, and what their statistics cannot tell."""

    def __init__(self, random: Random) -> None:
        self.configured = {name: configuration(name, random) for name in QUEUES}
        self.random = random
        self.clock = VirtualClock()
        self.log = MemoryEventLog()
        self.reached_nobody: Counter[str] = Counter()
        self.purged_dead: Counter[str] = Counter()
        self.subscriptions: list[tuple[str, str]] = []
        self.held: list[tuple[str, Any]] = []
        self.sending: dict[str, set[asyncio.Task[None]]] = {name: set() for name in QUEUES}

    async def open(self) -> None:
        """The manager of the log, which has the queues."""
        self.manager = MessageQueueManager(log=self.log, clock=self.clock)
        for name, configured in self.configured.items():
            await self.manager.create_queue(name, configured)

    def counts(self, name: str) -> QueueStatistics:
        """The statistics of a queue that is there."""
        counts = self.manager.get_queue_statistics(name)
        assert counts is not None
        return counts

    def check(self) -> None:
        """Every message that was sent is counted in one other place, and every dead letter as well."""
        for name in QUEUES:
            counts = self.counts(name)
            assert counts.messages_sent == (
                counts.messages_acknowledged
                + counts.messages_failed
                + counts.messages_expired
                + counts.messages_dropped
                + counts.messages_purged
                + counts.current_queue_size
                + counts.current_in_flight_count
                + self.reached_nobody[name]
            )
            gone = counts.messages_redriven + self.purged_dead[name]
            assert counts.messages_dead_lettered == counts.current_dead_letter_count + gone

    async def send(self, name: str, number: int) -> None:
        """Send anything; a fire-and-forget message that reaches nobody is counted here."""
        random = self.random
        guarantee = random.choice(list(DeliveryGuarantee))
        fires = guarantee is DeliveryGuarantee.FIRE_AND_FORGET
        result = await self.manager.send_message(
            name,
            random.choice(("t.a", "t.b", "t.a.x")),
            number,
            guarantee,
            priority=random.choice((None, 1, 2)),
            delay_seconds=None if fires else random.choice((None, None, 1.0)),
            message_ttl_seconds=random.choice((None, None, 0.5, 3.0)),
            group_id=random.choice((None, None, "g")),
            required_acknowledgments=random.choice((None, 2)),
            deduplication_id=random.choice((None, "k")),
        )
        if fires and result.success and not result.delivered_to:
            self.reached_nobody[name] += 1

    def subscribe(self, name: str) -> None:
        """Have somebody called who fails now and then."""

        def called(message: QueuedMessage) -> None:
            if self.random.random() < 0.4:
                raise ValueError

        who, pattern = self.random.choice("pqr"), self.random.choice(("t.*", "t.a", "#"))
        subscription_id = self.manager.subscribe_to_queue(name, who, pattern, called)
        assert subscription_id is not None
        self.subscriptions.append((name, subscription_id))

    async def settle(self) -> None:
        """Acknowledge something that was fetched, or give it back; perhaps too late."""
        name, message_id = self.random.choice(self.held)
        if self.random.random() < 0.5:
            await self.manager.acknowledge_message(name, message_id, "worker")
        else:
            await self.manager.negative_acknowledge(name, message_id, "worker")

    async def do(self, verb: str, name: str, number: int) -> None:
        """One step of the story."""
        manager, other = self.manager, QUEUES[name == QUEUES[0]]
        if verb == "send":
            # It may wait for room.
            task = asyncio.ensure_future(self.send(name, number))
            self.sending[name].add(task)
            task.add_done_callback(self.sending[name].discard)
        elif verb == "batch":
            await manager.send_messages(
                name, [("t.a", number), ("t.b", "more than a byte")], DeliveryGuarantee.BROADCAST
            )
        elif verb == "pull":
            fetched = await manager.receive_messages(name, "worker", 3)
            self.held += [(name, message.id) for message in fetched]
        elif verb == "settle" and self.held:
            await self.settle()
        elif verb == "subscribe":
            self.subscribe(name)
        elif verb == "unsubscribe" and self.subscriptions:
            manager.unsubscribe_from_queue(*self.subscriptions.pop())
        elif verb == "wait":
            await self.clock.advance(self.random.choice((0.5, 2.0, 9.0)))
        elif verb == "pause":
            manager.pause_queue(name)
        elif verb == "resume":
            manager.resume_queue(name)
        elif verb == "purge":
            await manager.purge_queue(name)
        elif verb == "redrive":
            await manager.redrive_dead_letters(name, limit=self.random.choice((None, 1)))
        elif verb == "redrive elsewhere":
            await manager.redrive_dead_letters(name, target_queue=other)
        elif verb == "purge dead letters":
            self.purged_dead[name] += await manager.purge_dead_letters(name)
        elif verb == "restart":
            await manager.shutdown()
            await self.open()
            self.subscriptions.clear()
        elif verb == "recreate":
            await manager.delete_queue(name)
            await asyncio.gather(*self.sending[name])
            await manager.create_queue(name, self.configured[name])
            self.reached_nobody[name] = self.purged_dead[name] = 0


@given(seed=st.integers(0, 2**32))
def test_i2_the_statistics_add_up(seed: int) -> None:
    """For whatever is done with two queues: what was sent is acknowledged, failed, expired, dropped, purged, pending or
    in flight, or was a fire-and-forget message that reached nobody; what ever was a dead letter is one, or was redriven
    or purged; and the log breaks no rule."""

    async def told() -> None:
        story = Story(Random(seed))
        await story.open()
        for number in range(STEPS):
            await story.do(story.random.choice(VERBS), story.random.choice(QUEUES), number)
            await asyncio.sleep(0)
            story.check()
        await story.clock.advance(30)
        story.check()
        await story.manager.shutdown()
        await asyncio.gather(*story.sending["a"], *story.sending["b"])
        assert check_history(story.log) == []

    asyncio.run(told())
