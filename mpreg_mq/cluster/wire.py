"""What nodes say to each other: a request names a queue and what is asked of it; the reply says what came of it."""

from __future__ import annotations

from enum import Enum, IntEnum
from typing import Any

import msgspec

from mpreg_mq import errors
from mpreg_mq.actors import commands as c
from mpreg_mq.errors import MessageQueueError
from mpreg_mq.model import DeadLetter, DeliveryResult, QueuedMessage, QueueStatistics
from mpreg_mq.payload import UndecodablePayload


class ReceiveRequest(msgspec.Struct, frozen=True):
    """Fetch messages; ``topic_pattern`` is for a subscriber that has no subscription yet (L1).

    With ``member`` they are for the callbacks that the subscriber has there. ``request_id`` is what a
    :class:`CancelReceive` names.
    """

    subscriber_id: str
    max_messages: int
    wait_seconds: float
    visibility_timeout_seconds: float | None = None
    topic_pattern: str = "#"
    member: str | None = None
    request_id: str = ""


class CancelReceive(msgspec.Struct, frozen=True):
    """Nobody waits for a receive any more: it is to lease nothing, and what it has leased is to go back."""

    request_id: str


class SubscribeRequest(msgspec.Struct, frozen=True):
    """Begin a subscription whose callback runs on ``member``; asking again does nothing."""

    subscriber_id: str
    subscription_id: str
    topic_pattern: str
    member: str
    max_in_flight: int | None = None
    auto_acknowledge: bool = True
    metadata: dict[str, str] = msgspec.field(default_factory=dict)


class DetachRequest(msgspec.Struct, frozen=True):
    """These subscriptions end with their process; leases of subscribers that have no other end too (C3)."""

    subscription_ids: tuple[str, ...]
    reason: str


class Acknowledged(IntEnum):
    """What became of an acknowledgment."""

    NO = 0
    """It does not count (L2)."""
    COUNTED = 1
    BEFORE = 2
    """It does not count again, the subscriber has acknowledged the message already: whoever asks because the first
    answer was lost takes that for a success."""


class AcknowledgeMany(msgspec.Struct, frozen=True):
    """Acknowledgments that were ready at the same time."""

    acknowledgments: tuple[c.Acknowledge, ...]


class Statistics(msgspec.Struct, frozen=True):
    """Ask for the queue's counts."""


class DeadLetters(msgspec.Struct, frozen=True):
    """Ask for the queue's dead letters."""


class ListedDeadLetters(msgspec.Struct, frozen=True):
    """Dead letters, and the places of those whose payloads cannot be decoded: a payload does not say its type."""

    entries: list[DeadLetter]
    undecodable: list[int]

    @classmethod
    def of(cls, entries: list[DeadLetter]) -> ListedDeadLetters:
        """Those that the owner has."""
        undecodable = [place for place, one in enumerate(entries) if type(one.message.payload) is UndecodablePayload]
        return cls(entries, undecodable)

    def as_they_were(self) -> list[DeadLetter]:
        """Those that the owner has, once they have arrived."""
        for place in self.undecodable:
            message = self.entries[place].message
            message.payload = msgspec.convert(message.payload, UndecodablePayload)
        return self.entries


class Fired(msgspec.Struct, frozen=True):
    """A fire-and-forget message for these subscriptions of the member that is asked (G1)."""

    send: c.Send
    subscription_ids: list[str]


class OwnedStatus(msgspec.Struct, frozen=True):
    """One owned queue, as its owner sees it."""

    name: str
    epoch: int
    version: int
    pending: int
    in_flight: int
    dead_letters: int


class NodeStatus(msgspec.Struct, frozen=True):
    """A node, as it sees itself."""

    member: str
    draining: bool
    lease_age_seconds: float
    queues: tuple[OwnedStatus, ...]
    metrics: dict[str, float]


class GetStatus(msgspec.Struct, frozen=True):
    """Ask a node how it is."""


KINDS: dict[str, tuple[type[msgspec.Struct], Any]] = {
    "send": (c.Send, DeliveryResult),
    "send_batch": (c.SendBatch, list[DeliveryResult]),
    "receive": (ReceiveRequest, list[QueuedMessage]),
    "cancel_receive": (CancelReceive, bool),
    "acknowledge": (AcknowledgeMany, list[Acknowledged]),
    "negative_acknowledge": (c.NegativeAcknowledge, bool),
    "extend": (c.ExtendLease, bool),
    "subscribe": (SubscribeRequest, str),
    "unsubscribe": (c.Unsubscribe, bool),
    "detach": (DetachRequest, int),
    "pause": (c.Pause, bool),
    "resume": (c.Resume, bool),
    "purge": (c.Purge, int),
    "redrive": (c.Redrive, list[tuple[str, str]]),
    "accept_redriven": (c.AcceptRedriven, list[tuple[str, str]]),
    "record_redriven": (c.RecordRedriven, int),
    "purge_dead_letters": (c.PurgeDeadLetters, int),
    "open": (c.Open, bool),
    "delete": (c.Delete, bool),
    "statistics": (Statistics, QueueStatistics),
    "dead_letters": (DeadLetters, ListedDeadLetters),
    "fired": (Fired, bool),
    "status": (GetStatus, NodeStatus),
}
"""By kind of request: what is asked, and the type of the answer."""

KIND_OF: dict[type[msgspec.Struct], str] = {asked: kind for kind, (asked, _) in KINDS.items()}


class Request(msgspec.Struct, frozen=True, array_like=True):
    """Something asked of a queue's owner, or of a node where the queue is empty."""

    queue: str
    kind: str
    body: bytes


class Outcome(Enum):
    """What became of a request."""

    DONE = "done"
    """The answer is there."""
    MOVED = "moved"
    """This node does not own the queue, and did nothing."""
    UNAVAILABLE = "unavailable"
    """The log did not confirm; it may have been done or not."""
    REFUSED = "refused"
    """The request is in error."""


class Reply(msgspec.Struct, frozen=True, array_like=True):
    """The outcome, the epoch under which it was reached, and the answer or what went wrong."""

    outcome: Outcome
    epoch: int = 0
    body: bytes = b""
    error: str = ""
    detail: str = ""


_encode = msgspec.msgpack.Encoder().encode
_decode_request = msgspec.msgpack.Decoder(Request).decode
_decode_reply = msgspec.msgpack.Decoder(Reply).decode
_asked = {kind: msgspec.msgpack.Decoder(asked).decode for kind, (asked, _) in KINDS.items()}
_answered = {kind: msgspec.msgpack.Decoder(answer).decode for kind, (_, answer) in KINDS.items()}
_ERRORS = {
    name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, MessageQueueError)
}


def encode_request(queue: str, asked: msgspec.Struct) -> bytes:
    """A request as bytes."""
    return _encode(Request(queue, KIND_OF[type(asked)], _encode(asked)))


def decode_request(data: bytes) -> tuple[str, msgspec.Struct]:
    """The queue, and what is asked of it.

    Raises:
        msgspec.MsgspecError: the bytes are no request of this release.
    """
    request = _decode_request(data)
    decode = _asked.get(request.kind)
    if decode is None:
        raise msgspec.ValidationError(f"unknown request {request.kind!r}; upgrade mpreg-mq on this node")
    return request.queue, decode(request.body)


def encode_reply(reply: Reply) -> bytes:
    """A reply as bytes."""
    return _encode(reply)


def decode_reply(data: bytes) -> Reply:
    """A reply from bytes.

    Raises:
        msgspec.MsgspecError: the bytes are none.
    """
    return _decode_reply(data)


def done(epoch: int, answer: Any) -> Reply:
    """The reply that carries an answer."""
    return Reply(Outcome.DONE, epoch, _encode(answer))


def refused(error: MessageQueueError) -> Reply:
    """The reply to a request in error."""
    return Reply(Outcome.REFUSED, 0, b"", type(error).__name__, str(error))


def answer_of(asked: msgspec.Struct, reply: Reply) -> Any:
    """The answer in a reply.

    Raises:
        MessageQueueError: the request was refused; the owner's own error.
    """
    if reply.outcome is Outcome.REFUSED:
        raise _ERRORS.get(reply.error, MessageQueueError)(reply.detail)
    return _answered[KIND_OF[type(asked)]](reply.body)
