"""Topics and topic patterns: what is well formed, what matches, and a trie that finds matching patterns.

Rule G6: segments are split at ``.``; in a pattern ``*`` stands for exactly one segment and ``#`` for zero or
more. A wildcard is always a whole segment, and a topic has none.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Sequence
from functools import cache, lru_cache
from typing import Generic, TypeGuard, TypeVar

from mpreg_mq._validation import describe
from mpreg_mq.errors import InvalidTopicError

MAX_TOPIC_LENGTH = 255
"""Most characters of a topic or pattern, dots included."""

TOPIC_CACHE_SIZE = 8192
"""How many distinct topics (and as many patterns) have their check remembered."""

known_topics: set[str] = set()
"""Topics that are well formed, for who is asked of the same ones again and again; at most so many."""

SEPARATOR = "."
ONE = "*"
ANY = "#"

T = TypeVar("T", bound=Hashable)


def topic_problem(topic: object) -> str | None:
    """What is wrong with a topic, or None where it is well formed (G6).

    O(length) for a new topic, one lookup for a repeated one that is well formed.
    """
    if not _is_cacheable(topic):
        return _shape_problem(topic, "topic")
    if topic in known_topics:
        return None
    problem = _topic_text_problem(topic)
    if problem is None:
        if len(known_topics) >= TOPIC_CACHE_SIZE:
            known_topics.clear()
        known_topics.add(topic)
    return problem


def pattern_problem(pattern: object) -> str | None:
    """What is wrong with a topic pattern, or None where it is well formed (G6). Cost as :func:`topic_problem`."""
    return _pattern_text_problem(pattern) if _is_cacheable(pattern) else _shape_problem(pattern, "topic pattern")


def check_topic(topic: object) -> None:
    """Raise where a topic is malformed.

    Raises:
        InvalidTopicError: with the text of :func:`topic_problem`.
    """
    problem = topic_problem(topic)
    if problem is not None:
        raise InvalidTopicError(problem)


def check_pattern(pattern: object) -> None:
    """Raise where a topic pattern is malformed.

    Raises:
        InvalidTopicError: with the text of :func:`pattern_problem`.
    """
    problem = pattern_problem(pattern)
    if problem is not None:
        raise InvalidTopicError(problem)


def matches(pattern: str, topic: str) -> bool:
    """Whether a well-formed pattern matches a well-formed topic: G6 word for word, the reference for the trie.

    O(pattern segments x topic segments).
    """
    wanted, given = pattern.split(SEPARATOR), topic.split(SEPARATOR)

    @cache
    def rest_matches(w: int, g: int) -> bool:
        if w == len(wanted):
            return g == len(given)
        if wanted[w] == ANY:
            return rest_matches(w + 1, g) or (g < len(given) and rest_matches(w, g + 1))
        return g < len(given) and wanted[w] in (ONE, given[g]) and rest_matches(w + 1, g + 1)

    return rest_matches(0, 0)


class _Node(Generic[T]):
    """One pattern prefix, and what may follow it; ``repeats`` is true where its last segment is ``#``.

    Wildcards are kept apart from the segments, so that nobody looks for them among a million others, and most nodes
    have no segments behind them and hold one value, so that neither is given a table before it needs one.
    """

    __slots__ = ("any", "one", "repeats", "segments", "values")

    def __init__(self, repeats: bool = False) -> None:
        self.repeats = repeats
        self.segments: dict[str, _Node[T]] | None = None
        self.one: _Node[T] | None = None
        self.any: _Node[T] | None = None
        self.values: tuple[T, ...] | set[T] = ()

    def get(self, segment: str) -> _Node[T] | None:
        """What follows with this segment of a pattern."""
        if segment == ONE:
            return self.one
        if segment == ANY:
            return self.any
        return None if self.segments is None else self.segments.get(segment)

    def put(self, segment: str, node: _Node[T] | None) -> None:
        """Have a node, or nothing, follow with this segment of a pattern."""
        if segment == ONE:
            self.one = node
        elif segment == ANY:
            self.any = node
        elif node is not None:
            if self.segments is None:
                self.segments = {}
            self.segments[segment] = node
        elif self.segments is not None:
            del self.segments[segment]

    def following(self) -> Iterator[tuple[str, _Node[T]]]:
        """Everything that follows, by its segment."""
        if self.one is not None:
            yield ONE, self.one
        if self.any is not None:
            yield ANY, self.any
        yield from (self.segments or {}).items()

    @property
    def leads_nowhere(self) -> bool:
        """Whether it neither holds nor leads to anything."""
        return not (self.values or self.segments or self.one or self.any)

    def add(self, value: T) -> bool:
        """Hold a value; False where it does already."""
        values = self.values
        if value in values:
            return False
        if isinstance(values, set):
            values.add(value)
        elif len(values) < _FEW_VALUES:
            self.values = (*values, value)
        else:
            self.values = {*values, value}
        return True

    def discard(self, value: T) -> bool:
        """Hold a value no more; False where it does not."""
        values = self.values
        if value not in values:
            return False
        if isinstance(values, set):
            values.remove(value)
        else:
            self.values = tuple(held for held in values if not (held is value or held == value))
        return True


_FEW_VALUES = 4
"""More than so many are looked for in a set."""


class TopicTrie(Generic[T]):
    """Values kept under topic patterns, found by topic (G6).

    Not safe for use from several threads at once.
    """

    __slots__ = ("_root", "_size")

    def __init__(self) -> None:
        self._root: _Node[T] = _Node()
        self._size = 0

    def __len__(self) -> int:
        """Number of (pattern, value) pairs."""
        return self._size

    def add(self, pattern: str, value: T) -> bool:
        """Keep a value under a pattern; False where it was there already. O(pattern segments).

        Raises:
            InvalidTopicError: the pattern is malformed.
        """
        check_pattern(pattern)
        node = self._root
        for segment in pattern.split(SEPARATOR):
            child = node.get(segment)
            if child is None:
                child = _Node(repeats=segment == ANY)
                node.put(segment, child)
            node = child
        if not node.add(value):
            return False
        self._size += 1
        return True

    def remove(self, pattern: str, value: T) -> bool:
        """Forget a value under a pattern; False where it was not there. O(pattern segments).

        Nodes that lead nowhere any more go too, so that memory follows the pairs held.
        """
        path: list[tuple[_Node[T], str]] = []
        node = self._root
        for segment in pattern.split(SEPARATOR):
            child = node.get(segment)
            if child is None:
                return False
            path.append((node, segment))
            node = child
        if not node.discard(value):
            return False
        self._size -= 1
        for parent, segment in reversed(path):
            if not node.leads_nowhere:
                break
            parent.put(segment, None)
            node = parent
        return True

    def match(self, topic: str) -> set[T]:
        """The values of every pattern that matches a well-formed topic; a new set.

        O(topic segments x pattern prefixes that match so far): the live prefixes are carried along as a set, so
        that neither patterns that do not match nor patterns with many ``#`` make it slower.
        """
        node = self._root
        segments = topic.split(SEPARATOR)
        for place, segment in enumerate(segments):
            # As long as one prefix alone is live, and cannot repeat, there is no set to carry along.
            following = None if node.segments is None else node.segments.get(segment)
            if node.any is not None or (following is not None and node.one is not None):
                return _matched(node, segments[place:])
            if following is None:
                following = node.one
                if following is None:
                    return set()
            node = following
        return set(node.values) if node.any is None else _matched(node, [])

    def check(self) -> None:
        """Verify the trie's own consistency, for tests.

        Raises:
            AssertionError: the size is not the number of pairs, a node leads nowhere, or a node sits under a
                segment that no pattern has.
        """
        pairs = 0
        stack: list[tuple[str, _Node[T]]] = [("", self._root)]
        while stack:
            prefix, node = stack.pop()
            pairs += len(node.values)
            if prefix and node.leads_nowhere:
                raise AssertionError(f"TopicTrie: the node {prefix!r} has neither values nor children")
            if prefix and node.values and pattern_problem(prefix) is not None:
                raise AssertionError(f"TopicTrie: the node {prefix!r} has values but is not a pattern")
            if node.repeats is not (prefix.split(SEPARATOR)[-1] == ANY):
                raise AssertionError(f"TopicTrie: the node {prefix!r} has repeats={node.repeats}")
            lead = f"{prefix}{SEPARATOR}" if prefix else ""
            stack.extend((lead + segment, child) for segment, child in node.following())
        if self._root.values:
            raise AssertionError("TopicTrie: the root has values, but no pattern is empty")
        if pairs != self._size:
            raise AssertionError(f"TopicTrie: it holds {pairs} pairs but its length is {self._size}")


def _matched(node: _Node[T], segments: Sequence[str]) -> set[T]:
    """The values behind a prefix that segments lead to, of all that there are to come."""
    live: set[_Node[T]] = set()
    _enter(live, node)
    for segment in segments:
        following: set[_Node[T]] = set()
        for node in live:
            if node.repeats:
                _enter(following, node)
            if node.segments is not None:
                _enter(following, node.segments.get(segment))
            _enter(following, node.one)
        if not following:
            return set()
        live = following
    return set().union(*(node.values for node in live))


def _enter(live: set[_Node[T]], node: _Node[T] | None) -> None:
    """Make a node live, and whatever a ``#`` behind it reaches by standing for no segment."""
    while node is not None and node not in live:
        live.add(node)
        node = node.any


def _is_cacheable(text: object) -> TypeGuard[str]:
    # Long texts stay out of the cache: it would keep them alive, and their length alone condemns them.
    return type(text) is str and len(text) <= MAX_TOPIC_LENGTH


def _shape_problem(text: object, kind: str) -> str | None:
    """The full check for what the caches do not take: other types, str subclasses and texts too long."""
    if not isinstance(text, str):
        return f"{kind}: got {describe(text)}, expected a str"
    if len(text) > MAX_TOPIC_LENGTH:
        return (
            f"{kind}: got {describe(text)}, {len(text)} characters, expected 1 to {MAX_TOPIC_LENGTH}; "
            "shorten it, or carry the rest in the headers"
        )
    plain = str.__str__(text)
    return _topic_text_problem(plain) if kind == "topic" else _pattern_text_problem(plain)


_PLAIN_SEGMENT = r"[!\"$-)+,\-/-~]+"
"""What most are made of: printable ASCII without a space, a dot or a wildcard."""
_is_plain_topic = re.compile(rf"{_PLAIN_SEGMENT}(?:\.{_PLAIN_SEGMENT})*").fullmatch


def _topic_text_problem(text: str) -> str | None:
    """:func:`topic_problem` of a ``str`` that is not too long."""
    if _is_plain_topic(text):
        return None
    if ONE in text or ANY in text:
        return f"topic: got {describe(text)}, expected no '*' or '#'; wildcards belong in the patterns of subscriptions"
    return _segments_problem("topic", text)


@lru_cache(TOPIC_CACHE_SIZE)
def _pattern_text_problem(pattern: object) -> str | None:
    text = str(pattern)
    for segment in text.split(SEPARATOR):
        if len(segment) > 1 and (ONE in segment or ANY in segment):
            return (
                f"topic pattern: got {describe(text)}, expected '*' and '#' only as whole segments, "
                f"but one segment is {describe(segment)}; write for example 'user.*' or 'user.#'"
            )
    return _segments_problem("topic pattern", text)


def _segments_problem(kind: str, text: str) -> str | None:
    if not text:
        return f"{kind}: got '', expected 1 to {MAX_TOPIC_LENGTH} characters"
    if "" in text.split(SEPARATOR):
        return (
            f"{kind}: got {describe(text)}, expected no empty segment; "
            "remove the dot at its start or end, or the doubled one"
        )
    if " " in text or not text.isprintable():
        return (
            f"{kind}: got {describe(text)}, expected only printable characters without whitespace; "
            "replace spaces, for example with '_'"
        )
    return None
