"""Real servers and node processes that are killed, paused and cut off, judged by what the clients saw.

Each run starts servers, two nodes that own queues, and clients in this process; then the faults of a scenario happen
one after the other, under load.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from mpreg_mq.configuration import QueueConfiguration
from tests.support.clusters import make_node, until
from tests.support.effort import repetitions
from tests.support.faults import Clients, NodeProcess, Proxy
from tests.support.nats_servers import Cluster, Server, nats_cluster, require_nats

pytestmark = [
    # nats-py leaves the streams of a connection that it has lost to the collector.
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

LEASE_SECONDS = 1.0
QUEUE = "q"


@pytest.fixture(autouse=True)
def servers() -> None:
    """Skip where no server can be run."""
    require_nats()


class World:
    """Everything of one run."""

    def __init__(self, servers: Cluster, directory: Path, seed: int) -> None:
        self.servers = servers
        self.random = random.Random(seed)
        self.seed = seed
        self.directory = directory
        self.proxies: dict[str, Proxy] = {}
        self.nodes: dict[str, NodeProcess] = {}
        self.manager: Any = make_node(
            servers.url("LOG"), "client", owns_queues=False, lease_seconds=LEASE_SECONDS, request_timeout_seconds=30
        )
        self.clients = Clients(self.manager, QUEUE, seed)

    async def start(self) -> None:
        """Nodes behind proxies, a queue, and clients at work."""
        for name in ("a", "b"):
            ports = []
            for server in self.servers.servers:
                proxy = self.proxies[f"{name}-{server.name}"] = Proxy(server.port)
                ports.append(await proxy.start())
            hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
            address = f"nats://{hosts}/LOG?replicas={len(ports)}"
            self.nodes[name] = NodeProcess(name, address, LEASE_SECONDS, self.directory)
            self.nodes[name].start()
        await self.manager.start()
        await until(lambda: len(self.manager.node.directory.candidates()) == 2)
        # While the servers elect a leader leases run out unseen; that must not make dead letters.
        assert await self.manager.create_queue(QUEUE, QueueConfiguration(QUEUE, max_retries=1000))
        self.clients.start()
        await self.clients.more_accepted(30)

    async def stop(self) -> None:
        """End everything that still runs."""
        await self.clients.stop()
        await self.manager.shutdown()
        for node in self.nodes.values():
            with contextlib.suppress(AssertionError, ProcessLookupError):
                node.signal(signal.SIGCONT)
            node.kill()
        for proxy in self.proxies.values():
            await proxy.stop()

    # --- who is who ---------------------------------------------------------------------------------------

    @property
    def owner(self) -> NodeProcess:
        """The node that owns the queue."""
        return self.nodes[self.manager.owner_of(QUEUE)]

    async def settled_owner(self) -> NodeProcess:
        """The owner, once both nodes are there and the queue is where it should be."""
        from mpreg_mq.cluster.placement import wanted_owner

        def settled() -> bool:
            candidates = self.manager.node.directory.candidates()
            return len(candidates) == 2 and self.manager.owner_of(QUEUE) == wanted_owner(QUEUE, candidates)

        while True:
            await until(settled)
            # Whoever the bucket names may just have let go of it; an owner that serves accepts sends.
            await self.clients.more_accepted(3)
            if settled():
                return self.owner

    async def stream_leader(self, stream: str = "LOG") -> Server:
        """The server that leads the stream of events."""
        engine = self.manager.node._engine
        while True:
            with contextlib.suppress(Exception):
                info = await engine.api(f"STREAM.INFO.{stream}", {})
                leader = info["cluster"].get("leader")
                if leader:
                    return next(server for server in self.servers.servers if server.name == leader)
            await asyncio.sleep(0.05)

    async def a_follower(self) -> Server:
        """A server that does not lead the stream."""
        leader = await self.stream_leader()
        return self.random.choice([server for server in self.servers.servers if server is not leader])

    def failovers(self) -> int:
        """Ownerships of the queue after the first."""
        seen = self.manager.node.directory.queues.get(QUEUE)
        return 0 if seen is None else seen.record.epoch - 1


# --- faults: each is over, and sends go on, when it returns ---------------------------------------------------


async def kill_owner(world: World) -> None:
    """kill -9 of the node that owns the queue; it comes back later."""
    owner = await world.settled_owner()
    owner.kill()
    await world.clients.more_accepted(10)
    assert world.owner is not owner
    owner.start()
    await until(lambda: len(world.manager.node.directory.candidates()) == 2)


async def pause_owner(world: World) -> None:
    """SIGSTOP of the owner for longer than its lease: somebody else takes over, and it says so when it goes on."""
    owner = await world.settled_owner()
    said = owner.said.count("does not own it any more")
    owner.signal(signal.SIGSTOP)
    await until(lambda: world.manager.owner_of(QUEUE) not in (None, owner.name))
    await world.clients.more_accepted(10)
    owner.signal(signal.SIGCONT)
    await until(lambda: owner.said.count("does not own it any more") > said)
    await world.clients.more_accepted(10)


async def cut_off_owner(world: World) -> None:
    """The owner and its servers do not hear each other for longer than its lease."""
    owner = await world.settled_owner()
    said = owner.said.count("does not own it any more")
    cut = [proxy for name, proxy in world.proxies.items() if name.startswith(f"{owner.name}-")]
    for proxy in cut:
        proxy.cut()
    await until(lambda: world.manager.owner_of(QUEUE) not in (None, owner.name))
    await world.clients.more_accepted(10)
    # It cannot hear of the new owner, and ends its actors because its own lease is over.
    await until(lambda: owner.said.count("does not own it any more") > said)
    for proxy in cut:
        proxy.heal()
    await until(lambda: len(world.manager.node.directory.candidates()) == 2)
    await world.clients.more_accepted(10)


async def kill_leader(world: World) -> None:
    """kill -9 of the server that leads the stream."""
    leader = await world.stream_leader()
    leader.kill()
    await world.clients.more_accepted(10)
    leader.start()
    await asyncio.to_thread(leader.wait)


async def pause_leader(world: World) -> None:
    """SIGSTOP of the server that leads the stream, until another one does."""
    leader = await world.stream_leader()
    leader.pause()
    try:
        await world.clients.more_accepted(10)
    finally:
        leader.resume()
    await asyncio.to_thread(leader.wait)


async def kill_follower(world: World) -> None:
    """kill -9 of a server that does not lead; nobody has to notice."""
    follower = await world.a_follower()
    follower.kill()
    await world.clients.more_accepted(10)
    follower.start()
    await asyncio.to_thread(follower.wait)


async def pause_follower(world: World) -> None:
    """SIGSTOP of a server that does not lead."""
    follower = await world.a_follower()
    follower.pause()
    try:
        await world.clients.more_accepted(10)
    finally:
        follower.resume()
    await asyncio.to_thread(follower.wait)


async def kill_two_of_three(world: World) -> None:
    """Without a quorum sends are refused, clearly; when it is back they go on."""
    leader = await world.stream_leader()
    victims = [leader, next(server for server in world.servers.servers if server is not leader)]
    before = world.clients.refused
    for server in victims:
        server.kill()
    with brief_patience(world):
        await until(lambda: world.clients.refused > before)
    for server in victims:
        server.start()
    for server in victims:
        await asyncio.to_thread(server.wait)
    await world.clients.more_accepted(10)


async def restart_the_only_server(world: World) -> None:
    """kill -9 of the server where there is one; what it confirmed is on its disk."""
    (server,) = world.servers.servers
    server.kill()
    server.start()
    await asyncio.to_thread(server.wait)
    await world.clients.more_accepted(10)


async def pause_the_only_server(world: World) -> None:
    """SIGSTOP of the only server for longer than the leases: nobody has lost one for that."""
    (server,) = world.servers.servers
    server.pause()
    await asyncio.sleep(LEASE_SECONDS * 1.5)
    server.resume()
    await world.clients.more_accepted(10)


@contextlib.contextmanager
def brief_patience(world: World) -> Any:
    """Sends are given up soon, as a client would that does not want to wait for a quorum."""
    import attrs

    node = world.manager.node
    patient = node.configuration
    node.configuration = attrs.evolve(patient, request_timeout_seconds=2.0)
    try:
        yield
    finally:
        node.configuration = patient


Fault = Callable[[World], Awaitable[None]]

SCENARIOS: list[tuple[int, tuple[Fault, ...]]] = [
    (1, (kill_owner, pause_owner)),
    (3, (kill_leader, kill_owner)),
    (1, (cut_off_owner, restart_the_only_server)),
    (3, (pause_leader, pause_owner, kill_follower)),
    (3, (kill_two_of_three, kill_owner)),
    (1, (pause_the_only_server, kill_owner)),
    (3, (pause_follower, cut_off_owner)),
]


@pytest.mark.parametrize("seed", range(repetitions(test=5, soak=200)))
def test_no_accepted_message_is_lost_whatever_fails(tmp_path: Path, seed: int) -> None:
    """For all scenarios: no accepted send is lost, none is delivered after its acknowledgment, groups keep their order.

    And the run shows something: the queue changed its owner, and messages were delivered again.
    """
    size, faults = SCENARIOS[seed % len(SCENARIOS)]

    async def story(cluster: Cluster) -> World:
        world = World(cluster, tmp_path, seed)
        try:
            await world.start()
            for fault in faults:
                await fault(world)
            await until(lambda: world.clients.redeliveries > 0)
            await world.clients.drain()
        finally:
            await world.stop()
        return world

    with nats_cluster(size) as cluster:
        world = asyncio.run(story(cluster))
    world.clients.judge()
    assert world.failovers() > 0
    assert world.clients.redeliveries > 0
