"""Runs an MPREG server with the plugin until somebody stops it. Imports MPREG when it is called."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mpreg_mq.errors import ConfigurationError, MessageQueueError
from mpreg_mq.mpreg.configuration import PluginConfiguration
from mpreg_mq.mpreg.plugin import MessageQueuePlugin

INSTALL = 'pip install "mpreg @ git+https://github.com/mattsta/mpreg" hypothesis'


def make_server(settings: str | Path | None = None) -> Any:
    """An MPREG server with the settings of a file's ``[mpreg]`` table.

    Making one takes the sinks of loguru away that the program has added; add them afterwards.

    Raises:
        MessageQueueError: MPREG cannot be imported.
        ConfigurationError: MPREG does not take the settings.
        OSError: the file cannot be read.
    """
    try:
        from mpreg.core.config import MPREGSettings  # type: ignore[import-not-found]
        from mpreg.server import MPREGServer  # type: ignore[import-not-found]
    except ImportError as error:
        raise MessageQueueError(f"MPREG cannot be imported ({error}); {INSTALL}") from error
    try:
        return MPREGServer(settings=MPREGSettings() if settings is None else MPREGSettings.from_path(settings))
    except (ValueError, TypeError) as error:
        raise ConfigurationError(f"{settings}: MPREG does not take its settings: {error}") from error


async def serve(
    settings: str | Path | None = None,
    log: str | None = None,
    ready: Callable[[MessageQueuePlugin], None] = lambda plugin: None,
) -> None:
    """Serve until SIGINT or SIGTERM, then shut down: callbacks get their time, and everything is in the log.

    Args:
        settings: a TOML file with the tables ``[mpreg]`` and ``[mpreg-mq]``.
        log: the log's address, before the one in the settings.
        ready: is called when clients can connect.

    Raises:
        ConfigurationError, EventLogError: as :meth:`MessageQueuePlugin.register`.
        MessageQueueError: MPREG cannot be imported.
        OSError: the file cannot be read, or the port is taken.
    """
    config, configured_log = PluginConfiguration(), None
    if settings is not None:
        config, configured_log = PluginConfiguration.from_path(settings)
    server = make_server(settings)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        # Event loops of Windows have no signal handlers; there Ctrl-C ends the process as it always does.
        with contextlib.suppress(NotImplementedError):
            loop.add_signal_handler(number, stop.set)
    async with MessageQueuePlugin(server, log=log or configured_log, config=config) as plugin:
        running = loop.create_task(server.server())
        stopped = loop.create_task(stop.wait())
        try:
            while not running.done() and not plugin.host.listening:
                await asyncio.sleep(0.01)
            if not running.done():
                ready(plugin)
            await asyncio.wait([running, stopped], return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()
            await server.shutdown_async()
        await running
