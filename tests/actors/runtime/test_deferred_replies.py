"""Replies that a handler gives later."""

from __future__ import annotations

import asyncio

import pytest

from mpreg_mq.actors.futures import LoopFuture
from tests.support.loop_actors import LIMIT_SECONDS, Recorder, call_from, each_thread


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
