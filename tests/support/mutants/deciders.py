"""Faulty decisions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from mpreg_mq.actors.decider.decision import Context, Decision
from mpreg_mq.events import types as e
from mpreg_mq.model import DeliveryGuarantee, DeliveryResult, RejectionReason
from mpreg_mq.projections import QueueState
from tests.support.mutants.mutant import Mutant, Wrap

DECIDERS = "mpreg_mq.actors.decider:DECIDERS"
DISPATCH = "mpreg_mq.actors.dispatching:next_dispatch"
SETTLING = "mpreg_mq.actors.decider.settling"

Rewrite = Callable[[QueueState, Any, Context, Decision], Decision]
EventRewrite = Callable[[QueueState, Any], "e.Event | None"]


def rewriting(rewrite: Rewrite) -> Wrap:
    """A decider whose decisions are rewritten."""
    return lambda decide: (
        lambda state, command, context: rewrite(state, command, context, decide(state, command, context))
    )


def events(rewrite: EventRewrite) -> Wrap:
    """A decider whose events are rewritten one by one; None drops one."""

    def each(state: QueueState, command: Any, context: Context, decision: Decision) -> Decision:
        made = (rewrite(state, event) for event in decision.events)
        return Decision(tuple(event for event in made if event is not None), decision.reply)

    return rewriting(each)


def _keeps_key(decide: Any) -> Any:
    claimed: dict[str, str] = {}

    def mutated(state: QueueState, command: Any, context: Context) -> Decision:
        key = command.fingerprint
        if key in claimed:
            duplicate = e.DuplicateRejected(context.now, command.topic, key, claimed[key])
            return Decision((duplicate,), DeliveryResult(False, None, rejection=RejectionReason.DUPLICATE))
        decision: Decision = decide(state, command, context)
        if key is not None and getattr(decision.reply, "rejection", None) is RejectionReason.CAPACITY:
            claimed[key] = f"0-{context.run}"
        return decision

    return mutated


def _dead_at_once(state: QueueState, event: Any) -> e.Event:
    if not isinstance(event, e.MessageRequeued):
        return event  # type: ignore[no-any-return]
    return e.MessageDeadLettered(event.at, event.message_id, "it raised", None, 1, None)


def _strangers_count(state: QueueState, command: Any, context: Context, decision: Decision) -> Decision:
    message = state.messages.get(command.message_id)
    if decision.events or message is None or message.guarantee is not DeliveryGuarantee.QUORUM or not message.members:
        return decision
    return Decision((e.MessageCompleted(context.now, message.id),), True)


def _no_subscriber_is_dead(dispatch: Any) -> Any:
    def mutated(state: QueueState, context: Context) -> e.Event | None:
        event: e.Event | None = dispatch(state, context)
        if event is not None:
            return event
        for message in state.messages:
            if not state.subscribers.audience(message.topic) and message.members is None and not message.live:
                return e.MessageDeadLettered(context.now, message.id, "no subscriber", None, 0, None)
        return None

    return mutated


def _audience_recomputed(state: QueueState, command: Any, context: Context, decision: Decision) -> Decision:
    if not decision.events:
        return decision
    late = tuple(
        e.AudienceFixed(context.now, message.id, (command.subscriber_id,))
        for message in state.messages.audiences.values()
        if message.guarantee is DeliveryGuarantee.BROADCAST and command.subscriber_id not in (message.members or {})
    )
    return Decision((*decision.events, *late), decision.reply)


def _one_is_enough(state: QueueState, command: Any, context: Context, decision: Decision) -> Decision:
    message = state.messages.get(command.message_id)
    if message is None or message.guarantee is not DeliveryGuarantee.BROADCAST or len(decision.events) != 1:
        return decision
    return Decision((*decision.events, e.MessageCompleted(context.now, message.id)), decision.reply)


def _one_short(outcome: Any) -> Any:
    def mutated(state: QueueState, message: Any, context: Context, **keywords: Any) -> Any:
        if message.guarantee is DeliveryGuarantee.QUORUM and keywords["acknowledgments"] == message.required - 1:
            keywords["acknowledgments"] += 1
        return outcome(state, message, context, **keywords)

    return mutated


def _drop(kind: type[e.Event]) -> EventRewrite:
    return lambda state, event: None if isinstance(event, kind) else event


def _with(kind: type[e.Event], **changes: Callable[[Any], Any]) -> EventRewrite:
    """Events of a kind with other values in some fields."""

    def rewrite(state: QueueState, event: Any) -> Any:
        if not isinstance(event, kind):
            return event
        return msgspec.structs.replace(event, **{name: change(event) for name, change in changes.items()})

    return rewrite


def _scaled(factor: float) -> Wrap:
    return lambda backoff: lambda *arguments: backoff(*arguments) * factor + (factor > 1) * 60.0


def _end_as(kind: type[Any]) -> Wrap:
    def wrap(end: Any) -> Any:
        def mutated(*arguments: Any) -> Any:
            event = end(*arguments)
            return kind(event.at, event.message_id, event.reason, event.error, event.attempts, event.subscriber_id)

        return mutated

    return wrap


def _no_events(decide: Any) -> Any:
    return lambda *arguments: []


def _ending_with(**changes: Any) -> Wrap:
    return lambda end: lambda *arguments: msgspec.structs.replace(end(*arguments), **changes)


def _without_closing(acknowledge: Any) -> Any:
    def mutated(*arguments: Any) -> Any:
        return tuple(event for event in acknowledge(*arguments) if not isinstance(event, e.CircuitClosed))

    return mutated


def _miscounted(end: Any) -> Any:
    def mutated(*arguments: Any) -> Any:
        event = end(*arguments)
        return msgspec.structs.replace(event, attempts=event.attempts + 1)

    return mutated


def _lease_of_another_length(deliver: Any) -> Any:
    def mutated(*arguments: Any, **keywords: Any) -> Any:
        event = deliver(*arguments, **keywords)
        return event if event.pull else msgspec.structs.replace(event, deadline=event.at + 1000.0)

    return mutated


DECIDER_MUTANTS: tuple[Mutant, ...] = (
    Mutant("a capacity rejection keeps the deduplication key", "U1", f"{DECIDERS}[Send]", _keeps_key, "calm"),
    Mutant(
        "what is sent claims no deduplication key",
        "U1",
        f"{DECIDERS}[Send]",
        events(_with(e.MessageEnqueued, deduplication_key=lambda event: None)),
    ),
    Mutant("one failed attempt makes a dead letter", "R1", f"{DECIDERS}[NegativeAcknowledge]", events(_dead_at_once)),
    Mutant("a quorum is met by strangers", "G4", f"{DECIDERS}[Acknowledge]", rewriting(_strangers_count)),
    Mutant("a quorum is met by one acknowledgment too few", "G4", f"{SETTLING}:audience_outcome", _one_short),
    Mutant("no subscriber means dead", "G5", DISPATCH, _no_subscriber_is_dead),
    Mutant(
        "a broadcast's audience takes in newcomers", "G3", f"{DECIDERS}[Subscribe]", rewriting(_audience_recomputed)
    ),
    Mutant("one acknowledgment completes a broadcast", "G3", f"{DECIDERS}[Acknowledge]", rewriting(_one_is_enough)),
    Mutant(
        "who unsubscribes stays in its audiences",
        "G3",
        f"{DECIDERS}[Unsubscribe]",
        events(_drop(e.AudienceMemberLeft)),
        "audiences",
    ),
    Mutant("newcomers stay out of open quorums", "G4", f"{DECIDERS}[Subscribe]", events(_drop(e.AudienceFixed))),
    Mutant("a retry does not wait", "R2", f"{SETTLING}:backoff_seconds", _scaled(0.0), "handlers"),
    Mutant("the backoff has no cap", "R2", f"{SETTLING}:backoff_seconds", _scaled(100.0), "handlers"),
    Mutant("no circuit ever opens", "R3", f"{SETTLING}:_circuit_after_failure", _no_events),
    Mutant("no circuit ever closes", "R3", "mpreg_mq.actors.delivering:acknowledge", _without_closing, "handlers"),
    Mutant("a redrive leaves the dead letter", "D1", f"{DECIDERS}[Redrive]", events(_drop(e.DeadLetterRedriven))),
    Mutant(
        "a redrive claims a deduplication key",
        "D1",
        f"{DECIDERS}[Redrive]",
        events(_with(e.MessageEnqueued, deduplication_key=lambda event: event.message_id)),
    ),
    Mutant(
        "dead letters although they are disabled", "D1", f"{SETTLING}:end_of_attempts", _end_as(e.MessageDeadLettered)
    ),
    Mutant("no dead letters although they are enabled", "D1", f"{SETTLING}:end_of_attempts", _end_as(e.MessageFailed)),
    Mutant("a dead letter does not say what failed", "D1", f"{SETTLING}:end_of_attempts", _ending_with(error=None)),
    Mutant("a dead letter makes up what failed", "D1", f"{SETTLING}:end_of_attempts", _ending_with(error="made up")),
    Mutant(
        "a dead letter does not say who had it", "D1", f"{SETTLING}:end_of_attempts", _ending_with(subscriber_id=None)
    ),
    Mutant("a dead letter counts an attempt too many", "D1", f"{SETTLING}:end_of_attempts", _miscounted),
    Mutant(
        "a push lease lasts as long as it likes",
        "L1",
        "mpreg_mq.actors.decider.delivering:deliver",
        _lease_of_another_length,
    ),
    Mutant(
        "a lease is extended into the past",
        "L3",
        f"{DECIDERS}[ExtendLease]",
        events(_with(e.LeaseExtended, deadline=lambda event: event.at - 1.0)),
    ),
)
