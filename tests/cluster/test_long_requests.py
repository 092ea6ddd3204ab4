"""Requests and replies that are longer than a message of NATS may be (SEMANTICS S2, R1, I6)."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("nats", reason="nats-py is not installed (pip install 'mpreg-mq[nats]')")

import nats

from mpreg_mq import QueueConfiguration
from mpreg_mq.cluster.parts import Kept, cut
from mpreg_mq.cluster.transport import PART_OF_REQUEST, PARTS_OF_REPLY, NatsTransport, NobodyThereError
from mpreg_mq.events.nats.engine import HEADROOM_BYTES, UnansweredError
from tests.support.clusters import created, running_nodes, until
from tests.support.running import Recorder

LIMIT = 1024 * 1024
"""A server's max_payload, unless it is told otherwise."""


class FakeClient:
    """A connection that knows one subject, and refuses what is longer than ``max_payload`` as nats-py does."""

    def __init__(self, max_payload: int) -> None:
        self.max_payload = max_payload
        self.take: Any = None
        self.answers: dict[str, asyncio.Future[Any]] = {}
        self.lost: list[str] = []
        self.requests = 0

    async def subscribe(self, subject: str, cb: Any) -> Any:
        self.take = cb
        return SimpleNamespace(unsubscribe=self._unsubscribe)

    async def _unsubscribe(self) -> None:
        self.take = None

    async def publish(self, subject: str, payload: bytes, headers: Any = None) -> None:
        if len(payload) > self.max_payload:
            raise nats.errors.MaxPayloadError
        self.answers.pop(subject).set_result(SimpleNamespace(data=payload, headers=headers))

    async def request(self, subject: str, payload: bytes, *, headers: Any, **_: Any) -> Any:
        self.requests += 1
        if len(payload) > self.max_payload or "too long" in self.lost:
            raise nats.errors.MaxPayloadError
        if self.take is None:
            raise nats.errors.NoRespondersError
        if headers and any(name in self.lost for name in headers):
            raise nats.errors.TimeoutError
        reply = f"reply.{self.requests}"
        self.answers[reply] = asyncio.get_running_loop().create_future()
        answer = self.answers[reply]
        await self.take(SimpleNamespace(data=payload, headers=headers, reply=reply))
        return await answer


async def echo(request: bytes) -> bytes:
    return request[::-1] * 2


@given(st.binary(max_size=300), st.integers(1, 60))
def test_a_request_and_its_reply_arrive_whole_whatever_their_length(request: bytes, room: int) -> None:
    """Given any request and any limit of the servers, then it arrives as it was, and so does its reply."""

    async def story() -> None:
        transport = NatsTransport(FakeClient(HEADROOM_BYTES + room), "LOG")  # type: ignore[arg-type]
        await transport.serve("a.1", echo)
        assert await transport.ask("a.1", request, 1.0) == request[::-1] * 2
        assert transport._requests._parts == transport._replies._parts == {}
        await transport.stop()

    asyncio.run(story())


def _first_only(identifier: str, number: int, part: bytes) -> bool:
    return number == 0


def test_a_request_whose_parts_did_not_arrive_was_not_carried_out() -> None:
    """Given parts of a request that get lost, or that the member lost, then it is certain that nothing was done."""

    async def story() -> None:
        client = FakeClient(HEADROOM_BYTES + 4)
        seen: list[bytes] = []

        async def handler(request: bytes) -> bytes:
            seen.append(request)
            return b""

        transport = NatsTransport(client, "LOG")  # type: ignore[arg-type]
        await transport.serve("a.1", handler)
        client.lost = [PART_OF_REQUEST]
        with pytest.raises(NobodyThereError, match="timeout"):
            await transport.ask("a.1", b"0123456789", 1.0)
        client.lost = []
        transport._requests.add = lambda *_: False  # type: ignore[method-assign]
        with pytest.raises(NobodyThereError, match="not there any more"):
            await transport.ask("a.1", b"0123456789", 1.0)
        transport._requests.add = _first_only  # type: ignore[method-assign]
        with pytest.raises(NobodyThereError, match="did not arrive"):
            await transport.ask("a.1", b"01234567", 1.0)
        # Less is allowed now than when it was cut.
        client.lost = ["too long"]
        with pytest.raises(NobodyThereError, match="nothing was sent"):
            await transport.ask("a.1", b"xy", 1.0)
        assert seen == []

    asyncio.run(story())


def test_a_reply_whose_parts_get_lost_is_an_unknown_outcome() -> None:
    """Given parts of a reply that are lost, or kept by nobody, then the request may have been carried out."""

    async def story() -> None:
        client = FakeClient(HEADROOM_BYTES + 12)
        transport = NatsTransport(client, "LOG")  # type: ignore[arg-type]
        await transport.serve("a.1", echo)
        client.lost = [PARTS_OF_REPLY]
        with pytest.raises(UnansweredError):
            await transport.ask("a.1", b"0123456789", 1.0)
        client.lost = []
        transport._replies.take = lambda *_: None  # type: ignore[method-assign]
        with pytest.raises(UnansweredError, match="not there any more"):
            await transport.ask("a.1", b"0123456789", 1.0)

    asyncio.run(story())


def test_parts_are_kept_in_order_and_not_for_ever() -> None:
    """Given parts out of order, or of somebody who is gone, then they are refused or forgotten."""

    async def story() -> None:
        kept = Kept()
        assert not kept.add("a", 1, b"y")
        assert kept.add("a", 0, b"x")
        assert not kept.add("a", 2, b"z")
        assert not kept.add("a", 1, b"y")
        kept.keep("b", cut(b"xyz", 1))
        assert kept.take("b", 3) is kept.take("c", 0) is None
        (timer,) = kept._timers.values()
        timer._run()
        assert kept.take("b", 1) is None
        kept.keep("c", [b""])
        kept.clear()
        assert kept._parts == kept._timers == {}

    asyncio.run(story())


def test_i6_a_backlog_of_more_than_a_message_reaches_a_callback_on_another_node(url: str) -> None:
    """Given three megabytes that wait, when another node subscribes a callback, then it gets all of it at once (R1)."""

    async def story() -> None:
        async with running_nodes(url, "a", "b") as nodes:
            owner, other = await created(nodes, "q", QueueConfiguration("q", max_retries=0))
            results = [await owner.send_messages("q", [("t", "x" * 30_000)] * 50) for _ in range(2)]
            assert all(result.success for batch in results for result in batch)
            seen = Recorder()
            other.subscribe_to_queue("q", "w", "#", seen)
            await until(lambda: len(seen.messages) == 100)
            assert {message.delivery_attempt for message in seen.messages} == {1}

    asyncio.run(story())


def test_s2_what_is_longer_than_a_message_is_sent_and_listed_from_every_node(url: str) -> None:
    """Given a payload and a batch above the limit, then another node sends them, and lists them as dead letters."""

    async def story() -> None:
        async with running_nodes(url, "a", "b") as nodes:
            _, other = await created(nodes, "q", QueueConfiguration("q", max_retries=0))
            assert (await other.send_message("q", "t", "x" * (LIMIT - 16))).success
            results = await other.send_messages("q", [("t", "y" * 30_000)] * 50)
            assert all(result.success for result in results)
            messages = await other.receive_messages("q", "w", 100)
            assert [len(message.payload) for message in messages] == [LIMIT - 16, *[30_000] * 50]
            for message in messages:
                assert await other.negative_acknowledge("q", message.id, "w", "broken")
            assert len(await other.list_dead_letters("q")) == 51

    asyncio.run(story())


def test_l1_one_receive_leases_no_more_than_arrives_in_time(url: str) -> None:
    """Given 20 MB that wait, when all is asked for at once, then less is leased, and later requests get the rest."""

    async def story() -> None:
        async with running_nodes(url, "a", "b") as nodes:
            _, other = await created(nodes, "q")
            for _ in range(20):
                assert (await other.send_message("q", "t", "x" * 1_000_000)).success
            counts = [len(await other.receive_messages("q", "w", 20)) for _ in range(3)]
            assert counts == [8, 8, 4]

    asyncio.run(story())
