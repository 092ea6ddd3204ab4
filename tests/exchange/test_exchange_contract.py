"""What routes rely on in a topic exchange, for ours and for MPREG's."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpreg_mq.topics import matches
from tests.support.exchanges import EXCHANGES, MakeExchange, message, subscription

SEGMENTS = st.sampled_from(["a", "b", "c"])
TOPICS = st.lists(SEGMENTS, min_size=1, max_size=5).map(".".join)
PATTERNS = st.lists(st.one_of(SEGMENTS, st.sampled_from(["*", "#"])), min_size=1, max_size=4).map(".".join)
# MPREG's trie does not find a topic for which two "#" in a row stand for nothing; the router never subscribes so.
PATTERNS = PATTERNS.filter(lambda pattern: "#.#" not in pattern)


@pytest.mark.parametrize("make", EXCHANGES)
def test_a_listener_gets_what_matches_while_it_publishes(make: MakeExchange) -> None:
    """Given a subscription, when messages are published, then those that match are there before publishing returns."""
    exchange = make()
    heard: list[Any] = []
    exchange.add_internal_subscription(subscription(exchange, "s", "order.*.paid", "alert.#"), heard.append)
    for topic in ("order.eu.paid", "order.paid", "alert", "alert.fire.big", "other"):
        notifications = exchange.publish_message(message(exchange, topic, {"n": 1}))
        assert [one.subscription_id for one in notifications] == ["s"] * (topic not in ("order.paid", "other"))
    assert [one.message.topic for one in heard] == ["order.eu.paid", "alert", "alert.fire.big"]
    assert {one.subscription_id for one in heard} == {"s"}
    assert heard[0].message.payload == {"n": 1}


@pytest.mark.parametrize("make", EXCHANGES)
@given(patterns=st.lists(PATTERNS, min_size=1, max_size=6), topic=TOPICS)
def test_every_pattern_means_the_same(make: MakeExchange, patterns: list[str], topic: str) -> None:
    """For all patterns and topics, an exchange notifies exactly those subscriptions that G6 says."""
    exchange = make()
    for number, pattern in enumerate(patterns):
        exchange.add_internal_subscription(subscription(exchange, str(number), pattern), lambda _: None)
    notified = {one.subscription_id for one in exchange.publish_message(message(exchange, topic))}
    assert notified == {str(number) for number, pattern in enumerate(patterns) if matches(pattern, topic)}


@pytest.mark.parametrize("make", EXCHANGES)
def test_a_subscription_ends_once(make: MakeExchange) -> None:
    """Given a subscription that was removed, then it hears nothing, and removing it again answers False."""
    exchange = make()
    heard: list[Any] = []
    exchange.add_internal_subscription(subscription(exchange, "s", "a.#"), heard.append)
    assert "s" in exchange.subscriptions
    assert exchange.remove_subscription("s")
    assert not exchange.remove_subscription("s")
    exchange.publish_message(message(exchange, "a.b"))
    assert heard == []
    assert "s" not in exchange.subscriptions


@pytest.mark.parametrize("make", EXCHANGES)
def test_a_coroutine_listener_runs_as_a_task(make: MakeExchange) -> None:
    """Given a listener that is a coroutine function, when a message is published on a loop, then it runs there."""
    exchange = make()
    heard: list[str] = []

    async def listen(notification: Any) -> None:
        await asyncio.sleep(0)
        heard.append(notification.message.topic)

    async def story() -> None:
        exchange.add_internal_subscription(subscription(exchange, "s", "#"), listen)
        exchange.publish_message(message(exchange, "a"))
        for _ in range(5):
            await asyncio.sleep(0)

    asyncio.run(story())
    assert heard == ["a"]


@pytest.mark.parametrize("make", EXCHANGES)
def test_the_backlog_holds_what_was_published(make: MakeExchange) -> None:
    """Given messages of different ages, then the backlog has those of the pattern and age, oldest first."""
    exchange = make()
    now = time.time()
    for age, topic in ((500, "a.old"), (20, "a.two"), (60, "a.one"), (10, "b")):
        exchange.publish_message(message(exchange, topic, message_id=topic, timestamp=now - age))
    assert [one.topic for one in exchange.backlog.get_backlog("a.*", 100)] == ["a.one", "a.two"]
