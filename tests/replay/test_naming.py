"""How messages and moments are named to the functions of a replay."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from mpreg_mq.configuration import QueueConfiguration
from mpreg_mq.errors import InvalidOptionError
from mpreg_mq.events import MemoryEventLog
from mpreg_mq.queue import MessageQueue
from mpreg_mq.replay import explain, replay, why
from mpreg_mq.replay.trace import trace


def test_a_message_may_be_named_by_itself_or_its_id() -> None:
    """Given what a send answers with and what a fetch gives, then why, explain and trace take them as they are."""

    async def story() -> None:
        log = MemoryEventLog()
        async with MessageQueue(QueueConfiguration("q"), log=log) as queue:
            sent = await queue.send_message("order.paid", 1)
            assert sent.message_id is not None
            (message,) = await queue.receive_messages("w")
            state = replay(log).states["q"]
            for named in (sent.message_id, message, str(sent.message_id)):
                assert why(log, named).subject == sent.message_id.id
                assert explain(state, named, state.last_at).subject == sent.message_id.id
                assert trace(log, named).messages == [("q", sent.message_id.id)]

    asyncio.run(story())


@pytest.mark.parametrize("moment", [3, 1.5, "now", "-5m"])
def test_what_is_no_moment_is_refused(moment: Any) -> None:
    """Given a position, a time or the words of the command line, then that says how to make a moment of them."""
    log = MemoryEventLog()
    looks: list[Callable[[], object]] = [
        lambda: replay(log, until=moment),
        lambda: why(log, "1", at=moment),
        lambda: trace(log, "1", until=moment),
    ]
    for look in looks:
        with pytest.raises(InvalidOptionError, match=r"(until|at): got .*, expected a Moment, such as Moment\("):
            look()
