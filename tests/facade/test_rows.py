"""Messages that wait for one callback go in a row: what each callback sees and what becomes of it is as ever."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import pytest

from mpreg_mq import DeliveryGuarantee, QueuedMessage, VirtualClock
from mpreg_mq.actors.current import current_delivery
from mpreg_mq.events import Event
from mpreg_mq.projections import QueueState
from mpreg_mq.projections.everyday import delivered_and_acknowledged_in_a_row
from mpreg_mq.queue import MessageQueue
from mpreg_mq.sending import send_command
from tests.support.running import Recorder, assert_fold_equality, make_queue, until

MESSAGES = 6
FOLD = "mpreg_mq.actors.delivering.delivered_and_acknowledged_in_a_row"


async def with_messages(clock: VirtualClock | None = None, **settings: Any) -> MessageQueue:
    """A queue with messages for whoever comes."""
    queue = make_queue(clock, **settings)
    for payload in range(MESSAGES):
        await queue.send_message("t", payload)
    return queue


def acknowledged(queue: MessageQueue) -> int:
    return queue.get_statistics().messages_acknowledged


def test_a_callback_knows_its_own_message_and_no_other_afterwards() -> None:
    """Given callbacks in a row, then each of them, and each task that it starts, knows its own message; afterwards the
    context is as it was."""

    async def story() -> None:
        queue = await with_messages()
        seen: list[bool] = []
        tasks: list[asyncio.Task[None]] = []

        async def look(message: QueuedMessage) -> None:
            seen.append(current_delivery.get() is message)

        def handle(message: QueuedMessage) -> None:
            seen.append(current_delivery.get() is message)
            tasks.append(asyncio.ensure_future(look(message)))

        queue.subscribe("s", "#", handle)
        folds: list[object] = []

        def fold(state: QueueState, events: Sequence[Event]) -> None:
            folds.append(len(events))
            delivered_and_acknowledged_in_a_row(state, events)

        with mock.patch(FOLD, fold):
            await until(lambda: acknowledged(queue) == MESSAGES)
        await asyncio.gather(*tasks)
        assert folds == [2 * MESSAGES]
        assert seen == [True] * (2 * MESSAGES)
        assert current_delivery.get() is None
        await queue.shutdown()

    asyncio.run(story())


def test_l4_one_that_raises_in_the_middle_comes_again_and_the_others_go_on() -> None:
    """Given a callback that raises once, in the middle of a row, then that message comes again and all are done."""

    async def story() -> None:
        queue = await with_messages(retry_backoff_seconds=0.0)
        recorder = Recorder()

        def handle(message: QueuedMessage) -> None:
            recorder(message)
            if message.payload == 3 and message.delivery_attempt == 1:
                raise ValueError("not now")

        queue.subscribe("s", "#", handle)
        await until(lambda: acknowledged(queue) == MESSAGES)
        assert sorted(recorder.payloads) == [0, 1, 2, 3, 3, 4, 5]
        assert queue.get_statistics().delivery_failures == 1
        assert_fold_equality(queue)
        await queue.shutdown()

    asyncio.run(story())


class Interrupted(list[Event]):
    """Events whose reader gets Ctrl-C after some of them."""

    def __iter__(self) -> Iterator[Event]:
        for number, event in enumerate(super().__iter__()):
            if number == 4:
                raise KeyboardInterrupt
            yield event


def test_an_interruption_while_a_row_is_folded_in_leaves_no_state_that_the_log_does_not_know() -> None:
    """Given Ctrl-C while a row is folded in, then the queue refuses one send and is built anew from its log; what that
    does not know to be done is delivered again, and nothing is lost."""
    recorder = Recorder()
    clock = VirtualClock()
    loop = asyncio.new_event_loop()
    queue = loop.run_until_complete(with_messages(clock))

    def fold(state: QueueState, events: Sequence[Event]) -> None:
        delivered_and_acknowledged_in_a_row(state, Interrupted(events))

    async def begin() -> None:
        queue.subscribe("s", "#", recorder)
        await until(lambda: len(recorder.payloads) > MESSAGES)

    with mock.patch(FOLD, fold), pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(begin())

    async def go_on() -> None:
        assert not (await queue.send_message("t", "refused")).success
        assert (await queue.send_message("t", "last")).success
        await clock.advance(10.0)
        assert acknowledged(queue) == MESSAGES + 1
        assert recorder.payloads == [*range(MESSAGES), *range(MESSAGES), "last"]
        assert_fold_equality(queue)
        await queue.shutdown()

    loop.run_until_complete(go_on())
    loop.close()


class InterruptedClock(VirtualClock):
    """A clock that calls something once when it is looked at, as a signal's handler or a finaliser may be called."""

    interrupt: Callable[[], None] | None = None

    def now(self) -> float:
        interrupt, self.interrupt = self.interrupt, None
        if interrupt is not None:
            interrupt()
        return super().now()


async def interrupted(interrupt: Callable[[MessageQueue], None]) -> tuple[MessageQueue, list[Any]]:
    """A queue that was asked for something between two callbacks of a row, and the payloads of the first row."""
    clock, payloads = InterruptedClock(), list[Any]()
    queue = await with_messages(clock)

    def handle(message: QueuedMessage) -> None:
        payloads.append(message.payload)
        if message.payload == 1:
            clock.interrupt = lambda: interrupt(queue)

    queue.subscribe("s", "#", handle)
    await until(lambda: acknowledged(queue) == MESSAGES)
    return queue, payloads


def test_who_sends_between_two_callbacks_of_a_row_waits_until_it_is_over() -> None:
    """Given a send in the midst of a row, but in no callback of it, then nothing is delivered twice, and the message
    comes after the row."""

    def send(queue: MessageQueue) -> None:
        # What it gives is a future: nobody has to wait for it.
        replies.append(queue._actor.call(send_command(queue.config, "t", "last", DeliveryGuarantee.AT_LEAST_ONCE, {})))

    replies: list[Any] = []

    async def story() -> None:
        queue, payloads = await interrupted(send)
        await until(lambda: acknowledged(queue) == MESSAGES + 1)
        assert payloads == [*range(MESSAGES), "last"]
        assert (await replies[0]).success
        assert_fold_equality(queue)
        await queue.shutdown()

    asyncio.run(story())


def test_nothing_is_changed_at_once_between_two_callbacks_of_a_row() -> None:
    """Given somebody who would end the subscription in the midst of a row, but in no callback of it, then they are told
    that the queue is busy, and the row goes on."""

    def end(queue: MessageQueue) -> None:
        (subscription_id,) = queue._actor.callbacks()
        with pytest.raises(RuntimeError, match="not idle"):
            queue.unsubscribe(subscription_id)
        refused.append(subscription_id)

    refused: list[str] = []

    async def story() -> None:
        queue, payloads = await interrupted(end)
        assert refused == list(queue._actor.callbacks())
        assert payloads == [*range(MESSAGES)]
        assert_fold_equality(queue)
        await queue.shutdown()

    asyncio.run(story())
