"""Which message is being handled here: known to everything that a callback calls, and to the tasks it starts."""

from __future__ import annotations

from contextvars import ContextVar

from mpreg_mq.model import QueuedMessage

current_delivery: ContextVar[QueuedMessage | None] = ContextVar("mpreg_mq_delivery", default=None)
"""The message whose callback runs in this context; its id's ``source_node`` names the queue."""
