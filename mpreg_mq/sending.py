"""A send before it reaches its queue's actor: the command that it becomes, or the result that refuses it (S2, S3)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

from mpreg_mq._validation import describe
from mpreg_mq.actors import commands as c
from mpreg_mq.actors.messages import Stored
from mpreg_mq.actors.turns import Turns
from mpreg_mq.configuration import QueueConfiguration
from mpreg_mq.errors import (
    InvalidOptionError,
    InvalidTopicError,
    MessageQueueError,
    PayloadError,
    QueueClosedError,
    QueueNotFoundError,
)
from mpreg_mq.model import DEFAULT_OPTIONS, DeliveryGuarantee, DeliveryResult, RejectionReason
from mpreg_mq.options import MAX_BATCH, guarantee_of, message_options
from mpreg_mq.payload import (
    DOUBTFUL_KEYS,
    PLAIN_TYPES,
    SHALLOW_BYTES,
    check_decodable,
    check_depth,
    encode,
    encode_payload,
    fingerprint,
)
from mpreg_mq.topics import check_topic, known_topics

_REASONS: tuple[tuple[type[MessageQueueError], RejectionReason], ...] = (
    (PayloadError, RejectionReason.PAYLOAD_NOT_ENCODABLE),
    (InvalidTopicError, RejectionReason.INVALID_TOPIC),
    (InvalidOptionError, RejectionReason.INVALID_OPTION),
    (QueueNotFoundError, RejectionReason.UNKNOWN_QUEUE),
    (QueueClosedError, RejectionReason.CLOSING),
    (MessageQueueError, RejectionReason.STORE_ERROR),
)


Entry = tuple[Any, Any, dict[str, Any]]
"""Topic, payload and own options of a message in a batch; none of them has been looked at."""

_NONE: dict[str, Any] = {}
"""The options of a message that has none of its own; nobody changes them."""


def send_command(
    configuration: QueueConfiguration, topic: Any, payload: Any, guarantee: Any, options: dict[str, Any]
) -> c.Send:
    """The command for one send.

    Raises:
        InvalidTopicError, InvalidOptionError, PayloadError: it cannot be one.
    """
    if type(topic) is not str or topic not in known_topics:
        check_topic(topic)
    checked = message_options(options) if options else DEFAULT_OPTIONS
    # As encode_payload, in place: it is asked for every message.
    try:
        encoded = encode(payload)
        if type(payload) is dict:
            # An empty one has no second byte, and goes the longer way.
            if encoded[1] in DOUBTFUL_KEYS:
                check_decodable(encoded)
        elif type(payload) not in PLAIN_TYPES:
            check_decodable(encoded)
    except Exception:
        encoded = encode_payload(payload)
    if len(encoded) > SHALLOW_BYTES:
        check_depth(encoded)
    if type(guarantee) is not DeliveryGuarantee:
        guarantee = guarantee_of(guarantee)
    key = None
    if configuration.enable_deduplication:
        key = checked.deduplication_id
        if key is None:
            key = fingerprint(topic, payload, checked.headers)
    return c.Send(topic, encoded, guarantee, checked, key)


Refused = tuple[int, Any, MessageQueueError]
"""The place of a message in its batch, its topic, and why it cannot be sent."""


def send_commands(
    configuration: QueueConfiguration, messages: Iterable[Any], guarantee: Any, options: dict[str, Any]
) -> tuple[list[c.Send], list[Refused]]:
    """The commands for the messages of a batch, in their order, and which of them cannot be one (S5).

    Raises:
        InvalidOptionError: the batch is too long, or a message is neither a pair nor a mapping with these.
    """
    given = batch_of(messages)
    sends: list[c.Send] = []
    refused: list[Refused] = []
    plain = not options and not configuration.enable_deduplication and type(guarantee) is DeliveryGuarantee
    known_topic: Any = _NONE
    for message in given:
        if type(message) is tuple and len(message) == 2:
            # As _entry, in place, for what most are.
            topic, payload = message
            own = _NONE
            if topic is known_topic and plain:
                # As send_command, in place, for one that differs from the one before in its payload alone.
                try:
                    encoded = encode(payload)
                    if len(encoded) <= SHALLOW_BYTES:
                        if type(payload) is dict:
                            if encoded[1] in DOUBTFUL_KEYS:
                                check_decodable(encoded)
                        elif type(payload) not in PLAIN_TYPES:
                            check_decodable(encoded)
                        sends.append(c.Send(topic, encoded, guarantee))
                        continue
                except Exception:
                    # Which it explains.
                    pass
        else:
            topic, payload, own = _entry(message)
        try:
            sends.append(send_command(configuration, topic, payload, guarantee, {**options, **own} if own else options))
            known_topic = topic if type(topic) is str else _NONE
        except MessageQueueError as error:
            refused.append((len(sends) + len(refused), topic, error))
    return sends, refused


def rejection_of(error: MessageQueueError) -> RejectionReason:
    """What a send that failed with this error was refused for."""
    return next(reason for kind, reason in _REASONS if isinstance(error, kind))


def failed_result(error: MessageQueueError) -> DeliveryResult:
    """The result of a send that came to nothing, as far as is known."""
    return DeliveryResult(False, None, error_message=str(error), rejection=rejection_of(error))


async def among_senders(reply: asyncio.Future[DeliveryResult], turns: Turns) -> DeliveryResult:
    """Wait for a reply as one of those who send (:meth:`~mpreg_mq.actors.turns.Turns.is_lone_sender`)."""
    turns.senders += 1
    try:
        return await reply
    finally:
        turns.senders -= 1


async def let_others(stored: Stored, turns: Turns) -> DeliveryResult:
    """After a commit that was waited for on the loop: let the message be delivered, and other tasks run."""
    turns.senders += 1
    try:
        await asyncio.sleep(0)
    finally:
        turns.senders -= 1
    return stored.result


def batch_entries(
    messages: Iterable[Mapping[str, Any] | tuple[str, Any]],
) -> list[Entry]:
    """Topic, payload and own options of each entry of a batch (S5).

    Raises:
        InvalidOptionError: the batch is too long, or an entry is neither a pair nor a mapping with these.
    """
    return [_entry(message) for message in batch_of(messages)]


def batch_of(messages: Any) -> list[Any]:
    """The entries of a batch, which have not been looked at.

    Raises:
        InvalidOptionError: there are too many, or what was given has none.
    """
    if not isinstance(messages, Iterable):
        raise InvalidOptionError(
            f"messages: got {describe(messages)}, expected a list of (topic, payload) pairs, or of mappings with "
            "'topic' and 'payload'"
        )
    given = list(messages)
    if len(given) > MAX_BATCH:
        raise InvalidOptionError(f"messages: got {len(given)}, expected at most {MAX_BATCH}; send several batches")
    return given


def _entry(message: Mapping[str, Any] | tuple[str, Any]) -> Entry:
    # The quicker question first: whether something is a mapping takes as long as all the rest.
    if isinstance(message, tuple):
        if len(message) == 2:
            return message[0], message[1], _NONE
    elif isinstance(message, Mapping):
        own = dict(message)
        if "topic" in own and "payload" in own:
            return own.pop("topic"), own.pop("payload"), own
    raise InvalidOptionError(
        f"messages: got {describe(message)}, expected (topic, payload) or a mapping with 'topic' and 'payload'"
    )
