"""Beginnings of histories that tests of the rules go on from."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from mpreg_mq.events import types as e
from mpreg_mq.model import DeliveryGuarantee, OverflowPolicy, QueueType
from tests.support.history import History

BROADCAST, QUORUM = DeliveryGuarantee.BROADCAST, DeliveryGuarantee.QUORUM


def held(**configuration: Any) -> History:
    return History(**configuration).joined("a").sent("1-r").delivered("1-r", "a")


def two_members(guarantee: DeliveryGuarantee = BROADCAST, **options: Any) -> History:
    return History().joined("a").joined("b").sent("1-r", guarantee=guarantee, **options).audience("1-r", "a", "b")


def one_acknowledged(guarantee: DeliveryGuarantee = BROADCAST, **options: Any) -> History:
    return two_members(guarantee, **options).delivered("1-r", "a").acknowledged("1-r", "a", False)


def enqueued(message_id: str) -> e.MessageEnqueued:
    return e.MessageEnqueued(1000.0, message_id, "t", b"\xa1p")


def done(message_id: str) -> History:
    return History().joined("a").sent(message_id).delivered(message_id, "a").acknowledged(message_id, "a")


def busy() -> History:
    return History().joined("a").joined("b").sent("1-r").delivered("1-r", "a").sent("2-r")


def both_acknowledge(history: History) -> History:
    history.delivered("1-r", "a").delivered("1-r", "b")
    return history.acknowledged("1-r", "a", False).acknowledged("1-r", "b", False)


def group_with_a_retry() -> History:
    history = History().joined("a").sent("1-r", group_id="g").sent("2-r", group_id="g")
    return history.delivered("1-r", "a").failed("1-r", "a").requeued("1-r")


def priority_with_a_retry() -> History:
    history = History(queue_type=QueueType.PRIORITY).joined("a").sent("1-r").delivered("1-r", "a")
    return history.failed("1-r", "a").requeued("1-r", 0).sent("2-r", priority=1)


def retried(**configuration: int) -> History:
    return held(**configuration).failed("1-r", "a").requeued("1-r")


def ran_out() -> History:
    history = held().at(1300.0)
    return history.add(e.LeaseExpired(1300.0, "1-r", "a", 1, "late"))


def opened(failures: int = 1, until: float = 1030.0) -> History:
    history = held(circuit_breaker_failure_threshold=1)
    return history.failed("1-r", "a").add(e.CircuitOpened(1000.0, "a", failures, until)).requeued("1-r")


def probed() -> History:
    history = opened().at(1030.0).add(e.CircuitHalfOpened(1030.0, "a"))
    return history.delivered("1-r", "a", 2).acknowledged("1-r", "a")


def died(name: str | None = "a", attempts: int = 1, error: str | None = "boom", **configuration: bool) -> History:
    history = held(max_retries=0, **configuration).failed("1-r", "a")
    return history.dead("1-r", name, attempts, error)


def unexplained() -> History:
    history = held(max_retries=0).failed("1-r", "a")
    return history.add(e.MessageDeadLettered(1000.0, "1-r", "", "boom", 1, "a"))


def redriven() -> History:
    again = replace(enqueued("2-r"), redriven_from="q/1-r")
    return died().add(again, e.DeadLetterRedriven(1000.0, "1-r", "2-r", "q"))


def dropping(max_size: int) -> History:
    return History(max_size=max_size, overflow_policy=OverflowPolicy.DROP_OLDEST)
