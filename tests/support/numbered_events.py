"""Events that tests tell apart by their numbers."""

from __future__ import annotations

from mpreg_mq.events import Event, MessageCompleted


def event(number: int) -> Event:
    """The event of this number."""
    return MessageCompleted(at=float(number), message_id=f"m{number}")


def events(count: int, start: int = 1) -> tuple[Event, ...]:
    """So many events with numbers that follow one another."""
    return tuple(event(number) for number in range(start, start + count))
