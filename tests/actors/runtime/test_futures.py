"""Futures: a value or an exception, once, for whoever blocks, awaits or has left a callback."""

from __future__ import annotations

import asyncio
import queue
import threading
import tracemalloc
from collections.abc import Callable
from typing import Any

import pykka
import pytest

from mpreg_mq.actors.futures import LoopFuture, WouldBlockError
from mpreg_mq.errors import MessageQueueError
from tests.support.loop_actors import LIMIT_SECONDS, Recorder, call_from, each_thread, run_in_threads

# --- a value, once --------------------------------------------------------------------------------------------


def test_a_future_gives_its_value_again_and_again() -> None:
    """A resolved future answers every get with the same value, None included."""
    future: LoopFuture[str | None] = LoopFuture()
    assert isinstance(future, pykka.Future)
    assert not future.done()

    future.set("value")

    assert future.done()
    assert future.get() == future.get(timeout=0) == "value"
    empty: LoopFuture[None] = LoopFuture()
    empty.set()
    assert empty.get() is None


def test_a_future_raises_its_exception_again_and_again() -> None:
    """A failed future raises the very exception each time, and its traceback does not grow with each reader."""
    future: LoopFuture[None] = LoopFuture()
    error = KeyError("gone")
    try:
        raise error
    except KeyError:
        future.set_exception()

    lengths = []
    for _ in range(3):
        with pytest.raises(KeyError) as caught:
            future.get()
        assert caught.value is error
        lengths.append(len(caught.traceback))
    assert len(set(lengths)) == 1


def test_an_exception_may_be_given_as_pykka_does() -> None:
    """``exc_info`` is a triple whose value and traceback may be None."""
    by_value: LoopFuture[None] = LoopFuture()
    by_type: LoopFuture[None] = LoopFuture()

    by_value.set_exception((ValueError, ValueError("told"), None))
    by_type.set_exception((ValueError, None, None))

    with pytest.raises(ValueError, match="told"):
        by_value.get()
    with pytest.raises(ValueError, match=r"^$"):
        by_type.get()


def test_an_exception_must_be_there() -> None:
    """``set_exception()`` outside an except block says so and leaves the future pending."""
    future: LoopFuture[None] = LoopFuture()

    with pytest.raises(ValueError, match="expected one given"):
        future.set_exception()

    assert not future.done()


@pytest.mark.parametrize("first", ["value", "exception", "hook"])
@pytest.mark.parametrize("second", ["value", "exception", "hook"])
def test_a_future_is_resolved_once(first: str, second: str) -> None:
    """A second outcome raises queue.Full, as pykka's own future does, and changes nothing."""
    future: LoopFuture[str] = LoopFuture()
    outcomes: dict[str, Callable[[], None]] = {
        "value": lambda: future.set("value"),
        "exception": lambda: future.set_exception((KeyError, KeyError("exception"), None)),
        "hook": lambda: future.set_get_hook(lambda timeout: "hook"),
    }
    outcomes[first]()

    if (first, second) == ("hook", "hook"):
        outcomes[second]()
    else:
        with pytest.raises(queue.Full):
            outcomes[second]()

    if first == "exception":
        with pytest.raises(KeyError):
            future.get()
    else:
        assert future.get() == first


def test_get_gives_up_after_its_timeout() -> None:
    """A pending future raises pykka.Timeout, and can be read later all the same."""
    future: LoopFuture[int] = LoopFuture()

    for timeout in (0, 0.001, -1):
        with pytest.raises(pykka.Timeout):
            future.get(timeout=timeout)
    assert not future._callbacks, "a reader that gave up leaves nothing behind"

    future.set(1)
    assert future.get(timeout=0) == 1


def test_get_blocks_other_threads_until_it_is_resolved() -> None:
    """Any number of threads without a loop may wait, and all get the value."""
    future: LoopFuture[str] = LoopFuture()
    results: list[str] = []

    def body(number: int) -> None:
        if number == 0:
            while len(future._callbacks or ()) < 4:
                threading.Event().wait(0.0001)
            future.set("value")
        else:
            results.append(future.get(timeout=LIMIT_SECONDS))

    run_in_threads(5, body)

    assert results == ["value"] * 4


@pytest.mark.parametrize("timeout", [None, 5.0])
def test_get_on_a_loops_thread_raises_instead_of_blocking_it(timeout: float | None) -> None:
    """A pending future says at once that it would block, and to await it; with timeout 0 it is a plain Timeout."""

    async def scenario() -> None:
        future: LoopFuture[int] = LoopFuture()
        with pytest.raises(RuntimeError, match="await") as caught:
            future.get(timeout=timeout)
        assert isinstance(caught.value, WouldBlockError)
        assert isinstance(caught.value, MessageQueueError)
        with pytest.raises(pykka.Timeout):
            future.get(timeout=0)
        future.set(1)
        assert future.get(timeout=timeout) == 1

    asyncio.run(scenario())


# --- callbacks ------------------------------------------------------------------------------------------------


def test_done_callbacks_run_once_each() -> None:
    """Those added before run when it is resolved, in order; those added after run at once; removed ones never."""
    future: LoopFuture[int] = LoopFuture()
    seen: list[str] = []

    def removed(_: LoopFuture[int]) -> None:
        seen.append("removed")

    future.add_done_callback(lambda f: seen.append(f"first {f.get()}"))
    future.add_done_callback(removed)
    future.add_done_callback(lambda f: seen.append("second"))
    future.remove_done_callback(removed)
    future.remove_done_callback(removed)
    assert seen == []
    future.set(1)
    future.add_done_callback(lambda f: seen.append("late"))
    future.remove_done_callback(removed)

    assert seen == ["first 1", "second", "late"]


def test_a_failing_done_callback_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """What a callback raises is logged; the others run, and the one who resolves notices nothing."""
    future: LoopFuture[int] = LoopFuture()
    seen: list[int] = []
    future.add_done_callback(lambda f: [][0])
    future.add_done_callback(lambda f: seen.append(f.get()))

    future.set(1)

    assert seen == [1]
    assert "failed" in caplog.text


def test_done_callbacks_survive_a_race_with_set() -> None:
    """For all interleavings of adding and resolving, every callback runs exactly once."""
    for _ in range(50):
        future: LoopFuture[int] = LoopFuture()
        calls: list[int] = []

        def body(number: int, future: LoopFuture[int] = future, calls: list[int] = calls) -> None:
            if number == 0:
                future.set(1)
            else:
                future.add_done_callback(lambda f: calls.append(number))

        run_in_threads(4, body)
        assert sorted(calls) == [1, 2, 3]


# --- await ----------------------------------------------------------------------------------------------------


def test_awaiting_a_resolved_future_does_not_suspend() -> None:
    """The await goes on at once, without a turn of the loop and even without a loop."""

    async def read(future: LoopFuture[int]) -> int:
        return await future

    resolved: LoopFuture[int] = LoopFuture()
    resolved.set(7)
    hooked = resolved.map(lambda value: value + 1)
    assert isinstance(hooked, LoopFuture)

    for future, value in ((resolved, 7), (hooked, 8)):
        coroutine = read(future)
        with pytest.raises(StopIteration) as caught:
            coroutine.send(None)
        assert caught.value.value == value


@each_thread
@pytest.mark.parametrize("outcome", ["value", "exception"])
def test_awaiting_a_pending_future_suspends_only_the_task(where: str, outcome: str) -> None:
    """The loop goes on while tasks wait, and all of them wake when the future is resolved, on whatever thread."""

    async def scenario() -> None:
        future: LoopFuture[str] = LoopFuture()

        async def wait() -> str:
            return await future

        tasks = [asyncio.create_task(wait()) for _ in range(3)]
        for _ in range(10):
            await asyncio.sleep(0)
        assert not any(task.done() for task in tasks)
        if outcome == "value":
            await call_from(where, lambda: future.set("value"))
        else:
            await call_from(where, lambda: future.set_exception((KeyError, KeyError("gone"), None)))
        results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), LIMIT_SECONDS)
        assert [str(result) for result in results] == (["value"] if outcome == "value" else ["'gone'"]) * 3

    asyncio.run(scenario())


def test_a_cancelled_await_leaves_the_future_alone() -> None:
    """The task is cancelled; the future can still be resolved, and awaited by others."""

    async def scenario() -> None:
        future: LoopFuture[int] = LoopFuture()

        async def wait() -> int:
            return await future

        cancelled, kept = asyncio.create_task(wait()), asyncio.create_task(wait())
        await asyncio.sleep(0)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        future.set(3)
        assert await kept == 3
        assert await future == 3

    asyncio.run(scenario())


def test_an_await_whose_loop_is_gone_does_not_disturb_the_resolver() -> None:
    """Resolving a future that a task of a closed loop awaited raises and logs nothing."""
    future: LoopFuture[int] = LoopFuture()
    loop = asyncio.new_event_loop()

    async def wait() -> int:
        return await future

    task = loop.create_task(wait())
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()

    future.set(1)

    assert future.get() == 1
    task._log_destroy_pending = False  # type: ignore[attr-defined]


@pytest.mark.parametrize("early", [True, False])
def test_get_hooks_work_with_get_and_with_await(early: bool) -> None:
    """map, filter, join and reduce give their value to blocking readers and, suspending, to tasks."""

    def derive(numbers: LoopFuture[Any]) -> list[pykka.Future[Any]]:
        return [
            numbers.map(sum),
            numbers.filter(lambda number: number > 1),
            numbers.join(numbers),
            numbers.reduce(lambda total, number: total + number, 10),
            numbers.map(sum).map(str),
        ]

    expected: list[Any] = [6, [2, 3], [[1, 2, 3], [1, 2, 3]], 16, "6"]

    blocking: LoopFuture[Any] = LoopFuture()
    derived = derive(blocking)
    blocking.set([1, 2, 3])
    assert [future.get() for future in derived] == expected

    async def scenario() -> None:
        numbers: LoopFuture[Any] = LoopFuture()
        if early:
            numbers.set([1, 2, 3])
        else:
            asyncio.get_running_loop().call_soon(numbers.set, [1, 2, 3])
        for future, value in zip(derive(numbers), expected, strict=True):
            assert await future == value
            assert isinstance(future, LoopFuture)
            assert future.done()

    asyncio.run(scenario())


def test_a_hook_is_asked_once_and_tells_the_callbacks() -> None:
    """The hook's value is kept, and resolves the future for done callbacks too."""
    future: LoopFuture[int] = LoopFuture()
    timeouts: list[float | None] = []
    seen: list[int] = []

    def hook(timeout: float | None) -> int:
        timeouts.append(timeout)
        return 5

    future.set_get_hook(hook)
    future.add_done_callback(lambda f: seen.append(f.get()))
    assert not future.done()

    assert future.get(timeout=2.0) == future.get() == 5
    assert timeouts == [2.0]
    assert seen == [5]


def test_a_would_block_error_that_is_an_outcome_is_raised_as_such() -> None:
    """A handler's own mistake of blocking the loop reaches the asker, through mapped futures too; nobody hangs."""

    async def scenario() -> None:
        never: LoopFuture[int] = LoopFuture()
        ref = Recorder.start()
        with pytest.raises(WouldBlockError):
            await ref.ask(never.get, block=False)
        with pytest.raises(WouldBlockError):
            await ref.ask(never.get, block=False).map(str)

    asyncio.run(scenario())


def test_a_pending_future_is_cheap() -> None:
    """Nothing for blocking or waking is made before somebody waits: well under a kilobyte each."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        futures: list[LoopFuture[None]] = [LoopFuture() for _ in range(1000)]
        used = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert used / len(futures) < 600
