"""Topics and topic patterns (G6)."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpreg_mq.errors import InvalidTopicError, MessageQueueError
from mpreg_mq.topics import (
    MAX_TOPIC_LENGTH,
    TopicTrie,
    _Node,
    check_pattern,
    check_topic,
    matches,
    pattern_problem,
    topic_problem,
)

EXAMPLES = [
    ("user.created", "user.created", True),
    ("user.created", "user.deleted", False),
    ("user.created", "user", False),
    ("user", "user.created", False),
    ("user.*", "user.created", True),
    ("user.*", "user", False),
    ("user.*", "user.created.eu", False),
    ("*.alert.*", "db.alert.high", True),
    ("*.alert.*", "alert.high", False),
    ("*.alert.*", "db.alert", False),
    ("system.#", "system", True),
    ("system.#", "system.disk", True),
    ("system.#", "system.disk.full.now", True),
    ("system.#", "systems.disk", False),
    ("#", "a", True),
    ("#", "a.b.c", True),
    ("a.#", "a", True),
    ("#.end", "end", True),
    ("#.end", "a.b.end", True),
    ("#.end", "a.end.b", False),
    ("a.#.z", "a.z", True),
    ("a.#.z", "a.b.c.z", True),
    ("a.#.z", "a.b.c", False),
    ("#.#", "a", True),
    ("*.#", "a", True),
    ("#.*", "a", True),
    ("*.#.*", "a", False),
    ("*.#.*", "a.b", True),
    ("*", "a", True),
    ("*", "a.b", False),
    ("größe.*", "größe.日本", True),
    ("A", "a", False),
]

segments = st.sampled_from(["a", "b", "c"])
topics = st.lists(segments, min_size=1, max_size=6).map(".".join)
patterns = st.lists(st.one_of(segments, st.sampled_from(["*", "#"])), min_size=1, max_size=6).map(".".join)


@pytest.mark.parametrize(("pattern", "topic", "expected"), EXAMPLES)
def test_g6_examples(pattern: str, topic: str, expected: bool) -> None:
    """``*`` is exactly one segment, ``#`` zero or more, anything else itself: in the reference and in the trie."""
    trie: TopicTrie[str] = TopicTrie()
    trie.add(pattern, "it")

    assert matches(pattern, topic) is expected
    assert trie.match(topic) == ({"it"} if expected else set())


@pytest.mark.parametrize(
    "text", ["a", "a.b", "user-1.created_at", "größe", "日本.東京", "a:b/c", "x" * MAX_TOPIC_LENGTH]
)
def test_g6_well_formed_topics_are_also_patterns(text: str) -> None:
    """A topic of printable characters within the length is fine, and is a pattern that matches itself."""
    check_topic(text)
    check_pattern(text)

    assert topic_problem(text) is None
    assert pattern_problem(text) is None
    assert matches(text, text)


@given(st.text(st.sampled_from("ab.*# ~!\x7f\té\u00a0"), max_size=6) | st.text(max_size=20))
def test_g6_a_topic_is_printable_segments_without_wildcards(text: str) -> None:
    """For all texts: it is a topic if it has segments, none of them empty, of printable characters but spaces and
    wildcards."""
    well_formed = all(text.split(".")) and all(char.isprintable() and char not in " *#" for char in text)
    assert (topic_problem(text) is None) is well_formed


@pytest.mark.parametrize("pattern", ["*", "#", "*.*", "#.#", "user.*", "*.alert.*", "system.#", "#.a.#"])
def test_g6_wildcards_belong_in_patterns_only(pattern: str) -> None:
    """A pattern may have wildcards as whole segments; a topic may not."""
    assert pattern_problem(pattern) is None
    assert "wildcards" in str(topic_problem(pattern))
    with pytest.raises(InvalidTopicError):
        check_topic(pattern)


@pytest.mark.parametrize("pattern", ["a*", "*a", "a.b#", "##", "**", "*#", "a.#b.c"])
def test_g6_a_wildcard_is_a_whole_segment(pattern: str) -> None:
    """A wildcard beside other characters in its segment is malformed."""
    assert "whole segments" in str(pattern_problem(pattern))
    assert topic_problem(pattern) is not None


@pytest.mark.parametrize(
    "text", ["", ".", "a.", ".a", "a..b", "a b", " ", "a\tb", "a\n", "a\x00b", "a\u00a0b", "a\u3000b"]
)
def test_g6_malformed_topics_and_patterns(text: str) -> None:
    """No empty text, no empty segment, no whitespace, no control character; the error says what was given."""
    for problem in (topic_problem(text), pattern_problem(text)):
        assert problem is not None
        assert repr(text) in problem
        assert "expected" in problem


@pytest.mark.parametrize("text", [None, 7, b"a.b", ["a"], object()])
def test_g6_a_topic_is_a_str(text: object) -> None:
    """Anything but a str is malformed, hashable or not, and raises the package's error and a ValueError."""
    with pytest.raises(InvalidTopicError, match="expected a str") as caught:
        check_topic(text)
    assert isinstance(caught.value, MessageQueueError)
    assert isinstance(caught.value, ValueError)
    with pytest.raises(InvalidTopicError, match="expected a str"):
        check_pattern(text)


def test_g6_length_is_limited() -> None:
    """A topic has at most 255 characters, and the error names both numbers without quoting all of a long text."""
    problem = topic_problem("x" * 100_000)

    assert problem is not None
    assert "100000" in problem
    assert str(MAX_TOPIC_LENGTH) in problem
    assert len(problem) < 300
    assert pattern_problem("x" * (MAX_TOPIC_LENGTH + 1)) is not None


def test_g6_a_subclass_of_str_is_judged_by_its_text() -> None:
    """A str subclass passes and fails as the plain text would, whatever its ``str()`` says."""

    class Name(str):
        def __str__(self) -> str:
            return "fine"

    assert topic_problem(Name("a.b")) is None
    assert topic_problem(Name("a..b")) is not None
    assert pattern_problem(Name("a.*")) is None
    assert pattern_problem(Name("a*")) is not None


@settings(deadline=None)
@given(st.dictionaries(st.integers(0, 20), patterns, max_size=12), topics)
def test_g6_the_trie_agrees_with_the_reference(kept: dict[int, str], topic: str) -> None:
    """For all sets of patterns and all topics, the trie finds exactly those that the reference matches."""
    trie: TopicTrie[int] = TopicTrie()
    for value, pattern in kept.items():
        assert trie.add(pattern, value)

    trie.check()
    assert trie.match(topic) == {value for value, pattern in kept.items() if matches(pattern, topic)}


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), patterns, st.integers(0, 3)), max_size=40), topics)
def test_the_trie_is_a_set_of_pairs(steps: list[tuple[bool, str, int]], topic: str) -> None:
    """For all sequences of add and remove, it holds what a set of (pattern, value) pairs holds, and stays pruned."""
    trie: TopicTrie[int] = TopicTrie()
    model: set[tuple[str, int]] = set()
    for adding, pattern, value in steps:
        pair = (pattern, value)
        if adding:
            assert trie.add(pattern, value) is (pair not in model)
            model.add(pair)
        else:
            assert trie.remove(pattern, value) is (pair in model)
            model.discard(pair)
        trie.check()
        assert len(trie) == len(model)

    assert trie.match(topic) == {value for pattern, value in model if matches(pattern, topic)}
    for pattern, value in model:
        assert trie.remove(pattern, value)
    trie.check()
    assert len(trie) == 0


@given(st.permutations(range(8)))
def test_many_values_of_one_pattern_are_kept_and_forgotten_one_by_one(order: list[int]) -> None:
    """Given more values under one pattern than need no table, then each is there until it is removed."""
    trie: TopicTrie[int] = TopicTrie()
    for value in range(8):
        assert trie.add("a.*", value)
        assert not trie.add("a.*", value)
        assert trie.match("a.b") == set(range(value + 1))
    kept = set(range(8))
    for value in order:
        assert trie.remove("a.*", value)
        assert not trie.remove("a.*", value)
        kept.discard(value)
        assert trie.match("a.b") == kept
        trie.check()


def test_the_trie_refuses_malformed_patterns() -> None:
    """Adding a malformed pattern raises and leaves nothing behind."""
    trie: TopicTrie[str] = TopicTrie()

    with pytest.raises(InvalidTopicError):
        trie.add("a.b*", "it")

    trie.check()
    assert len(trie) == 0
    assert trie.remove("a.b*", "it") is False


def test_a_match_is_the_callers_own() -> None:
    """Changing the set that a match returned changes nothing in the trie."""
    trie: TopicTrie[str] = TopicTrie()
    trie.add("a", "it")

    trie.match("a").clear()

    assert trie.match("a") == {"it"}


@pytest.mark.parametrize("tail", ["a", "b"])
def test_patterns_full_of_wildcards_do_not_blow_up(tail: str) -> None:
    """``#.a.#.a...`` against ``a.a.a...`` finishes, where trying every split would take longer than the universe."""
    pattern = ".".join(["#", "a"] * 60)
    topic = ".".join(["a"] * 120 + [tail])
    trie: TopicTrie[str] = TopicTrie()
    trie.add(pattern, "it")
    trie.add(pattern.replace("a", "*"), "stars")

    assert matches(pattern, topic) is (tail == "a")
    assert trie.match(topic) == ({"it", "stars"} if tail == "a" else {"stars"})


def test_match_does_not_look_at_patterns_that_do_not_match() -> None:
    """The number of other patterns changes nothing in how many nodes a match visits."""
    trie: TopicTrie[int] = TopicTrie()
    for number in range(5_000):
        trie.add(f"other{number}.*.#", number)
    trie.add("wanted.#", -1)
    visited: list[str] = []

    class Watched(dict[str, object]):
        def get(self, key: str, default: object = None) -> object:
            visited.append(key)
            return super().get(key, default)

    assert trie._root.segments is not None
    trie._root.segments = Watched(trie._root.segments)  # type: ignore[assignment]

    assert trie.match("wanted.a.b") == {-1}
    assert visited == ["wanted"]


@pytest.mark.parametrize("damage", ["size", "empty node", "root value", "misplaced wildcard"])
def test_check_finds_damage(damage: str) -> None:
    """The consistency check is not vacuous: each kind of damage is found."""
    trie: TopicTrie[str] = TopicTrie()
    trie.add("a.b", "it")
    if damage == "size":
        trie._size = 2
    elif damage == "empty node":
        behind = trie._root.get("a")
        assert behind is not None
        behind.put("b", _Node())
        trie._size = 0
    elif damage == "root value":
        trie._root.add("stray")
        trie._size = 2
    else:
        trie._root.any = trie._root.get("a")
        trie._root.put("a", None)

    with pytest.raises(AssertionError, match="TopicTrie"):
        trie.check()
