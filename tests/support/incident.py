"""An incident through real queues on a virtual clock, the same each time, for tests and documents to look into.

The shop's warehouse reads ``payload["sku"]``. At 10:05 an importer begins to send orders without one.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock
from uuid import UUID

from mpreg_mq.clock import VirtualClock
from mpreg_mq.configuration import QueueConfiguration
from mpreg_mq.events import MemoryEventLog, SQLiteEventLog
from mpreg_mq.manager import MessageQueueManager
from mpreg_mq.model import DeliveryGuarantee, QueuedMessage
from mpreg_mq.replay.fork import fork_into
from mpreg_mq.replay.moments import Moment

START = 1_777_629_600.0
"""2026-05-01T10:00:00Z."""

ORDERS = QueueConfiguration(
    "orders",
    max_retries=2,
    retry_backoff_seconds=2.0,
    circuit_breaker_failure_threshold=4,
    circuit_breaker_recovery_seconds=60.0,
    enable_deduplication=True,
    deduplication_window_seconds=600.0,
)


@contextmanager
def same_ids() -> Iterator[None]:
    """Runs and subscriptions get ids that are the same each time."""
    runs, ids = itertools.count(0xA1), itertools.count(1 << 64)
    with (
        mock.patch("secrets.token_hex", side_effect=lambda size: f"{next(runs):04x}"),
        mock.patch("uuid.uuid4", side_effect=lambda: UUID(int=next(ids))),
    ):
        yield


class Warehouse:
    """Ships orders that have a ``sku``, each in its time."""

    def __init__(self, clock: VirtualClock) -> None:
        self._clock = clock

    async def __call__(self, message: QueuedMessage) -> None:
        done = asyncio.Event()
        seconds = 0.05 + 0.02 * (message.payload["order"] % 7)
        self._clock.call_at(asyncio.get_running_loop(), self._clock.now() + seconds, done.set)
        await done.wait()
        message.payload["sku"]


async def _story(log: Any) -> None:
    clock = VirtualClock(START)
    manager = MessageQueueManager(log=log, clock=clock)
    await manager.create_queue("orders", ORDERS)
    await manager.create_queue("mail", QueueConfiguration("mail", max_retries=1))
    manager.subscribe_to_queue("orders", "warehouse", "order.*", Warehouse(clock))
    manager.subscribe_to_queue("mail", "mailer", "mail.#", lambda message: None)
    manager.subscribe_to_queue("mail", "archive", "#", lambda message: None)

    async def order(number: int, topic: str = "order.paid", **payload: Any) -> None:
        await manager.send_message("orders", topic, {"order": number, **payload}, deduplication_id=f"order-{number}")
        await clock.settle()

    for number in range(1001, 1011):
        await order(number, sku=f"A-{number % 7}")
        await manager.send_message("mail", "mail.confirmation", {"order": number}, DeliveryGuarantee.BROADCAST)
        await clock.advance(30.0)
    await order(1011, imported=True)
    await clock.advance(10.0)
    await order(1012, imported=True)
    await clock.advance(1.0)
    await order(1012, imported=True)
    await clock.advance(9.0)
    await order(1013, sku="A-3")
    await order(1014, "order.eu.paid", sku="B-1")
    await clock.advance(20.0)
    await order(1015, sku="A-4")
    await clock.advance(5.0)
    log.copy_now()
    await manager.shutdown()


class _Recorded(MemoryEventLog):
    """A log that remembers where it was when the incident was looked into, before the process ended."""

    def copy_now(self) -> None:
        self.looked_at = self.last_position()


def incident(path: Path) -> Path:
    """Write the incident's log, as it was while the process still ran, into an SQLite file."""
    memory = _Recorded()
    with same_ids():
        asyncio.run(_story(memory))
    target = SQLiteEventLog(path, synchronous="NORMAL")
    fork_into(memory, target, at=Moment(position=memory.looked_at))
    target.close()
    return path
