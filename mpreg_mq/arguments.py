"""Checks of what callers give to the verbs that send nothing: subscribing, fetching, settling, dead letters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from mpreg_mq import topics
from mpreg_mq._validation import describe, flag, seconds, whole
from mpreg_mq.errors import InvalidOptionError
from mpreg_mq.model import DeadLetter, MessageId, QueuedMessage
from mpreg_mq.options import MAX_BATCH, require, required_identifier, text_entries
from mpreg_mq.projections import Subscriber

MessageReference = str | MessageId | QueuedMessage
"""How a message is named that somebody has: by its id, the text of that, or itself."""

DeadReference = str | MessageId | DeadLetter
"""How a dead letter is named, likewise."""

_OPTIONAL = ("callback", "auto_acknowledge", "max_in_flight", "blocking")
"""The parameters of a subscription that can be left out, and so be misspelt without being missed."""

_MISTAKABLE = {
    "auto_ack": "auto_acknowledge",
    "autoack": "auto_acknowledge",
    "max_in_f": "max_in_flight",
    "max_infl": "max_in_flight",
}
"""How a name begins that is meant for one of them, and for nothing that says something of a subscriber."""


def check_subscription(
    subscriber_id: Any, topic_pattern: Any, auto_acknowledge: Any, max_in_flight: Any, blocking: Any, metadata: Any
) -> None:
    """Raise unless these can be the arguments of a subscription.

    Raises:
        InvalidTopicError: the pattern is malformed.
        InvalidOptionError: another one is bad, or metadata has a name that is nearly an argument's.
    """
    topics.check_pattern(topic_pattern)
    required_identifier("subscriber_id", subscriber_id)
    require("auto_acknowledge", flag, auto_acknowledge)
    require("max_in_flight", whole(1, 1_000_000, optional=True), max_in_flight)
    require("blocking", flag, blocking)
    if metadata:
        _check_metadata(metadata)


def _check_metadata(metadata: Mapping[str, Any]) -> None:
    for key, value in metadata.items():
        # What is misspelt would be kept as metadata, and the default be in force without a word.
        meant = [name for start, name in _MISTAKABLE.items() if key.startswith(start)]
        if not meant and not isinstance(value, str):
            meant = get_close_matches(key, _OPTIONAL, 1)
        if meant:
            raise InvalidOptionError(
                f"metadata: got {describe(key)}: {describe(value)}; did you mean {meant[0]}? "
                "Metadata are strings under names that do not begin as those of arguments do"
            )
    require("metadata", text_entries, metadata)


def check_receive(subscriber_id: Any, max_messages: Any, wait_seconds: Any, visibility_timeout_seconds: Any) -> None:
    """Raise unless these can be the arguments of a fetch.

    Raises:
        InvalidOptionError: one is bad.
    """
    required_identifier("subscriber_id", subscriber_id)
    require("max_messages", whole(1, MAX_BATCH), max_messages)
    require("wait_seconds", seconds(0.0), wait_seconds)
    require("visibility_timeout_seconds", seconds(0.0, exclusive=True, optional=True), visibility_timeout_seconds)


def check_fetches(subscriber: Subscriber, topic_pattern: str) -> None:
    """Raise unless a subscriber that is there already can fetch what matches a pattern; ``"#"`` is what it has.

    Raises:
        InvalidTopicError: the pattern is malformed.
        InvalidOptionError: it has a callback, or its subscriptions are for other patterns.
    """
    if not subscriber.pull:
        raise InvalidOptionError(
            f"subscriber_id: {subscriber.id!r} has a callback and is sent its messages; use another id to fetch"
        )
    if topic_pattern == "#":
        return
    topics.check_pattern(topic_pattern)
    patterns = {joined.topic_pattern for joined in subscriber.subscriptions.values()}
    if topic_pattern not in patterns:
        shown = ", ".join(map(repr, sorted(patterns)[:5]))
        raise InvalidOptionError(
            f"topic_pattern: got {describe(topic_pattern)}, but {subscriber.id!r} fetches what matches {shown}; "
            "leave the pattern out, subscribe to it first, or fetch under another id"
        )


def id_text(message: MessageReference) -> str:
    """The text of a message's id. What names no message is the id of none."""
    if type(message) is MessageId:
        return message.id
    return message.id.id if isinstance(message, QueuedMessage) else str(message)


def dead_letter_ids(given: Iterable[DeadReference] | None) -> tuple[str, ...] | None:
    """The texts of the ids of some dead letters; None where all are meant.

    Raises:
        InvalidOptionError: it is a single one, or no dead letters at all.
    """
    if given is None:
        return None
    if _is_single(given):
        raise InvalidOptionError(
            f"message_ids: got {describe(given)}, expected several ids or dead letters; give a list, such as [id], "
            "or None for all of them"
        )
    return tuple([_dead_letter_id(one) for one in given])


def id_texts(messages: Iterable[MessageReference]) -> list[str]:
    """The texts of the ids of some messages.

    Raises:
        InvalidOptionError: it is a single one.
    """
    if _is_single(messages):
        raise InvalidOptionError(
            f"message_ids: got {describe(messages)}, expected several ids or messages; give a list, such as [id]"
        )
    return [id_text(message) for message in messages]


def _is_single(given: object) -> bool:
    # Text would be taken letter by letter.
    return isinstance(given, str | bytes) or not isinstance(given, Iterable)


def _dead_letter_id(one: Any) -> str:
    if isinstance(one, str):
        return one
    if isinstance(one, MessageId):
        return one.id
    if isinstance(one, DeadLetter):
        return one.message.id.id
    raise InvalidOptionError(f"message_ids: got {describe(one)} among them, expected ids or dead letters")
