"""RabbitMQ with its defaults, on ports and in directories of its own."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from benchmarks.servers.base import LOOPBACK, Server, free_port, program

DEBIAN = "/usr/lib/rabbitmq/bin"


class RabbitServer(Server):
    """One node; its Erlang port mapper runs for it alone and ends with it."""

    name = "rabbitmq"
    package = "apt-get install rabbitmq-server"

    def launch(self) -> subprocess.Popen[bytes]:
        """Start ``rabbitmq-server``."""
        # Not the one on the search path: Debian's changes to another user, who owns other directories.
        rabbit = shutil.which("rabbitmq-server", path=DEBIAN) or program("rabbitmq-server", self.package)
        self.version = next((path.name for path in Path("/usr/lib/rabbitmq/lib").glob("rabbitmq_server-*")), "unknown")
        self._epmd_port = str(free_port())
        home = str(self.directory)
        configuration = self.directory / "rabbitmq.conf"
        # Schedulers that spin while they wait would take a core from whoever is measured.
        configuration.write_text(f"listeners.tcp.1 = {LOOPBACK}:{self.port}\nlog.console = true\n")
        (self.directory / "plugins").write_text("[].\n")
        return self.spawn(
            rabbit,
            HOME=home,
            RABBITMQ_NODENAME=f"bench{self.port}@localhost",
            RABBITMQ_CONFIG_FILE=str(configuration.with_suffix("")),
            RABBITMQ_ENABLED_PLUGINS_FILE=f"{home}/plugins",
            RABBITMQ_MNESIA_BASE=f"{home}/mnesia",
            RABBITMQ_LOG_BASE=f"{home}/log",
            RABBITMQ_PID_FILE=f"{home}/pid",
            RABBITMQ_DIST_PORT=str(free_port()),
            RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="+sbwt none +sbwtdcpu none +sbwtdio none",
            ERL_EPMD_PORT=self._epmd_port,
            ERL_EPMD_ADDRESS=LOOPBACK,
        )

    @property
    def address(self) -> str:
        """A connection URL."""
        return f"amqp://guest:guest@{LOOPBACK}:{self.port}/"

    def stop(self) -> None:
        """Stop the node, then its port mapper."""
        running = self._process is not None
        super().stop()
        if running:
            epmd = program("epmd", self.package)
            subprocess.run([epmd, "-port", self._epmd_port, "-kill"], capture_output=True, check=False)
