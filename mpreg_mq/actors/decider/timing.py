"""Decisions that time asks for: leases that run out, TTL, circuit recovery, quorums that missed (no polling)."""

from __future__ import annotations

from mpreg_mq.actors.decider.decision import NOTHING, Context, Decision
from mpreg_mq.actors.decider.settling import expire_lease, quorum_missed
from mpreg_mq.events import types as e
from mpreg_mq.projections import QueueState
from mpreg_mq.projections.deadlines import DeadlineKind


def decide_tick(state: QueueState, context: Context) -> Decision:
    """What the earliest deadline that has come asks for; no events when none has. O(log n).

    One deadline at a time, so that each decision sees the state the one before left. Messages whose due time
    has come are made ready on the way, which is no event.
    """
    messages = state.messages
    messages.promote(context.now)
    first = messages.deadlines.first()
    if first is None or first.when > context.now:
        return NOTHING
    kind, target = first.kind, first.target
    if kind is DeadlineKind.LEASE:
        return expire_lease(state, target, context, "no acknowledgment before the lease ran out")
    if kind is DeadlineKind.TTL:
        return Decision((e.MessageExpired(context.now, target.id),))
    if kind is DeadlineKind.CIRCUIT:
        return Decision((e.CircuitHalfOpened(context.now, target),))
    message = target.message
    return Decision(tuple(quorum_missed(state, message, context, message.acknowledgments)))
