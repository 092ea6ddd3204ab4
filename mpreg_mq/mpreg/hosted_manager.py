"""The queue manager as an MPREG server has it: it tells the fabric of its queues, and takes what other clusters send
once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from os import PathLike
from typing import Any

import attrs

from mpreg_mq.clock import Clock
from mpreg_mq.configuration import QueueManagerConfiguration
from mpreg_mq.events import EventLog
from mpreg_mq.latest import Latest
from mpreg_mq.manager import MessageQueueManager
from mpreg_mq.model import DeliveryResult, RejectionReason
from mpreg_mq.mpreg.host import Host

MAX_REMEMBERED = 10_000
"""Most requests of other clusters whose answers are kept to repeat them."""


@attrs.frozen
class Request:
    """A send that came from another cluster."""

    cluster: str
    request_id: str

    @property
    def key(self) -> str:
        """Its deduplication key: the same each time that it is transmitted."""
        return f"request:{self.cluster}:{self.request_id}"


async def _nothing(_: str) -> None:
    """Tell nobody."""


@attrs.define
class Listeners:
    """Who has to know what happens to the manager."""

    created: Callable[[str], Awaitable[None]] = _nothing
    deleted: Callable[[str], Awaitable[None]] = _nothing
    closing: Callable[[], Awaitable[None]] | None = None


class HostedQueueManager(MessageQueueManager):
    """A :class:`MessageQueueManager` that is attached to a server. The plugin makes it."""

    def __init__(
        self,
        host: Host,
        config: QueueManagerConfiguration,
        *,
        log: str | PathLike[str] | EventLog | None,
        clock: Clock | None,
    ) -> None:
        self._host = host
        self.listeners = Listeners()
        self.duplicate_requests = 0
        self._answers: Latest[tuple[str, str], asyncio.Future[DeliveryResult]] = Latest(MAX_REMEMBERED)
        super().__init__(config, host.topic_exchange, log=log, clock=clock)
        self._router.cluster = host.cluster_id
        self._router.announcements.subscribed = host.announce_subscription
        self._router.announcements.unsubscribed = host.remove_subscription

    async def _created(self, name: str) -> None:
        await self.listeners.created(name)

    async def _deleted(self, name: str) -> None:
        await self.listeners.deleted(name)

    async def carry_out(
        self, request: Request, queue_name: str, topic: str, payload: Any, guarantee: Any, options: dict[str, Any]
    ) -> DeliveryResult:
        """Send what another cluster asks for, once, however often that is transmitted: the request's id is a
        deduplication key in the log, and its answer is repeated."""
        answer = self._answers.get((queue_name, request.key))
        if answer is not None:
            self.duplicate_requests += 1
            return await asyncio.shield(answer)
        answer = asyncio.get_running_loop().create_future()
        self._answers.note((queue_name, request.key), answer)
        try:
            result = await self._send_once(request.key, queue_name, topic, payload, guarantee, options)
        except BaseException:
            self._forget(queue_name, request, answer)
            raise
        answer.set_result(result)
        if not result.success:
            # What was refused may be tried again.
            self._forget(queue_name, request, answer)
        return result

    async def _send_once(
        self, key: str, queue_name: str, topic: str, payload: Any, guarantee: Any, options: dict[str, Any]
    ) -> DeliveryResult:
        queue = await self._find_or_create(queue_name)
        if isinstance(queue, DeliveryResult):
            return queue
        if queue.config.enable_deduplication:
            # Whoever wants each content once gets that, and a request that comes twice has the same content.
            return await queue.send_message(topic, payload, guarantee, **options)
        result = await queue.send_once(key, topic, payload, guarantee, **options)
        if result.rejection is RejectionReason.DUPLICATE:
            self.duplicate_requests += 1
            return DeliveryResult(True, result.duplicate_of, delivery_timestamp=result.delivery_timestamp)
        return result

    def _forget(self, queue_name: str, request: Request, answer: asyncio.Future[DeliveryResult]) -> None:
        self._answers.pop((queue_name, request.key), None)
        if not answer.done():
            answer.cancel()

    async def announce_routes(self) -> None:
        """Tell the fabric of every topic that routes listen to."""
        await self._router.announce_all()

    async def _publish(self, message: Any) -> None:
        await self._host.publish(message)

    async def _end(self) -> None:
        # The server asks for it when its peers are gone.
        if self.listeners.closing is not None:
            await self.listeners.closing()
        await super()._end()
