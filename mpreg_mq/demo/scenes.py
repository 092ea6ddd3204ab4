"""One short scene for each feature; each says in a line what happened."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from mpreg_mq.configuration import QueueConfiguration
from mpreg_mq.demo.orders import drained
from mpreg_mq.manager import MessageQueueManager
from mpreg_mq.model import DeliveryGuarantee, QueuedMessage, QueueType
from mpreg_mq.queue import MessageQueue

Scene = Callable[[MessageQueueManager], Awaitable[str]]


async def _queue(manager: MessageQueueManager, name: str, **settings: Any) -> MessageQueue:
    await manager.create_queue(name, QueueConfiguration(name, **settings))
    return manager.queue(name)


async def _wait_until(holds: Callable[[], bool], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not holds():
            await asyncio.sleep(0.005)


async def fire_and_forget(manager: MessageQueueManager) -> str:
    """G1: callbacks have run when the send returns."""
    queue = await _queue(manager, "metrics")
    seen: list[Any] = []
    queue.subscribe("dashboard", "cpu.*", callback=lambda message: seen.append(message.payload))
    result = await queue.send_message("cpu.load", 0.7, DeliveryGuarantee.FIRE_AND_FORGET)
    return f"delivered to {sorted(result.delivered_to)} before the send returned; payload {seen[0]}"


async def at_least_once(manager: MessageQueueManager) -> str:
    """G2: competing workers share the messages."""
    queue = await _queue(manager, "work")
    done: dict[str, int] = {"worker-1": 0, "worker-2": 0}

    def worker(name: str) -> Callable[[QueuedMessage], Awaitable[None]]:
        async def work(message: QueuedMessage) -> None:
            await asyncio.sleep(0.001)
            done[name] += 1

        return work

    for name in done:
        queue.subscribe(name, "job.#", callback=worker(name))
    await queue.send_messages([("job.resize", number) for number in range(20)])
    await drained(manager, "work")
    return f"20 jobs, each done once: {done}"


async def broadcast(manager: MessageQueueManager) -> str:
    """G3: everybody gets it; only who failed is tried again."""
    queue = await _queue(manager, "config", retry_backoff_seconds=0.01)
    calls = {"cache": 0, "api": 0, "billing": 0}

    def reload(name: str) -> Callable[[QueuedMessage], None]:
        def callback(message: QueuedMessage) -> None:
            calls[name] += 1
            if name == "billing" and calls[name] == 1:
                raise TimeoutError("billing is starting")

        return callback

    for name in calls:
        queue.subscribe(name, "config.#", callback=reload(name))
    await queue.send_message("config.flags", {"new": True}, DeliveryGuarantee.BROADCAST)
    await drained(manager, "config")
    return f"calls until all had acknowledged: {calls}"


async def quorum(manager: MessageQueueManager) -> str:
    """G4: complete at three distinct acknowledgments of five."""
    queue = await _queue(manager, "election")
    for number in range(5):
        queue.subscribe(f"node-{number}", "election.#", callback=lambda message: None, auto_acknowledge=False)
    result = await queue.send_message(
        "election.term", {"term": 42}, DeliveryGuarantee.QUORUM, required_acknowledgments=3
    )
    await _wait_until(lambda: queue.get_statistics().messages_received == 5)
    assert result.message_id is not None
    answers = [await queue.acknowledge_message(result.message_id, f"node-{number}") for number in range(5)]
    return f"acknowledgments that counted: {answers.count(True)} of 5; it was complete after the third"


async def priority(manager: MessageQueueManager) -> str:
    """O2: higher first."""
    queue = await _queue(manager, "alerts", queue_type=QueueType.PRIORITY)
    order: list[str] = []
    for name, level in (("low", 1), ("high", 10), ("medium", 5), ("urgent", 15)):
        await queue.send_message("alert", name, priority=level)
    queue.subscribe("pager", "alert", callback=lambda message: order.append(message.payload))
    await drained(manager, "alerts")
    return f"sent low, high, medium, urgent; delivered {', '.join(order)}"


async def delay(manager: MessageQueueManager) -> str:
    """O3: in due order, never early."""
    queue = await _queue(manager, "reminders", queue_type=QueueType.DELAY)
    order: list[float] = []
    queue.subscribe("mailer", "remind", callback=lambda message: order.append(message.payload))
    for seconds in (0.15, 0.1, 0.05):
        await queue.send_message("remind", seconds, delay_seconds=seconds)
    await drained(manager, "reminders")
    return f"delays of 0.15, 0.1 and 0.05 s came as {order}"


async def groups(manager: MessageQueueManager) -> str:
    """O1: the messages of one group are strictly sequential, also over a retry."""
    queue = await _queue(manager, "accounts", retry_backoff_seconds=0.01)
    seen: list[str] = []

    def book(message: QueuedMessage) -> None:
        if message.payload == "debit" and message.delivery_attempt == 1:
            raise ConnectionError("ledger is busy")
        seen.append(message.payload)

    queue.subscribe("ledger", "account.#", callback=book)
    for entry in ("debit", "credit", "close"):
        await queue.send_message("account.7", entry, group_id="7")
    await drained(manager, "accounts")
    return f"the first failed once, and the order held: {', '.join(seen)}"


async def retry_and_dead_letter(manager: MessageQueueManager) -> str:
    """R1, R2, D1: attempts with backoff, then a dead letter with its reason, then a redrive."""
    queue = await _queue(manager, "imports", max_retries=2, retry_backoff_seconds=0.01)
    broken = True

    def load(message: QueuedMessage) -> None:
        if broken:
            raise KeyError("sku")

    queue.subscribe("importer", "import.#", callback=load)
    await queue.send_message("import.csv", {"row": 1})
    await drained(manager, "imports")
    (entry,) = queue.dead_letter_queue
    broken = False
    await queue.redrive_dead_letters()
    await drained(manager, "imports")
    return f"{entry.failure_reason}; redriven and acknowledged: {queue.get_statistics().messages_acknowledged == 1}"


async def circuit_breaker(manager: MessageQueueManager) -> str:
    """R3: a subscriber that keeps failing is left alone, probed, and trusted again."""
    queue = await _queue(
        manager,
        "webhooks-out",
        circuit_breaker_failure_threshold=3,
        circuit_breaker_recovery_seconds=0.1,
        retry_backoff_seconds=0.005,
        max_retries=10,
    )
    calls: list[bool] = []

    def post(message: QueuedMessage) -> None:
        calls.append(len(calls) >= 4)
        if not calls[-1]:
            raise ConnectionError("partner is down")

    queue.subscribe("partner", "hook", callback=post)
    await queue.send_messages([("hook", number) for number in range(3)])
    await drained(manager, "webhooks-out")
    opened = queue.get_statistics().circuits_opened
    return f"{calls.count(False)} failed calls opened it {opened} times, a probe closed it, all 3 arrived"


async def pull(manager: MessageQueueManager) -> str:
    """L1, L3: a worker fetches with long polling, keeps one longer, returns one, acknowledges both."""
    queue = await _queue(manager, "tasks")
    waiting = asyncio.create_task(queue.receive_messages("worker", max_messages=2, wait_seconds=5))
    await asyncio.sleep(0)
    await queue.send_messages([("task", "a"), ("task", "b")])
    first = await waiting
    rest = await queue.receive_messages("worker", max_messages=2, wait_seconds=1) if len(first) < 2 else []
    a, b = [*first, *rest]
    await queue.extend_lease(a.id, "worker", 60)
    await queue.negative_acknowledge(b.id, "worker", "not now")
    (again,) = await queue.receive_messages("worker", wait_seconds=1)
    await queue.acknowledge_message(a.id, "worker")
    await queue.acknowledge_message(again.id, "worker")
    return (
        f"waited for {a.payload} and {b.payload}; returned {b.payload}, and got attempt {again.delivery_attempt} of it"
    )


SCENES: dict[str, Scene] = {
    "fire-and-forget": fire_and_forget,
    "at-least-once": at_least_once,
    "broadcast": broadcast,
    "quorum": quorum,
    "priority queue": priority,
    "delay queue": delay,
    "group order": groups,
    "retry, dead letter, redrive": retry_and_dead_letter,
    "circuit breaker": circuit_breaker,
    "pull with long polling": pull,
}
