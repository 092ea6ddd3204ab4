"""The routes of a manager: a fold of their stream, and for each topic which of them apply."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count
from typing import Any, ClassVar

import attrs

from mpreg_mq.events import types as e
from mpreg_mq.model import TopicRouting
from mpreg_mq.projections.base import Handled, Projection, contradiction
from mpreg_mq.topics import TopicTrie, matches

ROUTES_STREAM = "routes:topics"
"""The stream of the events that :class:`RouteTable` folds."""

RouteKey = tuple[str, str]
"""(topic pattern, queue name): there is one route for each."""


@attrs.frozen
class Route:
    """A route and its age: of two routes into one queue that both match, the one with the lower ``order`` is taken."""

    routing: TopicRouting
    order: int
    key: RouteKey
    """What tells it from other routes."""
    options: dict[str, Any]
    """The send options that it sets."""

    @classmethod
    def of(cls, routing: TopicRouting, order: int) -> Route:
        """The route of this age."""
        options = attrs.asdict(routing.options, filter=lambda _, value: value is not None)
        return cls(routing, order, (routing.topic_pattern, routing.queue_name), options)


class RouteTable(Projection):
    """The routes by pattern and queue."""

    HANDLED: ClassVar[Handled] = {e.TopicRouteAdded: "_on_added", e.TopicRouteRemoved: "_on_removed"}

    def __init__(self) -> None:
        self._routes: dict[RouteKey, Route] = {}
        self._by_pattern: dict[str, dict[str, Route]] = {}
        self._by_queue: dict[str, TopicTrie[int]] = {}
        self._orders = count()

    def _on_added(self, event: e.TopicRouteAdded) -> None:
        routing = TopicRouting(
            event.topic_pattern,
            event.queue_name,
            event.guarantee,
            event.at,
            event.options,
            event.overflow_policy,
            event.max_buffered,
        )
        known = self._routes.get((event.topic_pattern, event.queue_name))
        route = Route.of(routing, next(self._orders) if known is None else known.order)
        self._routes[route.key] = route
        self._by_pattern.setdefault(event.topic_pattern, {})[event.queue_name] = route
        self._by_queue.setdefault(event.queue_name, TopicTrie()).add(event.topic_pattern, route.order)

    def _on_removed(self, event: e.TopicRouteRemoved) -> None:
        route = self._routes.pop((event.topic_pattern, event.queue_name), None)
        if route is None:
            raise contradiction(event, "there is no such route")
        of_pattern = self._by_pattern[event.topic_pattern]
        del of_pattern[event.queue_name]
        if not of_pattern:
            del self._by_pattern[event.topic_pattern]
        trie = self._by_queue[event.queue_name]
        trie.remove(event.topic_pattern, route.order)
        if not len(trie):
            del self._by_queue[event.queue_name]

    def get(self, key: RouteKey) -> Route | None:
        """The route of this pattern and queue. What can be no name, such as a list, finds none."""
        return self._routes.get(key) if all(isinstance(name, str) for name in key) else None

    def all(self) -> list[Route]:
        """Every route, oldest first; O(n log n)."""
        return sorted(self._routes.values(), key=lambda route: route.order)

    def patterns(self) -> list[str]:
        """The patterns that have routes."""
        return list(self._by_pattern)

    def of_pattern(self, pattern: str) -> Iterable[Route]:
        """The routes of a pattern, one for each queue."""
        return self._by_pattern.get(pattern, {}).values()

    def of_queue(self, queue_name: str) -> list[Route]:
        """The routes into a queue, oldest first."""
        return [route for route in self.all() if route.routing.queue_name == queue_name]

    def matching(self, topic: str) -> list[Route]:
        """The routes that take messages of a topic, into whichever queues, oldest first; O(routes)."""
        return [route for route in self.all() if matches(route.routing.topic_pattern, topic)]

    def is_first(self, route: Route, topic: str) -> bool:
        """Whether no older route takes messages of this topic to the same queue; O(topic segments)."""
        trie = self._by_queue[route.routing.queue_name]
        return len(trie) == 1 or min(trie.match(topic), default=route.order) >= route.order

    def check(self) -> None:
        """Assert that the three tables hold the same routes."""
        assert sum(len(of_pattern) for of_pattern in self._by_pattern.values()) == len(self._routes)
        assert sum(len(trie) for trie in self._by_queue.values()) == len(self._routes)
        for trie in self._by_queue.values():
            trie.check()
