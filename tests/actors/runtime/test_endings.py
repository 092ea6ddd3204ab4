"""How an actor ends: exceptions in handlers and hooks, and stops."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pykka
import pytest

from mpreg_mq.actors import inbox
from mpreg_mq.actors.futures import LoopFuture
from tests.support.loop_actors import WHERE, Recorder, actor_of, call_from, each_thread, failing, run_in_threads

# --- failures -------------------------------------------------------------------------------------------------


ERRORS = [ValueError("x"), SystemExit(3), KeyboardInterrupt(), GeneratorExit(), asyncio.CancelledError()]


@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test_any_exception_under_ask_is_the_reply(error: BaseException) -> None:
    """BaseException too: the asker gets it, the actor goes on, and so do the others."""
    bystander, ref = Recorder.start(), Recorder.start()

    async def scenario() -> None:
        reply = ref.ask(failing(error), block=False)
        with pytest.raises(type(error)) as caught:
            reply.get()
        assert caught.value is error
        assert await ref.ask("on", block=False) == ("did", "on")

    asyncio.run(scenario())
    assert bystander.is_alive()
    assert actor_of(ref).hooks == ["start", "loop changed"]


@each_thread
@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test_any_exception_under_tell_stops_this_actor_alone(
    where: str, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged, on_failure is called, what waits gets ActorDeadError, and every other actor goes on."""

    async def scenario() -> None:
        bystander, ref = Recorder.start(), Recorder.start()
        actor = actor_of(ref)
        waiting: list[pykka.Future[Any]] = []

        def fail_with_another_waiting() -> None:
            waiting.append(ref.ask("waiting", block=False))
            raise error

        await call_from(where, lambda: ref.tell(fail_with_another_waiting))
        while ref.is_alive():
            await asyncio.sleep(0)
        with pytest.raises(pykka.ActorDeadError):
            await waiting[0]
        assert actor.hooks == ["start", f"failure {type(error).__name__}"]
        assert actor.seen == []
        assert pykka.ActorRegistry.get_all() == [bystander]
        assert await bystander.ask("on", block=False) == ("did", "on")

    asyncio.run(scenario())
    assert "Unhandled exception" in caplog.text


@pytest.mark.parametrize("hook", ["on_start", "on_stop", "on_failure", "on_loop_changed"])
@pytest.mark.parametrize("error", [ValueError("x"), SystemExit(3)], ids=repr)
def test_a_failing_hook_stops_this_actor_alone(
    hook: str, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever one of its hooks raises is logged and ends the actor, and nobody else."""

    class Fragile(Recorder):
        pass

    setattr(Fragile, hook, lambda self, *args: failing(error)())
    bystander = Recorder.start()
    ref = Fragile.start()

    if hook == "on_stop":
        assert ref.stop() is True
    elif hook == "on_failure":
        ref.tell(failing(KeyError("first")))
    elif hook == "on_loop_changed":

        async def meet() -> None:
            with pytest.raises(pykka.ActorDeadError):
                ref.tell("x")

        asyncio.run(meet())

    assert not ref.is_alive()
    assert "Unhandled exception" in caplog.text
    assert pykka.ActorRegistry.get_all() == [bystander]


def test_a_reply_that_has_an_outcome_already_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Somebody else resolved the asker's future: that is logged, and the actor goes on."""
    ref = Recorder.start()
    reply: LoopFuture[int] = LoopFuture()
    reply.set(1)

    ref.actor_inbox.put(pykka._envelope.Envelope("x", reply_to=reply))

    assert "cannot answer" in caplog.text
    assert reply.get() == 1
    assert ref.ask("on") == ("did", "on")


# --- stopping -------------------------------------------------------------------------------------------------


@each_thread
def test_a_stop_handles_what_came_before_and_answers_what_came_after(
    where: str, caplog: pytest.LogCaptureFixture
) -> None:
    """As in pykka: messages before the stop are handled, those after get ActorDeadError, more stops are true."""
    caplog.set_level(logging.INFO, logger=inbox.__name__)

    async def scenario() -> None:
        ref = Recorder.start()
        actor = actor_of(ref)
        replies: list[pykka.Future[Any]] = []

        def send() -> None:
            replies.append(ref.ask("before", block=False))
            replies.append(ref.stop(block=False))
            replies.append(ref.stop(block=False))
            replies.append(ref.ask("after", block=False))
            ref.tell("after, with no reply")

        # In its turn, so that all of it waits.
        ref.tell(lambda: send() if where == WHERE[0] else run_in_threads(1, lambda _: send()))
        assert await replies[0] == ("did", "before")
        assert await replies[1] is True
        assert await replies[2] is True
        with pytest.raises(pykka.ActorDeadError):
            await replies[3]
        assert actor.seen == ["before"]
        assert actor.hooks == ["start", "stop"]

    asyncio.run(scenario())
    assert "before handling 1 messages" in caplog.text


@each_thread
def test_an_actor_can_stop_itself(where: str) -> None:
    """stop() from within a handler, or on the actor from anywhere, takes effect after the message in hand."""

    async def scenario() -> None:
        ref = Recorder.start()
        assert await (await call_from(where, lambda: ref.ask(actor_of(ref).stop, block=False))) is None
        while ref.is_alive():
            await asyncio.sleep(0)
        other = actor_of(Recorder.start())
        await call_from(where, other.stop)
        while not other.actor_stopped.is_set():
            await asyncio.sleep(0)
        assert other.hooks == ["start", "stop"]

    asyncio.run(scenario())


def test_a_message_that_arrives_after_the_stop_gets_an_error() -> None:
    """Put past pykka's own check, an ask is answered with ActorDeadError and a tell raises it."""
    ref = Recorder.start()
    ref.stop()
    reply: LoopFuture[Any] = LoopFuture()

    ref.actor_inbox.put(pykka._envelope.Envelope("late", reply_to=reply))

    with pytest.raises(pykka.ActorDeadError):
        reply.get(timeout=0)
    with pytest.raises(pykka.ActorDeadError):
        ref.actor_inbox.put(pykka._envelope.Envelope("late"))
    assert ref.actor_inbox.empty()
