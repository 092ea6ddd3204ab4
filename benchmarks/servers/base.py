"""A server that a run starts on the loopback interface, in a directory of its own, and stops."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from benchmarks.harness.model import UnavailableError

LOOPBACK = "127.0.0.1"
START_TIMEOUT_SECONDS = 60.0
STOP_TIMEOUT_SECONDS = 20.0


def free_port() -> int:
    """A TCP port that nobody uses at this moment."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def program(name: str, hint: str, *places: str) -> str:
    """The path of a program: on the search path, beside this Python, or in ``places``.

    Raises:
        UnavailableError: it is nowhere; ``hint`` says how to get it.
    """
    beside = str(Path(sys.executable).parent)
    found = shutil.which(name) or shutil.which(name, path=os.pathsep.join((beside, *places)))
    if found is None:
        raise UnavailableError(f"there is no {name}; {hint}")
    return found


def first_line(*command: str) -> str:
    """The first line that a command prints."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stdout.strip() or done.stderr.strip() or "unknown").splitlines()[0]


class Server(ABC):
    """One server process and its files.

    Args:
        directory: where its files go; it is made, and removed by who gave it.
    """

    name: ClassVar[str]
    package: ClassVar[str]
    """Where the program comes from, for the hint of who lacks it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_port()
        self.version = "unknown"
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def launch(self) -> subprocess.Popen[bytes]:
        """Start the process and set ``version``.

        Raises:
            UnavailableError: the program is not on this machine.
        """

    @property
    def address(self) -> str:
        """How its clients reach it."""
        return f"{LOOPBACK}:{self.port}"

    def start(self) -> None:
        """Start it and wait until it answers.

        Raises:
            UnavailableError: it is not on this machine, or did not start; the text says why.
        """
        self.directory.mkdir(parents=True)
        self._process = self.launch()
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while not self.answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                said = (self.directory / "output.log").read_text(errors="replace").strip().splitlines()
                self.stop()
                raise UnavailableError(f"{self.name} did not start: {said[-1] if said else 'it said nothing'}")
            # A process that starts tells nobody when it takes connections.
            time.sleep(0.05)

    def answers(self) -> bool:
        """Whether it takes connections."""
        with contextlib.suppress(OSError), socket.create_connection((LOOPBACK, self.port), timeout=1.0):
            return True
        return False

    def spawn(self, *command: str, user: str | None = None, **environment: str) -> subprocess.Popen[bytes]:
        """Start a command in a session of its own, with its output in ``output.log``."""
        with (self.directory / "output.log").open("ab") as output:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self.directory,
                start_new_session=True,
                user=user,
                env={**os.environ, **environment},
            )

    def stop(self) -> None:
        """Ask it to stop, and make it stop; doing it again does nothing."""
        process, self._process = self._process, None
        if process is None:
            return
        for wish in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, wish)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_TIMEOUT_SECONDS)
                return
