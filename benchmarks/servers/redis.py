"""Redis with an append-only file, synced always or every second."""

from __future__ import annotations

import subprocess

from benchmarks.servers.base import LOOPBACK, Server, first_line, program


class RedisServer(Server):
    """Without snapshots, so that nothing forks while it is measured."""

    name = "redis-everysec"
    package = "apt-get install redis-server"
    appendfsync = "everysec"

    def launch(self) -> subprocess.Popen[bytes]:
        """Start ``redis-server``."""
        redis = program("redis-server", self.package)
        self.version = first_line(redis, "--version").split(" sha=")[0]
        settings = {
            "bind": LOOPBACK,
            "port": str(self.port),
            "dir": str(self.directory),
            "save": "",
            "appendonly": "yes",
            "appendfsync": self.appendfsync,
            "auto-aof-rewrite-percentage": "0",
        }
        return self.spawn(redis, *(word for name, value in settings.items() for word in (f"--{name}", value)))


class RedisAlwaysServer(RedisServer):
    """Every answer is on disk."""

    name = "redis-always"
    appendfsync = "always"
