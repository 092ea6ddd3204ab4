"""Topic routes: messages of a topic exchange go into queues, and each route survives a restart.

The router subscribes to the exchange once for each pattern. A notification becomes a send with the message's topic,
payload, headers and publisher, and with its id as the deduplication id.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import uuid
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

import attrs
import msgspec

from mpreg_mq._validation import describe, seconds, whole
from mpreg_mq.actors.futures import settle_future
from mpreg_mq.actors.retention import all_events
from mpreg_mq.actors.store import Store
from mpreg_mq.clock import Clock
from mpreg_mq.ending import OneAtATime
from mpreg_mq.errors import InvalidOptionError, PayloadError, QueueClosedError
from mpreg_mq.events import types as e
from mpreg_mq.exchange.feed import QueueFeed, RoutedMessage, running_loop
from mpreg_mq.exchange.messages import Exchange, Vocabulary
from mpreg_mq.exchange.origin import MAX_TRAIL, Trail, current_trail, joined, origin_headers, place, trail_of
from mpreg_mq.exchange.routes import ROUTES_STREAM, Route, RouteKey, RouteTable
from mpreg_mq.exchange.taken import Taken
from mpreg_mq.forking import forget_after_fork
from mpreg_mq.model import DeliveryResult, MessageOptions, OverflowPolicy, TopicRouteStatistics, TopicRouting
from mpreg_mq.options import delay_problem, guarantee_of, message_options, require
from mpreg_mq.payload import encode_payload
from mpreg_mq.queue import MessageQueue
from mpreg_mq.topics import check_pattern

logger = logging.getLogger("mpreg_mq")

SUBSCRIBER = "mpreg-mq"
MAX_EARLY = 10_000
"""Most messages kept that are published before there is an event loop to send them on."""

T = TypeVar("T")
Announce = Callable[[Any], Awaitable[None]]


async def _nobody(_: Any) -> None:
    """Tell nobody."""


@attrs.define
class Announcements:
    """How others hear of a router's subscriptions: MPREG's fabric, by which remote servers send what matches."""

    subscribed: Announce = _nobody
    unsubscribed: Callable[[str], Awaitable[None]] = _nobody


class TopicRouter:
    """The routes of one manager. Made and closed by it; use the manager's methods.

    Args:
        exchange: where messages come from; None where there is nothing to subscribe to, and routes only wait for one.
        find: the queue of a name.
        store: where the routes are kept.
        clock: where the time comes from.
        cluster: the name of this side in trails, where several share an exchange.
    """

    def __init__(
        self,
        exchange: Exchange | None,
        find: Callable[[str], MessageQueue | None],
        store: Store,
        clock: Clock,
        cluster: str = "",
    ) -> None:
        self.exchange = exchange
        self.cluster = cluster
        self.announcements = Announcements()
        self._find = find
        self._store = store
        self._clock = clock
        self._feeds: dict[str, QueueFeed] = {}
        self._taken = Taken()
        self._subscriptions: dict[str, str] = {}
        self._early: deque[tuple[Any, str, Trail]] = deque(maxlen=MAX_EARLY)
        self._loop = running_loop()
        self._recording = OneAtATime()
        self._closed = False
        self._load()
        self._follow()
        forget_after_fork(self)

    def forget_in_child(self) -> None:
        """In a forked child: wait for nothing on the parent's loop, which only seems to run."""
        self._loop, self._recording = None, OneAtATime()

    # --- the verbs ----------------------------------------------------------------------------------------

    async def add(
        self,
        topic_pattern: str,
        queue_name: str,
        guarantee: Any,
        *,
        find_or_create: Callable[[], Awaitable[MessageQueue | DeliveryResult]],
        backlog_seconds: float | None,
        overflow_policy: Any,
        max_buffered: int,
        options: dict[str, Any],
    ) -> bool:
        """Begin a route, or change the one of this pattern and queue; it is in the log before it is used.

        Args:
            find_or_create: the queue, which it makes where that may be; asked once the arguments have been found good.

        Returns:
            False if there is no such queue.

        Raises:
            InvalidTopicError: the pattern is malformed.
            InvalidOptionError: an option is bad.
            EventLogError: the route could not be stored; nothing changed.
        """
        check_pattern(topic_pattern)
        chosen = guarantee_of(guarantee)
        require("backlog_seconds", seconds(0.0, optional=True), backlog_seconds)
        require("max_buffered", whole(1, 1_000_000), max_buffered)
        policy = _policy_of(overflow_policy)
        checked = _route_options(options)
        if (problem := delay_problem(chosen, checked)) is not None:
            raise InvalidOptionError(problem)
        wanted = TopicRouting(topic_pattern, queue_name, chosen, 0.0, checked, policy, max_buffered)
        while not isinstance(await find_or_create(), DeliveryResult):
            # It may have been deleted just now.
            if await self.at_home(partial(self._begin, wanted, backlog_seconds)):
                return True
        return False

    async def _begin(self, wanted: TopicRouting, backlog_seconds: float | None) -> bool:
        """Begin a route, or change it; False where its queue is gone."""
        topic_pattern, queue_name = wanted.topic_pattern, wanted.queue_name
        async with self._recording:
            self._check_open()
            if self._find(queue_name) is None:
                return False
            known = self.table.get((topic_pattern, queue_name))
            if known is None or attrs.evolve(known.routing, created_at=0.0) != wanted:
                await self._record(
                    e.TopicRouteAdded(
                        self._clock.now(),
                        topic_pattern,
                        queue_name,
                        wanted.delivery_guarantee,
                        wanted.options,
                        wanted.overflow_policy,
                        wanted.max_buffered,
                    )
                )
            self.bind()
            feed = self._feeds.get(queue_name)
            if feed is not None:
                feed.begin((topic_pattern, queue_name))
            subscription = self._subscribe(topic_pattern)
            if known is None and backlog_seconds:
                self._take_backlog(topic_pattern, queue_name, backlog_seconds)
        if subscription is not None:
            await self._announce(self.announcements.subscribed(subscription))
        return True

    async def remove(self, topic_pattern: str, queue_name: str) -> bool:
        """End a route; whether there was one.

        Raises:
            EventLogError: that could not be stored; the route goes on.
        """
        return await self.at_home(partial(self._end, topic_pattern, queue_name))

    async def _end(self, topic_pattern: str, queue_name: str) -> bool:
        async with self._recording:
            # What other threads have published by now is on its way to this loop, and it may be for this route alone.
            await asyncio.sleep(0)
            self._check_open()
            if self.table.get((topic_pattern, queue_name)) is None:
                return False
            ended = await self._remove(topic_pattern, queue_name)
        if ended is not None:
            await self._announce(self.announcements.unsubscribed(ended))
        return True

    async def _remove(self, topic_pattern: str, queue_name: str) -> str | None:
        """End a route, under the lock; the subscription that ended with it."""
        await self._record(e.TopicRouteRemoved(self._clock.now(), topic_pattern, queue_name))
        feed = self._feeds.get(queue_name)
        if feed is not None:
            feed.end((topic_pattern, queue_name))
        return None if self.table.of_pattern(topic_pattern) else self._unsubscribe(topic_pattern)

    @contextlib.asynccontextmanager
    async def ending(self, queue_name: str) -> AsyncIterator[None]:
        """End every route into a queue, and let none begin while it is deleted, which is to be done within, at home.

        The routes go first: a queue without routes can be deleted again, but routes that are left without a queue would
        lead into the next one of its name.

        Raises:
            EventLogError: that could not be stored; the routes that are left go on.
            QueueClosedError: the manager is closed.
        """
        ended: list[str | None] = []
        try:
            async with self._recording:
                self._check_open()
                for route in self.table.of_queue(queue_name):
                    ended.append(await self._remove(*route.key))
                yield
                self._taken.forget(queue_name)
                feed = self._feeds.pop(queue_name, None)
                if feed is not None:
                    await feed.delete()
        finally:
            for subscription_id in ended:
                if subscription_id is not None:
                    await self._announce(self.announcements.unsubscribed(subscription_id))

    @property
    def routings(self) -> list[TopicRouting]:
        """The routes, oldest first."""
        return [route.routing for route in self.table.all()]

    def statistics(self, topic_pattern: str, queue_name: str) -> TopicRouteStatistics | None:
        """The counts of a route; a copy. None where there is no such route."""
        route = self.table.get((topic_pattern, queue_name))
        if route is None:
            return None
        feed = self._feeds.get(queue_name)
        return TopicRouteStatistics() if feed is None else attrs.evolve(feed.statistics(route))

    # --- the exchange -------------------------------------------------------------------------------------

    def bind(self) -> None:
        """Send from the running loop, unless another one does that and runs still. What came too early goes out."""
        here = asyncio.get_running_loop()
        if self._loop is None or not self._loop.is_running():
            self._loop = here
        while self._loop is here and self._early:
            self._take(*self._early.popleft())

    async def at_home(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Do something on the loop that the routes send on: what changes them would be in its way on another thread."""
        self.bind()
        if (loop := self._loop) is None or loop is asyncio.get_running_loop():
            return await work()
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work(), loop))

    async def announce_all(self) -> None:
        """Announce every subscription anew."""
        for subscription_id in list(self._subscriptions.values()):
            subscription = getattr(self.exchange, "subscriptions", {}).get(subscription_id)
            if subscription is not None:
                await self._announce(self.announcements.subscribed(subscription))

    @staticmethod
    async def _announce(announcing: Awaitable[None]) -> None:
        try:
            await announcing
        # The fabric is somebody else's code, and announces again by itself.
        except Exception:
            logger.exception("a topic subscription could not be announced")

    def _subscribe(self, pattern: str) -> Any:
        """Subscribe to a pattern, once; the new subscription, or None."""
        if self.exchange is None or pattern in self._subscriptions:
            return None
        words = Vocabulary.of(self.exchange)
        subscription = words.subscription(
            subscription_id=f"{SUBSCRIBER}-{uuid.uuid4()}",
            patterns=(words.pattern(pattern=_simplest(pattern)),),
            subscriber=SUBSCRIBER,
            created_at=self._clock.now(),
            get_backlog=False,
        )

        def notified(notification: Any) -> None:
            self._notified(notification.message, pattern)

        self.exchange.add_internal_subscription(subscription, notified)
        self._subscriptions[pattern] = subscription.subscription_id
        return subscription

    def _unsubscribe(self, pattern: str) -> str | None:
        subscription_id = self._subscriptions.pop(pattern, None)
        if subscription_id is not None and self.exchange is not None:
            self.exchange.remove_subscription(subscription_id)
        return subscription_id

    def _notified(self, message: Any, pattern: str) -> None:
        """A message was published, on whichever thread; nothing that goes wrong here may reach its publisher."""
        try:
            trail = joined(trail_of(message.headers), current_trail(self.cluster))
            here, loop = running_loop(), self._loop
            if here is not loop and loop is not None and loop.is_running():
                loop.call_soon_threadsafe(self._take, message, pattern, trail)
            elif here is None:
                self._early.append((message, pattern, trail))
            else:
                self.bind()
                self._take(message, pattern, trail)
        except Exception:
            logger.exception("route %s: a message was lost", pattern)

    def _take_backlog(self, pattern: str, queue_name: str, age_seconds: float) -> None:
        assert self.exchange is not None
        route = self.table.get((pattern, queue_name))
        assert route is not None
        for message in self.exchange.backlog.get_backlog(pattern, int(age_seconds + 0.999)):
            self._offer(route, message, trail_of(message.headers), of_backlog=True)

    def _take(self, message: Any, pattern: str, trail: Trail) -> None:
        routes = list(self.table.of_pattern(pattern))
        for route in routes:
            self._offer(route, message, trail)
        if not routes:
            # The pattern's last route ended while another thread told of the message: newer ones have left it to that.
            for route in self.table.matching(message.topic):
                ended = (pattern, route.routing.queue_name)
                if not self._taken.has_otherwise(message, ended):
                    self._offer(route, message, trail, instead_of=ended)

    def _offer(
        self,
        route: Route,
        message: Any,
        trail: Trail,
        *,
        of_backlog: bool = False,
        instead_of: RouteKey | None = None,
    ) -> None:
        """Put a message into the feed of a route's queue, unless it has been there or goes there anyhow."""
        queue_name = route.routing.queue_name
        feed = self._feeds.get(queue_name)
        if feed is None:
            lost = functools.partial(self._taken.lost, queue_name=queue_name)
            feed = self._feeds[queue_name] = QueueFeed(queue_name, self._find, self._clock, lost)
            if self._closed:
                feed.abandon()
        counts = feed.statistics(route)
        counts.received += 1
        try:
            if place(self.cluster, queue_name) in trail or len(trail) >= MAX_TRAIL:
                counts.looped += 1
            elif self._goes_there_anyhow(route, message, of_backlog):
                counts.overlapping += 1
            else:
                routed = RoutedMessage(str(message.message_id), route, _entry(route, message, trail))
                self._taken.note(message, instead_of or route.key, of_backlog=of_backlog)
                feed.put(routed)
        except PayloadError as error:
            feed.refuse(route, str(error))
        # Whatever it is, the other routes get the message.
        except Exception as error:
            logger.exception("route %s -> %s: a message was lost", *route.key)
            feed.refuse(route, f"{type(error).__name__}: {error}")

    def _goes_there_anyhow(self, route: Route, message: Any, of_backlog: bool) -> bool:
        """Whether another route takes a message into the queue, or has done so.

        An older route takes what is published now, but not what was published before there was that route.
        """
        if of_backlog:
            return self._taken.has(str(message.message_id), route.routing.queue_name)
        # A message of another thread is in the backlog before anybody is told of it; and an older route that took it
        # may have ended before this one is told.
        return self._taken.has_otherwise(message, route.key) or not self.table.is_first(route, message.topic)

    # --- the log ------------------------------------------------------------------------------------------

    async def _record(self, event: e.Event) -> None:
        """Store an event and then fold it; the loop does not wait for the disk."""
        try:
            await self._append(event)
        except BaseException:
            # It may be in the log all the same: a commit that failed is unknown, and one that nobody waits for goes on.
            self._load()
            self._follow()
            raise
        self._version += 1
        self.table.apply(event)

    async def _append(self, event: e.Event) -> None:
        if self._store.journal is None:
            self._store.append(ROUTES_STREAM, self._version, (event,))
            return
        loop = asyncio.get_running_loop()
        stored: asyncio.Future[None] = loop.create_future()
        self._store.submit(ROUTES_STREAM, self._version, (event,), partial(settle_future, stored, None), loop)
        try:
            await asyncio.shield(stored)
        except asyncio.CancelledError:
            await asyncio.wait([stored])
            raise

    def _follow(self) -> None:
        """Subscribe to the patterns that have routes, and to no others."""
        patterns = set(self.table.patterns())
        for pattern in patterns:
            self._subscribe(pattern)
        for pattern in self._subscriptions.keys() - patterns:
            self._unsubscribe(pattern)

    def _load(self) -> None:
        log = self._store.log
        self.table = RouteTable.replay(all_events(log, ROUTES_STREAM))
        self._version = log.stream_version(ROUTES_STREAM)

    def _check_open(self) -> None:
        if self._closed:
            raise QueueClosedError("the queue manager is closed; make a new one")

    # --- the end ------------------------------------------------------------------------------------------

    async def close(self, timeout_seconds: float) -> None:
        """Leave the exchange, send what waits for at most this long, and refuse the rest; the routes stay stored."""
        await self.at_home(partial(self._close, timeout_seconds))

    async def _close(self, timeout_seconds: float) -> None:
        if self._closed:
            return
        # What other threads have published by now is on its way to this loop.
        await asyncio.sleep(0)
        ended = self._leave()
        await asyncio.gather(*(feed.close(timeout_seconds) for feed in self._feeds.values()))
        for subscription_id in ended:
            await self._announce(self.announcements.unsubscribed(subscription_id))

    def close_now(self) -> None:
        """Leave the exchange, and refuse what waits."""
        if not self._closed:
            self._leave()
            for feed in self._feeds.values():
                feed.abandon()

    def _leave(self) -> list[str]:
        self._closed = True
        if self._early:
            logger.warning("topic routes: %d messages came before there was an event loop", len(self._early))
            self._early.clear()
        return [ended for pattern in list(self._subscriptions) if (ended := self._unsubscribe(pattern)) is not None]


def _simplest(pattern: str) -> str:
    """The pattern with one ``#`` where it has several in a row: the same topics, and MPREG's trie finds them."""
    segments = pattern.split(".")
    return ".".join(one for one, before in zip(segments, ["", *segments], strict=False) if not one == before == "#")


def _policy_of(value: Any) -> OverflowPolicy:
    try:
        return OverflowPolicy(getattr(value, "value", value))
    except ValueError:
        allowed = ", ".join(member.value for member in OverflowPolicy)
        raise InvalidOptionError(f"overflow_policy: got {describe(value)}, expected one of {allowed}") from None


def _route_options(given: dict[str, Any]) -> MessageOptions:
    """The options that go with every message of a route.

    Raises:
        InvalidOptionError: one is bad, or is a ``deduplication_id``, which is each message's own id.
    """
    checked = message_options({name: value for name, value in given.items() if value is not None})
    if checked.deduplication_id is not None:
        raise InvalidOptionError(
            f"deduplication_id: got {describe(checked.deduplication_id)}, expected none; "
            "a routed message has its own id as deduplication id"
        )
    return checked


def _entry(route: Route, message: Any, trail: Trail) -> dict[str, Any]:
    """The send that a published message becomes; its payload is encoded now (S3).

    Raises:
        PayloadError: the payload cannot be encoded.
    """
    headers = {**route.options.get("headers", {}), **origin_headers(message, route.routing.topic_pattern, trail)}
    message_id = str(message.message_id)
    return {
        **route.options,
        "topic": message.topic,
        "payload": msgspec.Raw(encode_payload(message.payload)),
        "headers": headers,
        "deduplication_id": message_id if 0 < len(message_id) <= 256 else None,
    }
