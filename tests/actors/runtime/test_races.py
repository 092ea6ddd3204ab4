"""No message is lost or overtaken, whichever threads and loops send and handle."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pykka
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.loop_actors import LIMIT_SECONDS, LoopThread, Recorder, actor_of, run_in_threads


@pytest.mark.parametrize("home", ["a loop on another thread", "no loop"])
def test_no_message_is_lost_between_threads(home: str) -> None:
    """Many threads tell and ask one actor: each message is handled once, and each thread's in its order."""
    threads, count = 8, 400

    def use(ref: pykka.ActorRef[Recorder]) -> None:
        def send(number: int) -> None:
            replies = []
            for index in range(count):
                if index % 2:
                    ref.tell((number, index))
                else:
                    replies.append((index, ref.ask((number, index), block=False)))
            for index, reply in replies:
                assert reply.get(timeout=LIMIT_SECONDS) == ("did", (number, index))

        run_in_threads(threads, send)
        ref.ask("last", timeout=LIMIT_SECONDS)
        seen = actor_of(ref).seen[:-1]
        assert len(seen) == threads * count
        for number in range(threads):
            assert [index for sender, index in seen if sender == number] == list(range(count))

    if home == "no loop":
        use(Recorder.start())
        return
    thread = LoopThread()
    with thread:
        ref = thread.run(Recorder.start)
        use(ref)
        assert actor_of(ref).threads == {thread.thread.ident}
        ref.stop(timeout=LIMIT_SECONDS)


@pytest.mark.parametrize("home", ["a loop on another thread", "no loop"])
def test_no_message_is_lost_in_a_race_with_stop(home: str) -> None:
    """For all interleavings of senders and a stop, each ask is answered: with its reply or with ActorDeadError."""

    def use(ref: pykka.ActorRef[Recorder]) -> None:
        handled: list[Any] = []
        actor = actor_of(ref)

        def send(number: int) -> None:
            if number == 0:
                ref.stop(timeout=LIMIT_SECONDS)
                return
            for index in range(50):
                try:
                    handled.append(ref.ask((number, index), block=True, timeout=LIMIT_SECONDS)[1])
                except pykka.ActorDeadError:
                    return

        run_in_threads(4, send)
        assert sorted(handled) == sorted(actor.seen)
        assert ref.actor_inbox.empty()
        assert actor.hooks == ["start", "stop"]

    if home == "no loop":
        for _ in range(30):
            use(Recorder.start())
        return
    thread = LoopThread()
    with thread:
        for _ in range(30):
            use(thread.run(Recorder.start))


def test_no_message_is_lost_while_loops_come_and_go() -> None:
    """Threads keep sending while the actor's loop ends and another begins: each message is handled once, in order."""
    ref = Recorder.start()
    actor = actor_of(ref)
    finished = threading.Event()

    def send(number: int) -> None:
        if number == 0:
            while not finished.is_set():
                asyncio.run(_use_for_a_while(ref))
            return
        try:
            for index in range(300):
                assert ref.ask((number, index), timeout=LIMIT_SECONDS) == ("did", (number, index))
        finally:
            if number == 1:
                finished.set()

    run_in_threads(3, send)

    for number in (1, 2):
        assert [message[1] for message in actor.seen if message[0] == number] == list(range(300))


async def _use_for_a_while(ref: pykka.ActorRef[Recorder]) -> None:
    for index in range(20):
        assert await ref.ask(("loop", index), block=False) == ("did", ("loop", index))
        await asyncio.sleep(0)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from(["tell", "ask", "tell from thread", "tell itself", "turn"]), max_size=30))
def test_messages_are_handled_in_the_order_in_which_they_were_sent(steps: list[str]) -> None:
    """For all mixes of tells, asks, threads and turns of the loop: every message once, in order of sending."""

    async def scenario() -> None:
        ref = Recorder.start()
        actor = actor_of(ref)
        sent: list[int] = []
        told_itself: list[int] = []

        def tell() -> None:
            sent.append(len(sent))
            ref.tell(sent[-1])

        def tell_itself() -> None:
            told_itself.append(1)
            tell()

        for step in steps:
            if step == "tell":
                tell()
            elif step == "ask":
                sent.append(len(sent))
                ref.ask(sent[-1], block=False)
            elif step == "tell from thread":
                run_in_threads(1, lambda _: tell())
            elif step == "tell itself":
                ref.tell(tell_itself)
            else:
                await asyncio.sleep(0)
        while not actor.idle:
            await asyncio.sleep(0)
        assert actor.seen == sent
        assert len(told_itself) == steps.count("tell itself")
        ref.stop()

    asyncio.run(scenario())
