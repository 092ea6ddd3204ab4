"""Making every recorded decision again, from the state that the queue had, and telling each that differs.

The state goes on with what was recorded, so that one different decision does not make all later ones differ. Later
decisions about a message whose story parted from the record are not compared: they are its consequences.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import attrs

from mpreg_mq.configuration import QueueConfiguration
from mpreg_mq.errors import ConfigurationError, MessageQueueError, ProjectionError
from mpreg_mq.events import EventLog, RecordedEvent
from mpreg_mq.events import types as e
from mpreg_mq.model import RejectionReason
from mpreg_mq.payload import decode_payload, fingerprint
from mpreg_mq.projections import QueueState
from mpreg_mq.projections.deadlines import DeadlineKind
from mpreg_mq.replay.base import again_if_overtaken, base_state
from mpreg_mq.replay.groups import Group, groups, is_entered
from mpreg_mq.replay.moments import Moment
from mpreg_mq.replay.records import Progress, folding, read, silent, stopped
from mpreg_mq.replay.rerun.decisions import Events, decided, replaced
from mpreg_mq.replay.source import QUEUE_STREAMS, base_position, queue_names
from mpreg_mq.replay.travel import require_queue
from mpreg_mq.replay.wording import in_words, message_ids

MAX_KEPT = 10_000
"""Differences that are kept; the rest are counted."""


@attrs.frozen
class Difference:
    """A decision that would be another one now. ``decided`` is empty where nothing would happen.

    ``position`` is that of the first recorded event; where nothing was recorded, of the first event after the moment at
    which something would happen now.
    """

    queue: str
    position: int
    at: float
    recorded: Events
    decided: Events

    @property
    def message_ids(self) -> tuple[str, ...]:
        """The messages that it is about."""
        return tuple(dict.fromkeys(name for event in (*self.recorded, *self.decided) for name in message_ids(event)))

    @property
    def kind(self) -> str:
        """What became what, by the types of the events."""
        return f"{_types(self.recorded)} -> {_types(self.decided)}"

    def __str__(self) -> str:
        then = "; ".join(map(in_words, self.recorded)) or "nothing"
        now = "; ".join(map(in_words, self.decided)) or "nothing"
        return f"{self.queue} at position {self.position}: recorded: {then}; now: {now}"


def _known_ids(answer: Events) -> set[str]:
    """The messages of an answer that were there before: what it would accept has an id that others would get, too."""
    made = {event.message_id for event in answer if isinstance(event, e.MessageEnqueued)}
    return {name for event in answer for name in message_ids(event)} - made


def _sorted_leaves(events: Events) -> Events:
    """The events, in the order of the subscriptions where a process ended that had several."""
    leaves = [event for event in events if isinstance(event, e.SubscriberLeft)]
    if len(leaves) < len(events):
        return events
    return tuple(sorted(leaves, key=lambda left: (left.subscriber_id, left.subscription_id)))


def _types(events: Events) -> str:
    return " + ".join(type(event).__name__ for event in events) or "nothing"


@attrs.define
class Rerun:
    """What came of it: ``decisions`` were made again, ``count`` of them differ, the first are in ``differences``.

    ``followed`` decisions were not compared because their message had parted from the record before. ``given`` counts,
    by event type, what the log does not say enough about to decide it again.
    """

    decisions: int = 0
    count: int = 0
    differences: list[Difference] = attrs.field(factory=list)
    followed: int = 0
    given: Counter[str] = attrs.field(factory=Counter)

    @property
    def by_kind(self) -> dict[str, int]:
        """Kept differences by what became what, the most frequent first."""
        return dict(Counter(difference.kind for difference in self.differences).most_common())


def changed(configuration: QueueConfiguration, changes: Mapping[str, Any]) -> QueueConfiguration:
    """A configuration with changes.

    Raises:
        ConfigurationError: there is no such setting, or a value is out of its range.
    """
    fields = attrs.fields_dict(QueueConfiguration)
    for name in changes:
        if name not in fields or name == "name":
            raise ConfigurationError(
                f"setting: got {name!r}, expected one of {', '.join(sorted(fields.keys() - {'name'}))}"
            )
    return attrs.evolve(configuration, **changes)


@again_if_overtaken
def rerun(
    log: EventLog,
    *,
    changes: Mapping[str, Any] | None = None,
    queue: str | None = None,
    until: Moment | None = None,
    progress: Progress = silent,
) -> Rerun:
    """Decide again what the log records, with today's code and, where ``changes`` are given, other settings.

    A decision counts where all its events had happened ``until`` then. One pass for each queue; memory is bounded by
    what is unfinished.

    Raises:
        ConfigurationError: a setting is unknown or out of its range.
        EventLogError: there is no such queue, or the log begins only after ``until``.
        ReadingStoppedError: the log cannot be read, or contradicts itself.
    """
    if queue is not None:
        require_queue(log, queue)
    changed(QueueConfiguration("check"), changes or {})
    result = Rerun()
    base = base_position(log)
    with folding():
        for name in queue_names(log) if queue is None else [queue]:
            engine = Engine(name, changes or {}, result, base_state(log, QUEUE_STREAMS + name, until))
            position = 0
            for group in groups(read(log, base=base, queue=name, progress=progress), engine.is_entered):
                # A decision that is recorded only in part by then would differ from the whole one.
                if until is not None and not until.includes(group[-1]):
                    break
                try:
                    engine.take(group)
                except ProjectionError as error:
                    raise stopped(log, position, error) from error
                position = group[-1].position
    return result


def rerun_events(events: Iterable[e.Event], *, changes: Mapping[str, Any] | None = None, alone: bool = False) -> Rerun:
    """The same for the events of one queue from its creation on; see :class:`Engine` for ``alone``."""
    result = Rerun()
    engine = Engine("story", changes or {}, result, alone=alone)
    records = (RecordedEvent(number, QUEUE_STREAMS + "story", number, event) for number, event in enumerate(events, 1))
    for group in groups(records, engine.is_entered):
        engine.take(group)
    return result


class Engine:
    """The decisions of one queue, made again.

    ``alone`` is for the story of one message, without the others that were in the queue: whose turn it was is then
    taken as given, as is what circuit breakers did.
    """

    def __init__(
        self,
        queue: str,
        changes: Mapping[str, Any],
        result: Rerun,
        base: QueueState | None = None,
        *,
        alone: bool = False,
    ) -> None:
        self._queue = queue
        self._changes = changes
        self._result = result
        self._alone = alone
        self._state = QueueState() if base is None else base
        self._recorded_configuration: QueueConfiguration | None = None
        if self._state.created:
            self._recorded_configuration = self._state.configuration
            other = changed(self._state.configuration, changes)
            self._state.apply(e.QueueReconfigured(self._state.last_at, other))
        self._parted: set[str] = set()
        # A decision of that moment may have begun with events that are compacted.
        self._given_until = self._state.last_at if self._state.created else None

    def take(self, group: Group) -> None:
        """Decide again what these records tell, and go on with what they tell.

        Raises:
            ProjectionError: the records contradict what came before.
        """
        recorded = tuple(self._adapted(record.event) for record in group)
        first: Any = recorded[0]
        if isinstance(first, e.QueueCreated | e.QueueReconfigured):
            original: Any = group[0].event
            self._recorded_configuration = original.configuration
        elif self._recorded_configuration is not None:
            self._look_for_expiries(first.at, group[0].position)
            if first.at == self._given_until:
                self._result.given[type(first).__name__] += 1
            else:
                self._compare(recorded, group[0].position)
        for event in recorded:
            self._state.apply(event)

    def is_entered(self, event: e.AudienceFixed) -> bool:
        """See :func:`mpreg_mq.replay.groups.is_entered`."""
        return is_entered(self._state, event)

    def _adapted(self, event: e.Event) -> Any:
        """The event as it would be in a queue with the changed settings."""
        if not self._changes:
            return event
        if isinstance(event, e.QueueCreated | e.QueueReconfigured):
            return replaced(event, configuration=changed(event.configuration, self._changes))
        if isinstance(event, e.MessageEnqueued) and event.redriven_from is None:
            return replaced(event, deduplication_key=self._key(event))
        if isinstance(event, e.FireAndForgetSent) and self._deduplicated and not self._deduplicates:
            return replaced(event, deduplication_key=None)
        return event

    @property
    def _deduplicates(self) -> bool:
        return self._state.created and self._state.configuration.enable_deduplication

    @property
    def _deduplicated(self) -> bool:
        return self._recorded_configuration is not None and self._recorded_configuration.enable_deduplication

    def _key(self, event: e.MessageEnqueued) -> str | None:
        """The key that the send would claim: that of ``send_once``, else the queue's own where it deduplicates."""
        recorded = event.deduplication_key
        deduplicates = self._deduplicates
        if (recorded is None) is not deduplicates:
            return recorded
        options = event.options
        own = options.deduplication_id or fingerprint(event.topic, decode_payload(event.payload), options.headers)
        if deduplicates:
            return own
        return recorded if recorded != own else None

    # --- comparing ----------------------------------------------------------------------------------------

    def _compare(self, recorded: Events, position: int) -> None:
        result = self._result
        if any(name in self._parted for event in recorded for name in message_ids(event)):
            result.followed += 1
            return
        assert self._recorded_configuration is not None
        result.decisions += 1
        said: list[Events] = []
        try:
            for answer in decided(self._state, recorded, self._recorded_configuration):
                if answer is None:
                    result.given[type(recorded[0]).__name__] += 1
                    return
                if self._same(recorded, answer):
                    return
                said.append(answer)
        except MessageQueueError as refusal:
            said.append((e.MessageRejected(recorded[0].at, "", RejectionReason.INVALID_OPTION, str(refusal)),))
        if self._alone and isinstance(recorded[-1], e.MessageDelivered | e.AudienceFixed):
            result.given[type(recorded[0]).__name__] += 1
            return
        if any(name in self._parted for name in _known_ids(said[0])):
            result.followed += 1
            return
        self._differs(recorded, said[0], position)

    def _same(self, recorded: Events, answer: Events) -> bool:
        if self._alone:
            recorded, answer = (
                tuple(event for event in events if not isinstance(event, e.CircuitOpened | e.CircuitClosed))
                for events in (recorded, answer)
            )
            # Who came first may have been somebody who is remembered for another message.
            recorded, answer = _sorted_leaves(recorded), _sorted_leaves(answer)
        return recorded == answer

    def _differs(self, recorded: Events, answer: Events, position: int) -> None:
        first = (recorded or answer)[0]
        difference = Difference(self._queue, position, first.at, recorded, answer)
        self._result.count += 1
        if len(self._result.differences) < MAX_KEPT:
            self._result.differences.append(difference)
        self._parted.update(name for event in recorded for name in message_ids(event))
        self._parted.update(_known_ids(answer))

    def _look_for_expiries(self, now: float, position: int) -> None:
        """Messages that the changed time to live of the queue would have ended before ``now``."""
        if "message_ttl_seconds" not in self._changes:
            return
        self._state.messages.promote(now)
        deadlines = self._state.messages.deadlines
        while (first := deadlines.first()) is not None and first.when < now and first.kind is DeadlineKind.TTL:
            message = first.target
            deadlines.remove(first)
            if message.id not in self._parted and message.event.options.message_ttl_seconds is None:
                self._differs((), (e.MessageExpired(first.when, message.id),), position)
