"""A client whose connections a test can break; it talks to the double within the process."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

SERVERS: dict[str, Any] = {}
"""The servers by URL; one that is missing cannot be connected to."""


class MPREGClientAPI:
    def __init__(
        self,
        url: str,
        full_log: bool = True,
        auth_token: str | None = None,
        api_key: str | None = None,
        transport_config: Any = None,
    ) -> None:
        self.url = url
        self.full_log = full_log
        self.auth_token = auth_token
        self.api_key = api_key
        self.transport_config = transport_config
        self._connected = False
        self._last: asyncio.Future[Any] | None = None
        self._client = SimpleNamespace(full_log=full_log, _transport=None)

    async def connect(self) -> None:
        if not self._connected:
            if self.url not in SERVERS:
                raise OSError("connection refused")
            self._connected = True
            self._client._transport = SimpleNamespace(connected=True)

    async def disconnect(self) -> None:
        self._connected = False
        self._last = None
        self._client._transport = None

    async def call(
        self,
        fun: str,
        *args: Any,
        locs: frozenset[str] | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - MPREG has it so
        **kwargs: Any,
    ) -> Any:
        server = SERVERS.get(self.url)
        if server is None or not self._client._transport.connected:
            # As MPREG's client does to whoever waits when a connection breaks.
            raise asyncio.CancelledError
        # What JSON cannot hold is refused before it is sent.
        json.dumps(kwargs, ensure_ascii=False).encode()
        # The server runs the commands of a connection one after another, and each to its end, whoever still waits.
        answering = asyncio.ensure_future(_after(self._last, server.registry.known[fun].handler(*args, **kwargs)))
        self._last = answering
        async with asyncio.timeout(timeout):
            return await asyncio.shield(answering)

    def break_connection(self) -> None:
        """Lose the connection, as when a server is killed."""
        if self._client._transport is not None:
            self._client._transport.connected = False


async def _after(before: asyncio.Future[Any] | None, command: Any) -> Any:
    if before is not None:
        await asyncio.wait([before])
    return await command
