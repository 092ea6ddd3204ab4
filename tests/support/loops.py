"""Event loops on threads of their own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

from tests.support.running import PATIENCE_SECONDS


class OtherLoop:
    """An event loop on a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run something there, and wait for it on this thread."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(PATIENCE_SECONDS)


@contextmanager
def other_loop() -> Iterator[OtherLoop]:
    other = OtherLoop()
    other.thread.start()
    try:
        yield other
    finally:
        other.loop.call_soon_threadsafe(other.loop.stop)
        other.thread.join()
        other.loop.close()
