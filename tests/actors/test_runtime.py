"""The actor runtime: futures that suspend, an inbox that loses nothing, actors drained by an event loop."""

from __future__ import annotations

import asyncio
import gc
import logging
import queue
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, TypeVar

import pykka
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpreg_mq.actors import inbox
from mpreg_mq.actors.futures import LoopFuture, WouldBlockError
from mpreg_mq.actors.inbox import ENVELOPES_PER_TURN, LoopInbox, MailboxFullError
from mpreg_mq.actors.runtime import LoopActor
from mpreg_mq.errors import MessageQueueError

T = TypeVar("T")

LIMIT_SECONDS = 30
"""How long a test waits for what must happen, before it fails instead of hanging."""

WHERE = ["the loop's thread", "another thread"]
each_thread = pytest.mark.parametrize("where", WHERE)


async def call_from(where: str, function: Callable[[], T]) -> T:
    """Run a function on the thread of the running loop, or on one that runs no loop."""
    return function() if where == WHERE[0] else await asyncio.to_thread(function)


def run_in_threads(count: int, function: Callable[[int], None]) -> None:
    """Run ``function(number)`` on so many threads that start together; what one raises is raised."""
    gate = threading.Barrier(count)
    failures: list[BaseException] = []

    def body(number: int) -> None:
        try:
            gate.wait(LIMIT_SECONDS)
            function(number)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=body, args=(number,), daemon=True) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT_SECONDS)
        assert not thread.is_alive(), "a thread hangs"
    if failures:
        raise failures[0]


class LoopThread:
    """An event loop that runs on a thread of its own while the context is entered."""

    def __enter__(self) -> asyncio.AbstractEventLoop:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.run(lambda: None)
        return self.loop

    def run(self, function: Callable[[], T]) -> T:
        """Call a function on the loop's thread, from another."""

        async def call() -> T:
            return function()

        return asyncio.run_coroutine_threadsafe(call(), self.loop).result(LIMIT_SECONDS)

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(LIMIT_SECONDS)
        self.loop.close()


class Recorder(LoopActor):
    """Keeps what it receives and where; a callable message is called and answers with its result."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []
        self.threads: set[int] = set()
        self.hooks: list[str] = []
        self.handling = False

    def on_start(self) -> None:
        self.hooks.append("start")

    def on_stop(self) -> None:
        self.hooks.append("stop")

    def on_failure(self, exception_type: Any, exception_value: Any, traceback: Any) -> None:
        self.hooks.append(f"failure {exception_type.__name__}")

    def on_loop_changed(self) -> None:
        self.hooks.append("loop changed")

    def on_receive(self, message: Any) -> Any:
        assert not self.handling, "two messages are handled at once"
        self.handling = True
        try:
            self.threads.add(threading.get_ident())
            if callable(message):
                return message()
            self.seen.append(message)
            return ("did", message)
        finally:
            self.handling = False


def actor_of(ref: pykka.ActorRef[Any]) -> Any:
    """The actor behind a reference, to look inside."""
    actor = ref._actor_weakref()
    assert actor is not None
    return actor


def failing(error: BaseException) -> Callable[[], None]:
    """A message that makes the handler raise."""

    def fail() -> None:
        raise error

    return fail


@pytest.fixture(autouse=True)
def no_actor_is_left() -> Iterator[None]:
    """Every test starts and ends with an empty registry."""
    yield
    pykka.ActorRegistry.stop_all(timeout=LIMIT_SECONDS)


# --- LoopFuture: a value, once --------------------------------------------------------------------------------


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


# --- LoopFuture: callbacks ------------------------------------------------------------------------------------


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


# --- LoopFuture: await ----------------------------------------------------------------------------------------


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


# --- LoopInbox ------------------------------------------------------------------------------------------------


def test_an_inbox_is_pykkas_inbox() -> None:
    """put, get and empty, in order; get does not wait, since only a loop may wait for messages."""
    inbox = LoopInbox()
    first, second = pykka._envelope.Envelope("first"), pykka._envelope.Envelope("second")
    assert inbox.empty()

    inbox.put(first)
    inbox.put(second)

    assert not inbox.empty()
    assert len(inbox) == 2
    assert inbox.get() is first
    assert inbox.get() is second
    assert inbox.empty()
    with pytest.raises(queue.Empty):
        inbox.get()


class Small(Recorder):
    """A recorder whose mailbox holds little."""

    max_mailbox_depth: ClassVar[int] = 3


@each_thread
def test_a_mailbox_has_a_limit(where: str) -> None:
    """A message beyond max_mailbox_depth raises and is not taken; those before are handled, and stop still works."""

    async def scenario() -> None:
        ref = Small.start()
        actor = actor_of(ref)

        def fill() -> None:
            for number in range(3):
                ref.tell(number)
            with pytest.raises(MailboxFullError, match="max_mailbox_depth") as caught:
                ref.tell("too many")
            assert isinstance(caught.value, MessageQueueError)
            with pytest.raises(MailboxFullError):
                ref.ask("too many", block=False)

        def block_the_loop_meanwhile() -> None:
            # The actor is in its turn, so that messages wait; a thread is joined, so that the loop cannot help.
            run_in_threads(1, lambda _: fill()) if where == WHERE[1] else fill()
            actor.stop()

        ref.tell(block_the_loop_meanwhile)
        assert actor.seen == []
        while ref.is_alive():
            await asyncio.sleep(0)
        assert actor.seen == [0, 1, 2]

    assert LoopActor.max_mailbox_depth == 1_000_000
    asyncio.run(scenario())


# --- LoopActor: a pykka actor ---------------------------------------------------------------------------------


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


# --- LoopActor: which thread, and when ------------------------------------------------------------------------


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


# --- LoopActor: deferred replies ------------------------------------------------------------------------------


@each_thread
@pytest.mark.parametrize("outcome", ["value", "exception"])
def test_a_reply_can_be_deferred(where: str, outcome: str) -> None:
    """A handler that returns a LoopFuture answers when that one is resolved, and the actor goes on meanwhile."""

    async def scenario() -> None:
        later: LoopFuture[str] = LoopFuture()
        ref = Recorder.start()
        reply = await call_from(where, lambda: ref.ask(lambda: later, block=False))
        assert await ref.ask("meanwhile", block=False) == ("did", "meanwhile")
        assert not reply.done()  # type: ignore[attr-defined]
        if outcome == "value":
            await call_from(where, lambda: later.set("at last"))
            assert await reply == "at last"
        else:
            await call_from(where, lambda: later.set_exception((KeyError, KeyError("at last"), None)))
            with pytest.raises(KeyError):
                await reply

    asyncio.run(scenario())


def test_a_deferred_reply_may_be_a_mapped_future() -> None:
    """A handler may return what map made of another actor's answer."""

    async def scenario() -> None:
        worker, front = Recorder.start(), Recorder.start()
        reply = front.ask(lambda: worker.ask("job", block=False).map(lambda done: done[0]), block=False)
        assert await reply == "did"

    asyncio.run(scenario())


def test_a_thread_can_block_on_a_deferred_reply() -> None:
    """ask(block=True) from another thread waits for it; from the loop's own thread it raises instead."""

    async def scenario() -> None:
        later: LoopFuture[str] = LoopFuture()
        ref = Recorder.start()
        with pytest.raises(RuntimeError, match="await"):
            ref.ask(lambda: later)
        asking = asyncio.create_task(asyncio.to_thread(ref.ask, lambda: later, timeout=LIMIT_SECONDS))
        while len(later._callbacks or ()) < 2:
            await asyncio.sleep(0)
        later.set("at last")
        assert await asking == "at last"

    asyncio.run(scenario())


def test_a_deferred_failure_that_nobody_waits_for_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Under tell, a deferred reply that fails is logged, and the actor goes on."""
    later: LoopFuture[str] = LoopFuture()
    fine: LoopFuture[str] = LoopFuture()
    ref = Recorder.start()
    ref.tell(lambda: later)
    ref.tell(lambda: fine)

    fine.set("fine")
    assert caplog.records == []
    later.set_exception((KeyError, KeyError("too late"), None))

    assert "too late" in caplog.text
    assert ref.is_alive()


# --- LoopActor: failures --------------------------------------------------------------------------------------

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


# --- LoopActor: stopping --------------------------------------------------------------------------------------


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


# --- races ----------------------------------------------------------------------------------------------------


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
