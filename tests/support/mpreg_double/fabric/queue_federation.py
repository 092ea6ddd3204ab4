"""The queue federation of one server, over a fabric that loses what a test wants lost."""

from __future__ import annotations

import time
import uuid
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from mpreg_mq.topics import matches
from tests.support.mpreg_double.fabric import message as m
from tests.support.mpreg_double.fabric.catalog import QueueEndpoint, QueueEntries, QueueKey
from tests.support.mpreg_double.fabric.catalog_delta import RoutingCatalogDelta
from tests.support.mpreg_double.fabric.queue_messages import (
    QueueDeliveryGuarantee,
    QueueFederationKind,
    QueueFederationRequest,
    QueueFederationSubscription,
    QueueMessageOptions,
)


class Fabric:
    """What connects the servers of a test. ``loses`` decides what does not arrive, ``doubles`` what arrives twice."""

    def __init__(self) -> None:
        self.servers: dict[str, Any] = {}
        self.queues = QueueEntries()
        self.loses: Callable[[Any], bool] = lambda message: False
        self.doubles: Callable[[Any], bool] = lambda message: False
        self.carried: list[Any] = []


@dataclass
class FabricQueueInFlight:
    request: QueueFederationRequest
    required_cluster_acks: int = 1
    acknowledged_by: set[str] = field(default_factory=set)
    sent_at: float = field(default_factory=time.time)


@dataclass
class FabricQueueSubscription:
    subscription_id: str
    subscriber_id: str
    queue_pattern: str
    topic_pattern: str
    delivery_guarantee: QueueDeliveryGuarantee
    auto_acknowledge: bool
    target_clusters: set[str]
    callback: Callable[[Any], Any] | None
    metadata: dict[str, str]


@dataclass
class Result:
    success: bool
    message_id: Any = None
    error_message: str | None = None


class Messenger:
    def __init__(self, fabric: Fabric, cluster_id: str) -> None:
        self._fabric = fabric
        self._cluster_id = cluster_id

    def next_headers(self, correlation_id: str, headers: Any, *, target_cluster: str | None) -> m.MessageHeaders | None:
        return m.MessageHeaders(correlation_id, self._cluster_id, target_cluster)

    def _select_next_hop(self, *, target_cluster: str, headers: Any) -> str | None:
        return target_cluster if target_cluster in self._fabric.servers else None

    async def send_to_cluster(
        self, message: m.UnifiedMessage, target_cluster: str, source_peer_url: str | None
    ) -> bool:
        server = self._fabric.servers.get(target_cluster)
        if server is None:
            return False
        self._fabric.carried.append(message)
        if not self._fabric.loses(message):
            for _ in range(2 if self._fabric.doubles(message) else 1):
                server._soon(server._handle_fabric_message(message, source_peer_url=None), self._cluster_id)
        return True


class QueueAnnouncer:
    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric
        self.broadcaster = SimpleNamespace(broadcast=self._broadcast)

    async def advertise(self, endpoint: QueueEndpoint, *, now: float | None = None) -> None:
        key = QueueKey(endpoint.cluster_id, endpoint.node_id, endpoint.queue_name)
        self._fabric.queues.known[key] = endpoint

    async def _broadcast(self, delta: RoutingCatalogDelta, *, now: float | None = None) -> None:
        for key in delta.queue_removals:
            self._fabric.queues.known.pop(key, None)


class FabricQueueFederationManager:
    """Knows of success only, forgets nothing, and handles the end of a subscription like its beginning."""

    def __init__(self, fabric: Fabric, cluster_id: str, node_id: str, queue_manager: Any) -> None:
        self.cluster_id = cluster_id
        self.node_id = node_id
        self.queue_manager = queue_manager
        self.allowed_clusters: frozenset[str] | None = None
        self.routing_index = SimpleNamespace(catalog=SimpleNamespace(queues=fabric.queues))
        self.queue_announcer = QueueAnnouncer(fabric)
        self.messenger = Messenger(fabric, cluster_id)
        self.subscriptions: dict[str, FabricQueueSubscription] = {}
        self.in_flight: dict[str, FabricQueueInFlight] = {}
        self.stats = SimpleNamespace(acknowledgments_received=0, successful_deliveries=0, failed_deliveries=0)
        self._local_subscription_handles: dict[str, list[tuple[str, str]]] = defaultdict(list)
        self._remote_subscription_handles: dict[str, list[tuple[str, str]]] = defaultdict(list)

    async def send_message_globally(
        self,
        queue_name: str,
        topic: str,
        payload: Any,
        *,
        delivery_guarantee: QueueDeliveryGuarantee = QueueDeliveryGuarantee.AT_LEAST_ONCE,
        target_cluster: str | None = None,
        required_cluster_acks: int = 1,
        options: QueueMessageOptions | None = None,
    ) -> Any:
        target = target_cluster or await self._discover_queue_cluster(queue_name)
        if target is None:
            return Result(False, error_message=f"Queue {queue_name} not found in fabric catalog")
        if self.allowed_clusters is not None and target not in self.allowed_clusters:
            return Result(False, error_message=f"Target cluster {target} not permitted")
        chosen = options or QueueMessageOptions()
        if target == self.cluster_id:
            return await self.queue_manager.send_message(
                queue_name, topic, payload, delivery_guarantee, **chosen.to_dict()
            )
        return await self._send_request(
            QueueFederationRequest(
                str(uuid.uuid4()), queue_name, topic, payload, delivery_guarantee, self.cluster_id, target
            )
        )

    async def subscribe_globally(
        self,
        subscriber_id: str,
        queue_pattern: str,
        topic_pattern: str,
        *,
        delivery_guarantee: QueueDeliveryGuarantee = QueueDeliveryGuarantee.AT_LEAST_ONCE,
        callback: Callable[[Any], Any] | None = None,
        auto_acknowledge: bool = True,
        target_clusters: set[str] | None = None,
        **metadata: str,
    ) -> str:
        subscription_id = str(uuid.uuid4())
        self.subscriptions[subscription_id] = FabricQueueSubscription(
            subscription_id,
            subscriber_id,
            queue_pattern,
            topic_pattern,
            delivery_guarantee,
            auto_acknowledge,
            target_clusters or set(),
            callback,
            metadata,
        )
        for queue_name in self.queue_manager.list_queues():
            if self._queue_matches_pattern(queue_name, queue_pattern):
                local_id = self.queue_manager.subscribe_to_queue(
                    queue_name,
                    subscriber_id,
                    topic_pattern,
                    callback=callback,
                    auto_acknowledge=auto_acknowledge,
                    **metadata,
                )
                self._local_subscription_handles[subscription_id].append((queue_name, local_id))
        for entry in self.routing_index.catalog.queues.entries():
            if entry.cluster_id != self.cluster_id and self._queue_matches_pattern(entry.queue_name, queue_pattern):
                content = QueueFederationSubscription(
                    subscription_id,
                    subscriber_id,
                    queue_pattern,
                    topic_pattern,
                    delivery_guarantee,
                    auto_acknowledge,
                    self.cluster_id,
                    entry.cluster_id,
                )
                await self._send(content.to_dict(kind=QueueFederationKind.SUBSCRIBE), entry.cluster_id)
        return subscription_id

    async def handle_fabric_message(self, message: m.UnifiedMessage, *, source_peer_url: str | None = None) -> None:
        """What is not for this cluster goes on, here to nobody; what the plugin leaves to MPREG needs no more."""

    async def advertise_existing_queues(self) -> None:
        for queue_name, config in self.queue_manager.queue_configs.items():
            await self.queue_announcer.advertise(
                QueueEndpoint(
                    queue_name,
                    self.cluster_id,
                    self.node_id,
                    advertised_at=time.time(),
                    ttl_seconds=config.default_visibility_timeout_seconds,
                )
            )

    async def _discover_queue_cluster(self, queue_name: str) -> str | None:
        if queue_name in self.queue_manager.list_queues():
            return self.cluster_id
        found = (entry for entry in self.routing_index.catalog.queues.entries() if entry.queue_name == queue_name)
        return next((entry.cluster_id for entry in found), None)

    async def _send_request(self, request: QueueFederationRequest) -> Result:
        sent = await self._send(request.to_dict(), request.target_cluster)
        return Result(sent, request.request_id if sent else None, None if sent else "fabric_queue_send_failed")

    async def _send(self, content: dict[str, Any], target: str) -> bool:
        headers = self.messenger.next_headers("x", None, target_cluster=target)
        assert headers is not None
        message = m.UnifiedMessage(
            str(uuid.uuid4()),
            "mpreg.queue",
            m.MessageType.QUEUE,
            m.DeliveryGuarantee.AT_LEAST_ONCE,
            content,
            headers,
            time.time(),
        )
        return await self.messenger.send_to_cluster(message, target, None)

    def _queue_matches_pattern(self, queue_name: str, pattern: str) -> bool:
        return matches(pattern, queue_name)
