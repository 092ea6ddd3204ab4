"""Receives that nobody waits for any more take no messages, over a double of MPREG's client."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from typing import Any

import pytest

from mpreg_mq import QueueConfiguration, QueuedMessage
from mpreg_mq.mpreg import QueueClient
from mpreg_mq.mpreg import client as client_module
from tests.mpreg.test_commands import TOKEN, URL, call, client, serving
from tests.support.mpreg_double.client.client_api import SERVERS, MPREGClientAPI
from tests.support.running import until


@pytest.fixture(autouse=True)
def _no_servers() -> Iterator[None]:
    SERVERS.clear()
    yield
    SERVERS.clear()


def test_consumers_of_one_client_do_not_wait_for_each_other() -> None:
    """Given several consumers of one client whose queues are empty, when a message comes to any of them, then it is
    handled at once, and once: none of the others holds it up."""

    async def story() -> None:
        async with serving() as plugin, client() as queues:
            got: list[Any] = []
            for name in "abcdef":
                await queues.create_queue(name, max_retries=0)
            consumers = [
                asyncio.create_task(queues.consume(name, "w", lambda one: got.append(one.payload))) for name in "abcdef"
            ]
            await until(lambda: len(queues._receiving) == 6)
            for name in "fedcba":
                await queues.send(name, "t", name)
                await until(lambda wanted=name: got[-1:] == [wanted])  # type: ignore[misc]
            assert got == list("fedcba")
            await until(lambda: plugin.manager.get_global_statistics().total_messages_acknowledged == 6)
            for consumer in consumers:
                consumer.cancel()
            await asyncio.wait(consumers)
            assert len(queues._idle) <= 4

    asyncio.run(story())


@pytest.mark.parametrize("end", ["cancelled", "closed", "timed out"])
def test_a_receive_that_is_given_up_takes_no_message(end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a client that waits for messages, when it is cancelled, closed, or not answered in time, then what comes
    after that is there for the next client in its first attempt."""

    async def story() -> None:
        async with serving() as plugin:
            await plugin.manager.create_queue("q", QueueConfiguration("q", max_retries=0))
            queues = client()
            late = asyncio.Event()
            if end == "timed out":
                monkeypatch.setattr(MPREGClientAPI, "call", _timing_out(late))
            waiting = asyncio.create_task(queues.receive("q", "w", 10, wait_seconds=20))
            await until(lambda: bool(plugin.manager.queue("q").subscriptions))
            if end == "cancelled":
                waiting.cancel()
            elif end == "closed":
                await queues.close()
            late.set()
            await asyncio.wait([waiting])
            if end == "timed out":
                assert isinstance(waiting.exception(), TimeoutError)
            await plugin.manager.send_message("q", "t", 1)
            async with client() as other:
                (one,) = await other.receive("q", "w2")
                assert (one.payload, one.delivery_attempt) == (1, 1)
            await queues.close()

    asyncio.run(story())


def _timing_out(late: asyncio.Event) -> Any:
    """Calls of MPREG's client that take too long where they receive: the server goes on with them."""
    whole = MPREGClientAPI.call

    async def call_in_time(self: MPREGClientAPI, fun: str, *arguments: Any, **named: Any) -> Any:
        calling = asyncio.ensure_future(whole(self, fun, *arguments, **named))
        if fun == "mq.receive" and not late.is_set():
            await late.wait()
            raise TimeoutError
        return await calling

    return call_in_time


def test_a_receive_is_cancelled_before_it_begins_while_it_waits_and_after_its_answer() -> None:
    """Given receives with ids, when one is cancelled before it comes, then it fetches nothing; while it waits, it ends
    without a message; when its answer was lost, its messages come back at once. Nobody else's receive ends."""

    async def story() -> None:
        async with serving() as plugin:
            await plugin.manager.create_queue("q")

            async def receive(receive_id: str | None, subscriber: str = "w", wait: float = 0.0) -> dict[str, Any]:
                return await call(plugin, "mq.receive", "q", subscriber, 10, wait, receive_id=receive_id, token=TOKEN)

            async def cancel(receive_id: str, subscriber: str = "w") -> Any:
                return (await call(plugin, "mq.cancel", "q", receive_id, subscriber, token=TOKEN)).get("cancelled")

            assert await cancel("early") is False
            await plugin.manager.send_message("q", "t", 1)
            assert await receive("early", wait=20.0) == {"ok": True, "messages": []}
            (one,) = (await receive("answered"))["messages"]
            assert (one["payload"], one["delivery_attempt"]) == (1, 1)
            assert await cancel("answered", "stranger") is False
            assert (await receive(None))["messages"] == []
            assert await cancel("answered") is True
            assert await cancel("answered") is False
            (one,) = (await receive(None))["messages"]
            assert one["delivery_attempt"] == 2
            # It is another delivery by now.
            assert (await call(plugin, "mq.ack", "q", one["id"], "w", token=TOKEN))["acknowledged"]

            waiting = asyncio.create_task(receive("waits", wait=20.0))
            other = asyncio.create_task(receive("other", "w2", 20.0))
            await until(lambda: len(plugin.manager.queue("q").subscriptions) == 2)
            assert (await receive("waits"))["error"] == "invalid"
            assert await cancel("waits", "w2") is False
            assert await cancel("waits") is True
            assert await waiting == {"ok": True, "messages": []}
            await plugin.manager.send_message("q", "t", 2)
            assert [one["payload"] for one in (await other)["messages"]] == [2]
            for bad in ("", 7, "x" * 101):
                assert (await call(plugin, "mq.cancel", "q", bad, "w", token=TOKEN))["error"] == "invalid"
                assert (await call(plugin, "mq.receive", "q", "w", receive_id=bad, token=TOKEN))["error"] == "invalid"

    asyncio.run(story())


def test_r3_a_receive_whose_answer_was_lost_is_no_failure_of_its_subscriber() -> None:
    """Given a breaker that opens at the first failure, when a receive is cancelled that was answered, then its messages
    are there at once for the same subscriber."""

    async def story() -> None:
        async with serving() as plugin:
            await plugin.manager.create_queue("q", QueueConfiguration("q", circuit_breaker_failure_threshold=1))
            await plugin.manager.send_message("q", "t", 1)
            assert (await call(plugin, "mq.receive", "q", "w", receive_id="lost", token=TOKEN))["messages"]
            assert (await call(plugin, "mq.cancel", "q", "lost", "w", token=TOKEN))["cancelled"]
            (one,) = (await call(plugin, "mq.receive", "q", "w", token=TOKEN))["messages"]
            assert one["delivery_attempt"] == 2

    asyncio.run(story())


def test_a_receive_that_the_server_gives_up_takes_no_message() -> None:
    """Given a receive that waits, when the server gives the command up, then what comes then is there for others."""

    async def story() -> None:
        async with serving() as plugin:
            await plugin.manager.create_queue("q", QueueConfiguration("q", max_retries=0))
            waiting = asyncio.create_task(
                call(plugin, "mq.receive", "q", "w", 1, 20.0, receive_id="given up", token=TOKEN)
            )
            await until(lambda: bool(plugin.manager.queue("q").subscriptions))
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            await plugin.manager.send_message("q", "t", 1)
            (one,) = (await call(plugin, "mq.receive", "q", "w", receive_id="next", token=TOKEN))["messages"]
            assert one["delivery_attempt"] == 1

    asyncio.run(story())


@pytest.mark.parametrize("end", ["acknowledged", "cancelled"])
def test_nothing_keeps_what_was_received_and_is_over(end: str) -> None:
    """Given receives that were answered, or cancelled after that, when their messages are acknowledged, then the server
    keeps none of them for the receives."""

    async def story() -> None:
        async with serving() as plugin:
            await plugin.manager.create_queue("q")
            for number in range(5):
                await plugin.manager.send_message("q", "t", f"kept {end} {number}")
                receive_id = f"r{number}"
                (one,) = (await call(plugin, "mq.receive", "q", "w", receive_id=receive_id, token=TOKEN))["messages"]
                if end == "cancelled":
                    assert (await call(plugin, "mq.cancel", "q", receive_id, "w", token=TOKEN))["cancelled"]
                    (one,) = (await call(plugin, "mq.receive", "q", "w", token=TOKEN))["messages"]
                assert (await call(plugin, "mq.ack", "q", one["id"], "w", token=TOKEN))["acknowledged"]
            await asyncio.sleep(0)
            gc.collect()
            known = [one.payload for one in gc.get_objects() if isinstance(one, QueuedMessage)]
            assert not [payload for payload in known if str(payload).startswith("kept")]

    asyncio.run(story())


def owning_client(monkeypatch: pytest.MonkeyPatch) -> QueueClient:
    """A client that makes all its connections itself."""
    monkeypatch.setattr(client_module, "_new_api", lambda url, like=None: MPREGClientAPI(url))
    return QueueClient(URL, token=TOKEN, timeout_seconds=5)


CONSUMER_IS = ["waiting", "connecting", "in its callback", "trying again"]


@pytest.mark.parametrize("consumer_is", CONSUMER_IS)
def test_a_closed_client_opens_nothing(consumer_is: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a client that is closed while a consumer of it runs, whatever that does just then, then the consumer ends
    with an error that says so, no connection is left or opened, and every other call is refused."""
    opened: list[MPREGClientAPI] = []
    may_connect, in_connect = asyncio.Event(), asyncio.Event()
    connect = MPREGClientAPI.connect

    async def counted(self: MPREGClientAPI) -> None:
        if consumer_is == "connecting" and opened:
            in_connect.set()
            await may_connect.wait()
        opened.append(self)
        await connect(self)

    monkeypatch.setattr(MPREGClientAPI, "connect", counted)
    monkeypatch.setattr(client_module, "FIRST_RETRY_SECONDS", 0.0)

    async def story() -> None:
        async with serving() as plugin:
            await plugin.manager.create_queue("q")
            queues = owning_client(monkeypatch)
            in_callback, end_callback = asyncio.Event(), asyncio.Event()

            async def callback(message: Any) -> None:
                in_callback.set()
                await end_callback.wait()

            async with queues:
                server = SERVERS[URL]
                if consumer_is == "trying again":
                    del SERVERS[URL]
                consumer = asyncio.create_task(queues.consume("q", "w", callback))
                if consumer_is == "waiting":
                    await until(lambda: bool(plugin.manager.queue("q").subscriptions))
                elif consumer_is == "connecting":
                    await in_connect.wait()
                elif consumer_is == "in its callback":
                    await plugin.manager.send_message("q", "t", 1)
                    await in_callback.wait()
                else:
                    await until(lambda: len(opened) == 2)
            before = len(opened)
            SERVERS[URL] = server
            may_connect.set()
            end_callback.set()
            with pytest.raises(ConnectionError, match="the client is closed"):
                await asyncio.wait_for(consumer, 5)
            with pytest.raises(ConnectionError, match=r"mq\.send: the client is closed"):
                await queues.send("q", "t", 1)
            with pytest.raises(ConnectionError, match=r"mq\.receive: the client is closed"):
                await queues.receive("q", "w")
            with pytest.raises(ConnectionError, match="the client is closed"):
                await queues.__aenter__()
            # Only the one that was under way may have been opened, and it is closed again.
            assert len(opened) == before + (consumer_is == "connecting")
            assert not any(api._connected for api in opened)

    asyncio.run(story())


def test_nothing_is_told_after_a_client_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a receive that was cancelled, of which the server has not been told yet, when the client is closed, then it
    is told before that, or not at all: nothing is connected afterwards."""
    monkeypatch.setattr(client_module, "CANCEL_SECONDS", 0.0)
    hangs = asyncio.Event()
    whole = MPREGClientAPI.call

    async def slow(self: MPREGClientAPI, fun: str, *arguments: Any, **named: Any) -> Any:
        if fun == "mq.cancel":
            await hangs.wait()
        return await whole(self, fun, *arguments, **named)

    monkeypatch.setattr(MPREGClientAPI, "call", slow)

    async def story() -> None:
        async with serving() as plugin:
            await plugin.manager.create_queue("q")
            queues = owning_client(monkeypatch)
            waiting = asyncio.create_task(queues.receive("q", "w", wait_seconds=20))
            await until(lambda: bool(plugin.manager.queue("q").subscriptions))
            waiting.cancel()
            await asyncio.wait([waiting])
            assert queues._cancelling
            await queues.close()
            assert not queues._cancelling
            hangs.set()
            assert not queues._commands._connected
            assert not queues._idle

    asyncio.run(story())


def test_a_client_that_is_closed_while_it_connects_is_not_connected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given sends whose connection is being made, when the client is closed, then that is closed as soon as it is made,
    no other one is, and the sends fail."""
    in_connect, may_connect = asyncio.Event(), asyncio.Event()
    whole = MPREGClientAPI.connect

    async def slow(self: MPREGClientAPI) -> None:
        assert not in_connect.is_set(), "connected once more"
        in_connect.set()
        await may_connect.wait()
        await whole(self)

    monkeypatch.setattr(MPREGClientAPI, "connect", slow)

    async def story() -> None:
        async with serving() as plugin:
            await plugin.manager.create_queue("q")
            queues = owning_client(monkeypatch)
            sends = [asyncio.create_task(queues.send("q", "t", number)) for number in range(2)]
            await in_connect.wait()
            await queues.close()
            may_connect.set()
            for send in sends:
                with pytest.raises(ConnectionError, match="the client is closed"):
                    await send
            assert not queues._commands._connected
            assert plugin.manager.queue("q").pending_messages == []

    asyncio.run(story())
