"""What the exchange within a process promises beyond the contract."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from mpreg_mq import InvalidTopicError, TopicExchange, VirtualClock
from mpreg_mq.exchange import in_process
from tests.support.exchanges import message, subscription


def test_a_listener_that_fails_disturbs_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """Given listeners that raise, at once or later, when a message is published, then the others and the publisher
    notice nothing, and the log has it."""
    exchange = TopicExchange()
    heard: list[Any] = []

    def fail(_: Any) -> None:
        raise RuntimeError("at once")

    async def fail_later(_: Any) -> None:
        raise RuntimeError("later")

    async def story() -> None:
        exchange.add_internal_subscription(subscription(exchange, "1", "#"), fail)
        exchange.add_internal_subscription(subscription(exchange, "2", "#"), fail_later)
        exchange.add_internal_subscription(subscription(exchange, "3", "#"), heard.append)
        assert len(exchange.publish_message(message(exchange, "a"))) == 3
        for _ in range(5):
            await asyncio.sleep(0)

    with caplog.at_level(logging.ERROR, "mpreg_mq"):
        asyncio.run(story())
    assert len(heard) == 1
    assert len(caplog.records) == 2
    assert (exchange.messages_published, exchange.messages_delivered) == (1, 3)


def test_a_malformed_pattern_or_topic_changes_nothing() -> None:
    """Given a subscription, when its id is taken with a bad pattern, then the old one stays; a bad topic reaches
    nobody."""
    exchange = TopicExchange()
    heard: list[Any] = []
    exchange.add_internal_subscription(subscription(exchange, "s", "a"), heard.append)
    with pytest.raises(InvalidTopicError):
        exchange.add_internal_subscription(subscription(exchange, "s", "b", "c.#x"), heard.append)
    with pytest.raises(InvalidTopicError):
        exchange.publish_message(message(exchange, "a..b"))
    exchange.publish_message(message(exchange, "a"))
    assert len(heard) == 1
    assert exchange.messages_published == 1


def test_an_id_that_is_taken_replaces_the_subscription() -> None:
    """Given a subscription, when another one of its id comes, then only the new patterns count."""
    exchange = TopicExchange()
    heard: list[str] = []
    exchange.add_internal_subscription(subscription(exchange, "s", "a"), lambda one: heard.append("old"))
    exchange.add_internal_subscription(subscription(exchange, "s", "b"), lambda one: heard.append("new"))
    exchange.publish_message(message(exchange, "a"))
    exchange.publish_message(message(exchange, "b"))
    assert heard == ["new"]


def test_the_backlog_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given more messages than it holds, and one that is too old, then the backlog has the latest of the last hour."""
    monkeypatch.setattr(in_process, "BACKLOG_MESSAGES", 3)
    clock = VirtualClock()
    exchange = TopicExchange(clock)
    for number in range(5):
        exchange.publish_message(message(exchange, f"t.{number}", timestamp=clock.now()))
    assert [one.topic for one in exchange.backlog.get_backlog("#", 1e9)] == ["t.2", "t.3", "t.4"]
    clock.set(clock.now() + in_process.BACKLOG_SECONDS + 1)
    assert exchange.backlog.get_backlog("#", 1e9) == []
