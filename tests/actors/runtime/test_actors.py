"""Actors that an event loop drains: pykka actors in every respect, and cheap."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import tracemalloc
from typing import Any

import pykka
import pytest

from mpreg_mq.actors.runtime import LoopActor
from tests.support.loop_actors import LIMIT_SECONDS, Recorder, actor_of, call_from, each_thread

# --- a pykka actor --------------------------------------------------------------------------------------------


@each_thread
def test_an_actor_answers_tell_ask_and_stop(where: str) -> None:
    """References work from the loop's thread and from any other, and handlers run on the loop's thread only."""

    async def scenario() -> None:
        ref = Recorder.start()
        actor = actor_of(ref)

        def use() -> pykka.Future[Any]:
            ref.tell("told")
            return ref.ask("asked", block=False)

        assert await (await call_from(where, use)) == ("did", "asked")
        assert await call_from(where, lambda: ref.ask("blocking")) == ("did", "blocking")
        assert actor.seen == ["told", "asked", "blocking"]
        assert actor.threads == {threading.get_ident()}
        assert await call_from(where, ref.stop) is True
        assert await call_from(where, ref.stop) is False
        assert actor.hooks == ["start", "stop"]
        assert not ref.is_alive()
        with pytest.raises(pykka.ActorDeadError):
            await call_from(where, lambda: ref.tell("late"))
        with pytest.raises(pykka.ActorDeadError):
            await call_from(where, lambda: ref.ask("late"))

    asyncio.run(scenario())


@each_thread
def test_an_actor_has_proxies(where: str) -> None:
    """Proxied calls, attributes, assignments and deferred calls work, and their futures can be awaited."""

    class Counter(LoopActor):
        step = 2

        def __init__(self) -> None:
            super().__init__()
            self.total = 0

        def add(self, times: int, *, extra: int = 0) -> int:
            self.total += self.step * times + extra
            return self.total

    async def scenario() -> None:
        proxy = Counter.start().proxy()

        def use() -> int:
            proxy.step = 5
            proxy.add.defer(1)
            return proxy.add(2, extra=1).get(timeout=LIMIT_SECONDS)  # type: ignore[no-any-return]

        assert await call_from(where, use) == 16
        assert await proxy.total == 16
        assert await proxy.add(1) == 21
        with pytest.raises(TypeError):
            await proxy.add("x", unknown=1)
        assert await proxy.total == 21

    asyncio.run(scenario())


def test_an_actor_is_in_the_registry_while_it_lives() -> None:
    """It can be looked up, broadcast to and stopped through the registry."""

    async def scenario() -> None:
        refs = [Recorder.start() for _ in range(3)]
        actors = [actor_of(ref) for ref in refs]
        assert pykka.ActorRegistry.get_by_class(Recorder) == refs
        assert pykka.ActorRegistry.get_by_urn(refs[0].actor_urn) is refs[0]
        pykka.ActorRegistry.broadcast("news", Recorder)
        assert [actor.seen for actor in actors] == [["news"]] * 3
        assert pykka.ActorRegistry.stop_all() == [True] * 3
        assert pykka.ActorRegistry.get_all() == []

    asyncio.run(scenario())


def test_an_actor_lives_as_long_as_a_reference_needs_it() -> None:
    """A reference keeps its actor, and without references a stopped one is collected."""

    async def scenario() -> None:
        ref = Recorder.start()
        gc.collect()
        assert await ref.ask("kept", block=False) == ("did", "kept")
        weak = ref._actor_weakref
        ref.stop()
        del ref
        gc.collect()
        assert weak() is None

    asyncio.run(scenario())


# --- cost -----------------------------------------------------------------------------------------------------


def test_actors_cost_no_thread_and_few_kilobytes() -> None:
    """A thousand actors run without a new thread, in less than five kilobytes each."""

    async def scenario() -> None:
        threads = threading.active_count()
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            refs = [LoopActor.start() for _ in range(1000)]
            used = tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()
        assert threading.active_count() == threads
        assert used / len(refs) < 5_000

    asyncio.run(scenario())


def test_an_idle_actor_sets_no_timers() -> None:
    """Nothing polls: with an actor idle, the loop has nothing scheduled and nothing ready."""

    async def scenario() -> None:
        ref = Recorder.start()
        await asyncio.to_thread(ref.tell, "x")
        await ref.ask("y", block=False)
        loop = asyncio.get_running_loop()
        assert not loop._scheduled  # type: ignore[attr-defined]
        assert not loop._ready  # type: ignore[attr-defined]

    asyncio.run(scenario())


def test_time_is_not_read_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Handling a message asks no clock: time comes in with the messages."""

    async def scenario() -> None:
        ref = Recorder.start()
        with monkeypatch.context() as patched:
            patched.setattr(time, "time", lambda: [][0])
            patched.setattr(time, "monotonic", lambda: [][0])
            assert await ref.ask("x", block=False) == ("did", "x")

    asyncio.run(scenario())
