"""All callbacks that run on this node, of whatever queues."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Coroutine
from typing import Any

from mpreg_mq.actors.views import fired_message
from mpreg_mq.cluster import wire
from mpreg_mq.cluster.node import Node
from mpreg_mq.cluster.routing import Router
from mpreg_mq.cluster.subscriptions import CallbackSubscriber
from mpreg_mq.errors import PayloadError
from mpreg_mq.model import Callback, MessageId

logger = logging.getLogger("mpreg_mq")


class Callbacks:
    """The subscribers of this node by queue and name, and which of them has which subscription."""

    def __init__(self, router: Router, node: Node) -> None:
        self._router = router
        self._node = node
        self._subscribers: dict[tuple[str, str], CallbackSubscriber] = {}
        self._subscriptions: dict[str, CallbackSubscriber] = {}
        self._ending: dict[asyncio.Task[None], CallbackSubscriber] = {}

    def add(
        self, queue: str, request: wire.SubscribeRequest, callback: Callback, *, max_in_flight: int, blocking: bool
    ) -> None:
        """Begin a subscription."""
        key = (queue, request.subscriber_id)
        subscriber = self._subscribers.get(key)
        if subscriber is None or subscriber.stopped:
            node = self._node
            subscriber = CallbackSubscriber(self._router, node.clock, queue, key[1], node.member, self._gone)
            self._subscribers[key] = subscriber
        self._subscriptions[request.subscription_id] = subscriber
        subscriber.add(request, callback, max_in_flight=max_in_flight, blocking=blocking)

    def remove(self, queue: str, subscription_id: str, timeout_seconds: float) -> bool:
        """Begin to end a subscription; whether there was one."""
        subscriber = self._subscriptions.get(subscription_id)
        if subscriber is None or subscriber.queue != queue:
            return False
        del self._subscriptions[subscription_id]
        self._end(subscriber, self._remove(subscriber, subscription_id, timeout_seconds))
        return True

    def _end(self, subscriber: CallbackSubscriber, ending: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(ending)
        self._ending[task] = subscriber
        task.add_done_callback(self._ending.pop)

    async def _remove(self, subscriber: CallbackSubscriber, subscription_id: str, timeout_seconds: float) -> None:
        await subscriber.remove(subscription_id, timeout_seconds)
        if subscriber.stopped:
            self._forget(subscriber)

    def _gone(self, subscriber: CallbackSubscriber, subscription_ids: tuple[str, ...]) -> None:
        """The queue of a subscriber is gone, and with it these subscriptions."""
        for subscription_id in subscription_ids:
            self._subscriptions.pop(subscription_id, None)
        self._forget(subscriber)
        self._end(subscriber, subscriber.outlive_queue())

    def _forget(self, subscriber: CallbackSubscriber) -> None:
        key = (subscriber.queue, subscriber.subscriber_id)
        if self._subscribers.get(key) is subscriber:
            del self._subscribers[key]

    def fire(self, queue: str, fired: wire.Fired) -> None:
        """Call callbacks with a fire-and-forget message (G1)."""
        seen = self._node.directory.queues.get(queue)
        for subscription_id in fired.subscription_ids:
            subscriber = self._subscriptions.get(subscription_id)
            if subscriber is None or seen is None:
                continue
            id_ = MessageId(uuid.uuid4().hex, self._node.clock.now(), queue)
            try:
                message = fired_message(fired.send, id_, seen.record.configuration)
            except PayloadError as error:
                logger.warning("queue %s: a fire-and-forget message failed: %s", queue, error)
            else:
                subscriber.fire(subscription_id, message)

    def extended(self, queue: str, subscriber_id: str, message_id: str, seconds: float) -> None:
        """The lease of a message was extended by this node, so its callback may go on (L3)."""
        subscriber = self._subscribers.get((queue, subscriber_id))
        if subscriber is not None:
            subscriber.extended(message_id, seconds)

    async def stop(self, timeout_seconds: float) -> None:
        """End all subscriptions; running callbacks get this long."""
        # One that is ending may not have told the owner yet, and may have another in its place.
        subscribers = {*self._subscribers.values(), *self._ending.values()}
        self._subscribers, self._subscriptions = {}, {}
        await asyncio.gather(*(one.stop(timeout_seconds) for one in subscribers))
        if self._ending:
            await asyncio.wait(self._ending, timeout=timeout_seconds)
