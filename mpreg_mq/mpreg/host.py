"""Everything this package touches of an MPREG server, in one place (recorded at MPREG's commit 4dc0027).

MPREG has no plugin interface: a queue manager becomes part of a server by being attached, and much of what that needs
is private there. A newer MPREG that moves something is adapted to here.
"""

from __future__ import annotations

import asyncio
import importlib
import ipaddress
import logging
import time
import uuid
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import attrs

from mpreg_mq.configuration import QueueConfiguration
from mpreg_mq.errors import ConfigurationError, PayloadError

logger = logging.getLogger("mpreg_mq")

SERVER_CLASS = "MPREGServer"


def _root_package(server: object) -> str:
    """The package that the server's class comes from: ``mpreg``, also for a subclass of the program's own."""
    for cls in type(server).__mro__:
        if cls.__name__ == SERVER_CLASS and cls.__module__.endswith(".server"):
            return cls.__module__.removesuffix(".server")
    raise ConfigurationError(
        f"MessageQueuePlugin: got a {type(server).__name__}, expected an {SERVER_CLASS} of MPREG; "
        "make the server first, then the plugin"
    )


def is_loopback(host: str | None) -> bool:
    """Whether only this machine can connect to a host of this name."""
    if host is None or host == "localhost":
        return host is not None
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@attrs.frozen(eq=False)
class Host:
    """An MPREG server as the plugin sees it."""

    server: Any
    _root: str

    @classmethod
    def of(cls, server: Any) -> Host:
        """The host that a server is.

        Raises:
            ConfigurationError: it is no MPREG server.
        """
        return cls(server, _root_package(server))

    def module(self, name: str) -> ModuleType:
        """A module of MPREG, which the server has long imported."""
        return importlib.import_module(f"{self._root}.{name}")

    # --- what it is ---------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The server's name, for messages."""
        return str(self.server.settings.name)

    @property
    def cluster_id(self) -> str:
        """The cluster it belongs to."""
        return str(self.server.settings.cluster_id)

    @property
    def node_id(self) -> str:
        """Its own URL, by which others know it."""
        return str(self.server.cluster.local_url)

    @property
    def replaces_managers(self) -> bool:
        """Whether it makes a queue manager of its own when it starts, in the place of one that is attached."""
        return bool(self.server.settings.enable_default_queue)

    @property
    def persistence(self) -> Any:
        """Its persistence settings, or None."""
        return self.server.settings.persistence_config

    def strangers(self) -> list[str]:
        """The addresses by which other machines reach this server, or its peers: empty when all are loopback."""
        settings = self.server.settings
        urls = [settings.connect, *(settings.peers or ()), *(settings.advertised_urls or ())]
        hosts = [settings.host, *(urlsplit(url).hostname for url in urls if url)]
        return [str(host) for host in hosts if not is_loopback(host)]

    @property
    def stopping(self) -> asyncio.Event:
        """Is set when the server begins to shut down, before it closes its connections."""
        event: asyncio.Event = self.server._shutdown_event
        return event

    @property
    def listening(self) -> bool:
        """Whether clients can connect."""
        listener = self.server._transport_listener
        return listener is not None and bool(getattr(listener, "listening", True))

    # --- the queue manager --------------------------------------------------------------------------------

    @property
    def manager(self) -> Any:
        """The queue manager that is attached, or None."""
        return self.server._queue_manager

    def attach(self, manager: Any) -> None:
        """Make a manager the server's; the fabric router has to be told apart, which attaching does not do."""
        self.server.attach_queue_manager(manager)
        if self.server._fabric_router is not None:
            self.server._fabric_router.message_queue = manager

    def detach(self) -> None:
        """Leave the server without a queue manager, as it was."""
        server = self.server
        server._queue_manager = None
        server._fabric_queue_federation = None
        server._fabric_queue_delivery = None
        if server._fabric_router is not None:
            server._fabric_router.message_queue = None
        if server._unified_monitor is not None:
            server._unified_monitor.queue_monitor = None

    @property
    def federation(self) -> Any:
        """The queue federation that attaching made; None where the fabric is off."""
        return self.server._fabric_queue_federation

    def use_federation(self, federation: Any) -> None:
        """Have the server and its delivery coordinator use this federation."""
        self.server._fabric_queue_federation = federation
        if self.server._fabric_queue_delivery is not None:
            self.server._fabric_queue_delivery.queue_federation = federation

    async def announce_node(self) -> None:
        """Tell the fabric again what this node can do, where it runs already."""
        if self.server._fabric_control_plane is not None:
            await self.server._announce_fabric_node()

    # --- queues in the fabric's catalog -------------------------------------------------------------------

    def queue_entries(self) -> list[Any]:
        """The queues that the fabric knows, of every cluster."""
        return list(self.federation.routing_index.catalog.queues.entries())

    async def advertise(
        self, queue_name: str, config: QueueConfiguration, subscribers: int, run: str, ttl_seconds: float
    ) -> None:
        """Tell the fabric of a queue, for this long; ``run`` changes when the queue's server is started again."""
        guarantees = self.module("fabric.message").DeliveryGuarantee
        catalog = self.module("fabric.catalog")
        endpoint = catalog.QueueEndpoint(
            queue_name=queue_name,
            cluster_id=self.cluster_id,
            node_id=self.node_id,
            delivery_guarantees=frozenset(
                guarantees(value) for value in ("fire_and_forget", "at_least_once", "broadcast", "quorum")
            ),
            health=catalog.QueueHealth.HEALTHY,
            current_subscribers=subscribers,
            metadata={"queue_type": config.queue_type.value, "max_size": str(config.max_size), "mpreg-mq.run": run},
            advertised_at=time.time(),
            ttl_seconds=ttl_seconds,
        )
        await self.federation.queue_announcer.advertise(endpoint)

    async def withdraw(self, queue_names: Iterable[str]) -> None:
        """Tell the fabric that queues are gone."""
        key = self.module("fabric.catalog").QueueKey
        removed = tuple(
            key(cluster_id=self.cluster_id, node_id=self.node_id, queue_name=queue_name) for queue_name in queue_names
        )
        delta = self.module("fabric.catalog_delta").RoutingCatalogDelta(
            update_id=str(uuid.uuid4()), cluster_id=self.cluster_id, sent_at=time.time(), queue_removals=removed
        )
        await self.federation.queue_announcer.broadcaster.broadcast(delta)

    # --- topics -------------------------------------------------------------------------------------------

    @property
    def topic_exchange(self) -> Any:
        """The server's topic exchange."""
        return self.server.topic_exchange

    async def announce_subscription(self, subscription: Any) -> None:
        """Have other servers send what matches."""
        await self.server._announce_fabric_subscription(subscription)

    async def remove_subscription(self, subscription_id: str) -> None:
        """Have other servers no longer send it."""
        await self.server._remove_fabric_subscription(subscription_id)

    async def publish(self, message: Any) -> None:
        """Publish as the server does for a client: to listeners here, to clients, and to other servers.

        Raises:
            PayloadError: JSON cannot hold it; listeners here have it, and nobody else.
        """
        notifications = self.topic_exchange.publish_message(message)
        try:
            # An exchange that is not MPREG's has messages of ours.
            whole = message.model_dump() if hasattr(message, "model_dump") else attrs.asdict(message, recurse=False)
            self.server.serializer.serialize(whole)
        # MPREG would take that for a fault of each client, and cut it off from all that it listens to.
        except Exception as error:
            raise PayloadError(
                f"topic {message.topic}: {error}; listeners in this process have the message, and neither clients nor "
                "other servers: MPREG's JSON cannot hold it"
            ) from error
        for notification in notifications:
            await self.server._send_notification_to_client(notification)
        await self.server._forward_pubsub_publish(message)

    # --- commands -----------------------------------------------------------------------------------------

    def command(self, name: str) -> Any:
        """The function that is registered for a command, or None."""
        for registration in self.server.registry.registrations():
            if registration.spec.identity.name == name:
                return registration.handler
        return None

    def register_command(
        self, name: str, function: Callable[..., Any], namespace: str, doc: Any, examples: tuple[Any, ...]
    ) -> None:
        """Offer a command to the server's clients; there is no way to take it back."""
        self.server.register_command(name, function, (), namespace=namespace, doc=doc, examples=examples)
