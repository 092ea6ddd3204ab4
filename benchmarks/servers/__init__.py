"""The servers of the peers, started when a row first needs them."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from benchmarks.harness.model import UnavailableError
from benchmarks.servers.base import Server
from benchmarks.servers.nats import NatsAlwaysServer, NatsServer
from benchmarks.servers.postgres import PostgresServer
from benchmarks.servers.rabbitmq import RabbitServer
from benchmarks.servers.redis import RedisAlwaysServer, RedisServer

SERVERS: dict[str, type[Server]] = {
    server.name: server
    for server in (RedisServer, RedisAlwaysServer, NatsServer, NatsAlwaysServer, RabbitServer, PostgresServer)
}
"""All of them, by name."""


class Servers:
    """The servers of a run; a context manager that stops them.

    Args:
        directory: each gets a directory of its own in there.
    """

    def __init__(self, directory: Path, known: dict[str, type[Server]] = SERVERS) -> None:
        self._directory = directory
        self._known = known
        self._running: dict[str, Server] = {}
        self._missing: dict[str, str] = {}
        self.versions: dict[str, str] = {}

    def address_of(self, name: str) -> str:
        """The address of a server, started if it is not running.

        Raises:
            UnavailableError: it is not on this machine or does not start; it is not tried a second time.
        """
        if name in self._missing:
            raise UnavailableError(self._missing[name])
        if name not in self._running:
            server = self._known[name](self._directory / f"server-{name}")
            try:
                server.start()
            except UnavailableError as error:
                self._missing[name] = str(error)
                raise
            self._running[name] = server
            self.versions[name] = server.version
        return self._running[name].address

    def stop_all_but(self, names: Collection[str | None]) -> None:
        """Stop the servers that are not named."""
        for name in [name for name in self._running if name not in names]:
            self._running.pop(name).stop()

    def __enter__(self) -> Servers:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop_all_but(())
