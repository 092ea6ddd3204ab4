"""Real MPREG servers on loopback, for tests that run where MPREG can be imported."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from mpreg_mq.mpreg import MessageQueuePlugin, PluginConfiguration

PATIENCE_SECONDS = 60.0


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


async def eventually(holds: Callable[[], bool]) -> None:
    """Look every few milliseconds until something holds that another process or a network brings about."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not holds():
            await asyncio.sleep(0.02)


@asynccontextmanager
async def mpreg_server(cluster_id: str = "here", **settings: Any) -> AsyncIterator[Any]:
    """A server that does not run yet; it is shut down at the end."""
    from mpreg.core.config import MPREGSettings  # type: ignore[import-not-found]
    from mpreg.fabric.federation_config import (  # type: ignore[import-not-found]
        create_permissive_bridging_config,
    )
    from mpreg.server import MPREGServer  # type: ignore[import-not-found]

    given = {
        "host": "127.0.0.1",
        "port": free_port(),
        "name": f"server-{cluster_id}",
        "gossip_interval": 0.3,
        "monitoring_enabled": False,
        "log_level": "ERROR",
        "federation_config": create_permissive_bridging_config(cluster_id),
        **settings,
    }
    server = MPREGServer(settings=MPREGSettings(cluster_id=cluster_id, **given))
    try:
        yield server
    finally:
        if not server._shutdown_event.is_set():
            await server.shutdown_async()


@asynccontextmanager
async def running(
    cluster_id: str = "here", *, log: Any = None, config: PluginConfiguration | None = None, **settings: Any
) -> AsyncIterator[MessageQueuePlugin]:
    """A server that runs with the plugin."""
    async with mpreg_server(cluster_id, **settings) as server:
        plugin = MessageQueuePlugin(server, log=log, config=config)
        await plugin.register()
        task = asyncio.create_task(server.server())
        try:
            await eventually(lambda: plugin.host.listening or task.done())
            # What is registered is in the catalog when the fabric runs.
            await asyncio.sleep(0.2)
            yield plugin
        finally:
            await server.shutdown_async()
            with contextlib.suppress(asyncio.CancelledError):
                await task


def url(plugin: MessageQueuePlugin) -> str:
    """Where clients of a plugin's server connect."""
    settings = plugin.host.server.settings
    return f"ws://{settings.host}:{settings.port}"
