"""How a request gets to another node: over NATS request and reply, or over whatever else speaks this protocol."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg

from mpreg_mq.events.nats.engine import UnansweredError
from mpreg_mq.events.nats.subjects import PREFIX

logger = logging.getLogger("mpreg_mq")

Handler = Callable[[bytes], Awaitable[bytes]]


class NobodyThereError(Exception):
    """The request reached nobody, so nothing was done."""


class Transport(Protocol):
    """Carries requests between the members of a cluster."""

    async def serve(self, member: str, handler: Handler) -> None:
        """Answer requests to ``member`` with what ``handler`` returns, until :meth:`stop`."""

    async def ask(self, member: str, request: bytes, seconds: float) -> bytes:
        """Ask a member.

        Raises:
            NobodyThereError: nobody is there by that name.
            UnansweredError: no answer in time; the request may have been carried out.
        """

    async def stop(self) -> None:
        """Take no more requests."""


class NatsTransport:
    """Requests over core NATS, on a subject for each member."""

    def __init__(self, client: Client, stream: str) -> None:
        self._client = client
        self._prefix = f"{PREFIX}.{stream}.node."
        self._subscription: Any = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, member: str, handler: Handler) -> None:
        """See :meth:`Transport.serve`; requests are handled at the same time."""

        async def take(message: Msg) -> None:
            task = asyncio.get_running_loop().create_task(self._answer(message, handler))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        self._subscription = await self._client.subscribe(self._prefix + member, cb=take)

    async def _answer(self, message: Msg, handler: Handler) -> None:
        reply = await handler(message.data)
        try:
            await message.respond(reply)
        except (nats.errors.Error, OSError) as error:
            logger.info("cluster: a reply could not be sent: %s", error)

    async def ask(self, member: str, request: bytes, seconds: float) -> bytes:
        """See :meth:`Transport.ask`."""
        try:
            answer = await self._client.request(self._prefix + member, request, timeout=seconds)
        except nats.errors.NoRespondersError as error:
            raise NobodyThereError(member) from error
        except (nats.errors.Error, TimeoutError, OSError) as error:
            raise UnansweredError(f"{member}: {error or type(error).__name__}") from error
        return answer.data

    async def stop(self) -> None:
        """Take no more requests, and let those that are being answered come to their end."""
        if self._subscription is not None:
            try:
                await self._subscription.unsubscribe()
            except (nats.errors.Error, OSError) as error:
                logger.info("cluster: unsubscribing: %s", error)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=5.0)
        for task in self._tasks:
            task.cancel()
