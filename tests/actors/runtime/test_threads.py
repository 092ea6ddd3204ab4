"""Which thread handles a message, and when."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pykka
import pytest

from mpreg_mq.actors.inbox import ENVELOPES_PER_TURN
from tests.support.loop_actors import LIMIT_SECONDS, LoopThread, Recorder, actor_of, failing, run_in_threads


def test_an_idle_actor_handles_a_message_at_once_on_its_loops_thread() -> None:
    """tell and ask from the loop's thread are done when the call returns, without a turn of the loop."""

    async def scenario() -> None:
        ref = Recorder.start()
        actor = actor_of(ref)
        assert actor.loop is asyncio.get_running_loop()
        assert actor.hooks == ["start"]
        ref.tell(1)
        assert actor.seen == [1]
        assert ref.ask(2) == ("did", 2)
        assert ref.ask(3, block=False).done()  # type: ignore[attr-defined]

    asyncio.run(scenario())


def test_a_message_to_an_actor_in_its_turn_waits_for_the_loop() -> None:
    """What an actor is told while it handles a message is handled after, in order, in later turns of the loop."""

    async def scenario() -> None:
        ref = Recorder.start()
        actor = actor_of(ref)

        def tell_itself() -> None:
            for number in range(3):
                ref.tell(number)
            assert actor.seen == []
            assert not actor.idle

        ref.tell(tell_itself)
        assert actor.seen == []
        assert not actor.idle
        ref.tell("behind them")
        assert actor.seen == []
        await asyncio.sleep(0)
        assert actor.seen == [0, 1, 2, "behind them"]
        assert actor.idle

    asyncio.run(scenario())


def test_the_loop_drains_in_slices() -> None:
    """A long queue takes several turns, so that others on the loop are not kept waiting for all of it."""

    async def scenario() -> None:
        ref = Recorder.start()
        actor = actor_of(ref)
        total = 3 * ENVELOPES_PER_TURN + 1

        def tell_itself() -> None:
            for number in range(total):
                ref.tell(number)

        ref.tell(tell_itself)
        handled = []
        while len(actor.seen) < total:
            await asyncio.sleep(0)
            handled.append(len(actor.seen))
        assert handled == [ENVELOPES_PER_TURN, 2 * ENVELOPES_PER_TURN, 3 * ENVELOPES_PER_TURN, total]

    asyncio.run(scenario())


def test_other_threads_cost_one_wake_up() -> None:
    """However many messages another thread sends, at most one wake-up is outstanding."""

    async def scenario() -> None:
        ref = Recorder.start()
        actor = actor_of(ref)
        loop: Any = asyncio.get_running_loop()
        wake_ups: list[object] = []
        original = loop.call_soon_threadsafe

        def counting(callback: Any, *args: Any, **kwargs: Any) -> Any:
            wake_ups.append(callback)
            return original(callback, *args, **kwargs)

        def send(_: int) -> None:
            for number in range(100):
                ref.tell(number)

        loop.call_soon_threadsafe = counting
        run_in_threads(4, send)
        assert len(wake_ups) == 1
        assert actor.seen == []
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert len(actor.seen) == 400
        del loop.call_soon_threadsafe

    asyncio.run(scenario())


def test_without_a_loop_messages_are_handled_by_the_sender() -> None:
    """Started and used on threads without a loop, it handles each message within the call, one at a time."""
    ref = Recorder.start()
    actor = actor_of(ref)
    assert actor.loop is None
    assert actor.hooks == ["start"]

    ref.tell(1)
    assert actor.seen == [1]
    assert ref.ask(2) == ("did", 2)

    def tell_itself() -> None:
        ref.tell(3)
        ref.tell(4)
        actor.seen.append("first")

    ref.tell(tell_itself)

    assert actor.seen == [1, 2, "first", 3, 4]
    assert ref.stop() is True
    assert actor.hooks == ["start", "stop"]


def test_without_a_loop_two_threads_do_not_handle_at_once() -> None:
    """A thread that finds the actor in its turn leaves the message to the thread that is at it."""
    ref = Recorder.start()
    actor = actor_of(ref)

    def send(number: int) -> None:
        for index in range(300):
            assert ref.ask((number, index), timeout=LIMIT_SECONDS) == ("did", (number, index))

    run_in_threads(4, send)

    assert len(actor.seen) == len(set(actor.seen)) == 1200
    for number in range(4):
        assert [index for sender, index in actor.seen if sender == number] == list(range(300))


def test_without_a_loop_actors_that_send_to_each_other_do_not_deadlock() -> None:
    """Two threads, each in the turn of one actor and telling the other one, both get through."""
    left, right = Recorder.start(), Recorder.start()
    both_in_turn = threading.Barrier(2)

    def send(number: int) -> None:
        mine, other = (left, right) if number == 0 else (right, left)

        def tell_other() -> None:
            both_in_turn.wait(LIMIT_SECONDS)
            other.tell(number)

        mine.ask(tell_other, timeout=LIMIT_SECONDS)

    run_in_threads(2, send)

    assert actor_of(left).seen == [1]
    assert actor_of(right).seen == [0]


def test_an_actor_started_without_a_loop_binds_the_first_it_meets() -> None:
    """The loop on the thread that first uses it becomes its loop, which its hook is told before the message."""
    ref = Recorder.start()
    actor = actor_of(ref)
    ref.tell("before")

    async def scenario() -> None:
        ref.tell(lambda: actor.hooks.append("message"))
        assert actor.loop is asyncio.get_running_loop()

    asyncio.run(scenario())

    assert actor.hooks == ["start", "loop changed", "message"]


def test_an_actor_moves_when_its_loop_is_gone() -> None:
    """With its loop closed it handles on the sender's thread, and on another loop as soon as it meets one."""
    refs: list[pykka.ActorRef[Recorder]] = []

    async def first() -> None:
        refs.append(Recorder.start())
        refs[0].tell(1)

    async def second() -> None:
        assert await refs[0].ask(3, block=False) == ("did", 3)
        assert actor.loop is asyncio.get_running_loop()
        assert await asyncio.to_thread(refs[0].ask, 4) == ("did", 4)

    asyncio.run(first())
    ref, actor = refs[0], actor_of(refs[0])
    assert ref.ask(2) == ("did", 2)
    assert actor.hooks == ["start"]

    asyncio.run(second())

    assert actor.seen == [1, 2, 3, 4]
    assert actor.hooks == ["start", "loop changed"]


def test_an_actor_stays_with_a_loop_that_runs() -> None:
    """Used from the thread of another loop it does not move; the message goes to its own loop."""
    home = LoopThread()
    with home as loop:
        ref = home.run(Recorder.start)
        actor = actor_of(ref)

        async def visitor() -> None:
            assert not actor.in_own_thread()
            assert await asyncio.wait_for(_as_coroutine(ref.ask("hello", block=False)), LIMIT_SECONDS) == (
                "did",
                "hello",
            )
            assert actor.loop is loop

        asyncio.run(visitor())
        assert actor.threads == {home.thread.ident}
        assert actor.hooks == ["start"]
        assert ref.stop(timeout=LIMIT_SECONDS) is True


async def _as_coroutine(future: pykka.Future[Any]) -> Any:
    return await future


def test_an_actor_can_be_bound_to_a_loop_elsewhere() -> None:
    """After bind, messages and hooks are handled by that loop; binding the same loop again tells nobody."""
    home = LoopThread()
    with home as loop:
        ref = Recorder.start()
        actor = actor_of(ref)
        actor.bind(loop)
        actor.bind(loop)
        assert ref.ask("x", timeout=LIMIT_SECONDS) == ("did", "x")
        assert actor.threads == {home.thread.ident}
        assert actor.hooks == ["start", "loop changed"]
        ref.stop(timeout=LIMIT_SECONDS)


def test_an_actor_bound_before_its_start_starts_on_that_loop() -> None:
    """Where the constructor binds a loop that runs elsewhere, on_start runs there, before any message."""
    threads: list[int] = []
    home = LoopThread()

    class Settled(Recorder):
        def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
            super().__init__()
            self.bind(loop)
            self.actor_ref.tell("early")

        def on_start(self) -> None:
            assert self.seen == []
            threads.append(threading.get_ident())

    with home as loop:
        ref = Settled.start(loop)
        assert ref.ask("x", timeout=LIMIT_SECONDS) == ("did", "x")
        assert threads == [home.thread.ident]
        assert actor_of(ref).seen == ["early", "x"]
        assert actor_of(ref).hooks == []
        ref.stop(timeout=LIMIT_SECONDS)


def test_a_blocked_asker_is_answered_when_the_loop_ends() -> None:
    """A message queued for a loop that then stops is handled by the thread that waits for its reply."""
    answers: list[Any] = []
    refs: list[pykka.ActorRef[Recorder]] = []
    threads: list[threading.Thread] = []

    async def scenario() -> None:
        refs.append(Recorder.start())
        threads.append(threading.Thread(target=lambda: answers.append(refs[0].ask("x", timeout=LIMIT_SECONDS))))

        def keep_the_loop_busy() -> None:
            threads[0].start()
            while actor_of(refs[0]).actor_inbox.empty():
                threading.Event().wait(0.0001)

        # Within one turn: the message arrives, and the loop is told to end before it gets to it.
        asyncio.get_running_loop().stop()
        keep_the_loop_busy()

    loop = asyncio.new_event_loop()
    task = loop.create_task(scenario())
    loop.run_forever()
    loop.close()
    assert task.done()
    threads[0].join(LIMIT_SECONDS)

    assert answers == [("did", "x")]


def test_a_task_of_another_loop_is_answered_when_the_loop_ends() -> None:
    """A message queued for a loop that then stops is handled by the loop whose task waits for its reply."""
    refs: list[pykka.ActorRef[Recorder]] = []
    answers: list[Any] = []

    async def ask() -> None:
        async with asyncio.timeout(LIMIT_SECONDS):
            answers.append(await refs[0].ask("x", block=False))

    asking = threading.Thread(target=lambda: asyncio.run(ask()))

    async def scenario() -> None:
        refs.append(Recorder.start())
        # Within one turn: the message arrives, and the loop is told to end before it gets to it.
        asyncio.get_running_loop().stop()
        asking.start()
        while actor_of(refs[0]).actor_inbox.empty():
            threading.Event().wait(0.0001)

    loop = asyncio.new_event_loop()
    task = loop.create_task(scenario())
    loop.run_forever()
    loop.close()
    assert task.done()
    asking.join(2 * LIMIT_SECONDS)

    assert answers == [("did", "x")]


def test_idle_and_in_own_thread_tell_whether_a_message_would_be_handled_at_once() -> None:
    """idle: running, nothing in hand, nothing waiting. in_own_thread: this thread may handle its messages."""

    async def scenario() -> None:
        ref = Recorder.start()
        actor = actor_of(ref)
        assert actor.idle
        assert actor.in_own_thread()
        assert await asyncio.to_thread(actor.in_own_thread) is False
        assert ref.ask(lambda: actor.idle) is False
        ref.stop()
        assert not actor.idle

    assert not Recorder().idle, "not started"
    alone = actor_of(Recorder.start())
    assert alone.in_own_thread()
    asyncio.run(scenario())

    async def bind_by_asking() -> None:
        assert alone.in_own_thread()
        assert alone.loop is asyncio.get_running_loop()

    asyncio.run(bind_by_asking())
    assert alone.hooks == ["start", "loop changed"]


def test_run_now_takes_a_turn_without_a_message() -> None:
    """It answers and raises directly; what the actor is told meanwhile waits its turn; a busy actor refuses."""

    async def scenario() -> None:
        ref = Recorder.start()
        actor = actor_of(ref)

        def work(number: int) -> int:
            assert not actor.idle
            ref.tell(number)
            assert actor.seen == []
            with pytest.raises(RuntimeError, match="not idle"):
                actor.run_now(work, 1)
            return number + 1

        assert actor.run_now(work, 1) == 2
        await asyncio.sleep(0)
        assert actor.seen == [1]
        with pytest.raises(KeyError):
            actor.run_now(failing(KeyError("direct")))
        assert actor.idle
        with pytest.raises(RuntimeError, match="another thread"):
            await asyncio.to_thread(actor.run_now, work, 2)
        ref.stop()
        with pytest.raises(pykka.ActorDeadError):
            actor.run_now(work, 3)

    asyncio.run(scenario())
