"""Why a pattern does not match a topic, and which pattern comes nearest (G6)."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher
from functools import cache

from mpreg_mq.replay.formats import plural
from mpreg_mq.topics import ANY, ONE, SEPARATOR, matches


def distance(pattern: str, topic: str) -> float:
    """How much of a pattern would have to change to match a topic: 0.0 where it matches.

    An edit distance over levels, in which another word counts two and a misspelt one less. O(levels squared).
    """
    wanted, given = pattern.split(SEPARATOR), topic.split(SEPARATOR)

    @cache
    def rest(w: int, g: int) -> float:
        if w == len(wanted):
            return float(len(given) - g)
        if g == len(given):
            return sum(_lost(level) for level in wanted[w:])
        if wanted[w] == ANY:
            return min(rest(w + 1, g), rest(w, g + 1))
        same = wanted[w] in (ONE, given[g])
        change = 0.0 if same else 2.0 - 1.5 * SequenceMatcher(None, wanted[w], given[g]).ratio()
        return min(change + rest(w + 1, g + 1), _lost(wanted[w]) + rest(w + 1, g), 1.0 + rest(w, g + 1))

    return rest(0, 0)


def _lost(level: str) -> float:
    """What it costs to take a level out of a pattern: a word says more than a wildcard."""
    return {ANY: 0.0, ONE: 1.0}.get(level, 2.0)


def nearest(patterns: Iterable[str], topic: str) -> str | None:
    """The pattern that would have to change least, the first by name among equals; None where there is none."""
    return min(set(patterns), key=lambda pattern: (distance(pattern, topic), pattern), default=None)


def mismatch(pattern: str, topic: str) -> str:
    """Why the pattern does not match the topic, in words."""
    if matches(pattern, topic):
        return "it matches"
    wanted, given = pattern.split(SEPARATOR), topic.split(SEPARATOR)
    if ANY not in wanted and len(wanted) != len(given):
        words = f"it has {plural(len(wanted), 'level')}, the topic has {len(given)}"
        if wanted[-1] == ONE and len(given) > len(wanted):
            wider = SEPARATOR.join((*wanted[:-1], ANY))
            if matches(wider, topic):
                words += f"; '*' is exactly one, {wider} would match"
        return words
    for number, (want, have) in enumerate(zip(wanted, given, strict=False), 1):
        if want == ANY:
            break
        if want not in (ONE, have):
            return f"it wants {want!r} as level {number}, the topic has {have!r}"
    return f"no way to read '#' makes it {topic}"
