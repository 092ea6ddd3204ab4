"""A receive that nobody waits for any more takes nothing, on whichever node it waits (SEMANTICS L1, I6)."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import pytest

from mpreg_mq import QueueConfiguration
from mpreg_mq.actors import commands as c
from tests.support.clusters import created, running_nodes, until
from tests.support.running import Recorder


def _receivers(owner: Any) -> int:
    return len(owner.node.ownership.queues["q"].queue._actor._receivers)


def _has(seen: Recorder, number: int) -> bool:
    return seen.payloads == [number]


@pytest.mark.parametrize("at_owner", [True, False], ids=["at the owner", "at another node"])
def test_l1_a_cancelled_receive_takes_nothing(url: str, at_owner: bool) -> None:
    """Given a receiver that waits and is cancelled, then the next message waits for the next receiver."""

    async def story() -> None:
        async with running_nodes(url, "a", "b") as nodes:
            owner, other = await created(nodes, "q", QueueConfiguration("q", max_retries=0))
            node = owner if at_owner else other
            waiting = asyncio.create_task(node.receive_messages("q", "w", wait_seconds=60))
            await until(lambda: _receivers(owner) == 1)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            await until(lambda: _receivers(owner) == 0)
            assert (await other.send_message("q", "t", 1)).success
            (message,) = await other.receive_messages("q", "w")
            assert (message.payload, message.delivery_attempt) == (1, 1)

    asyncio.run(story())


def test_l1_a_subscriber_that_ends_and_begins_again_gets_what_comes_then(url: str) -> None:
    """Given callbacks that unsubscribe while their node waits for messages, then that wait takes nothing later."""

    async def story() -> None:
        async with running_nodes(url, "a", "b") as nodes:
            owner, other = await created(nodes, "q", QueueConfiguration("q", max_retries=0))
            for number in range(3):
                seen = Recorder()
                subscription = other.subscribe_to_queue("q", "w", "#", seen)
                assert (await owner.send_message("q", "t", number)).success
                await until(partial(_has, seen, number))
                assert other.unsubscribe_from_queue("q", subscription)
                await until(lambda: _receivers(owner) == 0)
            assert await other.list_dead_letters("q") == []

    asyncio.run(story())


def test_l1_what_a_withdrawn_receive_has_leased_goes_back_at_once(url: str) -> None:
    """Given messages leased for a receive, when it is withdrawn, then others get them; later leases stay."""
    from mpreg_mq.cluster import wire

    async def story() -> None:
        async with running_nodes(url, "a") as (node,):
            await node.create_queue("q")
            await node.send_messages("q", [("t", 1), ("t", 2)])

            async def ask(asked: Any) -> Any:
                return wire.answer_of(asked, await node.node.carry_out("q", asked))

            assert len(await ask(wire.ReceiveRequest("w", 2, 0.0, request_id="first"))) == 2
            assert await ask(wire.CancelReceive("first"))
            assert not await ask(wire.CancelReceive("first"))
            again = await ask(wire.ReceiveRequest("w", 2, 0.0, request_id="second"))
            assert [(message.payload, message.delivery_attempt) for message in again] == [(1, 2), (2, 2)]
            await node.negative_acknowledge("q", again[0].id, "w")
            await node.acknowledge_message("q", again[1].id, "w")
            (third,) = await node.receive_messages("q", "w")
            assert not await ask(wire.CancelReceive("second"))
            assert await node.acknowledge_message("q", third.id, "w")

    asyncio.run(story())


@pytest.mark.parametrize("steps", range(6))
def test_l1_a_receive_that_is_cancelled_as_its_messages_come_keeps_none(url: str, steps: int) -> None:
    """Given a receiver that waits at the owner, when it is cancelled at any moment after its message was leased, then
    the message is there for the next one, and not only when the lease has run out."""

    async def story() -> None:
        async with running_nodes(url, "a") as (node,):
            await node.create_queue("q")
            waiting = asyncio.create_task(node.receive_messages("q", "w", wait_seconds=60))
            await until(lambda: _receivers(node) == 1)
            actor = node.node.ownership.queues["q"].queue._actor
            actor.call(c.Send("t", b"1"))
            actor.send_off()
            while _receivers(node):
                await asyncio.sleep(0)
            for _ in range(steps):
                await asyncio.sleep(0)
            if waiting.cancel():
                with pytest.raises(asyncio.CancelledError):
                    await waiting
                (message,) = await node.receive_messages("q", "w", wait_seconds=1)
                assert message.delivery_attempt == 2

    asyncio.run(story())


def test_l1_a_receive_that_comes_after_it_was_withdrawn_takes_nothing(url: str) -> None:
    """Given requests that overtake each other, then one that was withdrawn before it came is empty."""
    from mpreg_mq.cluster import owned, wire

    async def story() -> None:
        async with running_nodes(url, "a") as (node,):
            await node.create_queue("q")
            await node.send_message("q", "t", 1)

            async def ask(asked: Any) -> Any:
                return wire.answer_of(asked, await node.node.carry_out("q", asked))

            assert not await ask(wire.CancelReceive("early"))
            assert await ask(wire.ReceiveRequest("w", 1, 0.0, request_id="early")) == []
            for number in range(owned.RECEIVES_REMEMBERED):
                assert not await ask(wire.CancelReceive(f"other {number}"))
            assert len(node.node.ownership.queues["q"]._receives._over) == owned.RECEIVES_REMEMBERED
            (message,) = await ask(wire.ReceiveRequest("w", 1, 0.0))
            assert message.delivery_attempt == 1

    asyncio.run(story())
