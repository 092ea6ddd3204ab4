"""The events of a message's whole life, as the log stores them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from benchmarks.harness.payloads import Message
from mpreg_mq.configuration import QueueConfiguration
from mpreg_mq.events import types as e
from mpreg_mq.events.codec import CODEC
from mpreg_mq.payload import encode_payload

START = 1_700_000_000.0
RUN = "0123456789ab"
"""Stands for the part of a message's id that is the same for a run of the program."""

SUBSCRIBER = "worker"
SUBSCRIPTION = "00000000-0000-0000-0000-000000000000"
MAX_SIZE = 10_000_000


def beginning() -> list[e.Event]:
    """A queue is made, and somebody subscribes."""
    return [
        e.QueueCreated(START, "bench", QueueConfiguration("bench", max_size=MAX_SIZE)),
        e.SubscriberJoined(START, SUBSCRIBER, SUBSCRIPTION, "#", MAX_SIZE // 10),
    ]


def lives(messages: Iterable[Message]) -> Iterator[e.Event]:
    """Enqueued, delivered, acknowledged: three events for each message."""
    for number, (topic, payload) in enumerate(messages, 1):
        message_id, at = f"{number}-{RUN}", START + number * 1e-4
        yield e.MessageEnqueued(at, message_id, topic, encode_payload(payload))
        yield e.MessageDelivered(at, message_id, SUBSCRIBER, SUBSCRIPTION, 1, at + 300.0)
        yield e.MessageAcknowledged(at, message_id, SUBSCRIBER, completes=True)


def bodies_of(messages: Iterable[Message]) -> list[bytes]:
    """The encoded events, three for each message."""
    return [CODEC.encode(event).body for event in lives(messages)]
