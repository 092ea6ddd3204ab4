"""A topic exchange for programs without MPREG: the interface of MPREG's, within one process."""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import attrs

from mpreg_mq.clock import Clock, SystemClock
from mpreg_mq.exchange.messages import Listener, TopicNotification
from mpreg_mq.topics import TopicTrie, check_topic, matches

logger = logging.getLogger("mpreg_mq")

BACKLOG_MESSAGES = 1000
BACKLOG_SECONDS = 3600.0


@attrs.define(eq=False)
class MessageBacklog:
    """The latest messages of an exchange, bounded in number and age."""

    _now: Callable[[], float]
    _messages: deque[Any] = attrs.field(factory=lambda: deque(maxlen=BACKLOG_MESSAGES))
    _lock: threading.Lock = attrs.field(factory=threading.Lock)

    def add_message(self, message: Any) -> None:
        """Remember a message; O(1)."""
        with self._lock:
            self._messages.append(message)

    def get_backlog(self, topic_pattern: str, max_age_seconds: float) -> list[Any]:
        """The messages on matching topics that are not older, oldest first; O(messages held).

        Nothing older than :data:`BACKLOG_SECONDS` is given.
        """
        since = self._now() - min(max_age_seconds, BACKLOG_SECONDS)
        with self._lock:
            held = list(self._messages)
        return sorted(
            (message for message in held if message.timestamp >= since and matches(topic_pattern, message.topic)),
            key=lambda message: float(message.timestamp),
        )


class TopicExchange:
    """Hands published messages to the subscriptions whose patterns match (G6). Safe for use from any thread.

    Args:
        clock: where the age of the backlog comes from.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self.backlog = MessageBacklog((clock or SystemClock()).now)
        self.subscriptions: dict[str, Any] = {}
        self.messages_published = 0
        self.messages_delivered = 0
        self._listeners: dict[str, Listener] = {}
        self._trie: TopicTrie[str] = TopicTrie()
        self._lock = threading.RLock()
        self._tasks: set[asyncio.Task[None]] = set()

    def add_internal_subscription(self, subscription: Any, callback: Listener) -> None:
        """Call ``callback`` with a notification for each message that matches; what it raises is logged.

        A coroutine that it returns becomes a task of the running loop. A subscription of the same id is replaced.

        Raises:
            InvalidTopicError: a pattern is malformed; nothing changed.
        """
        with self._lock:
            added: TopicTrie[str] = TopicTrie()
            for pattern in subscription.patterns:
                added.add(pattern.pattern, subscription.subscription_id)
            self.remove_subscription(subscription.subscription_id)
            for pattern in subscription.patterns:
                self._trie.add(pattern.pattern, subscription.subscription_id)
            self.subscriptions[subscription.subscription_id] = subscription
            self._listeners[subscription.subscription_id] = callback

    def remove_subscription(self, subscription_id: str) -> bool:
        """End a subscription; whether there was one."""
        with self._lock:
            subscription = self.subscriptions.pop(subscription_id, None)
            if subscription is None:
                return False
            del self._listeners[subscription_id]
            for pattern in subscription.patterns:
                self._trie.remove(pattern.pattern, subscription_id)
            return True

    def publish_message(self, message: Any) -> list[TopicNotification]:
        """Hand a message to everybody it concerns; the notifications.

        O(topic segments and subscriptions that match).

        Raises:
            InvalidTopicError: the topic is malformed; nobody got anything.
        """
        check_topic(message.topic)
        with self._lock:
            self.backlog.add_message(message)
            subscription_ids = sorted(self._trie.match(message.topic))
            listeners = [self._listeners[subscription_id] for subscription_id in subscription_ids]
            self.messages_published += 1
            self.messages_delivered += len(listeners)
        notifications = [TopicNotification(message, subscription_id) for subscription_id in subscription_ids]
        for listener, notification in zip(listeners, notifications, strict=True):
            self._call(listener, notification)
        return notifications

    def _call(self, listener: Listener, notification: TopicNotification) -> None:
        try:
            returned = listener(notification)
            if inspect.iscoroutine(returned):
                task = asyncio.get_running_loop().create_task(returned)
                self._tasks.add(task)
                task.add_done_callback(self._finished)
        # A listener's fault is not the publisher's.
        except Exception:
            logger.exception("topic exchange: a listener failed on %s", notification.message.topic)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("topic exchange: a listener failed", exc_info=task.exception())
