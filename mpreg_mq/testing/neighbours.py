"""Other queues in the log of a simulation, and what goes on in them: sends, acknowledgments, failures, deletions."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from mpreg_mq.configuration import QueueConfiguration
from mpreg_mq.errors import MessageQueueError
from mpreg_mq.model import Durability, QueuedMessage
from mpreg_mq.queue import MessageQueue
from mpreg_mq.testing.clients import Outcome

if TYPE_CHECKING:
    from mpreg_mq.testing.process import Process

SUBSCRIBER = "beside"


def configuration_of(name: str, durability: Durability) -> QueueConfiguration:
    """A queue in which messages soon die and keys are soon forgotten."""
    return QueueConfiguration(
        name,
        durability=durability,
        enable_deduplication=True,
        deduplication_window_seconds=20.0,
        default_visibility_timeout_seconds=5.0,
        max_retries=1,
        retry_backoff_seconds=0.0,
    )


async def live_beside(process: Process, name: str, durability: Durability) -> None:
    """Use a queue for ever, and now and then delete it and make it again."""
    manager, random = process.manager, process.random
    while True:
        try:
            if name not in manager.list_queues():
                await manager.create_queue(name, configuration_of(name, durability))
            queue = manager.queue(name)
            chosen = random.random()
            if chosen < 0.55:
                await _send(process, name, queue, durability)
            elif chosen < 0.95:
                for message in await queue.receive_messages(SUBSCRIBER, random.choice((1, 3))):
                    await _settle(process, name, queue, durability, message)
            # What a queue in memory was told cannot be looked up once it is deleted.
            elif durability is not Durability.MEMORY:
                await manager.delete_queue(name)
        except MessageQueueError:
            pass
        await asyncio.sleep(random.choice((0.01, 0.5, 3.0)))


async def _send(process: Process, name: str, queue: MessageQueue, durability: Durability) -> None:
    world, random = process.world, process.random
    key = world.next_key()
    operation = world.history.invoke(name, "send-beside", key, process.now)
    world.attempted.add(key)
    again = random.choice(("a", "b")) if random.random() < 0.2 else None
    result = await queue.send_message("beside.x", {"key": key}, deduplication_id=again)
    if result.success and process.alive:
        process.end(operation, Outcome.OK)
        world.answered(process, operation, name, durability, (str(result.message_id), None))
    else:
        process.end(operation, Outcome.UNKNOWN)


async def _settle(
    process: Process, name: str, queue: MessageQueue, durability: Durability, message: QueuedMessage
) -> None:
    random = process.random
    chosen = random.random()
    if chosen < 0.6:
        operation = process.world.history.invoke(name, "acknowledge-beside", message.payload["key"], process.now)
        counted = await queue.acknowledge_message(message.id, SUBSCRIBER)
        if counted and process.alive:
            process.end(operation, Outcome.OK)
            process.world.answered(process, operation, name, durability, (str(message.id), SUBSCRIBER))
    elif chosen < 0.85:
        await queue.negative_acknowledge(message.id, SUBSCRIBER, "no")
