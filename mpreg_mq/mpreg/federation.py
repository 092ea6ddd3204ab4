"""Queues across clusters: MPREG's queue federation, with its gaps closed.

MPREG's federation manager stays in charge of the fabric. This one stands before it and adds what it does not do:
requests that are transmitted twice are carried out once, a refusal counts as a failure, a message that is never
answered times out, a subscription that ended is ended, and a message for a subscriber of another cluster counts as
delivered only when that one has it.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from typing import Any

from mpreg_mq.clock import Clock
from mpreg_mq.errors import MessageQueueError, QueueClosedError
from mpreg_mq.mpreg.host import Host
from mpreg_mq.mpreg.hosted_manager import HostedQueueManager, Request
from mpreg_mq.mpreg.outgoing import NO_SUBSCRIPTION, Outgoing, RemoteClusterStatistics
from mpreg_mq.mpreg.subscribers import GlobalSubscriptions, RemoteSubscribers

logger = logging.getLogger("mpreg_mq")

MOST_BEGUN = 1_000
"""So many requests of another cluster, sends and deliveries, may be under way before its connections have to wait."""


class QueueFederation:
    """What a server has in the place of MPREG's ``FabricQueueFederationManager``; all that is not here is that one's.

    Args:
        inner: MPREG's own.
        host: the server.
        manager: the queues.
        clock: where the time comes from.
        advert_ttl_seconds: how long others believe in a queue.
        acknowledgment_timeout_seconds: how long an answer is waited for.
    """

    def __init__(
        self,
        inner: Any,
        host: Host,
        manager: HostedQueueManager,
        clock: Clock,
        advert_ttl_seconds: float,
        acknowledgment_timeout_seconds: float,
    ) -> None:
        self.inner = inner
        self.run = secrets.token_hex(8)
        self._host = host
        self._manager = manager
        self._ttl = advert_ttl_seconds
        self._outgoing = Outgoing(inner, host, clock, acknowledgment_timeout_seconds)
        self._remote = RemoteSubscribers(host, manager, self._outgoing)
        self._sends: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._room: dict[str, asyncio.Semaphore] = {}
        """For what may be begun, by the cluster that asks."""
        self._closed = False
        self._ours = GlobalSubscriptions(host, manager, self._outgoing, self.run)
        self._messages = host.module("fabric.queue_messages")
        self.send_message_globally = self._outgoing.send_message_globally
        self.send_confirmed = self._outgoing.send_confirmed
        self.subscribe_globally = self._ours.subscribe_globally
        self.unsubscribe_globally = self._ours.unsubscribe_globally

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    # --- queues -------------------------------------------------------------------------------------------

    async def create_queue(self, queue_name: str, config: Any = None, *, advertise: bool = True) -> bool:
        """Create a queue here; the manager has it advertised."""
        return await self._manager.create_queue(queue_name, config)

    async def advertise_existing_queues(self) -> None:
        """Tell the fabric of every queue, and of those it knew already that they are still there."""
        for queue_name, queue in self._manager.queues.items():
            subscribers = len({one.subscriber_id for one in queue.subscriptions.values()})
            await self._host.advertise(queue_name, queue.config, subscribers, self.run, self._ttl)

    async def queue_created(self, queue_name: str) -> None:
        """A queue is new: serve the subscribers that want it, ours and those of other clusters, and tell the fabric."""
        self._ours.queue_created(queue_name)
        self._remote.queue_created(queue_name)
        queue = self._manager.queue(queue_name)
        await self._host.advertise(queue_name, queue.config, 0, self.run, self._ttl)

    async def queue_deleted(self, queue_name: str) -> None:
        """A queue is gone, and its subscriptions with it: tell the fabric."""
        self._remote.queue_deleted(queue_name)
        for handles in self.inner._local_subscription_handles.values():
            handles[:] = [handle for handle in handles if handle[0] != queue_name]
        await self._host.withdraw([queue_name])

    async def refresh(self) -> None:
        """What has to be done again from time to time: adverts, and subscriptions of and to clusters that came back."""
        await self.advertise_existing_queues()
        self._remote.refresh()
        await self._ours.refresh()

    # --- what comes from other clusters -------------------------------------------------------------------

    async def handle_fabric_message(self, message: Any, *, source_peer_url: str | None = None) -> None:
        """Carry out a message of the fabric: what is ours here, and what goes elsewhere by MPREG's own."""
        content = message.payload if isinstance(message.payload, dict) else {}
        kind = content.get("kind")
        source = message.headers.source_cluster
        allowed = self.inner.allowed_clusters
        target = content.get("target_cluster") or message.headers.target_cluster or self.inner.cluster_id
        ours = target == self.inner.cluster_id and (allowed is None or not source or source in allowed)
        try:
            if ours and kind == "queue_request":
                await self._begin(content)
            elif ours and kind == "queue_ack" and self._outgoing.waits_for(content.get("ack_token")):
                self._outgoing.answered(content)
            elif ours and kind in ("queue_subscribe", "queue_unsubscribe"):
                self._remote.told(content, ended=kind == "queue_unsubscribe")
            else:
                await self.inner.handle_fabric_message(message, source_peer_url=source_peer_url)
        # What another cluster has sent must not end the connection, by which all of the fabric comes.
        except Exception:
            logger.exception("a message of cluster %s about queues cannot be read", source)

    async def _begin(self, content: dict[str, Any]) -> None:
        """Begin with a request, and go on in a task: MPREG reads nothing else from its connection meanwhile, and
        callbacks and full queues may take long, or need what comes next there. Only where too many are under way it
        has to wait, because not every cluster waits for answers before it sends more."""
        request = self._messages.QueueFederationRequest.from_dict(content)
        self._outgoing.cluster(request.source_cluster).received += 1
        room = self._room.setdefault(request.source_cluster, asyncio.Semaphore(MOST_BEGUN))
        await room.acquire()
        if self._closed:
            room.release()
            return
        try:
            begun = self._begun(request)
        except BaseException:
            room.release()
            raise
        begun.add_done_callback(lambda _: room.release())

    def _begun(self, request: Any) -> asyncio.Task[None]:
        """The task that carries out a request of another cluster."""
        subscription = self.inner.subscriptions.get(request.subscription_id)
        if request.subscription_id and subscription is None:
            # It was for somebody who is not here any more, and for nobody's queue.
            unknown = f"cluster {self.inner.cluster_id!r} has no subscription {request.subscription_id}"
            return self._outgoing.spawn(self._outgoing.answer(request, unknown, reason=NO_SUBSCRIPTION))
        if subscription is not None and subscription.callback is not None:
            return self._outgoing.spawn(self._ours.deliver(subscription, request))
        key = (request.source_cluster, request.queue_name)
        send = self._sends[key] = self._outgoing.spawn(self._send(request, self._sends.get(key)))
        send.add_done_callback(lambda done: self._ended(key, done))
        return send

    def _ended(self, key: tuple[str, str], send: asyncio.Task[None]) -> None:
        if self._sends.get(key) is send:
            del self._sends[key]

    async def _send(self, request: Any, before: asyncio.Task[None] | None) -> None:
        """Carry out a send of another cluster, after the one ``before`` it into the same queue."""
        if before is not None:
            await asyncio.wait([before])
        try:
            result = await self._manager.carry_out(
                Request(request.source_cluster, request.request_id),
                request.queue_name,
                request.topic,
                request.payload,
                request.delivery_guarantee,
                request.options.to_dict(),
            )
            error = None if result.success else result.error_message or "the queue refused the message"
        except QueueClosedError:
            # Without an answer it may be sent again, to the next start of this server.
            return
        except MessageQueueError as refusal:
            error = str(refusal)
        # What another cluster has sent must not end the connection.
        except Exception:
            logger.exception("a message of cluster %s to queue %s failed", request.source_cluster, request.queue_name)
            return
        await self._outgoing.answer(request, error)

    # --- looking, and the end -----------------------------------------------------------------------------

    def statistics(self) -> dict[str, RemoteClusterStatistics]:
        """The counts by cluster; copies."""
        return self._outgoing.statistics()

    async def close(self) -> None:
        """Stop waiting for answers, and what other clusters have asked for."""
        self._closed = True
        await self._outgoing.close()
