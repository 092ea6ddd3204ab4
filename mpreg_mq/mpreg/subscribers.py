"""Subscribers across clusters: those of others on the queues here, and ours on the queues of others."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable
from contextvars import Context, copy_context
from typing import Any

import attrs

from mpreg_mq.actors.subscriber_actor import error_text
from mpreg_mq.latest import Latest
from mpreg_mq.model import MessageId, QueuedMessage
from mpreg_mq.mpreg.host import Host
from mpreg_mq.mpreg.hosted_manager import HostedQueueManager
from mpreg_mq.mpreg.outgoing import NO_SUBSCRIPTION, UNFIT, Outgoing
from mpreg_mq.options import guarantee_of
from mpreg_mq.topics import check_pattern, matches

logger = logging.getLogger("mpreg_mq")

MAX_REMEMBERED = 10_000
"""Most messages of other clusters' queues whose outcome is kept to repeat it, and ends of subscriptions to be told."""

RUN = "mpreg-mq.run"
SERVER = "mpreg-mq.server"
"""What a subscription says beside MPREG's fields: which start of which server it belongs to."""


class ClusterUnreachableError(Exception):
    """A message could not be forwarded to a subscriber of another cluster; the queue tries again."""


@attrs.define(eq=False)
class _Served:
    """A subscriber of another cluster, and the queues that it has here by subscription id; none while ``away``.

    ``run`` is the start of its ``server``, where that has told.
    """

    subscription: Any
    server: str = ""
    run: str = ""
    queues: dict[str, str] = attrs.field(factory=dict)
    away: bool = False


class RemoteSubscribers:
    """Serves the subscribers of other clusters: a message counts as delivered when the other cluster says so."""

    def __init__(self, host: Host, manager: HostedQueueManager, outgoing: Outgoing) -> None:
        self._host = host
        self._manager = manager
        self._outgoing = outgoing
        self._served: dict[str, _Served] = {}
        self._messages = host.module("fabric.queue_messages")

    def told(self, content: dict[str, Any], *, ended: bool) -> None:
        """Another cluster subscribes, again perhaps, or ends a subscription."""
        subscription = self._messages.QueueFederationSubscription.from_dict(content)
        if ended:
            self._end(subscription.subscription_id)
            return
        served = self._served.get(subscription.subscription_id)
        if served is None:
            served = self._served[subscription.subscription_id] = _Served(subscription)
        if content.get(RUN):
            served.server, served.run = str(content.get(SERVER)), str(content[RUN])
            self._end_earlier_runs(served)
        # One that cannot be reached may be heard all the same.
        if not served.away or self._outgoing.reaches(subscription.source_cluster):
            self._serve(served)

    def _end_earlier_runs(self, served: _Served) -> None:
        """A server that was started again has none of the subscriptions that it had before."""
        for other in list(self._served.values()):
            if (
                other.subscription.source_cluster == served.subscription.source_cluster
                and other.server == served.server
                and other.run != served.run
            ):
                self._end(other.subscription.subscription_id)

    def refresh(self) -> None:
        """Serve those again whose cluster can be reached again.

        Where it has the plugin it subscribes again by itself, as long as there is the subscription: it may be gone with
        an earlier start of the server, and what is forwarded then has an attempt for nothing.
        """
        for served in self._served.values():
            if served.away and not served.run and self._outgoing.reaches(served.subscription.source_cluster):
                self._serve(served)

    def _serve(self, served: _Served) -> None:
        served.away = False
        for queue_name in self._manager.list_queues():
            self._serve_queue(served, queue_name)

    def _suspend(self, served: _Served) -> None:
        """Give a subscriber nothing while there is no way to it, so that its messages go to others, or wait."""
        served.away = True
        self._leave(served)

    def _leave(self, served: _Served) -> None:
        for queue_name, local_id in served.queues.items():
            self._manager.unsubscribe_from_queue(queue_name, local_id)
        served.queues.clear()
        self._outgoing.inner._local_subscription_handles.pop(served.subscription.subscription_id, None)

    def queue_created(self, queue_name: str) -> None:
        """A queue is new: those whose pattern it matches get it too."""
        for served in self._served.values():
            self._serve_queue(served, queue_name)

    def queue_deleted(self, queue_name: str) -> None:
        """A queue is gone."""
        for served in self._served.values():
            served.queues.pop(queue_name, None)

    def _serve_queue(self, served: _Served, queue_name: str) -> None:
        subscription = served.subscription
        if (
            served.away
            or queue_name in served.queues
            or not self._outgoing.inner._queue_matches_pattern(queue_name, subscription.queue_pattern)
        ):
            return

        async def forward(message: QueuedMessage) -> None:
            await self._forward(served, queue_name, message)

        try:
            subscription_id = self._manager.subscribe_to_queue(
                queue_name,
                f"{subscription.source_cluster}/{subscription.subscriber_id}",
                subscription.topic_pattern,
                callback=forward,
            )
        # Another cluster's bad pattern is its own trouble.
        except Exception:
            logger.exception("cluster %s cannot subscribe to queue %s", subscription.source_cluster, queue_name)
            return
        if subscription_id is not None:
            served.queues[queue_name] = subscription_id
            self._outgoing.inner._local_subscription_handles[subscription.subscription_id].append(
                (queue_name, subscription_id)
            )

    def _end(self, subscription_id: str) -> None:
        served = self._served.pop(subscription_id, None)
        if served is not None:
            self._leave(served)

    async def _forward(self, served: _Served, queue_name: str, message: QueuedMessage) -> None:
        """Send a message to a subscriber of another cluster; it is acknowledged here when it was there.

        Where the subscription has ended there, it ends here, and in the same attempt the message goes to another one of
        that subscriber for its topic, as it has after a restart.
        """
        while not await self._forwarded(served, queue_name, message):
            self._end(served.subscription.subscription_id)
            served = self._another(served, queue_name, message.topic)

    def _another(self, ended: _Served, queue_name: str, topic: str) -> _Served:
        """Another subscription of a subscriber to a queue, for messages of this topic."""
        was = ended.subscription
        for served in self._served.values():
            known = served.subscription
            if (
                (known.source_cluster, known.subscriber_id) == (was.source_cluster, was.subscriber_id)
                and queue_name in served.queues
                and matches(known.topic_pattern, topic)
            ):
                return served
        raise ClusterUnreachableError(
            f"cluster {was.source_cluster!r} knows of no subscription of {was.subscriber_id!r} for topic {topic!r}"
        )

    async def _forwarded(self, served: _Served, queue_name: str, message: QueuedMessage) -> bool:
        """Send a message to a subscription; False where the other cluster does not know it."""
        subscription = served.subscription
        cluster = subscription.source_cluster
        counts = self._outgoing.cluster(cluster)
        request = self._outgoing.request(
            queue_name,
            message.topic,
            message.payload,
            subscription.delivery_guarantee,
            cluster,
            self._messages.QueueMessageOptions(priority=message.priority, headers=dict(message.headers)),
            request_id=message.id.id,
            subscription_id=subscription.subscription_id,
            subscriber_id=subscription.subscriber_id,
        )
        sent = self._outgoing.watch(request)
        on_its_way = await self._outgoing.transmit(request)
        answer = await sent.answer
        if not answer.success:
            if self._host.stopping.is_set():
                # The connections are closing: the lease ends with the manager, and this was no failed attempt.
                await asyncio.Event().wait()
            counts.forward_failures += 1
            if sent.reason == NO_SUBSCRIPTION:
                return False
            if not on_its_way.success and sent.reason != UNFIT:
                self._suspend(served)
            raise ClusterUnreachableError(answer.error_message)
        counts.forwarded += 1
        return True


class GlobalSubscriptions:
    """Our subscriptions to queues wherever they are, those included that come later or come back."""

    def __init__(self, host: Host, manager: HostedQueueManager, outgoing: Outgoing, run: str) -> None:
        self.inner = outgoing.inner
        self._run = run
        self._outgoing = outgoing
        self._host = host
        self._manager = manager
        self._asked: dict[tuple[str, str], str] = {}
        self._to_end: Latest[tuple[str, str], Any] = Latest(MAX_REMEMBERED)
        self._contexts: dict[str, Context] = {}
        """Where the callbacks run, by subscription id."""
        self._outcomes: Latest[tuple[str, str], asyncio.Future[str | None]] = Latest(MAX_REMEMBERED)
        self._messages = host.module("fabric.queue_messages")

    async def subscribe_globally(
        self,
        subscriber_id: str,
        queue_pattern: str,
        topic_pattern: str,
        *,
        callback: Callable[[Any], Any] | None = None,
        target_clusters: set[str] | None = None,
        **options: Any,
    ) -> str:
        """Subscribe to matching queues here and in other clusters, those that come later included.

        The callback runs in the context (:mod:`contextvars`) of this call, whichever queue a message comes from.

        Raises:
            InvalidTopicError: the topic pattern is malformed.
        """
        check_pattern(topic_pattern)
        subscription_id: str = await self.inner.subscribe_globally(
            subscriber_id,
            queue_pattern,
            topic_pattern,
            callback=callback,
            target_clusters=target_clusters,
            **options,
        )
        self._contexts[subscription_id] = copy_context()
        subscription = self.inner.subscriptions[subscription_id]
        for cluster, run in self._clusters_of(subscription).items():
            # One that has the plugin takes it twice for once, and may not have been reached; it is asked again.
            if not run:
                self._asked[subscription_id, cluster] = run
        await self._ask(subscription)
        return subscription_id

    def queue_created(self, queue_name: str) -> None:
        """A queue is new here: those whose pattern it matches get it too."""
        for subscription in self.inner.subscriptions.values():
            handles = self.inner._local_subscription_handles[subscription.subscription_id]
            if any(name == queue_name for name, _ in handles) or not self.inner._queue_matches_pattern(
                queue_name, subscription.queue_pattern
            ):
                continue
            try:
                local_id = self._context_of(subscription).run(
                    self._manager.subscribe_to_queue,
                    queue_name,
                    subscription.subscriber_id,
                    subscription.topic_pattern,
                    callback=subscription.callback,
                    auto_acknowledge=subscription.auto_acknowledge,
                    **subscription.metadata,
                )
            # The queue is made all the same, and the other subscriptions get it.
            except Exception:
                logger.exception("%s cannot subscribe to queue %s", subscription.subscriber_id, queue_name)
                continue
            if local_id is not None:
                handles.append((queue_name, local_id))

    async def unsubscribe_globally(self, subscription_id: str) -> bool:
        """End a subscription here and in the clusters that know it; whether there was one."""
        subscription = self.inner.subscriptions.pop(subscription_id, None)
        if subscription is None:
            return False
        self._contexts.pop(subscription_id, None)
        for queue_name, local_id in self.inner._local_subscription_handles.pop(subscription_id, []):
            self._manager.unsubscribe_from_queue(queue_name, local_id)
        self.inner._remote_subscription_handles.pop(subscription_id, None)
        for key in [key for key in self._asked if key[0] == subscription_id]:
            del self._asked[key]
            await self._end_at(subscription, key[1])
        return True

    async def _end_at(self, subscription: Any, cluster: str) -> None:
        """End a subscription at another cluster, later where there is no way to it now."""
        key = (subscription.subscription_id, cluster)
        self._to_end.note(key, subscription)
        if await self._tell(subscription, cluster, ended=True):
            self._to_end.pop(key, None)

    def _clusters_of(self, subscription: Any) -> dict[str, str]:
        """The other clusters that have queues for a subscription, and since which start of their server."""
        return {
            entry.cluster_id: str(entry.metadata.get("mpreg-mq.run", ""))
            for entry in self._host.queue_entries()
            if entry.cluster_id != self.inner.cluster_id
            and (not subscription.target_clusters or entry.cluster_id in subscription.target_clusters)
            and self.inner._queue_matches_pattern(entry.queue_name, subscription.queue_pattern)
        }

    async def refresh(self) -> None:
        """Ask whom there is to ask now, and end what could not be ended before."""
        for (_, cluster), subscription in list(self._to_end.items()):
            await self._end_at(subscription, cluster)
        for subscription in list(self.inner.subscriptions.values()):
            await self._ask(subscription)

    async def _ask(self, subscription: Any) -> None:
        """Subscribe at clusters that are new, or whose server was started again and knows nothing any more.

        Those that have the plugin are asked again each time, as queues are advertised again: what asked before may not
        have arrived, or they may have given the subscription up. The others would take it for another subscription.
        """
        for cluster, run in self._clusters_of(subscription).items():
            key = (subscription.subscription_id, cluster)
            if (run or self._asked.get(key) != run) and await self._tell(subscription, cluster, ended=False):
                if subscription.subscription_id in self.inner.subscriptions:
                    self._asked[key] = run
                else:
                    # It ended meanwhile.
                    await self._end_at(subscription, cluster)

    async def _tell(self, subscription: Any, cluster: str, *, ended: bool) -> bool:
        messages = self._messages
        content = messages.QueueFederationSubscription(
            subscription_id=subscription.subscription_id,
            subscriber_id=subscription.subscriber_id,
            queue_pattern=subscription.queue_pattern,
            topic_pattern=subscription.topic_pattern,
            delivery_guarantee=subscription.delivery_guarantee,
            auto_acknowledge=subscription.auto_acknowledge,
            source_cluster=self.inner.cluster_id,
            target_cluster=cluster,
        )
        kind = messages.QueueFederationKind.UNSUBSCRIBE if ended else messages.QueueFederationKind.SUBSCRIBE
        origin = {RUN: self._run, SERVER: f"{self._host.name} {self._host.node_id}"}
        return await self._outgoing.post({**content.to_dict(kind=kind), **origin}, cluster, "mpreg.queue.subscription")

    def _context_of(self, subscription: Any) -> Context:
        """A copy of the context of a subscription; an empty one where MPREG itself has made it."""
        return self._contexts.get(subscription.subscription_id, Context()).copy()

    async def deliver(self, subscription: Any, request: Any) -> None:
        """Give a message of another cluster's queue to its subscriber here, once, and answer whether that worked."""
        key = (subscription.subscription_id, request.request_id)
        outcome = self._outcomes.get(key)
        if outcome is None:
            outcome = asyncio.get_running_loop().create_future()
            self._outcomes.note(key, outcome)
            error: str | None = "CancelledError: the server is closing"
            try:
                calling = _outcome(subscription.callback, request)
                error = await asyncio.Task(calling, context=self._context_of(subscription))
            finally:
                outcome.set_result(error)
                if error is not None:
                    # It comes again, and may work then.
                    self._outcomes.pop(key, None)
        else:
            self._manager.duplicate_requests += 1
            error = await asyncio.shield(outcome)
        await self._outgoing.answer(request, error, subscription.subscriber_id)


async def _outcome(callback: Callable[[Any], Any], request: Any) -> str | None:
    """Call a subscriber's callback with a message of another cluster; None, or what went wrong."""
    options = request.options
    message = QueuedMessage(
        MessageId(request.request_id, source_node=request.queue_name),
        request.topic,
        request.payload,
        guarantee_of(request.delivery_guarantee),
        priority=options.priority,
        headers=dict(options.headers),
    )
    try:
        returned = callback(message)
        if inspect.isawaitable(returned):
            await returned
    except asyncio.CancelledError:
        raise
    # A callback may raise anything.
    except BaseException as error:
        return error_text(error)
    return None
