"""What commands answer of messages: JSON cannot hold every payload, and one answer not any number of them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpreg_mq import QueueConfiguration
from mpreg_mq.mpreg import answers, receives
from mpreg_mq.mpreg.answers import MAX_LEVELS
from tests.mpreg.test_commands import TOKEN, call, client, serving
from tests.support.mpreg_double.client.client_api import SERVERS


@pytest.fixture(autouse=True)
def _no_servers() -> Iterator[None]:
    SERVERS.clear()
    yield
    SERVERS.clear()


def nested(levels: int) -> Any:
    """Lists in each other."""
    value: Any = []
    for _ in range(levels - 1):
        value = [value]
    return value


FIT = st.sampled_from([None, 1, "text", {"a": [1, {"b": 2}]}, {1: 2}, nested(MAX_LEVELS), [[]] * 300])
UNFIT = st.sampled_from([{(1, 2): 3}, {None: 1}, [{b"key": 1}, {(): 2}], nested(MAX_LEVELS + 1)])


@given(st.lists(st.one_of(FIT, UNFIT.map(lambda payload: ("unfit", payload))), max_size=8))
def test_a_payload_that_json_cannot_hold_fails_alone(payloads: list[Any]) -> None:
    """Given messages of the server's own program, some with payloads that JSON cannot hold, when a client fetches them,
    then it gets all the others in order in their first attempt; those end as dead letters that say why, and listings
    show that in the place of the payload."""
    unfit = [one[1] for one in payloads if isinstance(one, tuple)]
    fit = [one for one in payloads if not isinstance(one, tuple)]

    async def story() -> None:
        async with serving() as plugin, client() as queues:
            await plugin.manager.create_queue("q", QueueConfiguration("q", max_retries=0))
            for one in payloads:
                await plugin.manager.send_message("q", "t", one[1] if isinstance(one, tuple) else one)
            fetched = await queues.receive("q", "w", 10)
            assert [one.payload for one in fetched] == json.loads(json.dumps(fit))
            assert all([await queues.acknowledge(one) for one in fetched])
            letters = await queues.dead_letters("q")
            assert [(one["payload"], one["attempts"]) for one in letters] == [(None, 1)] * len(unfit)
            for letter in letters:
                assert "JSON cannot hold" in letter["payload_error"]
                assert letter["last_error"] == letter["payload_error"]
            assert (await queues.statistics("q")).messages_acknowledged == len(fit)

    asyncio.run(story())


def test_a_client_waits_on_where_nothing_was_fit() -> None:
    """Given a message that JSON cannot hold, when a client waits for one, then it gets the next one that comes."""

    async def story() -> None:
        async with serving() as plugin, client() as queues:
            await plugin.manager.create_queue("q", QueueConfiguration("q", max_retries=0))
            await plugin.manager.send_message("q", "t", {(1, 2): 3})
            waiting = asyncio.create_task(queues.receive("q", "w", 10, wait_seconds=10))
            while not plugin.manager.queue("q").dead_letter_queue:
                await asyncio.sleep(0)
            await plugin.manager.send_message("q", "t", 1)
            assert [one.payload for one in await waiting] == [1]

    asyncio.run(story())


@pytest.mark.parametrize("headers", [{}, {"trace": "x" * 500}])
def test_an_answer_has_only_what_it_can_carry(monkeypatch: pytest.MonkeyPatch, headers: dict[str, str]) -> None:
    """Given more messages than an answer carries, when a client fetches all of them, then it gets as many as fit, and
    the others later, in order and in their first attempt; so it is with listings."""
    for module in (answers, receives):
        monkeypatch.setattr(module, "MAX_ANSWER_BYTES", 30_000)

    async def story() -> None:
        async with serving() as plugin:
            config = QueueConfiguration("q", max_retries=0, max_payload_bytes=4000, max_headers_bytes=1000)
            await plugin.manager.create_queue("q", config)
            for number in range(40):
                payload = [number, "y" * (100 * number if number < 39 else 1)]
                await plugin.manager.send_message("q", "t", payload, headers=headers)
            got: list[Any] = []
            while len(got) < 40:
                answer = await call(plugin, "mq.receive", "q", "w", 100, token=TOKEN)
                assert 0 < len(answer["messages"]) < 40
                assert len(json.dumps(answer)) <= 30_000
                for one in answer["messages"]:
                    assert one["delivery_attempt"] == 1
                    got.append(one["payload"][0])
                    assert (await call(plugin, "mq.nack", "q", one["id"], "w", token=TOKEN))["ok"]
            assert got == list(range(40))
            letters = await call(plugin, "mq.dead_letters", "q", token=TOKEN)
            assert letters["total"] == 40 > len(letters["dead_letters"]) > 0
            assert len(json.dumps(letters)) <= 30_000

    asyncio.run(story())


def test_a_message_that_no_answer_can_carry_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a message that is larger than an answer, when a client fetches it with others, then it gets the others."""
    for module in (answers, receives):
        monkeypatch.setattr(module, "MAX_ANSWER_BYTES", 30_000)

    async def story() -> None:
        async with serving() as plugin, client() as queues:
            await plugin.manager.create_queue("q", QueueConfiguration("q", max_retries=0))
            for payload in (1, "z" * 40_000, 2):
                await plugin.manager.send_message("q", "t", payload)
            got = [one.payload for _ in range(3) for one in await queues.receive("q", "w", 10)]
            assert got == [1, 2]
            (letter,) = await queues.dead_letters("q")
            assert letter["payload"] is None
            assert "an answer carries at most 30000" in letter["last_error"]

    asyncio.run(story())
