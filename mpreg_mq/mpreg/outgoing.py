"""Messages to queues of other clusters, and the answers to them."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Coroutine
from typing import Any

import attrs

from mpreg_mq.clock import Clock, TimerHandle
from mpreg_mq.ending import Tasks
from mpreg_mq.model import DeliveryResult, MessageId
from mpreg_mq.mpreg.host import Host
from mpreg_mq.options import guarantee_of

ANSWER_WAITS_SECONDS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4)
"""How long to wait between attempts to answer another cluster."""

CLOSING_SECONDS = 5.0
"""How long to wait for what was cancelled."""

REASON = "mpreg-mq.reason"
"""What an answer says beside MPREG's fields: which refusal it is, for the plugin at the other end."""

NO_SUBSCRIPTION = "no-such-subscription"
"""The reason where a message was forwarded to a subscription that has ended, or that a restart has ended."""

UNFIT = "unfit"
"""The reason where MPREG cannot transport a message: its payload holds what JSON does not."""


@attrs.define
class RemoteClusterStatistics:
    """What went to and came from another cluster since this process began.

    ``sent`` is ``acknowledged`` + ``refused`` + ``timed_out`` + ``in_flight``; ``undeliverable`` messages found no way
    there, or could not be sent by any. Round trips are from sending a message to the cluster's answer, in seconds.
    ``forwarded`` are messages of local queues that its subscribers acknowledged, ``forward_failures`` attempts at that
    which failed.
    """

    sent: int = 0
    acknowledged: int = 0
    refused: int = 0
    timed_out: int = 0
    undeliverable: int = 0
    in_flight: int = 0
    forwarded: int = 0
    forward_failures: int = 0
    received: int = 0
    last_round_trip_seconds: float = 0.0
    longest_round_trip_seconds: float = 0.0
    last_error: str | None = None


@attrs.define(eq=False)
class Sent:
    """A message that another cluster has not answered yet."""

    cluster: str
    sent_at: float
    answer: asyncio.Future[DeliveryResult]
    timer: TimerHandle | None = None
    reason: str | None = None


class Outgoing:
    """What goes to other clusters by MPREG's federation manager, and is not answered yet.

    Args:
        inner: MPREG's federation manager.
        host: the server.
        clock: where the time comes from.
        timeout_seconds: how long an answer is waited for.
    """

    def __init__(self, inner: Any, host: Host, clock: Clock, timeout_seconds: float) -> None:
        self.inner = inner
        self._clock = clock
        self._timeout = timeout_seconds
        self._counts: dict[str, RemoteClusterStatistics] = {}
        self._sent: dict[str, Sent] = {}
        self._tasks = Tasks()
        self._messages = host.module("fabric.queue_messages")
        self._federation = host.module("fabric.queue_federation")
        self._fabric = host.module("fabric.message")

    def waits_for(self, token: object) -> bool:
        """Whether a message waits for the answer of this token."""
        return isinstance(token, str) and token in self._sent

    async def send_message_globally(
        self,
        queue_name: str,
        topic: str,
        payload: Any,
        *,
        delivery_guarantee: Any = None,
        target_cluster: str | None = None,
        required_cluster_acks: int = 1,
        options: Any = None,
    ) -> Any:
        """Send to a queue wherever it is, as MPREG does: success means that the message is on its way.

        Whether the other cluster took it is in the statistics; :meth:`send_confirmed` waits for that.
        """
        guarantee = self._guarantee(delivery_guarantee)
        target = target_cluster or await self.inner._discover_queue_cluster(queue_name)
        allowed = self.inner.allowed_clusters
        here = target in (None, self.inner.cluster_id)
        if here or required_cluster_acks < 1 or (allowed is not None and target not in allowed):
            return await self.inner.send_message_globally(
                queue_name,
                topic,
                payload,
                delivery_guarantee=guarantee,
                target_cluster=target,
                required_cluster_acks=required_cluster_acks,
                options=options,
            )
        request = self.request(queue_name, topic, payload, guarantee, target, options)
        self.watch(request)
        return await self.transmit(request)

    async def send_confirmed(
        self,
        queue_name: str,
        topic: str,
        payload: Any,
        *,
        delivery_guarantee: Any = None,
        target_cluster: str | None = None,
        options: Any = None,
        timeout_seconds: float | None = None,
        transmissions: int = 1,
    ) -> DeliveryResult:
        """Send to a queue wherever it is, and wait for the answer of the cluster that has it.

        Args:
            transmissions: how often to send it within the timeout while there is no answer. The receiver carries it
                out once where it has this plugin; without it, once for each transmission that arrives.
            timeout_seconds: by default that of the configuration.

        Returns:
            The other cluster's answer; without success when there is none in time, and then the message may still
            have arrived.
        """
        guarantee = self._guarantee(delivery_guarantee)
        target = target_cluster or await self.inner._discover_queue_cluster(queue_name)
        allowed = self.inner.allowed_clusters
        if target in (None, self.inner.cluster_id) or (allowed is not None and target not in allowed):
            answer: DeliveryResult = await self.inner.send_message_globally(
                queue_name, topic, payload, delivery_guarantee=guarantee, target_cluster=target, options=options
            )
            return answer
        request = self.request(queue_name, topic, payload, guarantee, target, options)
        seconds = self._timeout if timeout_seconds is None else timeout_seconds
        sent = self.watch(request, seconds)

        def again() -> None:
            self.spawn(self.transmit(request, keep=True))

        repeats = [
            self._clock.call_at(
                asyncio.get_running_loop(),
                sent.sent_at + seconds * number / transmissions,
                again,
            )
            for number in range(1, transmissions)
        ]
        try:
            await self.transmit(request, keep=transmissions > 1)
            return await asyncio.shield(sent.answer)
        finally:
            for repeat in repeats:
                repeat.cancel()

    def _guarantee(self, given: Any) -> Any:
        """MPREG's member for a guarantee of either kind; at least once where none is given."""
        members = self._federation.QueueDeliveryGuarantee
        return members(guarantee_of(given).value) if given is not None else members.AT_LEAST_ONCE

    def request(
        self, queue_name: str, topic: str, payload: Any, guarantee: Any, target: str | None, options: Any, **more: Any
    ) -> Any:
        """A new request; ``more`` are fields beyond these."""
        messages = self._messages
        return messages.QueueFederationRequest(
            **{"request_id": str(uuid.uuid4()), "ack_token": str(uuid.uuid4()), **more},
            queue_name=queue_name,
            topic=topic,
            payload=payload,
            delivery_guarantee=guarantee,
            source_cluster=self.inner.cluster_id,
            target_cluster=target,
            options=options or messages.QueueMessageOptions(),
        )

    def watch(self, request: Any, timeout_seconds: float | None = None) -> Sent:
        """Expect an answer to a request, for at most so long."""
        loop = asyncio.get_running_loop()
        now = self._clock.now()
        sent = Sent(request.target_cluster, now, loop.create_future())
        counts = self.cluster(request.target_cluster)
        counts.sent += 1
        counts.in_flight += 1
        self._sent[request.ack_token] = sent
        flight = self._federation.FabricQueueInFlight(request=request, required_cluster_acks=1)
        self.inner.in_flight[request.ack_token] = flight
        seconds = self._timeout if timeout_seconds is None else timeout_seconds

        def over() -> None:
            error = f"cluster {request.target_cluster!r} did not answer within {seconds:g} s"
            if self._settle(request.ack_token, _failure(error)):
                counts.timed_out += 1
                self.inner.stats.failed_deliveries += 1

        sent.timer = self._clock.call_at(loop, now + seconds, over)
        return sent

    async def transmit(self, request: Any, *, keep: bool = False) -> Any:
        """Put a request on its way; where there is none it is settled as failed, unless it is to be sent again."""
        try:
            result = await self.inner._send_request(request)
        # MPREG's JSON holds less than a queue does, and would not hold it the next time either.
        except Exception as error:
            unfit = f"the message cannot be sent to cluster {request.target_cluster!r}: {type(error).__name__}: {error}"
            sent = self._sent.get(request.ack_token)
            if sent is not None:
                sent.reason = UNFIT
            self._undeliverable(request, unfit, keep=False)
            return _failure(unfit)
        if not result.success:
            self._undeliverable(
                request, f"no way to cluster {request.target_cluster!r}: {result.error_message}", keep=keep
            )
        return result

    def _undeliverable(self, request: Any, error: str, *, keep: bool) -> None:
        counts = self.cluster(request.target_cluster)
        counts.last_error = error
        if not keep and self._settle(request.ack_token, _failure(error)):
            counts.sent -= 1
            counts.undeliverable += 1

    async def post(self, content: dict[str, Any], cluster_id: str, topic: str) -> bool:
        """Put a content on its way to another cluster; False where there is none now."""
        messenger = self.inner.messenger
        message_id = str(uuid.uuid4())
        headers = messenger.next_headers(message_id, None, target_cluster=cluster_id)
        if headers is None:
            return False
        fabric = self._fabric
        message = fabric.UnifiedMessage(
            message_id=message_id,
            topic=topic,
            message_type=fabric.MessageType.QUEUE,
            delivery=fabric.DeliveryGuarantee.AT_LEAST_ONCE,
            payload=content,
            headers=headers,
            timestamp=time.time(),
        )
        return bool(await messenger.send_to_cluster(message, cluster_id, None))

    async def answer(
        self, request: Any, error: str | None, subscriber_id: str = "", *, reason: str | None = None
    ) -> None:
        """Answer a request of another cluster, as soon as there is a way to it: MPREG would give up at once, and a
        server that has just connected knows its way there before the other knows the way back."""
        if not request.ack_token:
            return
        content = self._messages.QueueFederationAck(
            ack_token=request.ack_token,
            message_id=request.request_id,
            acknowledging_cluster=self.inner.cluster_id,
            acknowledging_subscriber=subscriber_id,
            success=error is None,
            error_message=error,
        ).to_dict()
        if reason is not None:
            content[REASON] = reason
        topic = f"mpreg.queue.ack.{request.queue_name}"
        if not await self.post(content, request.source_cluster, topic):
            self.spawn(self._answer_later(content, request.source_cluster, topic))

    async def _answer_later(self, content: dict[str, Any], cluster_id: str, topic: str) -> None:
        for seconds in ANSWER_WAITS_SECONDS:
            await self._sleep(seconds)
            if await self.post(content, cluster_id, topic):
                return
        self.cluster(cluster_id).last_error = f"no way to cluster {cluster_id!r} for an answer"

    async def _sleep(self, seconds: float) -> None:
        over = asyncio.Event()
        timer = self._clock.call_at(asyncio.get_running_loop(), self._clock.now() + seconds, over.set)
        try:
            await over.wait()
        finally:
            timer.cancel()

    def reaches(self, cluster_id: str) -> bool:
        """Whether there is a way to another cluster now."""
        messenger = self.inner.messenger
        headers = messenger.next_headers(str(uuid.uuid4()), None, target_cluster=cluster_id)
        return messenger._select_next_hop(target_cluster=cluster_id, headers=headers) is not None

    def _settle(self, token: str, answer: DeliveryResult) -> bool:
        """End a message that waits for its answer; False where it does not wait any more."""
        sent = self._sent.pop(token, None)
        self.inner.in_flight.pop(token, None)
        if sent is None:
            return False
        if sent.timer is not None:
            sent.timer.cancel()
        counts = self.cluster(sent.cluster)
        counts.in_flight -= 1
        if not answer.success:
            counts.last_error = answer.error_message
        if not sent.answer.done():
            sent.answer.set_result(answer)
        return True

    def answered(self, content: dict[str, Any]) -> None:
        """Another cluster answered a message that waits."""
        token = str(content["ack_token"])
        sent = self._sent[token]
        sent.reason = content.get(REASON)
        counts = self.cluster(sent.cluster)
        seconds = max(0.0, self._clock.now() - sent.sent_at)
        counts.last_round_trip_seconds = seconds
        counts.longest_round_trip_seconds = max(counts.longest_round_trip_seconds, seconds)
        self.inner.stats.acknowledgments_received += 1
        if content.get("success", True):
            counts.acknowledged += 1
            self.inner.stats.successful_deliveries += 1
            self._settle(token, DeliveryResult(True, MessageId(str(content.get("message_id")) or token)))
        else:
            counts.refused += 1
            self.inner.stats.failed_deliveries += 1
            self._settle(token, _failure(str(content.get("error_message") or "the other cluster refused the message")))

    def cluster(self, cluster_id: str) -> RemoteClusterStatistics:
        """The counts of another cluster; live."""
        return self._counts.setdefault(cluster_id, RemoteClusterStatistics())

    def statistics(self) -> dict[str, RemoteClusterStatistics]:
        """The counts by cluster; copies."""
        return {cluster_id: attrs.evolve(counts) for cluster_id, counts in self._counts.items()}

    def spawn(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Go on with something in a task that ends with this at the latest."""
        return self._tasks.begin(coroutine)

    async def close(self) -> None:
        """Stop waiting for answers, and trying to give some; and whatever else was begun."""
        tasks = self._tasks - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        for token in list(self._sent):
            self._settle(token, _failure("the server is closing"))
        if tasks:
            # A callback may not want to be cancelled.
            await asyncio.wait(tasks, timeout=CLOSING_SECONDS)


def _failure(error: str) -> DeliveryResult:
    return DeliveryResult(False, None, error_message=error)
