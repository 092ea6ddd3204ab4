"""The inbox of an actor: pykka's, with a limit."""

from __future__ import annotations

import asyncio
import queue
from typing import ClassVar

import pykka
import pytest

from mpreg_mq.actors.inbox import LoopInbox, MailboxFullError
from mpreg_mq.actors.runtime import LoopActor
from mpreg_mq.errors import MessageQueueError
from tests.support.loop_actors import WHERE, Recorder, actor_of, each_thread, run_in_threads


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
