"""A change of the fabric's catalog."""

from __future__ import annotations

from dataclasses import dataclass

from tests.support.mpreg_double.fabric.catalog import QueueEndpoint, QueueKey


@dataclass(frozen=True)
class RoutingCatalogDelta:
    update_id: str
    cluster_id: str
    sent_at: float
    queues: tuple[QueueEndpoint, ...] = ()
    queue_removals: tuple[QueueKey, ...] = ()
