"""The mq.* commands, and the typed client that calls them, over a double of MPREG's client."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from mpreg_mq import ConfigurationError, DeliveryGuarantee, InvalidOptionError, RejectionReason
from mpreg_mq.mpreg import (
    AccessPolicy,
    AccessRule,
    MessageQueuePlugin,
    PluginConfiguration,
    QueueClient,
    QueueCommandError,
    ReceivedMessage,
)
from mpreg_mq.mpreg import client as client_module
from mpreg_mq.mpreg.access import OPERATIONS
from mpreg_mq.mpreg.catalog import COMMANDS
from tests.support.mpreg_double.client.client_api import SERVERS, MPREGClientAPI
from tests.support.mpreg_double.server import MPREGServer, MPREGSettings
from tests.support.running import until

TOKEN = "a-token-of-some-length"
EVERYTHING = AccessPolicy([AccessRule("*", "*", token=TOKEN)])
URL = "ws://127.0.0.1:1"


@pytest.fixture(autouse=True)
def _no_servers() -> Iterator[None]:
    SERVERS.clear()
    yield
    SERVERS.clear()


@asynccontextmanager
async def serving(policy: AccessPolicy = EVERYTHING, **settings: Any) -> AsyncIterator[MessageQueuePlugin]:
    """A plugin with commands on a server that clients reach."""
    server = MPREGServer(MPREGSettings(**settings))
    async with MessageQueuePlugin(server, config=PluginConfiguration(rpc=policy)) as plugin:
        SERVERS[URL] = server
        yield plugin


def client(token: str | None = TOKEN) -> QueueClient:
    """A client for that server."""
    return QueueClient(MPREGClientAPI(URL), token=token, timeout_seconds=5)


async def call(plugin: MessageQueuePlugin, name: str, *arguments: Any, **named: Any) -> dict[str, Any]:
    """What a command answers to these arguments."""
    answer: dict[str, Any] = await plugin.host.command(name)(*arguments, **named)
    assert json.loads(json.dumps(answer)) == answer
    return answer


# --- offering them ------------------------------------------------------------------------------------------


def test_there_are_no_commands_unless_asked_for() -> None:
    """Given the default configuration, then the server has no new command; asked for, each operation has one with a
    documentation and an example that the catalog shows."""

    async def story() -> None:
        server = MPREGServer(MPREGSettings())
        async with MessageQueuePlugin(server):
            assert server.registry.registrations() == ()
        async with serving() as plugin:
            registered = plugin.host.server.registry.known
            assert set(registered) == {f"mq.{operation}" for operation in OPERATIONS}
            for registration in registered.values():
                assert registration.spec.doc.summary
                assert registration.spec.doc.param_docs[-1].name == "token"
                (example,) = registration.spec.examples
                json.dumps((example.request, example.response))

    asyncio.run(story())


def test_the_examples_of_the_catalog_are_calls_that_work() -> None:
    """Given a queue with a dead letter, when the example of each command is called, then it is a good call."""

    async def story() -> None:
        async with serving() as plugin:
            await plugin.manager.create_queue("orders")
            for command in sorted(COMMANDS, key=lambda command: command.operation == "delete_queue"):
                answer = await call(plugin, command.name, **command.request, token=TOKEN)
                assert answer["ok"], (command.name, answer)
                assert set(command.response) <= set(answer), command.name

    asyncio.run(story())


@pytest.mark.parametrize(
    "settings",
    [
        {"host": "0.0.0.0"},
        {"host": "192.0.2.1"},
        {"host": "example.com"},
        {"peers": ["ws://192.0.2.7:9000"]},
        {"connect": "ws://example.com:9000"},
        {"advertised_urls": ("ws://192.0.2.7:9000",)},
    ],
)
def test_commands_beyond_this_machine_need_a_word(settings: dict[str, Any]) -> None:
    """Given a server that other machines reach, directly or through its peers, then offering commands is refused, and
    with the word it is done; without commands nobody asks."""

    async def story() -> None:
        server = MPREGServer(MPREGSettings(**settings))
        with pytest.raises(ConfigurationError, match="rpc_beyond_loopback=True"):
            await MessageQueuePlugin(server, config=PluginConfiguration(rpc=EVERYTHING)).register()
        config = PluginConfiguration(rpc=EVERYTHING, rpc_beyond_loopback=True)
        async with MessageQueuePlugin(server, config=config):
            assert server.registry.known
        async with MessageQueuePlugin(MPREGServer(MPREGSettings(**settings))):
            pass

    asyncio.run(story())


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "localhost", "::1"])
def test_loopback_needs_no_word(host: str) -> None:
    """Given a loopback address, then commands are offered."""

    async def story() -> None:
        async with serving(host=host, peers=["ws://localhost:1"]) as plugin:
            assert plugin.host.server.registry.known

    asyncio.run(story())


def test_commands_outlive_the_plugin_and_come_back_with_the_next() -> None:
    """Given MPREG, which cannot take a command back, when the plugin is unregistered, then the commands say that there
    are no queues; another plugin brings them to life, and a command of somebody else's is not overwritten."""

    async def story() -> None:
        async with serving() as plugin:
            server = plugin.host.server
        handler = server.registry.known["mq.list"].handler
        assert (await handler(token=TOKEN))["error"] == "unavailable"
        async with MessageQueuePlugin(server, config=PluginConfiguration(rpc=EVERYTHING)) as plugin:
            await plugin.manager.create_queue("q")
            assert await handler(token=TOKEN) == {"ok": True, "queues": ["q"]}
        taken = MPREGServer(MPREGSettings())
        taken.register_command("mq.purge", handler, ())
        with pytest.raises(ConfigurationError, match=r"mq\.purge"):
            await MessageQueuePlugin(taken, config=PluginConfiguration(rpc=EVERYTHING)).register()
        assert taken._queue_manager is None

    asyncio.run(story())


# --- denying ------------------------------------------------------------------------------------------------


def test_each_command_asks_for_itself() -> None:
    """Given no rule, when each command is called as its example shows, then it is denied, and nothing happened."""

    async def story() -> None:
        async with serving(AccessPolicy()) as plugin:
            await plugin.manager.create_queue("orders")
            for command in COMMANDS:
                for token in (None, TOKEN):
                    answer = await call(plugin, command.name, **command.request, token=token)
                    if command.operation == "list":
                        assert answer == {"ok": True, "queues": []}
                    else:
                        assert answer["error"] == "denied", command.name
            assert plugin.manager.list_queues() == ["orders"]
            assert plugin.manager.queue("orders").get_statistics().messages_sent == 0

    asyncio.run(story())


def test_one_right_does_not_bring_another() -> None:
    """Given leave to send and to redrive only, then a queue is not created by a send, and dead letters go nowhere
    that may not be sent to."""
    policy = AccessPolicy([AccessRule("orders*", ["send", "redrive"], token=TOKEN)])

    async def story() -> None:
        async with serving(policy) as plugin:
            await plugin.manager.create_queue("orders")
            sent = await call(plugin, "mq.send", "orders.new", "t", 1, token=TOKEN)
            assert sent["error"] == "not_found"
            redriven = await call(plugin, "mq.redrive", "orders", target_queue="payments", token=TOKEN)
            assert redriven["error"] == "denied"
            assert plugin.manager.list_queues() == ["orders"]

    asyncio.run(story())


def test_no_token_in_logs_events_or_answers(caplog: pytest.LogCaptureFixture) -> None:
    """Given calls with tokens that succeed, are denied, are malformed or meet a bug, then no token is logged, stored,
    published or answered."""
    wrong = "another-token-that-is-wrong"

    async def story() -> None:
        async with serving() as plugin:
            answers = [
                await call(plugin, "mq.send", "q", "t", 1, token=TOKEN),
                await call(plugin, "mq.send", "q", "t", 1, token=wrong),
                await call(plugin, "mq.send", "q", token=TOKEN),
                await call(plugin, "mq.send", "q", "t", 1, tokn=TOKEN, token=TOKEN),
                await call(plugin, "mq.purge", 7, token=TOKEN),
            ]
            plugin.manager.purge_queue = _fail  # type: ignore[method-assign]
            answers.append(await call(plugin, "mq.purge", "q", token=TOKEN))
            assert answers[-1]["error"] == "internal"
            stored = [record.event for record in plugin.manager.log.read_all()]
            for place in (repr(answers), repr(stored), caplog.text, repr(plugin.config), repr(vars(plugin))):
                assert TOKEN not in place
                assert wrong not in place
            assert "RuntimeError" in caplog.text

    with caplog.at_level(logging.DEBUG):
        asyncio.run(story())


async def _fail(queue_name: str) -> int:
    raise RuntimeError("a bug")


@pytest.mark.parametrize(
    ("command", "arguments", "named"),
    [
        ("mq.send", {"queue": "q"}, "topic"),
        ("mq.send", {"queue": "q", "topic": "t", "payload": 1, "nonsense": 1}, "nonsense"),
        ("mq.send", {"queue": 7, "topic": "t", "payload": 1}, "queue: got 7"),
        ("mq.send", {"queue": "q", "topic": "t", "payload": 1, "options": "x"}, "options: got 'x'"),
        ("mq.send_batch", {"queue": "q", "messages": "x"}, "messages: got 'x'"),
        ("mq.send_batch", {"queue": "q", "messages": [1]}, "messages: got 1"),
        ("mq.send_batch", {"queue": "q", "messages": [], "guarantee": "maybe"}, "delivery_guarantee"),
        ("mq.receive", {"queue": "q", "subscriber": ""}, "subscriber: got ''"),
        ("mq.receive", {"queue": "q", "subscriber": "s", "wait_seconds": "long"}, "wait_seconds"),
        ("mq.receive", {"queue": "q", "subscriber": "s", "max_messages": 0}, "max_messages"),
        ("mq.dead_letters", {"queue": "q", "limit": 0}, "limit: got 0"),
        ("mq.create_queue", {"queue": "x", "config": "x"}, "config: got 'x'"),
        ("mq.create_queue", {"queue": "x", "config": {"size": 1}}, "unknown settings size"),
        ("mq.create_queue", {"queue": "x", "config": {"max_size": 0}}, "max_size"),
        ("mq.create_queue", {"queue": "x y"}, "queue name"),
        ("mq.extend", {"queue": "q", "message_id": "1", "subscriber": "s", "seconds": "x"}, "seconds"),
        ("mq.redrive", {"queue": "q", "target_queue": 7}, "target_queue: got 7, expected the name of a queue"),
    ],
)
def test_a_bad_call_is_answered_with_what_is_bad(command: str, arguments: dict[str, Any], named: str) -> None:
    """Given arguments of any kind, when a command is called, then it answers what is wrong, and raises nothing."""

    async def story() -> None:
        async with serving() as plugin:
            await plugin.manager.create_queue("q")
            answer = await call(plugin, command, **arguments, token=TOKEN)
            assert answer["error"] == "invalid"
            assert named in answer["message"]

    asyncio.run(story())


@pytest.mark.parametrize(
    "operation", sorted(OPERATIONS - {"list", "send", "send_batch", "create_queue", "delete_queue"})
)
def test_a_queue_that_is_not_there_is_not_found(operation: str) -> None:
    """Given no queue, when a command is for one, then it says so."""
    command = next(command for command in COMMANDS if command.operation == operation)

    async def story() -> None:
        async with serving() as plugin:
            answer = await call(plugin, command.name, **command.request, token=TOKEN)
            assert answer["error"] == "not_found"

    asyncio.run(story())


# --- the typed client ---------------------------------------------------------------------------------------


def test_a_client_does_everything_that_a_manager_does() -> None:
    """Given a client, then it creates, sends, fetches, keeps, returns, settles, counts, redrives and deletes."""

    async def story() -> None:
        async with serving() as plugin, client() as queues:
            assert await queues.create_queue("q", max_retries=0, enable_deduplication=True)
            assert not await queues.create_queue("q")
            assert await queues.list_queues() == ["q"]
            first = await queues.send("q", "a.b", {"n": 1}, DeliveryGuarantee.AT_LEAST_ONCE, headers={"k": "v"})
            again = await queues.send("q", "a.b", {"n": 1}, headers={"k": "v"})
            assert (again.rejection, again.duplicate_of) == (RejectionReason.DUPLICATE, first.message_id)
            results = await queues.send_batch("q", [{"topic": "a.c", "payload": None}, {"topic": "..", "payload": 2}])
            assert [result.rejection for result in results] == [None, RejectionReason.INVALID_TOPIC]
            one, two = await queues.receive("q", "s", 10, topic_pattern="a.*")
            assert (one.id, one.payload, one.headers) == (str(first.message_id), {"n": 1}, {"k": "v"})
            assert (one.guarantee, one.delivery_attempt) == (DeliveryGuarantee.AT_LEAST_ONCE, 1)
            assert await queues.extend(one, 60)
            assert await queues.acknowledge(one)
            assert not await queues.acknowledge(one)
            assert await queues.negative_acknowledge(two, "broken", 0.0)
            (dead,) = await queues.dead_letters("q")
            assert (dead["payload"], dead["last_error"]) == (None, "broken")
            for verb in (queues.redrive, queues.purge_dead_letters):
                with pytest.raises(InvalidOptionError, match="give a list"):
                    await verb("q", dead["id"])
            with pytest.raises(InvalidOptionError, match="messages: got None"):
                await queues.send_batch("q", None)  # type: ignore[arg-type]
            assert await queues.redrive("q", dry_run=True) == [dead["id"]]
            (new_id,) = await queues.redrive("q", [dead["id"]])
            assert new_id != dead["id"]
            assert (await queues.statistics("q")).messages_acknowledged == 1
            (back,) = await queues.receive("q", "s", 10, topic_pattern="a.*")
            assert await queues.negative_acknowledge(back, "still broken", 0.0)
            assert await queues.purge_dead_letters("q", ["no such one"]) == 0
            assert await queues.purge_dead_letters("q", [new_id]) == 1
            assert await queues.purge_dead_letters("q") == 0
            await queues.send("q", "a.d", 4)
            assert await queues.purge("q") == 1
            assert await queues.delete_queue("q")
            assert plugin.manager.list_queues() == []

    asyncio.run(story())


def test_a_client_waits_for_a_message_while_it_sends_others() -> None:
    """Given a client that waits, when it sends meanwhile, then that is not held up, and what it waited for comes."""

    async def story() -> None:
        async with serving(), client() as queues:
            await queues.create_queue("q")
            waiting = asyncio.create_task(queues.receive("q", "s", wait_seconds=20))
            await asyncio.sleep(0)
            await queues.send("q", "t", 1)
            assert [one.payload for one in await waiting] == [1]

    asyncio.run(story())


def test_subscribers_of_clients_are_their_own() -> None:
    """Given a callback on the server, when a client settles under the callback's name, then that does not count."""

    async def story() -> None:
        async with serving() as plugin, client() as queues:
            await plugin.manager.create_queue("q")
            release = asyncio.Event()

            async def work(_: Any) -> None:
                await release.wait()

            plugin.manager.subscribe_to_queue("q", "worker", "#", callback=work)
            await queues.send("q", "t", 1)
            await until(lambda: plugin.manager.queue("q").get_statistics().current_in_flight_count == 1)
            (message_id,) = plugin.manager.queue("q").in_flight_messages
            stolen = ReceivedMessage(
                message_id,
                "t",
                1,
                {},
                DeliveryGuarantee.AT_LEAST_ONCE,
                0,
                0.0,
                1,
                None,
                None,
                None,
                None,
                "q",
                "worker",
            )
            assert not await queues.acknowledge(stolen)
            release.set()

    asyncio.run(story())


def test_a_client_without_leave_hears_it() -> None:
    """Given a client without a token, or a server without queues, then the error says which it is."""

    async def story() -> None:
        async with serving() as plugin, client(None) as queues:
            for attempt in (queues.send("q", "t", 1), queues.receive("q", "s"), queues.purge("q")):
                with pytest.raises(QueueCommandError) as denied:
                    await attempt
                assert denied.value.kind == "denied"
            assert await queues.list_queues() == []
            await plugin.unregister()
            with pytest.raises(QueueCommandError, match="no queues") as unavailable:
                await queues.list_queues()
            assert unavailable.value.kind == "unavailable"

    asyncio.run(story())


def test_a_broken_connection_is_an_error_and_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a connection that breaks while a command waits, then the error is a ConnectionError, not a cancellation;
    the next command connects again, and a real cancellation stays one."""
    monkeypatch.setattr(client_module, "FIRST_RETRY_SECONDS", 0.001)

    async def story() -> None:
        async with serving() as plugin, client() as queues:
            await queues.create_queue("q")
            server = SERVERS.pop(URL)
            with pytest.raises(ConnectionError, match="broke"):
                await queues.send("q", "t", 1)
            queues._commands.break_connection()
            with pytest.raises(ConnectionError, match="no connection"):
                await queues.send("q", "t", 1)
            SERVERS[URL] = server
            assert (await queues.send("q", "t", 1)).success
            waiting = asyncio.create_task(queues.receive("q", "s", wait_seconds=20, topic_pattern="other"))
            for _ in range(5):
                await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert plugin.manager.queue("q").get_statistics().current_queue_size == 1

    asyncio.run(story())


def test_a_consumer_survives_its_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a consumer, when a callback fails, the server has no queues, or is gone for a while, then every message is
    handled in the end; when it may not consume any more, it ends with that."""
    monkeypatch.setattr(client_module, "FIRST_RETRY_SECONDS", 0.001)

    async def story() -> None:
        handled: list[Any] = []

        async def work(message: ReceivedMessage) -> None:
            handled.append(message.payload)
            if handled == [1]:
                raise KeyError("once")

        async with serving() as plugin, client() as queues:
            await queues.create_queue("q", retry_backoff_seconds=0.0)
            consumer = asyncio.create_task(queues.consume("q", "s", work))
            await queues.send("q", "t", 1)
            await until(lambda: handled == [1, 1])
            for api, _, _ in queues._receiving.values():
                api.break_connection()
            server = SERVERS.pop(URL)
            await plugin.manager.send_message("q", "t", 2)
            for _ in range(50):
                await asyncio.sleep(0)
            SERVERS[URL] = server
            await until(lambda: 2 in handled)
            await until(lambda: plugin.manager.queue("q").get_statistics().messages_acknowledged == 2)
            consumer.cancel()
            with pytest.raises(asyncio.CancelledError):
                await consumer
            with pytest.raises(QueueCommandError):
                await client(None).consume("q", "s", work)

    asyncio.run(story())


def test_a_client_keeps_its_token_out_of_mpregs_log() -> None:
    """Given a client API that logs its requests, when it is used for queues, then it no longer does."""
    api = MPREGClientAPI(URL, full_log=True)
    queues = QueueClient(api, token=TOKEN)
    assert not api.full_log
    assert not api._client.full_log
    assert not client_module._new_api(URL, like=api).full_log
    assert TOKEN not in repr(queues)
