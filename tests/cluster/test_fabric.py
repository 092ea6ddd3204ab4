"""Requests over MPREG's fabric: on real servers where MPREG can be imported, and the rest on stand-ins."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

pytest.importorskip("nats", reason="nats-py is not installed (pip install 'mpreg-mq[nats]')")

from mpreg_mq import ConfigurationError
from mpreg_mq.cluster.fabric import FabricTransport, FirstReachable
from mpreg_mq.cluster.transport import NobodyThereError
from mpreg_mq.events.nats.engine import UnansweredError
from tests.support.clusters import created, make_node, until
from tests.support.exchanges import HAS_MPREG
from tests.support.mpreg_servers import free_port, mpreg_server
from tests.support.nats_servers import fresh_url, require_nats

SECRET = "a secret of some length"


class FakeServer:
    """What the transport needs of a server: commands, and clients that call them."""

    def __init__(self) -> None:
        self.commands: dict[str, Any] = {}

    def register_command(self, name: str, function: Any, resources: list[str]) -> None:
        self.commands[name] = function


class FakeError(Exception):
    """As MPREG's client raises it."""

    def __init__(self, code: int) -> None:
        self.rpc_error = type("RPCError", (), {"code": code})()


class FakeApi:
    """A client of the server."""

    def __init__(self, server: FakeServer) -> None:
        self.server = server
        self.connected = True

    async def call(self, command: str, **arguments: Any) -> Any:
        del arguments["timeout"]
        if command not in self.server.commands:
            raise FakeError(1001)
        return await self.server.commands[command](**arguments)

    async def disconnect(self) -> None:
        self.connected = False


def transport(server: FakeServer, secret: str = SECRET) -> tuple[FabricTransport, list[FakeApi]]:
    """A transport whose connections are stand-ins, which are listed."""
    made: list[FakeApi] = []
    found = FabricTransport(server, secret)

    async def connect() -> FakeApi:
        made.append(FakeApi(server))
        return made[-1]

    found._connect = connect  # type: ignore[method-assign]
    return found, made


async def echo(request: bytes) -> bytes:
    return b"re " + request


def test_a_member_is_asked_by_its_command() -> None:
    """Given a member that serves, then it gets the bytes and its reply comes back, over one connection."""

    async def story() -> None:
        server = FakeServer()
        serving, _ = transport(server)
        asking, made = transport(server)
        await serving.serve("a.1", echo)
        for number in range(3):
            assert await asking.ask("a.1", bytes([number, 255]), 1.0) == b"re " + bytes([number, 255])
        assert len(made) == 1
        with pytest.raises(NobodyThereError):
            await asking.ask("b.1", b"x", 1.0)
        await serving.stop()
        with pytest.raises(NobodyThereError, match="gone"):
            await asking.ask("a.1", b"x", 1.0)
        await asking.stop()
        assert not made[0].connected

    asyncio.run(story())


def test_requests_under_way_have_a_connection_each() -> None:
    """Given a request that waits, then another does not wait for it; one that is given up closes its connection."""

    async def story() -> None:
        server = FakeServer()
        serving, _ = transport(server)
        asking, made = transport(server)

        async def wait(request: bytes) -> bytes:
            if request == b"long":
                await asyncio.Event().wait()
            return b"short"

        await serving.serve("a.1", wait)
        with pytest.raises(UnansweredError, match="no answer within"):
            await asyncio.gather(asking.ask("a.1", b"long", 0.05), asking.ask("a.1", b"short", 5.0))
        await until(lambda: [api.connected for api in made] == [False, True])

    asyncio.run(story())


def test_requests_that_are_not_signed_with_the_secret_are_refused() -> None:
    """Given another secret, a request for another member, or no signature, then the handler sees nothing."""

    async def story() -> None:
        server = FakeServer()
        seen: list[bytes] = []

        async def handler(request: bytes) -> bytes:
            seen.append(request)
            return b""

        serving, _ = transport(server)
        await serving.serve("a.1", handler)
        stranger, _ = transport(server, "another secret of a length")
        with pytest.raises(NobodyThereError, match="denied"):
            await stranger.ask("a.1", b"x", 1.0)
        for arguments in ({"request": "eA==", "signature": ""}, {"request": 5, "signature": None}):
            assert await server.commands["mq.cluster.a.1"](**arguments) == {"error": "denied"}
        assert seen == []
        with pytest.raises(ConfigurationError, match="at least 16 characters"):
            FabricTransport(server, "short")

    asyncio.run(story())


def test_a_failure_over_the_fabric_is_an_unknown_outcome() -> None:
    """Given a handler or a connection that fails, then the outcome is unknown, and the reason stays there."""

    async def story() -> None:
        server = FakeServer()
        serving, _ = transport(server)
        asking, made = transport(server)

        async def broken(request: bytes) -> bytes:
            raise RuntimeError("secret details")

        await serving.serve("a.1", broken)
        with pytest.raises(UnansweredError, match="failed"):
            await asking.ask("a.1", b"x", 1.0)

        async def cut(*_: Any, **__: Any) -> Any:
            raise ConnectionError("cut")

        made[0].call = cut  # type: ignore[method-assign]
        with pytest.raises(UnansweredError, match="ConnectionError: cut"):
            await asking.ask("a.1", b"x", 1.0)
        assert not made[0].connected

    asyncio.run(story())


def test_a_member_out_of_the_fabrics_reach_is_asked_over_the_next_transport() -> None:
    """Given a member that only the second transport reaches, then it is asked there; one that nobody reaches is not."""

    async def story() -> None:
        first, _ = transport(FakeServer())
        second, _ = transport(FakeServer())
        both = FirstReachable(first, second)
        await second.serve("a.1", echo)
        assert await both.ask("a.1", b"x", 1.0) == b"re x"
        with pytest.raises(NobodyThereError):
            await both.ask("b.1", b"x", 1.0)
        await both.serve("c.1", echo)
        assert await first.ask("c.1", b"y", 1.0) == await second.ask("c.1", b"y", 1.0) == b"re y"
        await both.stop()
        with pytest.raises(NobodyThereError):
            await both.ask("c.1", b"x", 1.0)

    asyncio.run(story())


@pytest.mark.skipif(not HAS_MPREG, reason="mpreg cannot be imported; make test-mpreg MPREG_SOURCE=dir")
@pytest.mark.filterwarnings("default")
def test_nodes_on_two_mpreg_servers_forward_over_their_fabric() -> None:
    """Given two peered MPREG servers with a node each, then requests go over the fabric, and others over NATS."""
    require_nats()
    url = fresh_url()

    async def story() -> None:
        async with contextlib.AsyncExitStack() as stack:
            port = free_port()
            servers = [await stack.enter_async_context(mpreg_server("here", port=port, name="one"))]
            settings = {"name": "two", "connect": f"ws://127.0.0.1:{port}"}
            tasks = [asyncio.create_task(servers[0].server())]
            await until(lambda: servers[0]._transport_listener is not None)
            servers.append(await stack.enter_async_context(mpreg_server("here", **settings)))
            tasks.append(asyncio.create_task(servers[1].server()))
            await until(lambda: servers[1]._transport_listener is not None)
            asked: list[str] = []

            class Noted(FabricTransport):
                async def ask(self, member: str, request: bytes, seconds: float) -> bytes:
                    reply = await super().ask(member, request, seconds)
                    asked.append(member)
                    return reply

            nodes = []
            for name, server in zip("ab", servers, strict=True):
                node = make_node(url, name, fabric=Noted(server, SECRET), lease_seconds=5.0)
                nodes.append(await stack.enter_async_context(node))
            await until(lambda: all(len(node.node.directory.members()) == 2 for node in nodes))
            owner, other = await created(nodes, "q")
            # The fabric knows a command soon after it is registered.
            while not asked:
                assert await other.get_queue_statistics("q") is not None
                await asyncio.sleep(0.02)
            asked.clear()
            assert (await other.send_message("q", "t", 1)).success
            (message,) = await other.receive_messages("q", "w", 1, 5.0)
            assert await other.acknowledge_message("q", message.id, "w")
            assert asked == [owner.node.member] * 3
            async with make_node(url, "c", owns_queues=False) as client:
                assert (await client.send_message("q", "t", 2)).success
        for server, task in zip(servers, tasks, strict=True):
            assert server._shutdown_event.is_set()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    asyncio.run(story())
