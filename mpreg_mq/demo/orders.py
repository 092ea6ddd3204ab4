"""Order processing, after the example in MPREG's queue documentation: payments, fulfilment, notifications."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from mpreg_mq.configuration import QueueConfiguration
from mpreg_mq.manager import MessageQueueManager
from mpreg_mq.model import OverflowPolicy, QueuedMessage, QueueType

Advance = Callable[[int], None]

DUPLICATE_EVERY = 10
BROKEN_EVERY = 25
STALE_EVERY = 20
"""Every so many orders: a payment sent twice, an item without its stock number, a notification that is too late."""

_WAIT = OverflowPolicy.WAIT


async def process_orders(manager: MessageQueueManager, orders: int, advance: Advance) -> dict[str, Any]:
    """Run ``orders`` orders through three queues, repair the broken ones and redrive them; the figures."""
    await manager.create_queue(
        "payments",
        QueueConfiguration("payments", QueueType.PRIORITY, enable_deduplication=True, overflow_policy=_WAIT),
    )
    await manager.create_queue(
        "fulfillment",
        QueueConfiguration("fulfillment", max_retries=2, retry_backoff_seconds=0.02, overflow_policy=_WAIT),
    )
    await manager.create_queue(
        "notifications", QueueConfiguration("notifications", message_ttl_seconds=300, overflow_policy=_WAIT)
    )
    paid: set[str] = set()
    shipped: set[str] = set()
    notified: set[str] = set()
    repaired = False

    def pay(message: QueuedMessage) -> None:
        paid.add(message.payload["order_id"])

    def ship(message: QueuedMessage) -> None:
        for item in message.payload["items"]:
            if "sku" not in item and not repaired:
                item["sku"]
        shipped.add(message.payload["order_id"])

    async def notify(message: QueuedMessage) -> None:
        await asyncio.sleep(0)
        notified.add(message.payload["order_id"])

    manager.subscribe_to_queue("payments", "payment-processor", "payment.*", callback=pay)
    manager.subscribe_to_queue("fulfillment", "warehouse-system", "order.*", callback=ship)
    manager.subscribe_to_queue("notifications", "notification-service", "notify.*", callback=notify)

    duplicates = 0
    for number in range(orders):
        order = f"ORD-{number:06}"
        payment = {"order_id": order, "amount": 99.99, "card_token": "tok_123"}
        await manager.send_message("payments", "payment.process", payment, priority=number % 10)
        if number % DUPLICATE_EVERY == 0:
            again = await manager.send_message("payments", "payment.process", payment, priority=number % 10)
            duplicates += not again.success
        item = {"qty": 2} if number % BROKEN_EVERY == 0 else {"sku": "WIDGET-1", "qty": 2}
        await manager.send_message("fulfillment", "order.fulfill", {"order_id": order, "items": [item]})
        stale: dict[str, Any] = (
            {"message_ttl_seconds": 0.001, "delay_seconds": 0.002} if number % STALE_EVERY == 0 else {}
        )
        await manager.send_message("notifications", "notify.order_confirmed", {"order_id": order}, **stale)
        advance(1)
    await drained(manager, "payments", "fulfillment", "notifications")
    broken = len(manager.queue("fulfillment").dead_letter_queue)
    reason = next((entry.failure_reason for entry in manager.queue("fulfillment").dead_letter_queue), None)
    repaired = True
    redriven = await manager.redrive_dead_letters("fulfillment")
    await drained(manager, "fulfillment")
    return {
        "orders": orders,
        "paid": len(paid),
        "duplicates_rejected": duplicates,
        "shipped": len(shipped),
        "dead_letters": broken,
        "failure_reason": reason,
        "redriven": len(redriven),
        "notified": len(notified),
        "expired": manager.queue("notifications").get_statistics().messages_expired,
    }


async def drained(manager: MessageQueueManager, *names: str) -> None:
    """Return once these queues hold no unfinished message."""
    for name in names:
        queue = manager.queue(name)
        while True:
            counts = queue.get_statistics()
            if not counts.current_queue_size and not counts.current_in_flight_count:
                break
            await asyncio.sleep(0.005)
