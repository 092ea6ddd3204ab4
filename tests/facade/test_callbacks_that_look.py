"""What a callback sees of its own delivery, and that looking changes nothing: a lease opens for whoever looks."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from itertools import count
from typing import Any
from unittest import mock
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpreg_mq import DeliveryGuarantee, DeliveryResult, QueuedMessage, VirtualClock
from mpreg_mq.events import Event
from mpreg_mq.events import types as e
from tests.support.running import assert_fold_equality, make_queue, until


@pytest.mark.parametrize(
    "guarantee", [DeliveryGuarantee.AT_LEAST_ONCE, DeliveryGuarantee.BROADCAST, DeliveryGuarantee.QUORUM]
)
def test_l1_a_callback_finds_its_message_under_a_lease(guarantee: DeliveryGuarantee) -> None:
    """Given a callback that looks at its queue, then its message is in flight, leased to it until the deadline that the
    message names, and counted as received; when it has returned, the message is acknowledged and nothing is left."""

    async def story() -> None:
        queue = make_queue()
        looked: list[bool] = []

        def looks(message: QueuedMessage) -> None:
            (found,) = queue.in_flight_messages.values()
            assert found.message.id == message.id
            assert found.delivered_to == {"s"}
            assert found.lease_deadline == message.lease_deadline
            assert queue.pending_messages == []
            counts = queue.get_statistics()
            assert (counts.messages_received, counts.current_in_flight_count, counts.current_queue_size) == (1, 1, 0)
            assert counts.messages_acknowledged == 0
            looked.append(True)

        queue.subscribe("s", "#", looks)
        await queue.send_message("t", 1, guarantee)
        await until(lambda: queue.get_statistics().messages_acknowledged == 1)
        assert looked == [True]
        assert queue.in_flight_messages == {}
        assert_fold_equality(queue)
        await queue.shutdown()

    asyncio.run(story())


def test_c1_a_callback_sends_in_the_place_of_its_own_message() -> None:
    """Given a full queue that is about to deliver, when a callback sends to it, then that is accepted at once, in the
    place of the message that the callback has."""

    async def story() -> None:
        queue = make_queue(max_size=2)
        sent: list[DeliveryResult] = []

        def sends(message: QueuedMessage) -> None:
            if message.payload < 2:
                with pytest.raises(StopIteration) as ended:
                    queue.send_message("t", message.payload + 2).send(None)
                sent.append(ended.value.value)

        for payload in range(2):
            await queue.send_message("t", payload)
        queue.subscribe("s", "#", sends)
        await until(lambda: queue.get_statistics().messages_acknowledged == 4)
        assert [result.success for result in sent] == [True, True]
        assert_fold_equality(queue)
        await queue.shutdown()

    asyncio.run(story())


class Unsteady(VirtualClock):
    """A clock that is set back by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.behind = 0.0

    def now(self) -> float:
        return super().now() - self.behind


@pytest.mark.parametrize("look", [False, True])
@pytest.mark.parametrize("messages", [1, 5])
def test_an_acknowledgment_is_never_older_than_its_delivery(look: bool, messages: int) -> None:
    """Given callbacks that run while the clock is set back, whether they look or not, and one message or several in a
    row, then the times of the events go on, and none of them took less than no time."""

    async def story() -> None:
        clock = Unsteady()
        queue = make_queue(clock)

        def handle(message: QueuedMessage) -> None:
            if look:
                queue.get_statistics()
            clock.behind += 3.0

        for payload in range(messages):
            await queue.send_message("t", payload)
        queue.subscribe("s", "#", handle)
        # So that the delivery is later than everything before it.
        clock.behind -= 10.0
        await until(lambda: queue.get_statistics().messages_acknowledged == messages)
        times = [record.event.at for record in queue._actor._store.log.read_stream(queue._actor.stream)]
        assert times == sorted(times)
        assert queue.get_statistics().average_processing_time_seconds == 0.0
        assert_fold_equality(queue)
        await queue.shutdown()

    asyncio.run(story())


# --- looking changes nothing --------------------------------------------------------------------------------


class Story:
    """One run: messages, each of which says what its callback does, and whether callbacks look before."""

    def __init__(self, look: bool, messages: list[tuple[str, DeliveryGuarantee]], subscribers: int) -> None:
        self._look = look
        self._messages = messages
        self._subscribers = subscribers
        self._clock = VirtualClock()
        self._queue = make_queue(self._clock, max_retries=1, circuit_breaker_failure_threshold=3)
        self._begun: list[Coroutine[Any, Any, Any]] = []
        self._subscriptions: list[str] = []

    async def run(self) -> list[Event]:
        """The events."""
        queue = self._queue
        for number in range(self._subscribers):
            self._subscriptions.append(queue.subscribe(f"s{number}", "#", self._handle, max_in_flight=2))
        queue.subscribe("puller", "pulled")
        for does, guarantee in self._messages:
            assert (await queue.send_message("pulled" if does == "fetch" else "t", does, guarantee)).success
        for _ in range(4):
            await self._clock.advance(400.0)
            for coroutine in self._begun:
                await coroutine
            self._begun.clear()
            queue.resume_queue()
        assert_fold_equality(queue)
        events = [record.event for record in queue._actor._store.log.read_stream(queue._actor.stream)]
        await queue.shutdown()
        return events

    def _begin(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        """Run a coroutine as far as it gets within the callback."""
        try:
            coroutine.send(None)
        except StopIteration:
            return
        self._begun.append(coroutine)

    def _handle(self, message: QueuedMessage) -> Any:
        queue, first = self._queue, message.delivery_attempt == 1
        if self._look:
            queue.get_statistics()
        match message.payload:
            case "raise" if first:
                raise ValueError("refused")
            case "exit":
                raise SystemExit
            case "coroutine":
                return asyncio.sleep(0)
            case "coroutine that fails":
                return self._fail_later()
            case "acknowledge":
                self._begin(queue.acknowledge_message(message.id, "s0"))
            case "refuse" if first:
                self._begin(queue.negative_acknowledge(message.id, "s0", "no", 1.0))
            case "extend":
                self._begin(queue.extend_lease(message.id, "s0", 900.0))
            case "send":
                self._begin(queue.send_message("t", "return"))
            case "fire":
                self._begin(queue.send_message("t", "return", DeliveryGuarantee.FIRE_AND_FORGET))
            case "fetch":
                self._begin(queue.receive_messages("puller", 2))
            case "unsubscribe":
                queue.unsubscribe(self._subscriptions[-1])
            case "pause":
                queue.pause_queue()
            case "purge":
                self._begin(queue.purge_queue())
        return None

    async def _fail_later(self) -> None:
        await asyncio.sleep(0)
        raise ValueError("refused later")


DOINGS = (
    "return",
    "raise",
    "exit",
    "coroutine",
    "coroutine that fails",
    "acknowledge",
    "refuse",
    "extend",
    "send",
    "fire",
    "fetch",
    "unsubscribe",
    "pause",
    "purge",
)
ACCEPTED = (DeliveryGuarantee.AT_LEAST_ONCE, DeliveryGuarantee.BROADCAST, DeliveryGuarantee.QUORUM)


def events_of(look: bool, messages: list[tuple[str, DeliveryGuarantee]], subscribers: int) -> list[Event]:
    """What is recorded, with names that are the same in each run."""
    numbers = count(1)
    with (
        mock.patch("mpreg_mq.actors.queue_actor.secrets.token_hex", return_value="run"),
        mock.patch("mpreg_mq.queue.uuid.uuid4", side_effect=lambda: UUID(int=next(numbers))),
        # A slice of real time would end elsewhere in each run.
        mock.patch("mpreg_mq.actors.turns.SLICE_SECONDS", 1e6),
    ):
        return asyncio.run(Story(look, messages, subscribers).run())


@given(
    # Long enough for some to go in a row.
    messages=st.lists(
        st.tuples(st.sampled_from((*DOINGS, *["return"] * 14)), st.sampled_from((*ACCEPTED, *ACCEPTED[:1] * 6))),
        min_size=1,
        max_size=12,
    ),
    subscribers=st.integers(1, 2),
)
def test_a_callback_that_looks_changes_nothing(messages: list[tuple[str, DeliveryGuarantee]], subscribers: int) -> None:
    """Given any messages and whatever their callbacks do, then the same events are recorded whether the callbacks look
    at their queue first or not."""
    looked = events_of(True, messages, subscribers)
    assert any(type(event) is e.MessageDelivered for event in looked)
    assert events_of(False, messages, subscribers) == looked
