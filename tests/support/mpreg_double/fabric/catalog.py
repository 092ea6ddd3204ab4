"""What the fabric's catalog knows of queues."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class QueueHealth(Enum):
    HEALTHY = "healthy"


@dataclass(frozen=True)
class QueueKey:
    cluster_id: str
    node_id: str
    queue_name: str


@dataclass(frozen=True)
class QueueEndpoint:
    queue_name: str
    cluster_id: str
    node_id: str
    delivery_guarantees: frozenset[Any] = frozenset()
    health: QueueHealth = QueueHealth.HEALTHY
    current_subscribers: int = 0
    metadata: dict[str, str] = field(default_factory=dict)
    advertised_at: float = 0.0
    ttl_seconds: float = 30.0


class QueueEntries:
    """The queue entries of all clusters; a fabric has one for all its servers here."""

    def __init__(self) -> None:
        self.known: dict[QueueKey, QueueEndpoint] = {}

    def entries(self) -> list[QueueEndpoint]:
        return [entry for entry in self.known.values() if time.time() <= entry.advertised_at + entry.ttl_seconds]
