"""Times, spans of time and numbers as people read them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime


def format_time(at: float) -> str:
    """A time as people and programs read it: ISO 8601 in UTC, with milliseconds."""
    try:
        return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    except (OverflowError, ValueError, OSError):
        return f"{at:.3f}"


def format_seconds(seconds: float) -> str:
    """A span of time in at most two units, such as ``41 s``, ``2 m 5 s`` or ``12 ms``."""
    if not math.isfinite(seconds):
        return f"{seconds} s"
    if seconds < 0:
        return f"-{format_seconds(-seconds)}"
    if seconds < 1:
        milliseconds = seconds * 1000
        return f"{milliseconds:.0f} ms" if milliseconds >= 10 or milliseconds == 0 else f"{milliseconds:.2g} ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    whole = round(seconds)
    for size, unit, smaller, small_unit in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= size:
            rest = whole % size // smaller
            return f"{whole // size} {unit} {rest} {small_unit}" if rest else f"{whole // size} {unit}"
    raise AssertionError("60 seconds are a minute")


def plural(count: int, noun: str) -> str:
    """A number with its noun: ``1 attempt``, ``1,204 attempts``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def some(names: Sequence[str], limit: int = 5) -> str:
    """A list cut off after a few."""
    shown = ", ".join(names[:limit])
    return f"{shown} and {len(names) - limit} more" if len(names) > limit else shown or "nobody"


def printable(text: str) -> str:
    """The text on one line: line ends and control characters, which could steer a terminal, are escaped."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
