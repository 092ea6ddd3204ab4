"""A client that sends numbered messages as fast as it is answered, and writes down what was acknowledged to it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from pathlib import Path

from mpreg_mq.mpreg import QueueClient, ReceivedMessage


async def start(settings: Path, output: Path) -> asyncio.subprocess.Process:
    """A process of ``mpreg-mq serve`` whose clients can connect."""
    with output.open("ab") as errors:
        server = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "mpreg_mq.cli",
            "serve",
            "--settings",
            str(settings),
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
        )
    assert server.stdout is not None
    line = await asyncio.wait_for(server.stdout.readline(), 60)
    assert line.startswith(b"serving "), f"{line!r}; see {output}"
    return server


async def kill(server: asyncio.subprocess.Process) -> None:
    """As ``kill -9``."""
    server.send_signal(signal.SIGKILL)
    await server.wait()


class Producers:
    """Some clients that send until they are told to stop; ``acknowledged`` are the numbers that were."""

    def __init__(self, url: str, token: str, queue: str, count: int = 4) -> None:
        self.attempted = 0
        self.acknowledged: set[int] = set()
        self._clients = [QueueClient(url, token=token, timeout_seconds=10) for _ in range(count)]
        self._queue = queue
        self._tasks = [asyncio.create_task(self._produce(client)) for client in self._clients]

    async def _produce(self, client: QueueClient) -> None:
        while True:
            number, self.attempted = self.attempted, self.attempted + 1
            try:
                if (await client.send(self._queue, "load.message", {"number": number})).success:
                    self.acknowledged.add(number)
            # A server that is gone; what was under way may have arrived.
            except Exception:
                await asyncio.sleep(0.02)

    async def stop(self) -> None:
        """Send no more."""
        await _end(self._tasks, self._clients)


class Consumers:
    """Some clients that consume and remember the numbers."""

    def __init__(self, url: str, token: str, queue: str, count: int = 2) -> None:
        self.got: list[int] = []
        self._clients = [QueueClient(url, token=token, timeout_seconds=10) for _ in range(count)]
        self._tasks = [
            asyncio.create_task(
                client.consume(queue, f"consumer-{number}", self._take, max_messages=50, visibility_timeout_seconds=2.0)
            )
            for number, client in enumerate(self._clients)
        ]

    def _take(self, message: ReceivedMessage) -> None:
        self.got.append(message.payload["number"])

    async def stop(self) -> None:
        """Consume no more."""
        await _end(self._tasks, self._clients)


async def _end(tasks: list[asyncio.Task[None]], clients: list[QueueClient]) -> None:
    for task in tasks:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    for client in clients:
        await client.close()
