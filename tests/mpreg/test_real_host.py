"""The plugin on real MPREG servers; skipped where MPREG cannot be imported (``make test-mpreg MPREG_SOURCE=dir``)."""

from __future__ import annotations

import asyncio
import json
import logging
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mpreg_mq import ConfigurationError, DeliveryGuarantee, QueueConfiguration, QueuedMessage
from mpreg_mq.mpreg import AccessPolicy, AccessRule, MessageQueuePlugin, PluginConfiguration, QueueClient
from mpreg_mq.topics import matches
from tests.support.exchanges import HAS_MPREG
from tests.support.mpreg_servers import eventually, free_port, mpreg_server, running, url

pytestmark = [
    pytest.mark.skipif(not HAS_MPREG, reason="mpreg cannot be imported; make test-mpreg MPREG_SOURCE=dir"),
    # What MPREG and its libraries leave open or call deprecated is not ours.
    pytest.mark.filterwarnings("default"),
]

TOKEN = "a-token-of-some-length"
OPEN = PluginConfiguration(rpc=AccessPolicy([AccessRule("*", "*", token=TOKEN)]))


def test_a_server_without_and_with_the_plugin_and_without_it_again(tmp_path: Path) -> None:
    """Given a server, when the plugin is registered and unregistered, then it is in the places that MPREG reads, and
    then out of them; a server that makes its own queue is refused."""

    async def story() -> None:
        async with mpreg_server() as server:
            async with MessageQueuePlugin(server, log=tmp_path / "q.db") as plugin:
                assert server._queue_manager is plugin.manager
                assert server._fabric_router.message_queue is plugin.manager
                assert server._fabric_queue_federation is plugin.federation
                assert "queue" in server._fabric_node_capabilities()
            assert server._queue_manager is None
            assert server._fabric_router.message_queue is None
        async with mpreg_server(enable_default_queue=True) as server:
            with pytest.raises(ConfigurationError, match="enable_default_queue"):
                await MessageQueuePlugin(server).register()

    asyncio.run(story())


def test_the_figures_of_the_monitoring_are_right() -> None:
    """Given messages that were sent, acknowledged and failed, then the server's status, its queue monitor and
    /metrics/queue have their counts, the subscriptions and the processing time."""

    async def story() -> None:
        port = free_port()
        async with running(monitoring_enabled=True, monitoring_port=port) as plugin:
            manager = plugin.manager
            await manager.create_queue("q", QueueConfiguration("q", max_retries=0))

            async def work(one: QueuedMessage) -> None:
                await asyncio.sleep(0.02)
                if one.payload == "bad":
                    raise ValueError

            manager.subscribe_to_queue("q", "s", "#", callback=work)
            for payload in ("good", "good", "good", "bad"):
                await manager.send_message("q", "t", payload)
            await eventually(lambda: manager.get_global_statistics().total_messages_failed == 1)
            await eventually(lambda: manager.get_global_statistics().total_messages_acknowledged == 3)
            status = plugin.host.server._build_status_message().metrics["queue_metrics"]
            assert (status["total_queues"], status["total_messages_sent"], status["success_rate"]) == (1, 4, 0.75)

            def fetch() -> Any:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics/queue", timeout=10) as response:
                    return json.load(response)

            metrics = json.dumps(await asyncio.to_thread(fetch))
            monitored = await plugin.host.server._unified_monitor.queue_monitor.get_system_metrics()
            assert monitored.error_rate_percent == 25.0
            assert monitored.active_connections == 1
            assert monitored.total_operations_last_hour == 4
            assert monitored.average_latency_ms >= 20.0
            assert '"error_rate_percent": 25.0' in metrics
            assert str(monitored.average_latency_ms) in metrics

    asyncio.run(story())


def test_a_client_publishes_into_queues_by_topic() -> None:
    """Given routes, when a real client publishes on many topics, then each queue has what a naive matcher says, in
    order, and plain subscribers get it too; a server's queue publishes to them."""
    topics = [f"github.{kind}.{action}" for kind in ("issues", "pull_request", "push") for action in ("a", "b")] * 5

    async def story() -> None:
        from mpreg.client.pubsub_client import MPREGPubSubExtendedClient  # type: ignore[import-not-found]

        async with running() as plugin:
            patterns = {"pulls": "github.pull_request.*", "all": "github.#"}
            for name, pattern in patterns.items():
                await plugin.manager.route_topic_to_queue(pattern, name)
            async with MPREGPubSubExtendedClient(url(plugin), full_log=False) as client:
                heard: list[str] = []
                await client.subscribe(["github.#", "from.queue"], lambda one: heard.append(one.topic))
                for number, topic in enumerate(topics):
                    assert await client.publish(topic, {"n": number})
                assert await plugin.manager.publish_to_topic_exchange("from.queue", 1)
                await eventually(lambda: len(heard) == len(topics) + 1)
            for name, pattern in patterns.items():
                wanted = [number for number, topic in enumerate(topics) if matches(pattern, topic)]
                await eventually(
                    lambda name=name, wanted=wanted: len(plugin.manager.queue(name).pending_messages) == len(wanted)  # type: ignore[misc]
                )
                assert [one.payload["n"] for one in plugin.manager.queue(name).pending_messages] == wanted
            assert Counter(heard) == Counter([*topics, "from.queue"])

    asyncio.run(story())


def test_a_client_goes_on_to_hear_after_what_json_cannot_hold() -> None:
    """Given a client that listens and a route, when bytes are published through the manager, then the route takes them,
    the answer says that not everybody has them, and the client hears what comes after that."""

    async def story() -> None:
        from mpreg.client.pubsub_client import MPREGPubSubExtendedClient

        async with running() as plugin:
            await plugin.manager.route_topic_to_queue("t", "q")
            async with MPREGPubSubExtendedClient(url(plugin), full_log=False) as client:
                heard: list[Any] = []
                await client.subscribe(["t"], lambda one: heard.append(one.payload))
                published = [await plugin.manager.publish_to_topic_exchange("t", one) for one in (1, b"bytes", 2)]
                assert published == [True, False, True]
                await eventually(lambda: heard == [1, 2])
            await eventually(lambda: plugin.manager.queue("q").get_statistics().messages_sent == 3)

    asyncio.run(story())


def test_a_route_hears_what_is_published_at_another_server() -> None:
    """Given a route at one server, when a client publishes at its peer, then the message comes through the fabric."""

    async def story() -> None:
        from mpreg.client.pubsub_client import MPREGPubSubExtendedClient

        async with running("a") as a, running("b", connect=url(a)) as b:
            await a.manager.route_topic_to_queue("order.#", "orders")

            def known() -> bool:
                topics = b.host.server._fabric_control_plane.index.catalog.topics
                return bool(topics.match("order.paid"))

            await eventually(known)
            async with MPREGPubSubExtendedClient(url(b), full_log=False) as client:
                assert await client.publish("order.paid", {"id": 1})
            await eventually(lambda: a.manager.queue("orders").get_statistics().messages_sent == 1)

    asyncio.run(story())


def test_queues_are_found_and_used_across_two_servers() -> None:
    """Given two servers, when a queue is made at one, then the other finds it, sends to it with the answer, and
    subscribes to it; what it subscribed to is acknowledged when its callback has come to its end."""

    async def story() -> None:
        async with running("a") as a, running("b", connect=url(a)) as b:
            await b.manager.create_queue("jobs")
            await eventually(lambda: any(one.queue_name == "jobs" for one in a.host.queue_entries()))
            sent = await a.federation.send_confirmed(
                "jobs", "job.new", {"n": 1}, delivery_guarantee=DeliveryGuarantee.AT_LEAST_ONCE
            )
            assert sent.success
            got: list[Any] = []

            async def work(one: Any) -> None:
                await asyncio.sleep(0)
                got.append(one.payload)

            subscription_id = await a.federation.subscribe_globally("w", "jobs", "job.*", callback=work)
            await eventually(lambda: got == [{"n": 1}])
            await eventually(lambda: b.manager.queue("jobs").get_statistics().messages_acknowledged == 1)
            counts = a.get_federation_statistics()["b"]
            assert (counts.sent, counts.acknowledged, counts.in_flight) == (1, 1, 0)
            assert counts.last_round_trip_seconds > 0
            assert await a.federation.unsubscribe_globally(subscription_id)
            await eventually(lambda: not b.manager.queue("jobs").subscriptions)
            await b.manager.delete_queue("jobs")
            await eventually(lambda: not any(one.queue_name == "jobs" for one in a.host.queue_entries()))

    asyncio.run(story())


def test_queues_are_used_through_a_third_server() -> None:
    """Given a chain of three servers, when the last sends to a queue of the first, then it is there, and answered."""

    async def story() -> None:
        from mpreg.fabric.federation_config import (  # type: ignore[import-not-found]
            create_explicit_bridging_config,
        )

        def bridged(name: str, *others: str) -> dict[str, Any]:
            return {"federation_config": create_explicit_bridging_config(name, set(others))}

        async with (
            running("a", **bridged("a", "b")) as a,
            running("b", connect=url(a), **bridged("b", "a", "c")) as b,
            running("c", connect=url(b), **bridged("c", "b")) as c,
        ):
            await a.manager.create_queue("jobs")
            await eventually(lambda: any(one.queue_name == "jobs" for one in c.host.queue_entries()))
            results: list[bool] = []

            async def reached() -> None:
                while not results or not results[-1]:
                    results.append((await c.federation.send_confirmed("jobs", "t", 1, timeout_seconds=3)).success)
                    await asyncio.sleep(0.2)

            await asyncio.wait_for(reached(), 60)
            assert a.manager.queue("jobs").get_statistics().messages_sent >= 1
            assert b.manager.list_queues() == []

    asyncio.run(story())


def test_clients_use_the_commands_and_the_catalog_has_them() -> None:
    """Given commands with a rule, then a real client uses them, another without the token does not, the catalog
    describes them, and the token is in no log."""

    async def story() -> None:
        from loguru import logger  # type: ignore[import-not-found]
        from mpreg.client.client_api import MPREGClientAPI  # type: ignore[import-not-found]

        logged: list[str] = []
        async with running(config=OPEN, log_level="DEBUG") as plugin:
            sink = logger.add(lambda text: logged.append(str(text)), level=0)
            async with QueueClient(url(plugin), token=TOKEN) as queues:
                assert await queues.create_queue("q")
                waiting = asyncio.create_task(queues.receive("q", "s", wait_seconds=10))
                await asyncio.sleep(0.1)
                assert (await queues.send("q", "a.b", {"n": 1}, headers={"k": "v"})).success
                (one,) = await waiting
                assert (one.payload, one.headers) == ({"n": 1}, {"k": "v"})
                assert await queues.acknowledge(one)
                assert (await queues.statistics("q")).messages_acknowledged == 1
            api = MPREGClientAPI(url(plugin), full_log=False)
            await api.connect()
            denied = await api.call("mq.purge", queue="q", token="wrong")
            assert denied["error"] == "denied"
            malformed = await api.call("mq.send", nonsense=1, token=TOKEN)
            assert malformed["error"] == "invalid"
            described = json.dumps((await api.rpc_describe(mode="local", namespace="mq")).to_dict())
            assert "Send a message to a queue." in described
            await api.disconnect()
            logger.remove(sink)
        assert logged
        assert not [line for line in logged if TOKEN in line]

    asyncio.run(story())


def test_what_the_queues_log_survives_mpregs_silencing_of_loguru(caplog: pytest.LogCaptureFixture) -> None:
    """Given MPREG, which takes loguru's sinks away when a server is made, then our warnings are logged all the same."""

    async def story() -> None:
        async with mpreg_server() as server, MessageQueuePlugin(server) as plugin:
            assert plugin.manager.subscribe_to_queue("missing", "s", "#") is None

    with caplog.at_level(logging.ERROR, "mpreg_mq"):
        asyncio.run(story())
    assert "missing does not exist" in caplog.text


def test_a_log_beside_mpregs_own_data(tmp_path: Path) -> None:
    """Given MPREG's persistence settings, then the queues are in its data directory, and come back from there."""

    async def story() -> None:
        from mpreg.core.persistence.config import PersistenceConfig, PersistenceMode  # type: ignore[import-not-found]

        kept = PersistenceConfig(mode=PersistenceMode.SQLITE, data_dir=tmp_path)
        async with running(persistence_config=kept) as plugin:
            await plugin.manager.send_message("q", "t", 1)
        async with running(persistence_config=kept) as plugin:
            assert [one.payload for one in plugin.manager.queue("q").pending_messages] == [1]
        assert (tmp_path / "mpreg-mq.sqlite").exists()

    asyncio.run(story())
