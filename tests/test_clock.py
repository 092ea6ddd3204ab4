"""Clocks: time that never goes back, and timers that fire in order."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpreg_mq import clock as clock_module
from mpreg_mq.clock import MOST_SETTLE_TURNS, SETTLE_TURNS, Clock, SystemClock, VirtualClock, pause


def test_both_clocks_are_clocks() -> None:
    """Either can be given where a Clock is wanted."""
    clocks: list[Clock] = [SystemClock(), VirtualClock()]

    assert all(clock.now() <= clock.now() for clock in clocks)


def test_the_system_clock_is_immune_to_jumps_of_the_wall_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """It starts at the wall clock's time and from then on follows the monotonic clock only."""
    monkeypatch.setattr(time, "time", lambda: 5_000.0)
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    clock = SystemClock()
    assert clock.now() == 5_000.0

    monkeypatch.setattr(time, "time", lambda: 1.0)
    monkeypatch.setattr(time, "monotonic", lambda: 103.0)

    assert clock.now() == 5_003.0


def test_a_system_timer_fires_at_its_moment_and_not_before() -> None:
    """When the callback runs, the clock shows the timer's moment or later."""

    async def scenario() -> None:
        clock = SystemClock()
        for delay in (0.0005, 0.001, 0.002):
            when = clock.now() + delay
            fired: asyncio.Future[float] = asyncio.get_running_loop().create_future()
            clock.call_at(asyncio.get_running_loop(), when, lambda fired=fired: fired.set_result(clock.now()))  # type: ignore[misc]
            assert await fired >= when

    asyncio.run(scenario())


@pytest.mark.parametrize("kind", [SystemClock, VirtualClock])
def test_a_moment_that_has_passed_means_the_next_turn(kind: type[SystemClock | VirtualClock]) -> None:
    """Such a timer's callback runs soon, by itself, but never within the call that sets it."""

    async def scenario() -> None:
        clock = kind()
        fired = asyncio.Event()
        clock.call_at(asyncio.get_running_loop(), clock.now() - 10, fired.set)
        assert not fired.is_set()
        await fired.wait()

    asyncio.run(scenario())


@pytest.mark.parametrize("kind", [SystemClock, VirtualClock])
def test_a_cancelled_timer_does_not_fire(kind: type[SystemClock | VirtualClock]) -> None:
    """Cancelling prevents the callback, may be repeated, and is harmless after the callback ran."""

    async def scenario() -> None:
        clock = kind()
        loop = asyncio.get_running_loop()
        fired: list[str] = []
        done = asyncio.Event()
        cancelled = clock.call_at(loop, clock.now() - 1, lambda: fired.append("cancelled"))
        kept = clock.call_at(loop, clock.now() - 1, lambda: fired.append("kept"))
        clock.call_at(loop, clock.now() - 1, done.set)
        cancelled.cancel()
        cancelled.cancel()
        await done.wait()
        kept.cancel()
        assert fired == ["kept"]

    asyncio.run(scenario())


def test_virtual_time_stands_still() -> None:
    """Only advance and set move it; settling does not."""

    async def scenario() -> None:
        clock = VirtualClock()
        assert clock.now() == 1_000_000.0
        await clock.settle()
        assert clock.now() == 1_000_000.0
        await clock.advance(2.5)
        assert clock.now() == 1_000_002.5
        assert VirtualClock(start=7.0).now() == 7.0

    asyncio.run(scenario())


def test_advance_goes_through_timers_in_order_at_their_own_moments() -> None:
    """Each callback sees its own moment on the clock; the end is exactly the target; later timers stay set."""

    async def scenario() -> None:
        clock = VirtualClock(start=100.0)
        loop = asyncio.get_running_loop()
        seen: list[tuple[str, float]] = []
        for name, when in [("c", 103.0), ("a", 101.0), ("late", 111.0), ("b", 101.0), ("edge", 110.0)]:
            clock.call_at(loop, when, lambda name=name: seen.append((name, clock.now())))  # type: ignore[misc]
        assert clock.next_timer() == 101.0
        await clock.advance(10)
        assert seen == [("a", 101.0), ("b", 101.0), ("c", 103.0), ("edge", 110.0)]
        assert clock.now() == 110.0
        assert clock.next_timer() == 111.0
        await clock.advance(1)
        assert seen[-1] == ("late", 111.0)
        assert clock.next_timer() is None

    asyncio.run(scenario())


def test_advance_takes_in_timers_set_on_the_way() -> None:
    """A timer that a callback, or a task it woke, sets within the span fires within the same advance."""

    async def scenario() -> None:
        clock = VirtualClock(start=0.0)
        loop = asyncio.get_running_loop()
        ticks: list[float] = []
        woken = asyncio.Event()

        async def task() -> None:
            await woken.wait()
            clock.call_at(loop, clock.now() + 0.5, lambda: ticks.append(clock.now()))

        def tick() -> None:
            ticks.append(clock.now())
            clock.call_at(loop, clock.now() + 1, tick)
            woken.set()

        running = asyncio.create_task(task())
        clock.call_at(loop, 1.0, tick)
        await clock.advance(3)
        await running
        assert ticks == [1.0, 1.5, 2.0, 3.0]
        assert clock.next_timer() == 4.0

    asyncio.run(scenario())


def test_advance_settles_before_it_moves() -> None:
    """Work that is ready now still sees the time now."""

    async def scenario() -> None:
        clock = VirtualClock(start=0.0)
        seen: list[float] = []

        async def task() -> None:
            await asyncio.sleep(0)
            seen.append(clock.now())

        running = asyncio.create_task(task())
        await clock.advance(5)
        await running
        assert seen == [0.0]

    asyncio.run(scenario())


class ClosedLoop(asyncio.SelectorEventLoop):
    """A loop that keeps what it has to itself, as those that are not written in Python may."""

    def __getattribute__(self, name: str) -> object:
        if name == "__dict__":
            raise AttributeError(name)
        return super().__getattribute__(name)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, MOST_SETTLE_TURNS - SETTLE_TURNS - 2))
def test_advance_settles_however_many_turns_that_takes(turns: int) -> None:
    """For all numbers of turns that a task takes before it is done, all that it does is done before time goes on."""

    async def scenario() -> None:
        clock = VirtualClock(start=0.0)
        loop = asyncio.get_running_loop()
        seen: list[float] = []

        async def task() -> None:
            for _ in range(turns):
                await asyncio.sleep(0)
            seen.append(clock.now())

        running: list[asyncio.Task[None]] = []
        clock.call_at(loop, 1.0, lambda: running.append(loop.create_task(task())))
        clock.call_at(loop, 2.0, lambda: seen.append(clock.now()))
        await clock.advance(5)
        assert seen == [1.0, 2.0]
        await running[0]

    asyncio.run(scenario())


def test_advance_goes_on_beside_a_task_that_always_asks_for_a_turn() -> None:
    """Given a task that waits by asking again and again, then time goes on all the same, and the loop is as it was."""

    async def scenario() -> None:
        clock = VirtualClock(start=0.0)
        loop = asyncio.get_running_loop()
        fired = asyncio.Event()
        clock.call_at(loop, 1.0, fired.set)

        async def poll() -> None:
            while not fired.is_set():
                await asyncio.sleep(0)

        polling = asyncio.create_task(poll())
        own = loop.call_soon
        await clock.advance(1)
        await polling
        assert loop.call_soon == own

    asyncio.run(scenario())


def test_those_who_settle_at_once_do_not_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given several tasks that settle, one of which is cancelled, then the turns of one are nothing that another has to
    wait for, and the loop is as it was."""
    monkeypatch.setattr(clock_module, "MOST_SETTLE_TURNS", 10**9)

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        own = loop.call_soon
        settling = [asyncio.create_task(VirtualClock().settle()) for _ in range(5)]
        await asyncio.sleep(0)
        settling[0].cancel()
        async with asyncio.timeout(60):
            await asyncio.wait(settling)
        assert [task.cancelled() for task in settling] == [True, False, False, False, False]
        assert loop.call_soon == own

    asyncio.run(scenario())


def test_a_loop_that_somebody_looks_at_is_left_as_it_was() -> None:
    """Given a loop whose ``call_soon`` somebody has replaced, before it settles or meanwhile, then theirs is kept."""

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        own, seen = loop.call_soon, 0

        def theirs(*arguments: Any, **options: Any) -> asyncio.Handle:
            nonlocal seen
            seen += 1
            return own(*arguments, **options)

        loop.call_soon = theirs  # type: ignore[assignment, method-assign]
        await VirtualClock().settle()
        assert loop.call_soon is theirs
        assert seen
        settling = asyncio.create_task(VirtualClock().settle())
        for _ in range(SETTLE_TURNS + 2):
            await asyncio.sleep(0)
        loop.call_soon = own  # type: ignore[method-assign]
        await settling
        assert loop.call_soon == own

    asyncio.run(scenario())


def test_a_loop_that_cannot_be_looked_at_gets_its_turns() -> None:
    """Given a loop without attributes of its own, then settling gives it some turns."""

    async def scenario() -> None:
        clock = VirtualClock(start=0.0)
        fired = asyncio.Event()
        clock.call_at(asyncio.get_running_loop(), 1.0, fired.set)
        waiting = asyncio.create_task(fired.wait())
        await clock.advance(1)
        assert waiting.done()

    with asyncio.Runner(loop_factory=ClosedLoop) as runner:
        runner.run(scenario())


def test_time_stands_still_for_calls_that_take_real_time() -> None:
    """Given a call on a thread that asks the loop many times, then the clock moves once it has ended."""

    async def scenario() -> None:
        clock = VirtualClock(start=0.0)
        loop = asyncio.get_running_loop()
        seen: list[float] = []

        async def ask() -> float:
            return clock.now()

        def work() -> None:
            for _ in range(2 * SETTLE_TURNS):
                seen.append(asyncio.run_coroutine_threadsafe(ask(), loop).result())
            clock.call_ends("call")

        def begin() -> None:
            clock.call_begins("call")
            loop.run_in_executor(None, work)

        clock.call_at(loop, 1.0, begin)
        await clock.advance(10)
        assert seen == [1.0] * (2 * SETTLE_TURNS)
        assert clock.now() == 10.0

    asyncio.run(scenario())


def test_a_call_that_ends_while_the_loop_settles_is_seen_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a call on a thread that ends when all that was ready has just run, then what it hands over is run, too."""
    run = clock_module._run_all_that_is_ready
    times = 0

    async def scenario() -> None:
        clock = VirtualClock()
        loop = asyncio.get_running_loop()
        handed_over: list[str] = []
        clock.call_begins("call")

        async def run_and_end(loop: asyncio.AbstractEventLoop) -> None:
            nonlocal times
            times += 1
            await run(loop)
            if times == 1:
                loop.call_soon_threadsafe(handed_over.append, "outcome")
                clock.call_begins("another")
                clock.call_ends("another")

        monkeypatch.setattr(clock_module, "_run_all_that_is_ready", run_and_end)
        loop.call_soon(clock.call_ends, "call")
        await clock.settle()
        assert handed_over == ["outcome"]

    asyncio.run(scenario())
    assert times == 2


def test_time_goes_on_without_a_call_that_hangs() -> None:
    """Given a call that never ends, then the clock stands still for the limit that it was given, once."""

    async def scenario() -> None:
        clock = VirtualClock(start=0.0, blocking_seconds=0.0)
        clock.call_begins("hangs")
        await clock.advance(10)
        assert clock.now() == 10.0
        clock.blocking_seconds = 1e9
        await clock.advance(10)
        clock.call_ends("hangs")
        assert clock.now() == 20.0

    asyncio.run(scenario())


def test_set_jumps_without_running_timers() -> None:
    """Timers passed over by a jump run with the next advance, at the time then."""

    async def scenario() -> None:
        clock = VirtualClock(start=0.0)
        seen: list[float] = []
        clock.call_at(asyncio.get_running_loop(), 1.0, lambda: seen.append(clock.now()))
        clock.set(9.0)
        await clock.settle()
        assert seen == []
        await clock.advance(0)
        assert seen == [9.0]

    asyncio.run(scenario())


@pytest.mark.parametrize("bad", [-1.0, float("nan")])
def test_virtual_time_never_goes_back(bad: float) -> None:
    """Advancing by less than nothing, or jumping to an earlier moment, is refused."""
    clock = VirtualClock(start=0.0)

    with pytest.raises(ValueError, match="never goes back"):
        asyncio.run(clock.advance(bad))
    with pytest.raises(ValueError, match="never goes back"):
        clock.set(bad)
    assert clock.now() == 0.0


def test_a_failing_callback_fails_the_advance() -> None:
    """What a callback raises reaches the test that advances the clock, and the rest can still be advanced through."""

    async def scenario() -> None:
        clock = VirtualClock(start=0.0)
        loop = asyncio.get_running_loop()
        seen: list[float] = []
        clock.call_at(loop, 1.0, lambda: [][0])
        clock.call_at(loop, 2.0, lambda: seen.append(clock.now()))
        with pytest.raises(IndexError):
            await clock.advance(5)
        assert clock.now() == 1.0
        await clock.advance(4)
        assert seen == [2.0]

    asyncio.run(scenario())


def test_a_pause_is_over_in_time_or_with_its_event() -> None:
    """It says whether the time passed, and leaves no timer behind."""

    async def scenario() -> None:
        clock = VirtualClock(start=0.0)
        ended = asyncio.Event()
        whole = asyncio.create_task(pause(clock, 2.0, ended))
        await clock.advance(1.9)
        assert not whole.done()
        await clock.advance(0.1)
        assert await whole is True
        cut_short = asyncio.create_task(pause(clock, 2.0, ended))
        await clock.advance(1.0)
        ended.set()
        assert await cut_short is False
        assert clock.next_timer() is None

    asyncio.run(scenario())


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.tuples(st.integers(1, 50), st.booleans()), max_size=15),
    st.lists(st.integers(0, 20), max_size=5),
)
def test_every_timer_fires_once_in_order(timers: list[tuple[int, bool]], advances: list[int]) -> None:
    """For all timers and steps: those due and not cancelled have fired, each once, sorted by moment."""

    async def scenario() -> None:
        clock = VirtualClock(start=0.0)
        fired: list[float] = []
        for when, cancelled in timers:
            handle = clock.call_at(asyncio.get_running_loop(), float(when), lambda: fired.append(clock.now()))
            if cancelled:
                handle.cancel()
        for seconds in advances:
            await clock.advance(seconds)
        due = sorted(float(when) for when, cancelled in timers if not cancelled)
        assert fired == [when for when in due if when <= clock.now()]
        assert clock.next_timer() == next((when for when in due if when > clock.now()), None)

    asyncio.run(scenario())
