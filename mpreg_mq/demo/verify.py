"""The demo's last act: reopen the log, rebuild every projection, and compare it with what was live (I2, I4)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

import attrs

from mpreg_mq.actors.store import STREAM_PREFIX
from mpreg_mq.events import open_log, read_events
from mpreg_mq.events import types as e
from mpreg_mq.projections import QueueState

_ENDS = (e.MessageCompleted, e.MessageDeadLettered, e.MessageFailed, e.MessageExpired, e.MessageDropped)


@attrs.frozen
class Verification:
    """What was compared, and what did not agree; ``problems`` is empty when all is well."""

    events: int
    queues: int
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether everything agreed."""
        return not self.problems


def verify(location: str, live: Mapping[str, QueueState]) -> Verification:
    """Fold the log at ``location`` anew and compare it with the live states, queue by queue."""
    log = open_log(location)
    problems: list[str] = []
    count = 0
    try:
        for name, state in live.items():
            events = list(chain.from_iterable(read_events(log, STREAM_PREFIX + name)))
            count += len(events)
            rebuilt = QueueState.replay(events)
            problems += [f"queue {name}: {problem}" for problem in _differences(state, rebuilt)]
            problems += [f"queue {name}: {problem}" for problem in conservation_problems(events, rebuilt)]
    finally:
        log.close()
    return Verification(count, len(live), tuple(problems))


def _differences(live: QueueState, rebuilt: QueueState) -> Iterable[str]:
    before, after = live.describe(), rebuilt.describe()
    for part in before:
        if before[part] != after[part]:
            yield f"{part} differs between the live queue and the fold of its log"
    try:
        rebuilt.check()
    except AssertionError as broken:
        yield f"the rebuilt state is not consistent: {broken or 'a check failed'}"


def conservation_problems(events: Iterable[e.Event], state: QueueState) -> Iterable[str]:
    """Rule I2 from the events alone: accepted = finished + pending + leased, as sets of ids."""
    accepted: set[str] = set()
    finished: set[str] = set()
    for event in events:
        ended: Any = ()
        if isinstance(event, e.MessageEnqueued):
            accepted.add(event.message_id)
        elif isinstance(event, _ENDS) or (isinstance(event, e.MessageAcknowledged) and event.completes):
            ended = (event.message_id,)
        elif isinstance(event, e.MessagesPurged):
            ended = event.message_ids
        for message_id in ended:
            if message_id not in accepted:
                yield f"I2: {message_id} ended and was never accepted"
            if message_id in finished:
                yield f"I2: {message_id} ended twice"
            finished.add(message_id)
    pending = {message.id for message in state.messages.pending()}
    leased = {message.id for message in state.messages.leased()}
    if pending & leased:
        yield f"I2: {len(pending & leased)} messages are both pending and leased"
    if accepted - finished != pending | leased:
        yield f"I2: {len((accepted - finished) ^ (pending | leased))} messages are neither finished nor held"
