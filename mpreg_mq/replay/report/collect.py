"""The figures of a report, in one pass over the log and memory bounded by what is unfinished."""

from __future__ import annotations

import re
from collections import Counter
from heapq import heappush, heappushpop
from typing import Any

import attrs

from mpreg_mq.errors import ProjectionError
from mpreg_mq.events import EventLog, RecordedEvent
from mpreg_mq.events import types as e
from mpreg_mq.model import QueueStatistics
from mpreg_mq.projections import Message, QueueState
from mpreg_mq.replay.base import again_if_overtaken, base_states
from mpreg_mq.replay.endings import ends
from mpreg_mq.replay.moments import Moment
from mpreg_mq.replay.records import Progress, folding, read, silent, stopped
from mpreg_mq.replay.report.series import Distribution, TimeSeries
from mpreg_mq.replay.source import QUEUE_STREAMS, base_position
from mpreg_mq.replay.travel import require_queue
from mpreg_mq.replay.wording import message_ids

SLOWEST = 15
"""Messages that are listed as the slowest."""

MAX_REASONS = 200
"""Different reasons of dead letters that are told apart; more are counted as others."""

_NUMBERS = re.compile(r"\d+")


@attrs.frozen(order=True)
class Slow:
    """A message that took long from send to its end."""

    seconds: float
    queue: str
    message_id: str
    topic: str
    attempts: int
    end: str


@attrs.define
class SubscriberFigures:
    """What one subscriber did; ``seconds`` is the time from deliveries to acknowledgments."""

    delivered: int = 0
    acknowledged: int = 0
    failed: int = 0
    expired: int = 0
    circuits_opened: int = 0
    processing: Distribution = attrs.field(factory=Distribution)


@attrs.define
class QueueReport:
    """One queue in figures. ``latency`` is from send to acknowledgment; ``attempts`` counts finished messages."""

    name: str
    series: TimeSeries = attrs.field(factory=TimeSeries)
    latency: Distribution = attrs.field(factory=Distribution)
    attempts: Counter[int] = attrs.field(factory=Counter)
    reasons: Counter[str] = attrs.field(factory=Counter)
    refusals: Counter[str] = attrs.field(factory=Counter)
    subscribers: dict[str, SubscriberFigures] = attrs.field(factory=dict)
    statistics: QueueStatistics = attrs.field(factory=lambda: QueueStatistics(last_reset_time=0.0))


@attrs.define
class LogFigures:
    """A log in figures."""

    location: str
    events: int = 0
    first_at: float = 0.0
    last_at: float = 0.0
    queues: dict[str, QueueReport] = attrs.field(factory=dict)
    slowest: list[Slow] = attrs.field(factory=list)

    def latency(self) -> Distribution:
        """From send to acknowledgment, over all queues."""
        total = Distribution()
        for queue in self.queues.values():
            total.merge(queue.latency)
        return total


@again_if_overtaken
def collect(
    log: EventLog, *, queue: str | None = None, until: Moment | None = None, progress: Progress = silent
) -> LogFigures:
    """The figures of a log, or of one queue.

    Raises:
        EventLogError: there is no such queue, or the log begins only after the moment.
        ReadingStoppedError: the log cannot be read to its end.
    """
    if queue is not None:
        require_queue(log, queue)
    base = base_position(log)
    figures = LogFigures(log.location)
    collectors = {
        QUEUE_STREAMS + name: _Collector(QUEUE_STREAMS + name, figures, state)
        for name, state in base_states(log, queue, until).items()
    }
    position = 0
    with folding():
        for record in read(log, base=base, queue=queue, until=until, progress=progress):
            figures.events += 1
            if record.stream.startswith(QUEUE_STREAMS):
                collector = collectors.get(record.stream)
                if collector is None:
                    collector = collectors[record.stream] = _Collector(record.stream, figures, QueueState())
                try:
                    collector.take(record)
                except ProjectionError as error:
                    raise stopped(log, position, error) from error
            position = record.position
    for collector in collectors.values():
        collector.finish()
    figures.slowest.sort(reverse=True)
    return figures


class _Collector:
    """Folds one queue, and looks at each message once more before it is forgotten."""

    def __init__(self, stream: str, figures: LogFigures, state: QueueState) -> None:
        self._figures = figures
        self._state = state
        self._report = QueueReport(stream.removeprefix(QUEUE_STREAMS))
        figures.queues[self._report.name] = self._report

    def take(self, record: RecordedEvent) -> None:
        event: Any = record.event
        figures, state = self._figures, self._state
        if not figures.first_at or event.at < figures.first_at:
            figures.first_at = event.at
        figures.last_at = max(figures.last_at, event.at)
        bucket = self._report.series.at(event.at)
        bucket.seen = True
        count = _COUNT.get(type(event))
        if count is not None:
            count(self, event)
        if ends(event):
            for message_id in message_ids(event):
                message = state.messages.get(message_id)
                if message is not None:
                    self._ended(message, event)
                    bucket.finished += 1
        state.apply(event)
        bucket.pending = state.messages.pending_count
        bucket.leased = state.messages.leased_count
        bucket.most_pending = max(bucket.most_pending, bucket.pending)

    def finish(self) -> None:
        """The log is at its end."""
        self._report.series.extend(self._figures.last_at)
        # Of a queue that has no event left, the figures know no time.
        self._report.statistics = self._state.report(max(self._figures.last_at, self._state.last_at))

    def _ended(self, message: Message, event: e.Event) -> None:
        report = self._report
        seconds = event.at - message.event.at
        attempts = max((slot.attempts for slot in message.slots()), default=0)
        report.attempts[attempts] += 1
        if isinstance(event, e.MessageAcknowledged | e.MessageCompleted):
            report.latency.add(seconds)
        slow = Slow(seconds, report.name, message.id, message.topic, attempts, type(event).__name__)
        slowest = self._figures.slowest
        if len(slowest) < SLOWEST:
            heappush(slowest, slow)
        elif slow > slowest[0]:
            heappushpop(slowest, slow)

    # --- what is counted besides --------------------------------------------------------------------------

    def _subscriber(self, name: str) -> SubscriberFigures:
        found = self._report.subscribers.get(name)
        if found is None:
            found = self._report.subscribers[name] = SubscriberFigures()
        return found

    def _enqueued(self, event: e.MessageEnqueued) -> None:
        self._report.series.at(event.at).sent += 1

    def _fired(self, event: e.FireAndForgetSent) -> None:
        bucket = self._report.series.at(event.at)
        bucket.sent += 1
        bucket.finished += 1

    def _duplicate(self, event: e.DuplicateRejected) -> None:
        self._report.series.at(event.at).refused += 1
        self._report.refusals["duplicate"] += 1

    def _rejected(self, event: e.MessageRejected) -> None:
        self._report.series.at(event.at).refused += 1
        self._report.refusals[event.reason.value] += 1

    def _delivered(self, event: e.MessageDelivered) -> None:
        self._subscriber(event.subscriber_id).delivered += 1

    def _acknowledged(self, event: e.MessageAcknowledged) -> None:
        found = self._subscriber(event.subscriber_id)
        found.acknowledged += 1
        message = self._state.messages.get(event.message_id)
        slot = None if message is None else message.slot_for(event.subscriber_id)
        if slot is not None and slot.lease is not None:
            found.processing.add(event.at - slot.lease.at)

    def _failed(self, event: e.DeliveryFailed) -> None:
        self._report.series.at(event.at).failed_attempts += 1
        self._subscriber(event.subscriber_id).failed += 1

    def _lease_over(self, event: e.LeaseExpired) -> None:
        self._report.series.at(event.at).failed_attempts += 1
        self._subscriber(event.subscriber_id).expired += 1

    def _circuit(self, event: e.CircuitOpened) -> None:
        self._subscriber(event.subscriber_id).circuits_opened += 1

    def _dead(self, event: e.MessageDeadLettered | e.MessageFailed) -> None:
        reason = event.error if event.error is not None else _NUMBERS.sub("N", event.reason)
        reasons = self._report.reasons
        reasons[reason if reason in reasons or len(reasons) < MAX_REASONS else "others"] += 1


_COUNT: dict[type[e.Event], Any] = {
    e.MessageEnqueued: _Collector._enqueued,
    e.FireAndForgetSent: _Collector._fired,
    e.DuplicateRejected: _Collector._duplicate,
    e.MessageRejected: _Collector._rejected,
    e.MessageDelivered: _Collector._delivered,
    e.MessageAcknowledged: _Collector._acknowledged,
    e.DeliveryFailed: _Collector._failed,
    e.LeaseExpired: _Collector._lease_over,
    e.CircuitOpened: _Collector._circuit,
    e.MessageDeadLettered: _Collector._dead,
    e.MessageFailed: _Collector._dead,
}
"""What is counted of an event, by its type."""
