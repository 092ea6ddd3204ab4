"""Turns: queues that have much to deliver share the time that they take from their loop."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpreg_mq import MessageQueueManager, QueueConfiguration, QueuedMessage, QueueManagerConfiguration, VirtualClock
from mpreg_mq.actors.dispatching import STEPS_BETWEEN_LOOKS
from mpreg_mq.actors.queue_actor import QueueActor
from mpreg_mq.actors.turns import LEAST_SHARE, SLICE_SECONDS, LoopTurns, Turns
from tests.support.running import PATIENCE_SECONDS, FlakyLog, Recorder, make_queue, until

STEP_SECONDS = 1e-4
"""What each delivery takes of a time that nothing else passes."""


class _Time:
    """The module ``time``, of a machine on which only what says so takes any."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@contextmanager
def measured_time() -> Iterator[_Time]:
    """Turns are measured by what callbacks say that they took."""
    time = _Time()
    with (
        mock.patch("mpreg_mq.actors.turns.time", time),
        mock.patch("mpreg_mq.actors.dispatching.time", time),
        mock.patch("mpreg_mq.actors.delivering.time", time),
    ):
        yield time


class _Taker:
    """Takes turns that take as long as it says."""

    waits_for_turn = False

    def __init__(self, name: int, take_turn: Callable[[_Taker], None]) -> None:
        self.name = name
        self._take_turn = take_turn

    def take_turn(self) -> None:
        self._take_turn(self)


async def _loaded(manager: MessageQueueManager, queues: int, messages: int) -> list[str]:
    """Queues with so many messages each, that nobody has subscribed to yet."""
    names = [f"q{number}" for number in range(queues)]
    for name in names:
        await manager.create_queue(name, QueueConfiguration(name, max_size=100_000))
        results = await manager.send_messages(name, [("t", number) for number in range(messages)])
        assert all(result.success for result in results)
    return names


def _manager(queues: int) -> MessageQueueManager:
    return MessageQueueManager(QueueManagerConfiguration(max_queues=queues + 1), clock=VirtualClock())


@pytest.mark.parametrize("queues", [1, 10, 100])
def test_however_many_queues_have_a_backlog_the_loop_goes_on_after_one_slice(queues: int) -> None:
    """Given queues with a backlog, when all of it is delivered, then between any two steps of another task passes about
    the slice of one of them, and each queue gets as much of the time as the others."""
    delivered: Counter[str] = Counter()
    pauses: list[float] = []
    leads: list[int] = []

    async def story(time: _Time) -> None:
        manager = _manager(queues)
        per_queue = 400
        names = await _loaded(manager, queues, per_queue)

        def count(name: str, message: QueuedMessage) -> None:
            time.now += STEP_SECONDS
            delivered[name] += 1

        for name in names:
            manager.subscribe_to_queue(name, "s", "#", partial(count, name))
        last = time.now

        def is_over() -> bool:
            nonlocal last
            pauses.append(time.now - last)
            last = time.now
            leads.append(max(delivered[name] for name in names) - min(delivered[name] for name in names))
            return sum(delivered.values()) == queues * per_queue

        await until(is_over)
        await manager.shutdown()

    with measured_time() as time:
        asyncio.run(story(time))
    longest_look = STEPS_BETWEEN_LOOKS * STEP_SECONDS
    assert max(pauses) <= SLICE_SECONDS + longest_look + STEP_SECONDS
    most_in_a_turn = SLICE_SECONDS / min(queues, LEAST_SHARE) + longest_look
    assert max(leads) <= 2 * most_in_a_turn / STEP_SECONDS + 2


def test_c2_a_message_to_an_idle_queue_waits_for_one_round_of_the_others() -> None:
    """Given 50 queues with a backlog, when a message is sent to an idle one, then it is delivered after each of those
    has had one more turn, not after a slice for each."""
    queues = 50

    async def story(time: _Time) -> None:
        manager = _manager(queues)
        arrived: list[float] = []

        def take_long(message: QueuedMessage) -> None:
            time.now += STEP_SECONDS

        await manager.create_queue("idle")
        manager.subscribe_to_queue("idle", "s", "#", lambda message: arrived.append(time.now))
        for name in await _loaded(manager, queues, 2000):
            manager.subscribe_to_queue(name, "s", "#", take_long)
        for _ in range(20):
            await asyncio.sleep(0)
        sent = time.now
        await manager.send_message("idle", "t", 1)
        await until(lambda: bool(arrived))
        share = SLICE_SECONDS / LEAST_SHARE + STEPS_BETWEEN_LOOKS * STEP_SECONDS
        assert 0 < arrived[0] - sent <= queues * share + SLICE_SECONDS
        assert arrived[0] - sent < queues * SLICE_SECONDS / 2
        await manager.shutdown()

    with measured_time() as time:
        asyncio.run(story(time))


def test_c1_a_sender_to_a_full_queue_waits_for_its_turn_behind_many_others() -> None:
    """Given a full queue whose turn comes after those of many with a backlog, when somebody sends to it, then it is let
    deliver first, and the send is accepted."""

    async def story(time: _Time) -> None:
        manager = _manager(40)
        await manager.create_queue("small", QueueConfiguration("small", max_size=5))

        def take_long(message: QueuedMessage) -> None:
            time.now += STEP_SECONDS

        for name in await _loaded(manager, 30, 500):
            manager.subscribe_to_queue(name, "s", "#", take_long)
        manager.subscribe_to_queue("small", "s", "#", lambda message: None)
        for number in range(60):
            assert (await manager.send_message("small", "t", number)).success
        await manager.shutdown()

    with measured_time() as time:
        asyncio.run(story(time))


def test_o3_what_falls_due_in_many_queues_at_once_does_not_hold_the_loop_up() -> None:
    """Given delayed messages in 60 queues that are due at one moment, when it comes, then another task goes on after
    about a slice."""
    pauses: list[float] = []

    async def story(time: _Time) -> None:
        clock = VirtualClock()
        manager = MessageQueueManager(clock=clock)
        seen = 0

        def count(message: QueuedMessage) -> None:
            nonlocal seen
            time.now += STEP_SECONDS
            seen += 1

        for number in range(60):
            name = f"q{number}"
            await manager.create_queue(name)
            manager.subscribe_to_queue(name, "s", "#", count)
            await manager.send_messages(name, [("t", each) for each in range(50)], delay_seconds=10)

        async def beat() -> None:
            last = time.now
            while seen < 3000:
                await asyncio.sleep(0)
                pauses.append(time.now - last)
                last = time.now

        beating = asyncio.create_task(beat())
        await clock.advance(10)
        await beating
        await manager.shutdown()

    with measured_time() as time:
        asyncio.run(story(time))
    assert max(pauses) <= SLICE_SECONDS + STEPS_BETWEEN_LOOKS * STEP_SECONDS + STEP_SECONDS


@given(
    st.lists(st.lists(st.integers(0, 5), max_size=8), min_size=1, max_size=8),
    st.lists(st.sampled_from([0.0, SLICE_SECONDS / 3, SLICE_SECONDS, 5 * SLICE_SECONDS]), min_size=1, max_size=6),
)
def test_each_turn_that_is_planned_is_taken_once_in_order(rounds: list[list[int]], takes: list[float]) -> None:
    """For all plans, made between iterations and within turns, and whatever turns take: none is lost, none is taken
    twice, those that were planned first come first, and a slice is left when it is over."""
    planned: list[int] = []
    taken: list[int] = []

    async def story(time: _Time) -> None:
        turns = Turns()
        on_loop = turns.on(asyncio.get_running_loop())
        number = 0
        begun_at: dict[int, float] = {}
        iteration = 0

        def plan(children: int) -> None:
            nonlocal number
            number += 1
            planned.append(number)

            def take(taker: _Taker) -> None:
                begun = begun_at.setdefault(iteration, time.now)
                assert time.now - begun < SLICE_SECONDS
                assert time.now < on_loop.ends_at <= time.now + SLICE_SECONDS
                taken.append(taker.name)
                time.now += takes[taker.name % len(takes)]
                if children:
                    plan(children - 1)

            on_loop.plan(_Taker(number, take))

        for children in rounds:
            for each in children:
                plan(each)
            await asyncio.sleep(0)
            iteration += 1
        while len(taken) < len(planned):
            await asyncio.sleep(0)
            iteration += 1
        assert turns.planned == 0

    with measured_time() as time:
        asyncio.run(story(time))
    assert taken == planned


def test_a_turn_that_ends_the_loop_does_not_take_those_of_others_with_it() -> None:
    """Given turns of which one raises what ends the loop, when the loop runs again, then the others are taken."""
    loop = asyncio.new_event_loop()
    try:
        taken: list[int] = []
        on_loop = Turns().on(loop)

        def take(taker: _Taker) -> None:
            taken.append(taker.name)
            if taker.name == 1:
                raise KeyboardInterrupt

        for name in range(3):
            on_loop.plan(_Taker(name, take))
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(asyncio.sleep(0.0))
        assert taken == [0, 1]
        loop.run_until_complete(asyncio.sleep(0.0))
        assert taken == [0, 1, 2]
    finally:
        loop.close()


def test_the_turns_of_loops_that_were_closed_are_forgotten() -> None:
    """Given a store that was used on one loop after the other, then it keeps only those that can still run."""
    turns = Turns()
    loops = [asyncio.new_event_loop() for _ in range(3)]
    try:
        kept: list[LoopTurns] = [turns.on(loop) for loop in loops]
        assert [turns.on(loop) for loop in loops] == kept
        for loop in loops[:2]:
            loop.close()
        other = asyncio.new_event_loop()
        loops.append(other)
        turns.on(other)
        assert set(turns._on) == {loops[2], other}
    finally:
        for loop in loops:
            loop.close()


def test_a_timer_of_a_loop_that_a_queue_has_left_leads_to_a_turn_on_its_own() -> None:
    """Given a queue that moved from one loop to another while a timer of the first was set, when that rings, then what
    is due is delivered on the loop that the queue has now."""
    manager = MessageQueueManager()
    threads: list[int] = []

    async def first() -> None:
        await manager.create_queue("q")
        manager.subscribe_to_queue("q", "s", "#", lambda message: threads.append(threading.get_ident()))
        await manager.send_message("q", "t", 1, delay_seconds=0.01)

    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(first())
        timers = list(loop._scheduled)  # type: ignore[attr-defined]
        assert timers

        async def second() -> None:
            # It has moved here with this, and its subscriber too.
            await manager.send_message("q", "t", 2)
            await until(lambda: len(threads) == 1)
            ringing = threading.Thread(target=lambda: loop.run_until_complete(asyncio.sleep(0.02)))
            ringing.start()
            await until(lambda: len(threads) == 2)
            ringing.join()
            await manager.shutdown()

        asyncio.run(second())
        assert set(threads) == {threading.get_ident()}
    finally:
        loop.close()


def test_c1_a_sender_is_answered_though_the_loop_that_was_to_deliver_is_no_more() -> None:
    """Given a full queue whose turn was planned on a loop that an interrupt has ended, when somebody sends to it on
    another loop, then it delivers there, and the send is accepted."""
    queue = make_queue(max_size=3)
    seen = Recorder()
    queue.subscribe("s", "#", seen)

    async def fill() -> None:
        for number in range(3):
            assert (await queue.send_message("t", number)).success
        raise KeyboardInterrupt

    async def send() -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert (await queue.send_message("t", 3)).success
            await until(lambda: seen.payloads == [0, 1, 2, 3])

    loop = asyncio.new_event_loop()
    try:
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(fill())
    finally:
        loop.close()
    asyncio.run(send())


def test_c1_a_sender_does_not_wait_for_a_turn_on_the_loop_of_another_thread() -> None:
    """Given a full queue whose turn is planned on a loop that runs on another thread and is held up there, when
    somebody sends to it, then that one goes round its own loop once and then waits to be answered."""
    queue = make_queue(max_size=3)
    queue.subscribe("s", "#", lambda message: None)
    filled, goes_on = threading.Event(), threading.Event()

    async def fill_and_stand_still() -> None:
        for number in range(3):
            assert (await queue.send_message("t", number)).success
        filled.set()
        assert goes_on.wait(PATIENCE_SECONDS)

    async def send() -> None:
        turns = 0
        sending = asyncio.create_task(queue.send_message("t", 3))
        for _ in range(10):
            await asyncio.sleep(0)
        assert not sending.done()
        loop = asyncio.get_running_loop()
        own = loop.call_soon

        def counted(*arguments: Any, **options: Any) -> asyncio.Handle:
            nonlocal turns
            turns += 1
            return own(*arguments, **options)

        with mock.patch.object(loop, "call_soon", counted):
            for _ in range(10):
                await asyncio.sleep(0)
        # Its own; the sender asks for none.
        assert turns == 10
        goes_on.set()
        await sending

    thread = threading.Thread(target=lambda: asyncio.run(fill_and_stand_still()))
    thread.start()
    assert filled.wait(PATIENCE_SECONDS)
    asyncio.run(send())
    thread.join()


@pytest.mark.parametrize("begun", [False, True])
def test_a_turn_that_ctrl_c_has_taken_is_given_again(begun: bool) -> None:
    """Given Ctrl-C at the beginning of a queue's turn, or at its end, when the loop goes on, then tasks that count on
    the turn to take in what they send have their answers, and everything is delivered."""
    recorder = Recorder()
    queue = make_queue(VirtualClock(), FlakyLog(blocking=True))
    queue.subscribe("worker", "#", recorder)
    take_turn, interruptions = QueueActor.take_turn, [KeyboardInterrupt()]

    def interrupted(actor: QueueActor) -> None:
        if begun:
            take_turn(actor)
        if interruptions:
            raise interruptions.pop()
        if not begun:
            take_turn(actor)

    async def send(sender: int) -> bool:
        return all([(await queue.send_message("t", (sender, number))).success for number in range(3)])

    async def story() -> list[bool]:
        return await asyncio.gather(*map(send, range(3)))

    async def rest() -> None:
        assert await asyncio.wait_for(sending, PATIENCE_SECONDS) == [True] * 3
        await until(lambda: len(recorder.messages) == 9)
        await queue.shutdown()

    loop = asyncio.new_event_loop()
    sending = loop.create_task(story())
    try:
        with mock.patch.object(QueueActor, "take_turn", interrupted), pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(sending)
        loop.run_until_complete(rest())
    finally:
        loop.close()
