"""One process of a simulation: a loop, a queue manager on the simulated disk, and the clients that live with it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from random import Random
from typing import TYPE_CHECKING, Any

from mpreg_mq.errors import InvalidOptionError, MessageQueueError
from mpreg_mq.events.log import RecordedEvent
from mpreg_mq.manager import MessageQueueManager
from mpreg_mq.model import DeliveryGuarantee, DeliveryResult, Durability, QueuedMessage, QueueType, RejectionReason
from mpreg_mq.projections import QueueState
from mpreg_mq.queue import MessageQueue
from mpreg_mq.testing.clients import Operation, Outcome
from mpreg_mq.testing.crash import crash, running_actors
from mpreg_mq.testing.loop import SimulatedClock, SimulatedLoop
from mpreg_mq.testing.messages import make_message, value_of
from mpreg_mq.testing.scenario import QUEUE_NAME, Faults

if TYPE_CHECKING:
    from mpreg_mq.testing.world import World

PATTERNS = ("#", "#", "a.#", "a.*", "*.x", "b")
REFUSED_FOR_WHAT_IT_IS = frozenset(
    {
        RejectionReason.INVALID_TOPIC,
        RejectionReason.INVALID_OPTION,
        RejectionReason.PAYLOAD_NOT_ENCODABLE,
        RejectionReason.PAYLOAD_TOO_LARGE,
    }
)
"""Such a send is refused whenever it is tried."""
GUARANTEE_NOW = DeliveryGuarantee.FIRE_AND_FORGET
STORM_SECONDS = 30.0
"""Within this time the clients of a process begin what they do."""


class SimulatedHandlerError(Exception):
    """What a handler of a simulation raises."""


class Process:
    """From start to crash or shutdown. A process that has ended does and records nothing more."""

    def __init__(self, world: World, number: int, start: float, faults: Faults) -> None:
        self.world = world
        self.number = number
        self.faults = faults
        self.random = Random(f"{world.seed}/process {number}")
        self.alive = True
        self.counted = 0.0
        self.loop = SimulatedLoop(Random(f"{world.seed}/loop {number}"))
        self.clock = SimulatedClock(self.loop, start)
        self._before = running_actors()
        self.log = world.disk.open(self.loop, blocking=world.blocking, writing=world.writing)
        try:
            self.manager = MessageQueueManager(world.manager_configuration, log=self.log, clock=self.clock)
        except MessageQueueError:
            crash(self.loop, self.log, (), self._before)
            raise
        self.queue: MessageQueue | None = None
        # In order: a set of tasks would have one that differs from run to run.
        self.background: dict[asyncio.Task[Any], None] = {}
        self._working: list[Any] = []

    @property
    def now(self) -> float:
        """The time by this process's clock."""
        return self.clock.now()

    def chance(self, share: float) -> bool:
        """True with this probability."""
        return share > 0 and self.random.random() < share

    def spawn(self, work: Awaitable[Any]) -> asyncio.Task[Any]:
        """Let a client work beside the others."""
        task = asyncio.ensure_future(work, loop=self.loop)
        self.background[task] = None
        task.add_done_callback(lambda done: self.background.pop(done, None))
        return task

    async def open(self) -> MessageQueue:
        """The queue, which is created unless the disk has it."""
        manager = self.manager
        while QUEUE_NAME not in manager.list_queues():
            try:
                await manager.create_queue(QUEUE_NAME, self.world.configuration)
            except MessageQueueError:
                await asyncio.sleep(1.0)
        self.queue = manager.queue(QUEUE_NAME)
        return self.queue

    def crash(self) -> None:
        """The process is gone between two steps: nothing of it runs any more, and its log cannot write."""
        self.alive = False
        crash(self.loop, self.log, self.manager.queues.values(), self._before, self._working)

    def states(self) -> dict[str, QueueState]:
        """The states of the queues that are in the log, by stream."""
        actors = [queue._actor for queue in self.manager.queues.values()]
        return {actor.stream: actor.state for actor in actors if actor._store.log is self.log}

    def memory_logs(self) -> list[list[RecordedEvent]]:
        """What queues hold that are in memory alone, each in a log of its own."""
        logs = [queue._actor._store.log for queue in self.manager.queues.values()]
        return [list(log.read_all()) for log in logs if log is not self.log]

    # --- handlers -----------------------------------------------------------------------------------------

    def begin(self, subscriber_id: str, message: QueuedMessage, **details: Any) -> Operation:
        """A subscriber gets a message."""
        return self.world.history.invoke(
            subscriber_id,
            "deliver",
            value_of(message),
            self.now,
            message_id=str(message.id),
            attempt=message.delivery_attempt,
            **details,
        )

    def end(self, operation: Operation, outcome: Outcome, error: str | None = None) -> None:
        """An operation ends, unless the process ended before."""
        if self.alive and operation.outcome is None:
            self.world.history.end(operation, outcome, self.now, error)

    def handler(self, subscriber_id: str) -> Any:
        """A callback that works, raises, takes its time, hangs, or asks its own queue for something."""
        faults = self.faults

        def handle(message: QueuedMessage) -> Any:
            operation = self.begin(subscriber_id, message)
            if self.chance(faults.duplicate / 4):
                self._ask_within(message)
            fails = self.chance(faults.raising)
            if self.chance(faults.hanging):
                return self.working(self._take_time(operation, 10_000.0, fails))
            if self.chance(faults.slow):
                return self.working(self._take_time(operation, self.random.choice((0.01, 0.5, 3.0, 8.0)), fails))
            if fails:
                self.end(operation, Outcome.FAIL, "raised")
                raise SimulatedHandlerError(f"{subscriber_id} does not like it")
            self.end(operation, Outcome.OK)
            return None

        return handle

    def working(self, coroutine: Any) -> Any:
        """Remember a handler's coroutine: it must not begin after a crash."""
        self._working.append(coroutine)
        return coroutine

    async def _take_time(self, operation: Operation, seconds: float, fails: bool) -> None:
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            self.end(operation, Outcome.UNKNOWN, "cancelled")
            raise
        if fails:
            self.end(operation, Outcome.FAIL, "raised")
            raise SimulatedHandlerError("late")
        self.end(operation, Outcome.OK)

    def _ask_within(self, message: QueuedMessage) -> None:
        """What a callback may ask of its own queue without suspending."""
        queue = self.queue
        assert queue is not None
        queue.get_statistics()
        if self.chance(0.3):
            self.spawn(queue.acknowledge_message(message.id, "nobody"))

    # --- commands that clients repeat, delay and abandon ----------------------------------------------------

    async def send(self, sender: str, number: int) -> None:
        """Send a message, perhaps twice, perhaps without waiting for the reply."""
        queue, world = self.queue, self.world
        assert queue is not None
        key, topic, payload, guarantee, options = make_message(world.scenario, world.configuration, number, self.random)
        # Only where a group goes by send order can its sender tell which message comes first.
        ordered = world.configuration.queue_type is QueueType.FIFO and guarantee is not GUARANTEE_NOW
        group = options.get("group_id") if ordered else None
        # A repeated send is one message only while the window is sure to last.
        known = bool(options.get("deduplication_id")) and world.configuration.deduplication_window_seconds > 30.0
        tries = 1 + (known and self.chance(self.faults.duplicate))
        for _ in range(tries):
            operation = world.history.invoke(sender, "send", key, self.now, guarantee=guarantee, group=group)
            world.attempted.add(key)
            sending = queue.send_message(topic, payload, guarantee, **options)
            if self.chance(self.faults.abandon):
                task = self.spawn(sending)
                await asyncio.sleep(self.random.choice((0.0, 0.001, 1.0)))
                if not task.done():
                    task.cancel()
                await asyncio.wait([task])
                if task.cancelled():
                    self.end(operation, Outcome.UNKNOWN, "cancelled")
                    continue
                result = task.result()
            else:
                result = await sending
            self._sent(operation, result)

    def _sent(self, operation: Operation, result: DeliveryResult) -> None:
        if not self.alive:
            return
        if result.success:
            self.end(operation, Outcome.OK)
            # A fire-and-forget send does not wait for its commit (G1).
            if operation.details["guarantee"] is not GUARANTEE_NOW:
                self.world.answered_here(self, operation, (str(result.message_id), None))
        else:
            assert result.rejection is not None
            if result.rejection in REFUSED_FOR_WHAT_IT_IS:
                self.world.refusal = result.error_message
            # What does not wait for its commit reaches subscribers before the store can refuse it.
            now = operation.details["guarantee"] is GUARANTEE_NOW or self.world.durability is Durability.BUFFERED
            unknown = (now and result.rejection is RejectionReason.STORE_ERROR) or (
                result.rejection is RejectionReason.DUPLICATE
            )
            self.end(operation, Outcome.UNKNOWN if unknown else Outcome.FAIL, result.rejection.value)

    async def settle(self, subscriber_id: str, message: QueuedMessage, delivery: Operation) -> None:
        """Acknowledge, refuse, extend or forget a message that was given, perhaps late and more than once."""
        queue, random = self.queue, self.random
        assert queue is not None
        if self.chance(self.faults.slow):
            await asyncio.sleep(random.choice((0.1, 2.0, 7.0, 30.0)))
        if self.chance(self.faults.slow):
            await queue.extend_lease(message.id, subscriber_id, random.choice((1.0, 10.0)))
            await asyncio.sleep(random.choice((0.5, 5.0)))
        if self.chance(self.faults.duplicate / 2):
            await queue.acknowledge_message(message.id, "nobody")
        if self.chance(self.faults.hanging):
            self.end(delivery, Outcome.UNKNOWN, "forgotten")
            return
        if self.chance(self.faults.raising):
            await queue.negative_acknowledge(message.id, subscriber_id, "no", random.choice((0.0, 0.0, 3.0)))
            self.end(delivery, Outcome.FAIL, "refused")
            if not self.chance(self.faults.duplicate):
                return
        for _ in range(1 + self.chance(self.faults.duplicate)):
            operation = self.world.history.invoke(subscriber_id, "acknowledge", delivery.value, self.now)
            try:
                counted = await queue.acknowledge_message(message.id, subscriber_id)
            except MessageQueueError as error:
                self.end(operation, Outcome.UNKNOWN, str(error))
                continue
            self.end(operation, Outcome.OK if counted else Outcome.FAIL)
            if counted and self.alive:
                self.world.answered_here(self, operation, (str(message.id), subscriber_id))
            self.end(delivery, Outcome.OK if counted else Outcome.UNKNOWN)

    async def pull(self, subscriber_id: str, pattern: str) -> None:
        """Fetch messages for ever."""
        queue, random = self.queue, self.random
        assert queue is not None
        while True:
            asked = self.world.history.ordinal
            try:
                receiving = queue.receive_messages(
                    subscriber_id,
                    random.choice((1, 1, 3)),
                    random.choice((0.0, 1.0, 10.0)),
                    visibility_timeout_seconds=random.choice((None, None, 3.0)),
                    topic_pattern=pattern,
                )
                if self.chance(self.faults.abandon):
                    messages = await self._receive_for(receiving, random.choice((0.0, 0.5, 5.0)))
                else:
                    messages = await receiving
            except InvalidOptionError as error:
                self.world.problems.append(f"{subscriber_id} cannot fetch: {error}")
                return
            except MessageQueueError:
                await asyncio.sleep(1.0)
                continue
            for message in messages:
                delivery = self.begin(subscriber_id, message, asked=asked)
                self.spawn(self.settle(subscriber_id, message, delivery))
            await asyncio.sleep(random.choice((0.01, 0.2, 2.0)))

    async def _receive_for(self, receiving: Awaitable[list[QueuedMessage]], seconds: float) -> list[QueuedMessage]:
        try:
            async with asyncio.timeout(seconds):
                return await receiving
        except TimeoutError:
            return []
