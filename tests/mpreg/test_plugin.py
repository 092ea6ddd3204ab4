"""The plugin on a double of an MPREG server: beginning, end, and every trap of the host."""

from __future__ import annotations

import asyncio
import importlib.metadata
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mpreg_mq import (
    ConfigurationError,
    EventLogError,
    MessageQueueError,
    QueueConfiguration,
    QueueManagerConfiguration,
    VirtualClock,
)
from mpreg_mq.mpreg import AccessPolicy, AccessRule, MessageQueuePlugin, PluginConfiguration
from tests.support.exchanges import message
from tests.support.mpreg_double.server import MPREGServer, MPREGSettings
from tests.support.running import until

TOKEN = "a-token-of-some-length"
EVERYTHING = AccessPolicy([AccessRule("*", "*", token=TOKEN)])


def make_server(**settings: Any) -> MPREGServer:
    """A double of a server."""
    return MPREGServer(MPREGSettings(**settings))


# --- beginning and end --------------------------------------------------------------------------------------


def test_registering_makes_the_queues_part_of_the_server() -> None:
    """Given a server, when the plugin is registered, then the server, its router, its federation and its monitor have
    the queues; twice is as good as once; when it is unregistered, then nothing of it is left."""

    async def story() -> None:
        server = make_server()
        plugin = MessageQueuePlugin(server)
        with pytest.raises(MessageQueueError, match="not registered"):
            _ = plugin.manager
        with pytest.raises(MessageQueueError, match="no federation"):
            _ = plugin.federation
        assert plugin.get_federation_statistics() == {}
        await plugin.register()
        await plugin.register()
        manager = plugin.manager
        assert server._queue_manager is manager
        assert server._fabric_router.message_queue is manager
        assert bool(server._fabric_router.message_queue)
        assert server._fabric_queue_federation is plugin.federation
        assert server._fabric_queue_delivery.queue_federation is plugin.federation
        assert server._unified_monitor.queue_monitor.queue_manager is manager
        await manager.route_topic_to_queue("a.#", "q")
        await plugin.unregister()
        await plugin.unregister()
        assert server._queue_manager is None
        assert server._fabric_router.message_queue is None
        assert server._fabric_queue_federation is None
        assert server._unified_monitor.queue_monitor is None
        assert server.topic_exchange.subscriptions == {}
        assert server.announced == {}
        assert server.fabric.queues.entries() == []

    asyncio.run(story())


def test_the_context_registers_and_unregisters(tmp_path: Path) -> None:
    """Given a log, when the plugin is used in two contexts one after the other, then the second has what the first
    one was sent."""

    async def story() -> None:
        server = make_server()
        for expected in (0, 1):
            async with MessageQueuePlugin(server, log=tmp_path / "q.db") as plugin:
                assert len(plugin.manager.queues.get("q", SimpleNamespace(pending_messages=())).pending_messages) == (
                    expected
                )
                assert (await plugin.manager.send_message("q", "t", 1)).success
        assert server._queue_manager is None

    asyncio.run(story())


def test_a_server_that_makes_its_own_queue_is_refused() -> None:
    """Given enable_default_queue, which would replace the manager at start, then registering says what to do."""

    async def story() -> None:
        server = make_server(enable_default_queue=True)
        with pytest.raises(ConfigurationError, match="set enable_default_queue=False"):
            await MessageQueuePlugin(server).register()
        assert server._queue_manager is None

    asyncio.run(story())


def test_a_server_has_one_queue_manager() -> None:
    """Given a registered plugin, then a second one is refused, and the first goes on."""

    async def story() -> None:
        server = make_server()
        async with MessageQueuePlugin(server) as plugin:
            with pytest.raises(ConfigurationError, match="has a queue manager already"):
                await MessageQueuePlugin(server).register()
            assert server._queue_manager is plugin.manager

    asyncio.run(story())


def test_only_an_mpreg_server_will_do() -> None:
    """Given something else, then making the plugin says what it wants; a subclass of a server is fine."""

    class Own(MPREGServer):
        pass

    with pytest.raises(ConfigurationError, match="expected an MPREGServer"):
        MessageQueuePlugin(SimpleNamespace())

    async def story() -> None:
        async with MessageQueuePlugin(Own(MPREGSettings())) as plugin:
            assert plugin.manager.list_queues() == []

    asyncio.run(story())


def test_a_failed_registration_leaves_nothing(tmp_path: Path) -> None:
    """Given a log that cannot be opened, or a route that cannot be, then the server is as before."""
    (tmp_path / "bad.db").write_bytes(b"no database" * 100)
    impossible = PluginConfiguration(
        manager=QueueManagerConfiguration(enable_auto_queue_creation=False),
        routes=({"topic_pattern": "a", "queue_name": "q"},),
    )

    async def story() -> None:
        server = make_server()
        with pytest.raises(EventLogError):
            await MessageQueuePlugin(server, log=tmp_path / "bad.db").register()
        with pytest.raises(ConfigurationError, match="no route 'a' -> 'q'"):
            await MessageQueuePlugin(server, config=impossible).register()
        assert server._queue_manager is None
        assert server._fabric_queue_federation is None
        async with MessageQueuePlugin(server):
            pass

    asyncio.run(story())


def test_the_server_ends_the_plugin() -> None:
    """Given a registered plugin, when the server shuts down, then the queues are closed after the peers are gone, and
    the plugin is unregistered; its own end does nothing more."""

    async def story() -> None:
        server = make_server()
        plugin = MessageQueuePlugin(server)
        await plugin.register()
        manager = plugin.manager
        task = asyncio.create_task(server.server())
        await asyncio.sleep(0)
        await server.shutdown_async()
        await task
        assert not (await manager.send_message("q", "t", 1)).success
        assert server._queue_manager is None
        await plugin.unregister()

    asyncio.run(story())


def test_queues_and_routes_of_the_configuration_are_made() -> None:
    """Given queues and routes in the configuration, when the plugin is registered, then they are there, and the fabric
    knows of them, also when it is on a log that has them already."""
    config = PluginConfiguration(
        queues=(QueueConfiguration("work", max_retries=7),),
        routes=({"topic_pattern": "job.#", "queue_name": "work", "delivery_guarantee": "broadcast", "priority": 2},),
    )

    async def story() -> None:
        server = make_server()
        async with MessageQueuePlugin(server, config=config) as plugin:
            assert plugin.manager.queue_configs["work"].max_retries == 7
            server.topic_exchange.publish_message(message(server.topic_exchange, "job.new", 1))
            await until(lambda: plugin.manager.queue("work").get_statistics().messages_sent == 1)
            (one,) = plugin.manager.queue("work").pending_messages
            assert one.priority == 2
            assert len(server.announced) == 1
            assert [entry.queue_name for entry in server.fabric.queues.entries()] == ["work"]

    asyncio.run(story())


# --- where the log is ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "expected"), [("sqlite", "data/mpreg-mq.sqlite"), ("memory", "memory:"), (None, "memory:")]
)
def test_without_a_log_it_goes_where_mpreg_keeps_its_data(tmp_path: Path, mode: str | None, expected: str) -> None:
    """Given MPREG's persistence settings and no log, then SQLite means a file in its data directory, else memory."""
    settings = None if mode is None else SimpleNamespace(mode=SimpleNamespace(value=mode), data_dir=tmp_path / "data")

    async def story() -> None:
        async with MessageQueuePlugin(make_server(persistence_config=settings)) as plugin:
            assert plugin.manager.log.location.endswith(expected)

    asyncio.run(story())


# --- traps --------------------------------------------------------------------------------------------------


def test_what_mpreg_iterates_while_it_awaits_is_a_copy() -> None:
    """Given the configurations and the queue names that MPREG reads, then a queue made meanwhile disturbs nothing."""

    async def story() -> None:
        async with MessageQueuePlugin(make_server()) as plugin:
            await plugin.manager.create_queue("a")
            configs, names = plugin.manager.queue_configs, plugin.manager.list_queues()
            await plugin.manager.create_queue("b")
            assert list(configs) == names == ["a"]
            assert configs["a"].queue_type.value == "fifo"

    asyncio.run(story())


def test_mpregs_own_enums_configurations_and_nones_are_understood() -> None:
    """Given MPREG's enum, its configuration object and options that are None, as its federation sends them, then they
    mean what they say."""
    theirs = SimpleNamespace(
        name="q", queue_type=SimpleNamespace(value="priority"), max_size=5, default_visibility_timeout_seconds=9.0
    )
    nothing = dict.fromkeys(
        ("visibility_timeout_seconds", "max_retries", "acknowledgment_timeout_seconds", "required_acknowledgments")
    )

    async def story() -> None:
        async with MessageQueuePlugin(make_server()) as plugin:
            assert await plugin.manager.create_queue("q", theirs)  # type: ignore[arg-type]
            result = await plugin.manager.send_message(
                "q",
                "t",
                1,
                SimpleNamespace(value="broadcast"),  # type: ignore[arg-type]
                priority=0,
                delay_seconds=0.0,
                headers={},
                **nothing,
            )
            assert result.success
            (one,) = plugin.manager.queue("q").pending_messages
            assert (one.delivery_guarantee.value, one.visibility_timeout_seconds, one.max_retries) == (
                "broadcast",
                9.0,
                3,
            )

    asyncio.run(story())


def test_callbacks_run_on_the_servers_loop() -> None:
    """Given a callback that asks for the running loop, as MPREG's federation does, then it is the server's."""

    async def story() -> None:
        loops: list[Any] = []
        async with MessageQueuePlugin(make_server()) as plugin:
            await plugin.manager.create_queue("q")
            plugin.manager.subscribe_to_queue(
                "q", "s", "#", callback=lambda _: loops.append(asyncio.get_running_loop())
            )
            await plugin.manager.send_message("q", "t", 1)
            await until(lambda: bool(loops))
            assert loops == [asyncio.get_running_loop()]

    asyncio.run(story())


def test_adverts_are_renewed_before_they_expire() -> None:
    """Given queues with very different visibility timeouts, then each is advertised for the same time, at creation and
    again well before that is over, with its subscribers; a deleted queue is withdrawn at once."""

    async def story() -> None:
        clock = VirtualClock()
        server = make_server()
        async with MessageQueuePlugin(server, clock=clock) as plugin:
            for name, seconds in (("short", 0.5), ("long", 5000.0)):
                await plugin.manager.create_queue(
                    name, QueueConfiguration(name, default_visibility_timeout_seconds=seconds)
                )
            entries = {entry.queue_name: entry for entry in server.fabric.queues.entries()}
            assert {entry.ttl_seconds for entry in entries.values()} == {30.0}
            assert entries["short"].metadata["queue_type"] == "fifo"
            plugin.manager.subscribe_to_queue("short", "s", "#", callback=lambda _: None)
            server.fabric.queues.known.clear()
            await clock.advance(10.0)
            entries = {entry.queue_name: entry for entry in server.fabric.queues.entries()}
            assert set(entries) == {"short", "long"}
            assert entries["short"].current_subscribers == 1
            await plugin.manager.delete_queue("short")
            assert [entry.queue_name for entry in server.fabric.queues.entries()] == ["long"]

    asyncio.run(story())


def test_a_late_plugin_advertises_what_its_log_holds(tmp_path: Path) -> None:
    """Given a server that runs already, when a plugin with queues in its log is registered, then they are known."""

    async def story() -> None:
        async with MessageQueuePlugin(make_server(), log=tmp_path / "q.db") as plugin:
            await plugin.manager.create_queue("old")
        server = make_server()
        task = asyncio.create_task(server.server())
        await asyncio.sleep(0)
        async with MessageQueuePlugin(server, log=tmp_path / "q.db"):
            assert [entry.queue_name for entry in server.fabric.queues.entries()] == ["old"]
        await server.shutdown_async()
        await task

    asyncio.run(story())


def test_a_fabric_that_fails_keeps_nobody_from_the_queues(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a fabric whose catalog raises, when queues are made, deleted and renewed, then they work."""

    async def story() -> None:
        clock = VirtualClock()
        server = make_server()
        async with MessageQueuePlugin(server, clock=clock) as plugin:

            async def fail(*_: Any, **__: Any) -> None:
                raise RuntimeError("fabric")

            monkeypatch.setattr(plugin.federation.inner.queue_announcer, "advertise", fail)
            monkeypatch.setattr(plugin.federation.inner.queue_announcer.broadcaster, "broadcast", fail)
            assert await plugin.manager.create_queue("q")
            await clock.advance(10.0)
            assert (await plugin.manager.send_message("q", "t", 1)).success
            assert await plugin.manager.delete_queue("q")

    asyncio.run(story())


def test_a_server_without_a_fabric_has_queues_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a server whose fabric is off, then queues and routes work, and there is no federation."""

    async def story() -> None:
        server = make_server()
        server._fabric_router = None
        server._fabric_control_plane = None

        def attach(manager: Any) -> None:
            server._queue_manager = manager

        monkeypatch.setattr(server, "attach_queue_manager", attach)
        server._unified_monitor = None
        async with MessageQueuePlugin(server) as plugin:
            await plugin.manager.route_topic_to_queue("a", "q")
            with pytest.raises(MessageQueueError):
                _ = plugin.federation

    asyncio.run(story())


# --- topics -------------------------------------------------------------------------------------------------


def test_what_the_queues_publish_goes_the_servers_way() -> None:
    """Given clients and other servers, when a message is published through the manager, then local listeners, clients
    and other servers have it."""

    async def story() -> None:
        server = make_server()
        async with MessageQueuePlugin(server) as plugin:
            await plugin.manager.route_topic_to_queue("a.#", "q")
            assert await plugin.manager.publish_to_topic_exchange("a.b", 1)
            await until(lambda: plugin.manager.queue("q").get_statistics().messages_sent == 1)
            assert [one.message.topic for one in server.client_notifications] == ["a.b"]
            assert [one.topic for one in server.forwarded] == ["a.b"]

    asyncio.run(story())


def test_what_json_cannot_hold_is_published_here_alone(caplog: pytest.LogCaptureFixture) -> None:
    """Given clients that listen, when what JSON cannot hold is published through the manager, then routes here take it,
    no client is sent it, which MPREG would cut off for that, and the answer and the log say so."""

    async def story() -> None:
        server = make_server()
        async with MessageQueuePlugin(server) as plugin:
            await plugin.manager.route_topic_to_queue("a.#", "q")
            assert not await plugin.manager.publish_to_topic_exchange("a.b", b"bytes")
            assert await plugin.manager.publish_to_topic_exchange("a.c", 1)
            await until(lambda: plugin.manager.queue("q").get_statistics().messages_sent == 2)
            assert [one.message.topic for one in server.client_notifications] == ["a.c"]
            assert [one.topic for one in server.forwarded] == ["a.c"]

    asyncio.run(story())
    assert "bytes is not JSON serializable" in caplog.text


def test_routes_of_an_earlier_life_are_announced(tmp_path: Path) -> None:
    """Given routes in the log, when the plugin is registered, then other servers hear of what they listen to."""

    async def story() -> None:
        async with MessageQueuePlugin(make_server(), log=tmp_path / "q.db") as plugin:
            await plugin.manager.route_topic_to_queue("a.#", "q")
        server = make_server()
        async with MessageQueuePlugin(server, log=tmp_path / "q.db"):
            (announced,) = server.announced.values()
            assert [pattern.pattern for pattern in announced.patterns] == ["a.#"]

    asyncio.run(story())


def test_trails_tell_the_clusters_apart() -> None:
    """Given a message that was in a queue of this name in another cluster, then it enters ours; one that was in ours
    does not."""

    async def story() -> None:
        server = make_server(cluster_id="here")
        async with MessageQueuePlugin(server) as plugin:
            await plugin.manager.route_topic_to_queue("a", "q")
            exchange = server.topic_exchange
            for trail in ("there/q", "here/q"):
                exchange.publish_message(message(exchange, "a", trail, headers={"mpreg-mq.trail": trail}))
            await until(lambda: plugin.manager.queue("q").get_statistics().messages_sent == 1)
            assert [one.payload for one in plugin.manager.queue("q").pending_messages] == ["there/q"]

    asyncio.run(story())


# --- packaging ----------------------------------------------------------------------------------------------


def test_the_plugin_is_an_entry_point() -> None:
    """Given the installed distribution, then MPREG tools find the plugin in the group mpreg.plugins."""
    (found,) = importlib.metadata.entry_points(group="mpreg.plugins", name="message-queues")
    assert found.load() is MessageQueuePlugin


def test_importing_never_imports_mpreg() -> None:
    """Given a new process, when everything of ours is imported, then mpreg and loguru are not."""
    code = (
        "import sys, pkgutil, importlib, mpreg_mq\n"
        "for module in pkgutil.walk_packages(mpreg_mq.__path__, 'mpreg_mq.'):\n"
        "    if not module.name.endswith('__main__'):\n"
        "        try: importlib.import_module(module.name)\n"
        "        except ModuleNotFoundError as missing: print('no', missing.name)\n"
        "loaded = [name for name in sys.modules if name.split('.')[0] in ('mpreg', 'loguru')]\n"
        "assert not loaded, loaded\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
