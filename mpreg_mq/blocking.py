"""The manager for programs without asyncio: the same verbs, each of which waits for its result.

It runs an event loop on a thread of its own. Callbacks are declared blocking unless you say otherwise, so that they
may themselves call the manager.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
from collections.abc import Callable, Coroutine, Iterable, Mapping
from os import PathLike
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar

from mpreg_mq.actors.retention import Compaction
from mpreg_mq.arguments import DeadReference, MessageReference
from mpreg_mq.clock import Clock
from mpreg_mq.configuration import QueueConfiguration, QueueManagerConfiguration
from mpreg_mq.errors import MessageQueueError, QueueClosedError
from mpreg_mq.events import EventLog
from mpreg_mq.forking import FORKED
from mpreg_mq.manager import MessageQueueManager
from mpreg_mq.model import (
    Callback,
    DeadLetter,
    DeliveryGuarantee,
    DeliveryResult,
    MessageId,
    OverflowPolicy,
    QueuedMessage,
    QueueManagerStatistics,
    QueueStatistics,
    TopicRouteStatistics,
    TopicRouting,
)

P = ParamSpec("P")
T = TypeVar("T")


class BlockingMessageQueueManager:
    """A :class:`MessageQueueManager` to be called from threads. Every method is safe from any thread.

    Args:
        config, topic_exchange, log, clock: as for :class:`MessageQueueManager`.

    Raises:
        ConfigurationError, EventLogError: as for :class:`MessageQueueManager`.
    """

    def __init__(
        self,
        config: QueueManagerConfiguration | None = None,
        topic_exchange: Any = None,
        *,
        log: str | PathLike[str] | EventLog | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._manager = MessageQueueManager(config, topic_exchange, log=log, clock=clock)
        self._closing = threading.Lock()
        self._asking = threading.Lock()
        self._ended = False
        self._process = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="mpreg-mq", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        # Routes that the log brought back send from here, whoever publishes.
        self._loop.call_soon(self._manager._bind)
        self._loop.run_forever()
        with self._asking:
            self._ended = True
        self._loop.run_until_complete(_end_the_others())
        self._loop.close()

    def _forbid_own_thread(self) -> None:
        if threading.current_thread() is self._thread:
            raise MessageQueueError(
                "BlockingMessageQueueManager: called on its own loop's thread, where it would wait for itself; "
                "subscribe this callback with blocking=True"
            )

    def _wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        try:
            self._forbid_own_thread()
        except MessageQueueError:
            coroutine.close()
            raise
        if self._process != os.getpid():
            # Nor is the lock to be asked for, which another thread may have had.
            coroutine.close()
            raise QueueClosedError(f"the queue manager {FORKED}")
        asked: concurrent.futures.Future[T] | None = None
        try:
            with self._asking:
                if self._ended or not self._thread.is_alive():
                    coroutine.close()
                    raise _closed_error()
                asked = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
            return asked.result()
        except concurrent.futures.CancelledError:
            raise _closed_error() from None
        except BaseException:
            # Nothing but an interruption ends the wait before the answer is there: nobody is left to take one.
            if asked is not None:
                asked.cancel()
            raise

    def _at_once(self, verb: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Carry out what is no coroutine: on this thread, unless it runs a loop of its own, which a queue refuses."""
        if asyncio._get_running_loop() is None or threading.current_thread() is self._thread or self._ended:
            return verb(*args, **kwargs)

        async def there() -> T:
            return verb(*args, **kwargs)

        return self._wait(there())

    @property
    def config(self) -> QueueManagerConfiguration:
        """The manager's configuration."""
        return self._manager.config

    def create_queue(self, name: str, config: QueueConfiguration | None = None) -> bool:
        """See :meth:`MessageQueueManager.create_queue`."""
        return self._wait(self._manager.create_queue(name, config))

    def delete_queue(self, name: str) -> bool:
        """See :meth:`MessageQueueManager.delete_queue`."""
        return self._wait(self._manager.delete_queue(name))

    def list_queues(self) -> list[str]:
        """The names of all queues."""
        return self._manager.list_queues()

    def get_queue_info(self, queue_name: str) -> dict[str, Any] | None:
        """See :meth:`MessageQueueManager.get_queue_info`."""
        return self._at_once(self._manager.get_queue_info, queue_name)

    def send_message(
        self,
        queue_name: str,
        topic: str,
        payload: Any,
        delivery_guarantee: DeliveryGuarantee = DeliveryGuarantee.AT_LEAST_ONCE,
        **options: Any,
    ) -> DeliveryResult:
        """See :meth:`MessageQueueManager.send_message`."""
        return self._wait(self._manager.send_message(queue_name, topic, payload, delivery_guarantee, **options))

    def send_messages(
        self,
        queue_name: str,
        messages: Iterable[Mapping[str, Any] | tuple[str, Any]],
        delivery_guarantee: DeliveryGuarantee = DeliveryGuarantee.AT_LEAST_ONCE,
        **options: Any,
    ) -> list[DeliveryResult]:
        """See :meth:`MessageQueueManager.send_messages`."""
        return self._wait(self._manager.send_messages(queue_name, messages, delivery_guarantee, **options))

    def subscribe_to_queue(
        self,
        queue_name: str,
        subscriber_id: str,
        topic_pattern: str,
        callback: Callback | None = None,
        auto_acknowledge: bool = True,
        *,
        max_in_flight: int | None = None,
        blocking: bool = True,
        **metadata: str,
    ) -> str | None:
        """See :meth:`MessageQueueManager.subscribe_to_queue`; with ``blocking=False`` on the loop's thread."""
        return self._at_once(
            self._manager.subscribe_to_queue,
            queue_name,
            subscriber_id,
            topic_pattern,
            callback,
            auto_acknowledge,
            max_in_flight=max_in_flight,
            blocking=blocking,
            **metadata,
        )

    def unsubscribe_from_queue(self, queue_name: str, subscription_id: str) -> bool:
        """See :meth:`MessageQueueManager.unsubscribe_from_queue`."""
        return self._at_once(self._manager.unsubscribe_from_queue, queue_name, subscription_id)

    def receive_messages(
        self,
        queue_name: str,
        subscriber_id: str,
        max_messages: int = 1,
        wait_seconds: float = 0.0,
        *,
        visibility_timeout_seconds: float | None = None,
        topic_pattern: str = "#",
    ) -> list[QueuedMessage]:
        """See :meth:`MessageQueueManager.receive_messages`."""
        return self._wait(
            self._manager.receive_messages(
                queue_name,
                subscriber_id,
                max_messages,
                wait_seconds,
                visibility_timeout_seconds=visibility_timeout_seconds,
                topic_pattern=topic_pattern,
            )
        )

    def acknowledge_message(self, queue_name: str, message_id: MessageReference, subscriber_id: str) -> bool:
        """See :meth:`MessageQueueManager.acknowledge_message`."""
        return self._wait(self._manager.acknowledge_message(queue_name, message_id, subscriber_id))

    def negative_acknowledge(
        self,
        queue_name: str,
        message_id: MessageReference,
        subscriber_id: str,
        reason: str = "negatively acknowledged",
        delay_seconds: float = 0.0,
    ) -> bool:
        """See :meth:`MessageQueueManager.negative_acknowledge`."""
        return self._wait(
            self._manager.negative_acknowledge(queue_name, message_id, subscriber_id, reason, delay_seconds)
        )

    def extend_lease(
        self, queue_name: str, message_id: MessageReference, subscriber_id: str, seconds_from_now: float
    ) -> bool:
        """See :meth:`MessageQueueManager.extend_lease`."""
        return self._wait(self._manager.extend_lease(queue_name, message_id, subscriber_id, seconds_from_now))

    def list_dead_letters(self, queue_name: str) -> list[DeadLetter]:
        """See :meth:`MessageQueueManager.list_dead_letters`."""
        return self._at_once(self._manager.list_dead_letters, queue_name)

    def redrive_dead_letters(
        self,
        queue_name: str,
        message_ids: Iterable[DeadReference] | None = None,
        *,
        limit: int | None = None,
        target_queue: str | None = None,
        dry_run: bool = False,
    ) -> list[MessageId]:
        """See :meth:`MessageQueueManager.redrive_dead_letters`."""
        return self._wait(
            self._manager.redrive_dead_letters(
                queue_name, message_ids, limit=limit, target_queue=target_queue, dry_run=dry_run
            )
        )

    def purge_dead_letters(self, queue_name: str, message_ids: Iterable[DeadReference] | None = None) -> int:
        """See :meth:`MessageQueueManager.purge_dead_letters`."""
        return self._wait(self._manager.purge_dead_letters(queue_name, message_ids))

    def purge_queue(self, queue_name: str) -> int:
        """See :meth:`MessageQueueManager.purge_queue`."""
        return self._wait(self._manager.purge_queue(queue_name))

    def pause_queue(self, queue_name: str) -> bool:
        """See :meth:`MessageQueueManager.pause_queue`."""
        return self._at_once(self._manager.pause_queue, queue_name)

    def resume_queue(self, queue_name: str) -> bool:
        """See :meth:`MessageQueueManager.resume_queue`."""
        return self._at_once(self._manager.resume_queue, queue_name)

    def publish_to_topic_exchange(
        self,
        topic: str,
        payload: Any,
        delivery_guarantee: DeliveryGuarantee = DeliveryGuarantee.FIRE_AND_FORGET,
        *,
        headers: Mapping[str, Any] | None = None,
    ) -> bool:
        """See :meth:`MessageQueueManager.publish_to_topic_exchange`."""
        return self._wait(self._manager.publish_to_topic_exchange(topic, payload, delivery_guarantee, headers=headers))

    def route_topic_to_queue(
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
        """See :meth:`MessageQueueManager.route_topic_to_queue`."""
        return self._wait(
            self._manager.route_topic_to_queue(
                topic_pattern,
                queue_name,
                delivery_guarantee,
                backlog_seconds=backlog_seconds,
                overflow_policy=overflow_policy,
                max_buffered=max_buffered,
                **options,
            )
        )

    def unroute_topic_from_queue(self, topic_pattern: str, queue_name: str) -> bool:
        """See :meth:`MessageQueueManager.unroute_topic_from_queue`."""
        return self._wait(self._manager.unroute_topic_from_queue(topic_pattern, queue_name))

    @property
    def topic_routings(self) -> list[TopicRouting]:
        """See :attr:`MessageQueueManager.topic_routings`."""
        return self._manager.topic_routings

    def get_route_statistics(self, topic_pattern: str, queue_name: str) -> TopicRouteStatistics | None:
        """See :meth:`MessageQueueManager.get_route_statistics`."""
        return self._manager.get_route_statistics(topic_pattern, queue_name)

    def get_queue_statistics(self, queue_name: str) -> QueueStatistics | None:
        """See :meth:`MessageQueueManager.get_queue_statistics`."""
        return self._at_once(self._manager.get_queue_statistics, queue_name)

    def get_global_statistics(self) -> QueueManagerStatistics:
        """See :meth:`MessageQueueManager.get_global_statistics`."""
        return self._at_once(self._manager.get_global_statistics)

    def compact(self) -> Compaction | None:
        """See :meth:`MessageQueueManager.compact`."""
        return self._wait(self._manager.compact())

    def shutdown(self) -> None:
        """Close every queue and the log, and end the thread. Calling it again does nothing.

        Where Ctrl-C ends the wait it goes on, and calling it again waits for it.

        Raises:
            EventLogError: what a queue still had to store is not in the log; everything is closed all the same.
            MessageQueueError: called on its own loop's thread, by a callback that is not blocking; nothing is closed.
        """
        if self._process != os.getpid():
            return
        self._forbid_own_thread()
        with self._closing:
            if not self._thread.is_alive():
                return
            try:
                self._wait(self._manager.shutdown())
            except KeyboardInterrupt:
                raise
            except BaseException:
                self._end_thread()
                raise
            self._end_thread()

    def _end_thread(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.shutdown()


def _closed_error() -> QueueClosedError:
    return QueueClosedError("the queue manager is closed; make a new one")


async def _end_the_others() -> None:
    """Cancel what is still asked of a loop that has been told to stop, and wait until it has ended."""
    here = asyncio.current_task()
    while others := [task for task in asyncio.all_tasks() if task is not here]:
        for task in others:
            task.cancel()
        await asyncio.wait(others)
