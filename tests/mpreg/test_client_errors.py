"""What a client of the queues makes of errors: its callback's, and its connection's."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from mpreg_mq.mpreg import ReceivedMessage
from tests.mpreg.test_commands import URL, client, serving
from tests.support.mpreg_double.client.client_api import SERVERS
from tests.support.running import UnspeakableError


@pytest.fixture(autouse=True)
def _no_servers() -> Iterator[None]:
    SERVERS.clear()
    yield
    SERVERS.clear()


def test_a_consumer_gives_back_whatever_its_callback_raises() -> None:
    """Given callbacks whose errors JSON cannot hold, or have no text, then each message is given back at once, and the
    consumer goes on."""
    errors = [ValueError("a \ud800"), UnspeakableError()]

    async def story() -> None:
        handled = asyncio.Event()

        def work(message: ReceivedMessage) -> None:
            if errors:
                raise errors.pop(0)
            handled.set()

        async with serving() as plugin, client() as queues:
            await queues.create_queue("q", max_retries=0)
            consumer = asyncio.create_task(queues.consume("q", "s", work))
            for number in range(3):
                await queues.send("q", "t", number)
            async with asyncio.timeout(5):
                await handled.wait()
            consumer.cancel()
            with pytest.raises(asyncio.CancelledError):
                await consumer
            dead = plugin.manager.list_dead_letters("q")
            assert [one.last_error for one in dead] == [
                "ValueError: a \\ud800",
                "UnspeakableError (its text cannot be shown: RuntimeError)",
            ]

    asyncio.run(story())


def test_a_server_that_is_away_is_a_connection_error_from_the_beginning() -> None:
    """Given no server, when a client begins, then what the transport raises is a ConnectionError, as for a command."""

    async def story() -> None:
        for beginning in (client().__aenter__(), client().send("q", "t", 1)):
            with pytest.raises(ConnectionError, match=f"no connection to {URL}: connection refused"):
                await beginning

    asyncio.run(story())
