"""How a message came to its end, or why it was never accepted, in words."""

from __future__ import annotations

from collections.abc import Sequence

from mpreg_mq.events import types as e
from mpreg_mq.projections import QueueState
from mpreg_mq.replay.formats import format_seconds, format_time, plural
from mpreg_mq.replay.wording import in_words

ENDS = (
    e.MessageCompleted,
    e.MessageDeadLettered,
    e.MessageFailed,
    e.MessageExpired,
    e.MessageDropped,
    e.MessagesPurged,
    e.FireAndForgetSent,
)
"""Events that end a message, besides the acknowledgment that completes one."""


def ends(event: e.Event) -> bool:
    """Whether the event is the end of the messages it names."""
    return isinstance(event, ENDS) or (isinstance(event, e.MessageAcknowledged) and event.completes)


def ending(
    story: Sequence[e.Event], state: QueueState, now: float
) -> tuple[str, tuple[str, ...], e.DeadLetterRedriven | None]:
    """How a finished message ended, what is worth knowing besides, and its redrive if it was a dead letter.

    ``story`` are all its events; without an end among them, the queue was deleted.
    """
    end = next((event for event in story if ends(event)), None)
    accepted = story[0]
    topic = getattr(accepted, "topic", None)
    facts = ["accepted before the log begins" if topic is None else f"accepted {format_time(accepted.at)} on {topic}"]
    if end is None:
        return "gone: its queue was deleted", tuple(facts), None
    facts.append(f"ended {format_time(end.at)} ({format_seconds(now - end.at)} ago){_life(accepted, end)}")
    redriven = next((event for event in story if isinstance(event, e.DeadLetterRedriven)), None)
    purged = next((event for event in story if isinstance(event, e.DeadLettersPurged)), None)
    if redriven is not None:
        facts.append(f"redriven {format_time(redriven.at)} as {redriven.new_message_id} in {redriven.target_queue}")
    elif purged is not None:
        facts.append(f"its dead letter was purged {format_time(purged.at)}")
    elif isinstance(end, e.MessageDeadLettered) and state.dead_letters.get(end.message_id) is not None:
        facts.append("its dead letter is in the dead letter queue; redrive it to try again")
    failures = [event for event in story if isinstance(event, e.DeliveryFailed | e.LeaseExpired)]
    facts += [f"{format_time(event.at)} {in_words(event)}" for event in failures[-5:]]
    return _how(end, story), tuple(facts), redriven


def _life(accepted: e.Event, end: e.Event) -> str:
    known = isinstance(accepted, e.MessageEnqueued | e.FireAndForgetSent)
    return f", {format_seconds(end.at - accepted.at)} after it was accepted" if known else ""


def _how(end: e.Event, story: Sequence[e.Event]) -> str:
    attempts = sum(isinstance(event, e.MessageDelivered) for event in story)
    if isinstance(end, e.MessageAcknowledged):
        return f"acknowledged by {end.subscriber_id}, attempt {attempts}"
    if isinstance(end, e.MessageCompleted):
        names = dict.fromkeys(event.subscriber_id for event in story if isinstance(event, e.MessageAcknowledged))
        return f"completed: acknowledged by {', '.join(names)}"
    if isinstance(end, e.MessageDeadLettered | e.MessageFailed):
        word = "dead" if isinstance(end, e.MessageDeadLettered) else "failed"
        if end.error is None:
            return f"{word}: {end.reason}"
        return f"{word}: {plural(end.attempts, 'attempt')}, last error {end.error}"
    if isinstance(end, e.MessagesPurged):
        return f"purged, one of {plural(len(end.message_ids), 'message')}"
    return in_words(end)


def refusal(event: e.Event, state: QueueState, now: float) -> tuple[bool, str]:
    """Whether the event is a send that was refused, and why; else what the event says."""
    if isinstance(event, e.DuplicateRejected):
        held = state.deduplication.keys().get(event.deduplication_key)
        if held is not None and state.deduplication.holder(event.deduplication_key, now) is not None:
            left = f"its key expires in {format_seconds(held[0] - now)}"
        else:
            left = "its key has expired since"
        return True, f"duplicate of {event.duplicate_of}, {left}"
    if isinstance(event, e.MessageRejected):
        return True, f"refused, {event.reason.value}: {event.detail}"
    return False, in_words(event)
