"""What clusters say to each other about queues."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from enum import Enum
from typing import Any, Self


class QueueDeliveryGuarantee(Enum):
    FIRE_AND_FORGET = "fire_and_forget"
    AT_LEAST_ONCE = "at_least_once"
    BROADCAST = "broadcast"
    QUORUM = "quorum"


class QueueFederationKind(Enum):
    REQUEST = "queue_request"
    ACK = "queue_ack"
    SUBSCRIBE = "queue_subscribe"
    UNSUBSCRIBE = "queue_unsubscribe"


@dataclass(frozen=True)
class QueueMessageOptions:
    """Explicit None for what is not given, as MPREG sends it."""

    priority: int = 0
    delay_seconds: float = 0.0
    visibility_timeout_seconds: float | None = None
    max_retries: int | None = None
    acknowledgment_timeout_seconds: float | None = None
    required_acknowledgments: int | None = None
    headers: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class _Content:
    def _as(self, kind: QueueFederationKind) -> dict[str, Any]:
        return {"kind": kind.value, **{key: _plain(value) for key, value in asdict(self).items()}}

    @classmethod
    def from_dict(cls, payload: dict[str, Any]) -> Self:
        given = {one.name: payload[one.name] for one in fields(cls) if one.name in payload}
        if "delivery_guarantee" in given:
            given["delivery_guarantee"] = QueueDeliveryGuarantee(given["delivery_guarantee"])
        if "options" in given:
            given["options"] = QueueMessageOptions(**given["options"])
        return cls(**given)


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value


@dataclass(frozen=True)
class QueueFederationRequest(_Content):
    request_id: str
    queue_name: str
    topic: str
    payload: Any
    delivery_guarantee: QueueDeliveryGuarantee
    source_cluster: str
    target_cluster: str
    subscription_id: str | None = None
    subscriber_id: str | None = None
    ack_token: str | None = None
    required_cluster_acks: int = 1
    options: QueueMessageOptions = field(default_factory=QueueMessageOptions)

    def to_dict(self) -> dict[str, Any]:
        return self._as(QueueFederationKind.REQUEST)


@dataclass(frozen=True)
class QueueFederationAck(_Content):
    ack_token: str
    message_id: str
    acknowledging_cluster: str
    acknowledging_subscriber: str
    success: bool = True
    error_message: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return self._as(QueueFederationKind.ACK)


@dataclass(frozen=True)
class QueueFederationSubscription(_Content):
    subscription_id: str
    subscriber_id: str
    queue_pattern: str
    topic_pattern: str
    delivery_guarantee: QueueDeliveryGuarantee
    auto_acknowledge: bool = True
    source_cluster: str = ""
    target_cluster: str = ""

    def to_dict(self, *, kind: QueueFederationKind) -> dict[str, Any]:
        return self._as(kind)
