"""Threads with and without event loops, and an actor that records what it is told, for tests of the runtime."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import pykka
import pytest

from mpreg_mq.actors.runtime import LoopActor

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
