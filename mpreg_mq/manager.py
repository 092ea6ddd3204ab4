"""The manager: many named queues on one log, with MPREG's ``MessageQueueManager`` names, arguments and results."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import Callable, Coroutine, Iterable, Mapping
from os import PathLike
from typing import Any

from mpreg_mq._validation import describe
from mpreg_mq.actors import commands as c
from mpreg_mq.actors.messages import Recover
from mpreg_mq.actors.queue_actor import make_actor
from mpreg_mq.actors.retention import Compaction, RetentionThread
from mpreg_mq.actors.store import STREAM_PREFIX, Store, stream_of
from mpreg_mq.clock import Clock, clock_of
from mpreg_mq.configuration import QueueConfiguration, QueueManagerConfiguration
from mpreg_mq.ending import Ending, OneOfAName
from mpreg_mq.errors import ConfigurationError, InvalidOptionError, MessageQueueError
from mpreg_mq.events import EventLog, MemoryEventLog, open_log, retaining
from mpreg_mq.exchange.in_process import TopicExchange
from mpreg_mq.exchange.messages import Vocabulary, check_publishes, is_exchange
from mpreg_mq.exchange.origin import current_trail, joined, trail_of, with_trail
from mpreg_mq.exchange.queue_events import QueueEventPublisher, tapped
from mpreg_mq.exchange.router import TopicRouter
from mpreg_mq.model import (
    DeliveryGuarantee,
    DeliveryResult,
    OverflowPolicy,
    RejectionReason,
    TopicRouteStatistics,
    TopicRouting,
)
from mpreg_mq.named_queues import NamedQueues, add_counts
from mpreg_mq.projections import QueueState
from mpreg_mq.queue import MessageQueue
from mpreg_mq.queue_inspection import REPORT
from mpreg_mq.sending import batch_of
from mpreg_mq.topics import check_pattern

logger = logging.getLogger("mpreg_mq")


class MessageQueueManager(NamedQueues):
    """Named queues that share a log.

    Queues that the log already holds are there again after construction, with their messages, attempts, dead
    letters and deduplication windows; callbacks have to subscribe anew.

    Args:
        config: defaults and limits; MPREG's own configuration object will do, None means the defaults.
        topic_exchange: where topic routes take their messages from and :meth:`publish_to_topic_exchange` publishes:
            MPREG's, or else an exchange within this process.
        log: ``"memory:"``, ``"sqlite:///orders.db"``, a path, or an :class:`~mpreg_mq.events.EventLog`, which then
            stays open after :meth:`shutdown`. None means memory.
        clock: where the time comes from.

    Raises:
        ConfigurationError: the configuration, the exchange, the log's address or the clock is bad.
        EventLogError: the log cannot be opened or read.
    """

    def __init__(
        self,
        config: QueueManagerConfiguration | None = None,
        topic_exchange: Any = None,
        *,
        log: str | PathLike[str] | EventLog | None = None,
        clock: Clock | None = None,
    ) -> None:
        super().__init__()
        self.config = QueueManagerConfiguration.coerce(config)
        check_publishes(topic_exchange)
        self._under_way = OneOfAName()
        """By queue name, the creation or the deletion that is not over yet."""
        self._opening: set[str] = set()
        """Queues that are being created and are not in the table yet."""
        self._ending = Ending()
        self._clock = clock_of(clock)
        self.log: EventLog = open_log("memory:" if log is None else log)
        self._owns_log = self.log is not log
        self._events = self._event_publisher()
        self._store = Store.open(tapped(self.log, self._events), snapshot_events=self.config.snapshot_every_events)
        self._retention: RetentionThread | None = None
        if topic_exchange is None and self.config.enable_topic_exchange_integration:
            topic_exchange = TopicExchange(self._clock)
        self.topic_exchange = topic_exchange
        try:
            self._recover_queues()
            self._router = TopicRouter(
                topic_exchange if is_exchange(topic_exchange) else None, self._queues.get, self._store, self._clock
            )
            self._retention = self._start_retention()
        except BaseException:
            # A log that cannot be taken up must not stay locked by who could not.
            for queue in self._queues.values():
                queue._actor.stop()
            self._close_store()
            raise

    def _start_retention(self) -> RetentionThread | None:
        log = retaining(self.log)
        if self.config.retention is None or log is None:
            return None
        return RetentionThread(log, self.config.retention, self._clock.now)

    async def compact(self) -> Compaction | None:
        """Take away, now, what ``retention`` does not keep; what was done, or None where there was nothing to do.

        The manager does that by itself now and then; this one does not wait between its steps.

        Raises:
            ConfigurationError: the manager has no retention, or its log keeps everything.
            EventLogError: the log or the archive could not be written; nothing has changed then.
        """
        self._check_open()
        retention = self._retention
        if retention is None:
            raise ConfigurationError("compact: the manager has no retention; give QueueManagerConfiguration one")
        return await asyncio.get_running_loop().run_in_executor(None, lambda: retention.compact_now(pausing=False))

    def _recover_queues(self) -> None:
        for stream in self.log.streams():
            if not stream.startswith(STREAM_PREFIX):
                continue
            state = self._store.load(stream)
            if state.created and not state.deleted:
                name = stream.removeprefix(STREAM_PREFIX)
                queue = self._queue_of(name, state.configuration, state)
                if self._events is not None:
                    self._events.recovered(name, state)
                queue._actor.call_now(Recover())
                self._queues[name] = queue

    def _queue_of(self, name: str, configuration: QueueConfiguration, state: QueueState | None) -> MessageQueue:
        """A queue that keeps its events where its durability says, at ``state`` or else at what these events give."""
        durability = self.config.default_durability if configuration.durability is None else configuration.durability
        milliseconds = self.config.buffered_milliseconds
        store = self._store.at(durability, milliseconds, lambda: tapped(MemoryEventLog(), self._events))
        if state is None and store.log.stream_version(stream_of(name)) == 0:
            state = QueueState()
        return MessageQueue.of_actor(make_actor(name, store, self._clock, state))

    # --- queues -------------------------------------------------------------------------------------------

    async def create_queue(self, name: str, config: QueueConfiguration | None = None) -> bool:
        """Create a queue; False if it exists, or if there are ``max_queues`` already.

        Without ``config`` it gets the manager's defaults.

        Raises:
            ConfigurationError: the name or the configuration is bad, or ``config`` names another queue.
            EventLogError: the creation could not be stored; there is no such queue then.
            QueueClosedError: the manager is closed.
        """
        self._check_open()
        self._bind()
        configuration = self.config.new_queue_configuration(name, config)
        return await self._alone(name, lambda: self._create(name, configuration), is_there=False)

    async def _create(self, name: str, configuration: QueueConfiguration) -> bool:
        if name in self._queues:
            return False  # Another thread has just made it.
        if len(self._queues) + len(self._opening) >= self.config.max_queues:
            logger.error("queue %s not created: there are max_queues=%d already", name, self.config.max_queues)
            return False
        self._opening.add(name)
        try:
            queue = self._queue_of(name, configuration, None)
            try:
                await queue._ask(c.Open(configuration))
            except BaseException:
                queue._actor.stop()
                raise
            self._queues[name] = queue
        finally:
            self._opening.discard(name)
        await self._created(name)
        return True

    async def _created(self, name: str) -> None:
        """A queue has been created; for who has others to tell."""

    async def delete_queue(self, name: str) -> bool:
        """Delete a queue with all that is in it, and the routes into it; False if there is none.

        Raises:
            EventLogError: that could not be stored; the queue is still there, with or without its routes.
            QueueClosedError: the manager is closed.
        """
        if not isinstance(name, str):
            return False
        return await self._alone(name, lambda: self._delete(name), is_there=True)

    async def _delete(self, name: str) -> bool:
        queue = self._queues.get(name)
        if queue is None:
            return False  # Another thread has just deleted it.
        await self._router.at_home(lambda: self._delete_with_routes(name, queue))
        await queue.shutdown(0.0)
        await self._deleted(name)
        return True

    async def _delete_with_routes(self, name: str, queue: MessageQueue) -> None:
        async with self._router.ending(name):
            counts = await queue._ask(REPORT)
            await queue._ask(c.Delete())
            add_counts(self._retired, counts)
            self._queues.pop(name, None)

    async def _deleted(self, name: str) -> None:
        """A queue has been deleted; for who has others to tell."""

    async def _alone(self, name: str, work: Callable[[], Coroutine[Any, Any, bool]], *, is_there: bool) -> bool:
        """Create or delete a queue while nobody else does that with the same one; False where it need not be done."""
        done = False

        async def alone() -> None:
            nonlocal done
            done = await work()

        await self._others_with(name)
        while (name in self._queues) is is_there:
            if await self._under_way.reach(name, alone):
                return done
            await self._others_with(name)
        return False

    async def _others_with(self, name: str) -> None:
        """Wait until nobody creates or deletes this queue."""
        if await self._under_way.others(name):
            self._opening.discard(name)

    # --- sending ------------------------------------------------------------------------------------------

    async def send_message(
        self,
        queue_name: str,
        topic: str,
        payload: Any,
        delivery_guarantee: DeliveryGuarantee = DeliveryGuarantee.AT_LEAST_ONCE,
        **options: Any,
    ) -> DeliveryResult:
        """Send to a queue, which is created if ``enable_auto_queue_creation`` says so; see
        :meth:`MessageQueue.send_message`."""
        try:
            queue = self._queues[queue_name]
        except (KeyError, TypeError):
            found = await self._find_or_create(queue_name)
            if isinstance(found, DeliveryResult):
                return found
            queue = found
        return await queue.send_message(topic, payload, delivery_guarantee, **options)

    async def send_messages(
        self,
        queue_name: str,
        messages: Iterable[Mapping[str, Any] | tuple[str, Any]],
        delivery_guarantee: DeliveryGuarantee = DeliveryGuarantee.AT_LEAST_ONCE,
        **options: Any,
    ) -> list[DeliveryResult]:
        """Send a batch in one commit (S5); see :meth:`MessageQueue.send_messages`.

        Raises:
            InvalidOptionError: the batch is too long or none, an entry is neither a pair nor a mapping, or there is no
                such guarantee.
        """
        entries = batch_of(messages)
        queue = await self._find_or_create(queue_name)
        if isinstance(queue, DeliveryResult):
            return [queue for _ in entries]
        return await queue.send_messages(entries, delivery_guarantee, **options)

    async def _find_or_create(self, queue_name: str) -> MessageQueue | DeliveryResult:
        if self._closed:
            detail = "the queue manager is closed; it takes no more messages"
            return DeliveryResult(False, None, error_message=detail, rejection=RejectionReason.CLOSING)
        detail = f"Queue {describe(queue_name)} does not exist; create it first"
        if self._queues.get(queue_name) is None and self.config.enable_auto_queue_creation:
            try:
                if not await self.create_queue(queue_name) and queue_name not in self._queues:
                    detail = (
                        f"Queue {describe(queue_name)} does not exist and cannot be created: "
                        f"there are max_queues={self.config.max_queues}"
                    )
            except ConfigurationError as error:
                detail = f"Queue {describe(queue_name)} does not exist and cannot be created: {error}"
            except MessageQueueError as error:
                return DeliveryResult(False, None, error_message=str(error), rejection=RejectionReason.STORE_ERROR)
        queue = self._queues.get(queue_name)
        if queue is None:
            return DeliveryResult(False, None, error_message=detail, rejection=RejectionReason.UNKNOWN_QUEUE)
        return queue

    # --- topic exchange -----------------------------------------------------------------------------------

    async def publish_to_topic_exchange(
        self,
        topic: str,
        payload: Any,
        delivery_guarantee: DeliveryGuarantee = DeliveryGuarantee.FIRE_AND_FORGET,
        *,
        headers: Mapping[str, Any] | None = None,
    ) -> bool:
        """Publish on the topic exchange; False without one, or when it refuses.

        An exchange hands a message to whoever is there now, whatever the guarantee; a route into a queue keeps it.
        In a subscriber's callback the message's way through queues goes along, so that no route takes it back into
        one of them.

        Raises:
            InvalidOptionError: ``headers`` are no mapping.
        """
        if headers is not None and not isinstance(headers, Mapping):
            raise InvalidOptionError(f"headers: got {describe(headers)}, expected a mapping, such as a dict, or None")
        if self.topic_exchange is None:
            return False
        sent = dict(headers or {})
        trail = joined(trail_of(sent), current_trail(self._router.cluster))
        try:
            message = Vocabulary.of(self.topic_exchange).message(
                topic=topic,
                payload=payload,
                timestamp=self._clock.now(),
                message_id=str(uuid.uuid4()),
                publisher="message-queue-manager",
                headers=with_trail(sent, trail),
            )
            await self._publish(message)
        # The exchange is somebody else's code.
        except Exception:
            logger.exception("publishing on %s failed", topic)
            return False
        return True

    async def _publish(self, message: Any) -> None:
        self.topic_exchange.publish_message(message)

    def _bind(self) -> None:
        """Route and publish from the running loop, where the manager was made before there was one."""
        self._router.bind()
        if self._events is not None:
            self._events.bind()

    def _event_publisher(self) -> QueueEventPublisher | None:
        if not (self.config.publish_queue_events and self.config.enable_topic_exchange_integration):
            return None

        async def publish(topic: str, payload: dict[str, Any]) -> None:
            await self.publish_to_topic_exchange(topic, payload)

        return QueueEventPublisher(self.config.integration_topic_prefix, publish)

    async def route_topic_to_queue(
        self,
        topic_pattern: str,
        queue_name: str,
        delivery_guarantee: DeliveryGuarantee = DeliveryGuarantee.AT_LEAST_ONCE,
        *,
        backlog_seconds: float | None = None,
        overflow_policy: OverflowPolicy = OverflowPolicy.REJECT,
        max_buffered: int = 10_000,
        **options: Any,
    ) -> bool:
        """Send every message that is published on matching topics to a queue, until the route is removed.

        The route is in the log, and is there again after a restart. A message has the topic, payload and headers it was
        published with, its id as deduplication id, and headers ``mpreg-mq.*`` that tell its origin. Where several
        routes lead a message into one queue, the oldest takes it.

        Args:
            topic_pattern: ``*`` is one level, ``#`` zero or more (G6).
            queue_name: created if ``enable_auto_queue_creation`` says so.
            delivery_guarantee: of the messages that take the route.
            backlog_seconds: a new route also takes what was published so long ago and did not come into the queue by
                another route, as far as the exchange, and this process, remember.
            overflow_policy: what becomes of messages the queue has no room for; see :class:`TopicRouting`.
            max_buffered: most messages of this route that wait for the queue.
            **options: send options for every message (S4), except ``deduplication_id``.

        Returns:
            False if the queue neither exists nor may be created, or there is no exchange to subscribe to. A route of
            the same pattern and queue is changed.

        Raises:
            InvalidTopicError: the pattern is malformed.
            InvalidOptionError: an option is bad.
            EventLogError: the route could not be stored; nothing changed.
            QueueClosedError: the manager is closed.
        """
        self._check_open()
        check_pattern(topic_pattern)
        if self._router.exchange is None:
            logger.error("route %s -> %s: there is no topic exchange to subscribe to", topic_pattern, queue_name)
            return False
        return await self._router.add(
            topic_pattern,
            queue_name,
            delivery_guarantee,
            find_or_create=lambda: self._find_or_create(queue_name),
            backlog_seconds=backlog_seconds,
            overflow_policy=overflow_policy,
            max_buffered=max_buffered,
            options=options,
        )

    async def unroute_topic_from_queue(self, topic_pattern: str, queue_name: str) -> bool:
        """End a route; whether there was one. What it sent stays in the queue.

        Raises:
            EventLogError: that could not be stored; the route goes on.
            QueueClosedError: the manager is closed.
        """
        self._check_open()
        return await self._router.remove(topic_pattern, queue_name)

    @property
    def topic_routings(self) -> list[TopicRouting]:
        """The routes, oldest first; a copy."""
        return self._router.routings

    def get_route_statistics(self, topic_pattern: str, queue_name: str) -> TopicRouteStatistics | None:
        """What came of the messages that matched a route; None where there is no such route."""
        return self._router.statistics(topic_pattern, queue_name)

    # --- beginning and end --------------------------------------------------------------------------------

    async def restore_persisted_queues(self) -> None:
        """Nothing to do: construction restored them. Kept because MPREG's server calls it."""

    async def shutdown(self) -> None:
        """Close every queue (C3) and then the log.

        Running callbacks get ``shutdown_timeout_seconds``; sends in progress are answered. It comes to its end although
        whoever waits for it is cancelled; calling it again waits for that. In a callback, which it gives its time, do
        not wait for it.

        Raises:
            EventLogError: what a queue still had to store is not in the log; everything is closed all the same.
        """
        self._closed = True
        await self._ending.reach(self._end)

    async def _end(self) -> None:
        timeout = self.config.shutdown_timeout_seconds
        try:
            for name in self._under_way.names():
                await self._others_with(name)
            await self._router.close(timeout)
            ends = [queue.shutdown(timeout) for queue in self._queues.values()]
            failures = [ended for ended in await asyncio.gather(*ends, return_exceptions=True) if ended is not None]
            await asyncio.get_running_loop().run_in_executor(None, self._close_store)
            if self._events is not None:
                await self._events.close()
        except asyncio.CancelledError:
            # Nobody but the end of the loop cancels it.
            self._end_now()
            raise
        if failures:
            raise failures[0]

    def shutdown_sync(self) -> None:
        """Close without waiting for running callbacks; for programs without an event loop.

        Calling it again does nothing.
        """
        self._closed = True
        self._ending.reach_now(self._end_now)

    def _end_now(self) -> None:
        self._router.close_now()
        with contextlib.ExitStack() as ends:
            # The log last, whatever a queue has to say.
            ends.callback(self._close_store)
            for queue in self._queues.values():
                ends.callback(queue.shutdown_sync)

    def _close_store(self) -> None:
        if self._retention is not None:
            self._retention.stop()
        if self._owns_log:
            self._store.close()
        else:
            self._store.stop()

    async def __aenter__(self) -> MessageQueueManager:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.shutdown()
