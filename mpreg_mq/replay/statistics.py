"""Counts of a log's queues at a moment, and how they change from one look to the next."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from mpreg_mq.model import CircuitState, QueueStatistics
from mpreg_mq.projections import QueueState


@attrs.frozen
class QueueFigures:
    """A queue in figures. Rates are per second since the look before; 0.0 at the first.

    ``oldest_pending_seconds`` is the age of the oldest message without an open lease, None where there is none. A
    server does not tell that, nor anything of subscribers: these are None then.
    """

    queue: str
    pending: int
    leased: int
    dead_letters: int
    subscribers: int | None
    open_circuits: int | None
    paused: bool | None
    oldest_pending_seconds: float | None
    sent_per_second: float
    acknowledged_per_second: float
    failed_attempts_per_second: float
    statistics: QueueStatistics


def figures(state: QueueState, now: float, before: QueueFigures | None = None, seconds: float = 0.0) -> QueueFigures:
    """The queue at ``now``, and its rates since ``before``, ``seconds`` ago. O(log n) plus the leased messages."""
    oldest = next(state.messages.pending_by_age(), None)
    return attrs.evolve(
        figures_of(state.configuration.name, state.report(now), before, seconds),
        subscribers=sum(subscriber.present for subscriber in state.subscribers),
        open_circuits=sum(subscriber.circuit is not CircuitState.CLOSED for subscriber in state.subscribers),
        paused=state.paused,
        oldest_pending_seconds=None if oldest is None else max(0.0, now - oldest.event.at),
    )


def figures_of(
    name: str, counts: QueueStatistics, before: QueueFigures | None = None, seconds: float = 0.0
) -> QueueFigures:
    """The figures that counts alone give, as a server tells them."""

    def rate(name: str) -> float:
        if before is None or seconds <= 0:
            return 0.0
        change: int = getattr(counts, name) - getattr(before.statistics, name)
        return max(0, change) / seconds

    return QueueFigures(
        name,
        counts.current_queue_size,
        counts.current_in_flight_count,
        counts.current_dead_letter_count,
        None,
        None,
        None,
        None,
        rate("messages_sent"),
        rate("messages_acknowledged"),
        rate("delivery_failures"),
        counts,
    )


def all_figures(
    states: Mapping[str, QueueState],
    now: float,
    before: Mapping[str, QueueFigures] | None = None,
    seconds: float = 0.0,
) -> dict[str, QueueFigures]:
    """The figures of every queue that there is, by name."""
    known = before or {}
    return {
        name: figures(state, now, known.get(name), seconds)
        for name, state in states.items()
        if state.created and not state.deleted
    }
