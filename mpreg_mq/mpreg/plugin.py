"""The plugin: makes event-sourced queues part of an MPREG server, and takes them out again."""

from __future__ import annotations

import asyncio
import logging
from os import PathLike
from pathlib import Path
from typing import Any, Self

from mpreg_mq.clock import Clock, SystemClock, pause
from mpreg_mq.errors import ConfigurationError, MessageQueueError
from mpreg_mq.events import EventLog
from mpreg_mq.mpreg.commands import QueueCommands, offer_commands, retract_commands
from mpreg_mq.mpreg.configuration import PluginConfiguration
from mpreg_mq.mpreg.federation import QueueFederation
from mpreg_mq.mpreg.host import Host
from mpreg_mq.mpreg.hosted_manager import HostedQueueManager, Listeners
from mpreg_mq.mpreg.outgoing import RemoteClusterStatistics

logger = logging.getLogger("mpreg_mq")

LOG_FILE = "mpreg-mq.sqlite"
"""The log's file in MPREG's data directory."""


class MessageQueuePlugin:
    """Event-sourced queues for an MPREG server::

        plugin = MessageQueuePlugin(server, log="sqlite:///queues.db")
        await plugin.register()
        await server.server()

    Register it before the server runs; on one that runs already it works too. It ends with the server, or by
    :meth:`unregister`, or at the end of ``async with``.

    Args:
        server: an ``MPREGServer`` with ``enable_default_queue=False``.
        log: as for :class:`~mpreg_mq.MessageQueueManager`. None means where MPREG keeps its own data: a file beside it
            where its persistence settings say SQLite, else memory.
        config: what to do beyond attaching queues.
        clock: where the time comes from.

    Raises:
        ConfigurationError: it is no MPREG server.
    """

    def __init__(
        self,
        server: Any,
        *,
        log: str | PathLike[str] | EventLog | None = None,
        config: PluginConfiguration | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.host = Host.of(server)
        self.config = config or PluginConfiguration()
        self._log = log
        self._clock = clock or SystemClock()
        self._manager: HostedQueueManager | None = None
        self._federation: QueueFederation | None = None
        self._upkeep: asyncio.Task[None] | None = None

    # --- beginning and end --------------------------------------------------------------------------------

    async def register(self) -> None:
        """Attach the queues to the server, with all that goes with them. Calling it again does nothing.

        Raises:
            ConfigurationError: the server makes a queue manager of its own, has one already, or is open to other
                machines and the commands are not meant to be; nothing changed then.
            EventLogError: the log cannot be opened or read; nothing changed then.
        """
        if self._manager is not None:
            return
        self._check()
        manager = HostedQueueManager(self.host, self.config.manager, log=self._log_address(), clock=self._clock)
        manager.listeners = Listeners(self._created, self._deleted, self._closing)
        self._manager = manager
        try:
            self.host.attach(manager)
            self._use_federation(manager)
            await self._make_queues(manager)
            if self.config.rpc is not None:
                offer_commands(self.host, QueueCommands(manager, self.config.rpc))
            await self._tell(manager)
        except BaseException:
            await self.unregister()
            raise
        self._upkeep = asyncio.get_running_loop().create_task(self._keep_up())

    async def unregister(self) -> None:
        """Close the queues and leave the server as it was. Calling it again does nothing.

        MPREG cannot take a command back: the ``mq.*`` commands stay, and answer that there are no queues.
        """
        manager = self._manager
        if manager is None:
            return
        try:
            if self._federation is not None:
                await self.host.withdraw(manager.list_queues())
        # The fabric may be gone already; what it believes expires.
        except Exception:
            logger.exception("%s: its queues could not be withdrawn from the fabric", self.host.name)
        await manager.shutdown()

    async def __aenter__(self) -> Self:
        await self.register()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.unregister()

    def _check(self) -> None:
        if self.host.replaces_managers:
            raise ConfigurationError(
                f"MessageQueuePlugin: server {self.host.name!r} has enable_default_queue=True and would replace these "
                "queues by its own when it starts; set enable_default_queue=False"
            )
        if self.host.manager is not None:
            raise ConfigurationError(
                f"MessageQueuePlugin: server {self.host.name!r} has a queue manager already "
                f"({type(self.host.manager).__name__}); unregister or detach that one first"
            )
        strangers = self.host.strangers()
        if self.config.rpc is not None and strangers and not self.config.rpc_beyond_loopback:
            raise ConfigurationError(
                f"MessageQueuePlugin: the mq.* commands would be within reach of other machines ({strangers[0]}), and "
                "MPREG neither encrypts nor authenticates; serve on 127.0.0.1, or say rpc_beyond_loopback=True"
            )

    def _log_address(self) -> str | PathLike[str] | EventLog | None:
        """The log that was named, or else the place where MPREG keeps its data."""
        settings = self.host.persistence
        if self._log is not None or settings is None or str(getattr(settings.mode, "value", settings.mode)) != "sqlite":
            return self._log
        directory = Path(settings.data_dir)
        directory.mkdir(parents=True, exist_ok=True)
        return directory / LOG_FILE

    def _use_federation(self, manager: HostedQueueManager) -> None:
        inner = self.host.federation
        if inner is None:
            return
        self._federation = QueueFederation(
            inner,
            self.host,
            manager,
            self._clock,
            self.config.advert_ttl_seconds,
            self.config.acknowledgment_timeout_seconds,
        )
        self.host.use_federation(self._federation)

    async def _make_queues(self, manager: HostedQueueManager) -> None:
        for queue in self.config.queues:
            await manager.create_queue(queue.name, queue)
        for route in self.config.routes:
            if not await manager.route_topic_to_queue(**route):
                raise ConfigurationError(
                    f"MessageQueuePlugin: no route {route['topic_pattern']!r} -> {route['queue_name']!r}: the queue "
                    "does not exist; name it among the queues, or allow enable_auto_queue_creation"
                )

    async def _tell(self, manager: HostedQueueManager) -> None:
        """Tell the fabric what is here, where it runs already; when it starts it asks by itself."""
        try:
            await self.host.announce_node()
            await manager.announce_routes()
            if self._federation is not None:
                await self._federation.advertise_existing_queues()
        # It is told again by the upkeep.
        except Exception:
            logger.exception("%s: the fabric could not be told of the queues", self.host.name)

    async def _keep_up(self) -> None:
        """Tell the fabric again, well before it stops to believe it; until the server stops."""
        while self._federation is not None:
            if not await pause(self._clock, self.config.advert_ttl_seconds / 3, self.host.stopping):
                return
            try:
                await self._federation.refresh()
            # A fabric that fails now may work the next time.
            except Exception:
                logger.exception("%s: the fabric could not be told of the queues", self.host.name)

    # --- what the manager tells ---------------------------------------------------------------------------

    async def _created(self, queue_name: str) -> None:
        await self._quietly(None if self._federation is None else self._federation.queue_created(queue_name))

    async def _deleted(self, queue_name: str) -> None:
        await self._quietly(None if self._federation is None else self._federation.queue_deleted(queue_name))

    async def _quietly(self, telling: Any) -> None:
        """A queue is made or deleted whatever the fabric says to it."""
        if telling is None:
            return
        try:
            await telling
        except Exception:
            logger.exception("%s: the fabric could not be told of a queue", self.host.name)

    async def _closing(self) -> None:
        """The manager is about to close, by us or by the server, whose peers are gone then."""
        manager, self._manager = self._manager, None
        federation, self._federation = self._federation, None
        upkeep, self._upkeep = self._upkeep, None
        if upkeep is not None:
            upkeep.cancel()
            await asyncio.wait([upkeep])
        retract_commands(self.host)
        if federation is not None:
            await federation.close()
        if self.host.manager is manager:
            self.host.detach()

    # --- using it -----------------------------------------------------------------------------------------

    @property
    def manager(self) -> HostedQueueManager:
        """The queues.

        Raises:
            MessageQueueError: the plugin is not registered.
        """
        if self._manager is None:
            raise MessageQueueError("the plugin is not registered; await register() first")
        return self._manager

    @property
    def federation(self) -> QueueFederation:
        """The queues of all clusters.

        Raises:
            MessageQueueError: the plugin is not registered, or the server's fabric is off.
        """
        if self._federation is None:
            raise MessageQueueError("there is no federation: the plugin is not registered, or the fabric is off")
        return self._federation

    def get_federation_statistics(self) -> dict[str, RemoteClusterStatistics]:
        """What went to and came from each other cluster; copies."""
        return {} if self._federation is None else self._federation.statistics()
