"""Messages of the fabric."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any


class DeliveryGuarantee(Enum):
    FIRE_AND_FORGET = "fire_and_forget"
    AT_LEAST_ONCE = "at_least_once"
    BROADCAST = "broadcast"
    QUORUM = "quorum"


class MessageType(Enum):
    QUEUE = "queue"


@dataclass(frozen=True)
class MessageHeaders:
    correlation_id: str
    source_cluster: str | None = None
    target_cluster: str | None = None


@dataclass(frozen=True)
class UnifiedMessage:
    message_id: str
    topic: str
    message_type: MessageType
    delivery: DeliveryGuarantee
    payload: Any
    headers: MessageHeaders
    timestamp: float
