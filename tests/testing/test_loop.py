"""The simulated loop: virtual time, seeded order, and what it refuses."""

from __future__ import annotations

import asyncio
import threading
from random import Random

import pytest

from mpreg_mq.testing.loop import START, SimulatedClock, SimulatedLoop, SimulationStuckError


def test_time_jumps_to_the_next_timer() -> None:
    """Given a task that sleeps for a day, then it is a day later and took a handful of steps."""
    loop = SimulatedLoop()
    loop.run_until_complete(asyncio.sleep(86_400))
    assert loop.time() == 86_400
    assert loop.steps < 10


def test_timers_run_in_order_and_cancelled_ones_never() -> None:
    """Given timers in any order, then they run by their moments."""
    ran: list[object] = []
    loop = SimulatedLoop(Random(1))
    for delay in (3, 1, 2):
        loop.call_later(delay, ran.append, delay)
    loop.call_later(1.5, ran.append, "cancelled").cancel()
    loop.run()
    assert ran == [1, 2, 3]


def test_a_run_ends_where_it_is_told() -> None:
    """Given limits of time, steps or a condition, then the run ends there and goes on later."""
    ran: list[int] = []
    loop = SimulatedLoop()
    for delay in (1, 2, 3, 4):
        loop.call_later(delay, ran.append, delay)
    loop.run(seconds=1.5)
    assert (loop.time(), ran) == (1.5, [1])
    loop.run(steps=1)
    assert ran == [1, 2]
    loop.run(until=lambda: 3 in ran)
    assert (loop.time(), ran) == (3, [1, 2, 3])
    loop.advance(10)
    assert (loop.time(), ran) == (13, [1, 2, 3, 4])


def order(seed: int) -> list[str]:
    loop, ran = SimulatedLoop(Random(seed)), []

    async def work(name: str) -> None:
        for _ in range(3):
            ran.append(name)
            await asyncio.sleep(0)

    async def main() -> None:
        await asyncio.gather(work("a"), work("b"), work("c"))

    loop.run_until_complete(main())
    return ran


def test_the_order_of_what_is_ready_is_the_seeds() -> None:
    """Given tasks that are ready together, then a seed gives one order, and seeds give different ones."""
    assert order(1) == order(1)
    assert len({tuple(order(seed)) for seed in range(10)}) > 3


def test_calls_of_one_function_keep_their_order() -> None:
    """Given several calls of one function, then they run as they were registered, whatever the seed."""
    for seed in range(20):
        ran: list[int] = []
        loop = SimulatedLoop(Random(seed))
        for number in range(5):
            loop.call_soon(ran.append, number)
        loop.run()
        assert ran == [0, 1, 2, 3, 4]


def test_a_stall_makes_timers_late() -> None:
    """Given time that passes while nothing runs, then what fell due runs after it."""
    loop, ran = SimulatedLoop(), []
    loop.call_later(1, lambda: ran.append(loop.time()))
    loop.stall(5)
    loop.run()
    assert ran == [5]


def test_waiting_for_what_cannot_happen_is_an_error() -> None:
    """Given a future that nobody will resolve, then the run says so instead of hanging."""
    loop = SimulatedLoop()
    with pytest.raises(SimulationStuckError, match="nothing is left to run"):
        loop.run_until_complete(loop.create_future())

    async def wait() -> None:
        await loop.create_future()

    with pytest.raises(SimulationStuckError):
        loop.run_until_complete(wait())


def test_another_thread_is_refused() -> None:
    """Given a call from another thread, then it is refused: its moment would not repeat."""
    loop, refused = SimulatedLoop(), []

    def call() -> None:
        try:
            loop.call_soon_threadsafe(print)
        except RuntimeError as error:
            refused.append(str(error))

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert "another thread" in refused[0]


def test_an_executor_is_a_step_of_the_loop() -> None:
    """Given functions for an executor, then they run in their turn, and their errors arrive."""
    loop = SimulatedLoop()
    assert loop.run_until_complete(loop.run_in_executor(None, divmod, 7, 2)) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        loop.run_until_complete(loop.run_in_executor(None, divmod, 7, 0))


def test_errors_of_callbacks_are_kept() -> None:
    """Given a callback that raises, then the loop goes on and keeps the error; a closed one keeps nothing."""
    loop = SimulatedLoop()
    loop.call_soon(divmod, 1, 0)
    loop.run()
    assert isinstance(loop.errors[0]["exception"], ZeroDivisionError)
    loop.close()
    assert loop.is_closed()
    with pytest.raises(RuntimeError, match="closed"):
        loop.call_soon(print)
    with pytest.raises(RuntimeError, match="closed"):
        loop.call_later(1, print)


def test_the_clock_never_shows_less_than_a_timers_moment() -> None:
    """Given timers at moments that floats round, then the clock has reached each when it fires."""
    loop = SimulatedLoop()
    clock = SimulatedClock(loop)
    assert clock.now() == START
    random, early = Random(1), []
    for _ in range(1000):
        when = START + random.random() * 1000

        def fired(when: float = when) -> None:
            early.append(clock.now() - when)

        clock.call_at(loop, when, fired)
    loop.run()
    assert len(early) == 1000
    assert min(early) >= 0


@pytest.mark.parametrize("fails", [False, True])
def test_nobody_has_to_wait_for_what_another_thread_does(fails: bool) -> None:
    """Given a function for another thread, when whoever waits for it is cancelled, then it runs all the same,
    and whatever comes of it is nobody's."""
    loop = SimulatedLoop()
    ran: list[bool] = []

    def work() -> None:
        ran.append(True)
        if fails:
            raise ValueError("nobody hears this")

    loop.run_in_executor(None, work).cancel()
    loop.run(seconds=1.0)
    assert (ran, loop.errors) == ([True], [])
