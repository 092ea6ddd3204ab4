"""A server as far as the plugin touches one; ``tests/mpreg/test_contract.py`` holds it against the recorded host."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from mpreg_mq.exchange import TopicExchange
from tests.support.mpreg_double.datastructures.rpc_spec import RpcRegistry
from tests.support.mpreg_double.fabric.queue_federation import Fabric, FabricQueueFederationManager


@dataclass
class MPREGSettings:
    host: str = "127.0.0.1"
    port: int | None = None
    name: str = "double"
    cluster_id: str = "here"
    connect: str | None = None
    peers: list[str] | None = None
    advertised_urls: tuple[str, ...] | None = None
    enable_default_queue: bool = False
    persistence_config: Any = None
    monitoring_enabled: bool = False
    extra: dict[str, Any] = field(default_factory=dict)


class MPREGServer:
    """Ends as MPREG does: first the goodbye, then the connections, and the queue manager last."""

    def __init__(self, settings: MPREGSettings, fabric: Fabric | None = None) -> None:
        self.settings = settings
        self.fabric = fabric or Fabric()
        self.cluster = SimpleNamespace(local_url=f"ws://{settings.host}/{settings.cluster_id}")
        self.topic_exchange = TopicExchange()
        self.serializer = SimpleNamespace(serialize=lambda data: json.dumps(data).encode())
        self.registry = RpcRegistry()
        self.announced: dict[str, Any] = {}
        self.client_notifications: list[Any] = []
        self.forwarded: list[Any] = []
        self._shutdown_event = asyncio.Event()
        self._queue_manager: Any = None
        self._fabric_router: Any = SimpleNamespace(message_queue=None)
        self._fabric_control_plane: Any = SimpleNamespace()
        self._fabric_queue_federation: Any = None
        self._fabric_queue_delivery: Any = None
        self._unified_monitor: Any = SimpleNamespace(queue_monitor=None)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._links: dict[str, asyncio.Task[None]] = {}
        self.fabric.servers[settings.cluster_id] = self

    def attach_queue_manager(self, queue_manager: Any) -> None:
        self._queue_manager = queue_manager
        self._fabric_queue_federation = FabricQueueFederationManager(
            self.fabric, self.settings.cluster_id, self.cluster.local_url, queue_manager
        )
        self._fabric_queue_delivery = SimpleNamespace(queue_federation=self._fabric_queue_federation)
        if self._unified_monitor is not None:
            self._unified_monitor.queue_monitor = SimpleNamespace(queue_manager=queue_manager)

    async def server(self) -> None:
        """Run until the shutdown."""
        if self.settings.enable_default_queue:
            self._queue_manager = SimpleNamespace(name="MPREG's own")
        if self._fabric_queue_federation is not None:
            await self._fabric_queue_federation.advertise_existing_queues()
        await self._shutdown_event.wait()

    async def shutdown_async(self) -> None:
        self._shutdown_event.set()
        self.fabric.servers.pop(self.settings.cluster_id, None)
        await asyncio.sleep(0)
        if self._queue_manager is not None:
            await self._queue_manager.shutdown()

    def register_command(
        self,
        name: str,
        func: Callable[..., Any],
        resources: Iterable[str],
        *,
        namespace: str | None = None,
        doc: Any = None,
        examples: Iterable[Any] | None = None,
    ) -> None:
        self.registry.register(name, func, doc, examples or ())

    async def _announce_fabric_subscription(self, subscription: Any) -> None:
        self.announced[subscription.subscription_id] = subscription

    async def _remove_fabric_subscription(self, subscription_id: str) -> None:
        self.announced.pop(subscription_id, None)

    async def _announce_fabric_node(self) -> None:
        pass

    async def _send_notification_to_client(self, notification: Any) -> None:
        self.client_notifications.append(notification)

    async def _forward_pubsub_publish(self, message: Any, *, source_peer_url: str | None = None) -> None:
        self.forwarded.append(message)

    async def _handle_fabric_message(self, message: Any, *, source_peer_url: str | None = None) -> None:
        if self._fabric_queue_federation is not None:
            await self._fabric_queue_federation.handle_fabric_message(message, source_peer_url=source_peer_url)

    def _soon(self, coroutine: Coroutine[Any, Any, None], link: str) -> None:
        """Handle what comes by a link after everything that came before: a connection is read by one task."""
        task = asyncio.get_running_loop().create_task(_after(self._links.get(link), coroutine))
        self._links[link] = task
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _after(before: asyncio.Task[None] | None, coroutine: Coroutine[Any, Any, None]) -> None:
    if before is not None:
        await asyncio.wait([before])
    await coroutine
