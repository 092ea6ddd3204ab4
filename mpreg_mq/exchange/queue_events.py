"""Events of queues as messages on topics: ``mpreg.queue.<queue>.<event>``, once they are in the log. Off by default.

No events are published about messages that are such events, so that queues which take them in do not set off a flood.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextvars import Context
from enum import Enum
from itertools import chain
from typing import Any, cast

import attrs

from mpreg_mq.actors.store import STREAM_PREFIX
from mpreg_mq.events import types as e
from mpreg_mq.events.log import Append, EventLog, QuickWriter, quick_writer
from mpreg_mq.exchange.feed import background, running_loop
from mpreg_mq.projections import QueueState

logger = logging.getLogger("mpreg_mq")

MAX_WAITING = 10_000
"""Most events that wait to be published; then the oldest are dropped, and counted."""

PRIVATE = frozenset({"payload", "options", "configuration"})
"""Fields that are not published: they hold what was sent, or much that nobody asked for."""

Publish = Callable[[str, dict[str, Any]], Awaitable[None]]

_ENDS = (e.MessageCompleted, e.MessageFailed, e.MessageExpired, e.MessageDropped, e.DeadLetterRedriven)
"""After these there is nothing more to say about a message; a dead letter may still be redriven or purged."""


def event_name(event: e.Event) -> str:
    """``MessageEnqueued`` as ``message_enqueued``."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", type(event).__name__).lower()


class TappedLog:
    """An event log that tells of what was stored, on whichever thread stored it; in all else the log itself."""

    def __init__(self, log: EventLog, stored: Callable[[Append], None]) -> None:
        self._log = log
        self._stored = stored

    def append(self, batch: Sequence[Append], *arguments: Any, **options: Any) -> None:
        """See :meth:`EventLog.append`."""
        self._log.append(batch, *arguments, **options)
        for append in batch:
            self._stored(append)

    def quick_writer(self) -> QuickWriter | None:
        """The log's, which tells as well."""
        writer = quick_writer(self._log)
        return None if writer is None else cast(QuickWriter, _TappedWriter(writer, self._stored))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)


@attrs.define(eq=False)
class _TappedWriter:
    """A quick writer that tells of what is on disk; in all else the writer itself."""

    _writer: QuickWriter
    _stored: Callable[[Append], None]
    _written: deque[Sequence[Append]] = attrs.field(factory=deque)

    def write(self, batch: Sequence[Append]) -> bool:
        """See :meth:`QuickWriter.write`; what became of a batch that raised is told by a settlement."""
        self._written.append(batch)
        done = self._writer.write(batch)
        if not done:
            self._written.pop()
        return done

    def end_sync(self, *, wait: bool) -> int:
        """See :meth:`QuickWriter.end_sync`."""
        return self._tell(self._writer.end_sync(wait=wait))

    def settle(self) -> int:
        """See :meth:`QuickWriter.settle`."""
        try:
            return self._tell(self._writer.settle())
        finally:
            self._written.clear()

    def _tell(self, count: int) -> int:
        for _ in range(count):
            for append in self._written.popleft():
                try:
                    self._stored(append)
                # The batch is on disk, and whoever is told cannot undo that.
                except Exception:
                    logger.exception("telling of an append to %s failed", append.stream)
        return count

    def __getattr__(self, name: str) -> Any:
        return getattr(self._writer, name)


def tapped(log: EventLog, events: QueueEventPublisher | None) -> EventLog:
    """A log that tells this publisher of what is stored; the log itself without one."""
    return log if events is None else cast(EventLog, TappedLog(log, events.stored))


class QueueEventPublisher:
    """Publishes what a :class:`TappedLog` tells, on the event loop, in order.

    Args:
        prefix: how the topics begin.
        publish: puts a payload on a topic.
    """

    def __init__(self, prefix: str, publish: Publish) -> None:
        self.prefix = prefix
        self.dropped = 0
        self._publish = publish
        self._waiting: deque[tuple[str, e.Event]] = deque()
        self._silent: dict[str, set[str]] = {}
        self._loop = running_loop()
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    def stored(self, append: Append) -> None:
        """Events are in the log; any thread. They wait until there is an event loop."""
        if self._closed or not append.stream.startswith(STREAM_PREFIX):
            return
        queue_name = append.stream.removeprefix(STREAM_PREFIX)
        self._waiting.extend((queue_name, event) for event in append.events if self._tells(queue_name, event))
        self._trim()
        here = running_loop()
        if self._loop is None:
            self._loop = here
        if not self._waiting or self._loop is None or self._loop.is_closed():
            return
        # An empty context: what is published from here is nobody's callback.
        if here is self._loop:
            self._loop.call_soon(self._wake, context=Context())
        else:
            self._loop.call_soon_threadsafe(self._wake, context=Context())

    def bind(self) -> None:
        """Publish from the running loop; the first one stays."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._loop.call_soon(self._wake, context=Context())

    def recovered(self, queue_name: str, state: QueueState) -> None:
        """Find the messages of a queue of before that are events; O(its messages and dead letters)."""
        for event in chain(state.messages.all_accepted(), (dead.enqueued for dead in state.dead_letters)):
            if self._is_event(event.topic):
                self._silent.setdefault(queue_name, set()).add(event.message_id)

    def _is_event(self, topic: str) -> bool:
        return topic.startswith(f"{self.prefix}.")

    def _tells(self, queue_name: str, event: e.Event) -> bool:
        """Whether an event is about anything but messages that are events themselves."""
        topic = getattr(event, "topic", None)
        if topic is not None and self._is_event(topic):
            if isinstance(event, e.MessageEnqueued):
                self._silent.setdefault(queue_name, set()).add(event.message_id)
            return False
        silent = self._silent.get(queue_name)
        if silent is None:
            return True
        if isinstance(event, e.QueueDeleted):
            del self._silent[queue_name]
            return True
        if isinstance(event, e.MessagesPurged | e.DeadLettersPurged):
            purged = silent.intersection(event.message_ids)
            self._forget(queue_name, purged)
            return len(purged) < len(event.message_ids)
        message_id = getattr(event, "message_id", "")
        if message_id not in silent:
            return True
        if isinstance(event, _ENDS) or (isinstance(event, e.MessageAcknowledged) and event.completes):
            self._forget(queue_name, (message_id,))
        return False

    def _forget(self, queue_name: str, message_ids: Iterable[str]) -> None:
        silent = self._silent[queue_name]
        silent.difference_update(message_ids)
        if not silent:
            del self._silent[queue_name]

    def _trim(self) -> None:
        while len(self._waiting) > MAX_WAITING:
            self._waiting.popleft()
            self.dropped += 1

    def _wake(self) -> None:
        if self._task is None and self._waiting:
            self._task = background(self._drain())

    async def _drain(self) -> None:
        try:
            while self._waiting:
                queue_name, event = self._waiting.popleft()
                try:
                    await self._publish(f"{self.prefix}.{queue_name}.{event_name(event)}", _payload(queue_name, event))
                # The exchange is somebody else's code.
                except Exception:
                    logger.exception("publishing an event of queue %s failed", queue_name)
        finally:
            self._task = None

    async def close(self) -> None:
        """Publish what waits, and stop."""
        self._closed = True
        self._wake()
        if self._task is not None:
            await self._task


def _payload(queue_name: str, event: e.Event) -> dict[str, Any]:
    fields = attrs.asdict(event, filter=lambda attribute, _: attribute.name not in PRIVATE, value_serializer=_plain)
    return {"queue": queue_name, "event": event_name(event), **fields}


def _plain(_: Any, __: Any, value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    return list(value) if isinstance(value, tuple) else value
