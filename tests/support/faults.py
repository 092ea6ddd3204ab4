"""Nodes in processes of their own, a proxy that can be cut, and clients whose history is judged."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from mpreg_mq.errors import MessageQueueError
from mpreg_mq.model import RejectionReason
from mpreg_mq.testing.clients import ClientHistory, Outcome, check_clients
from tests.support.clusters import until


class NodeProcess:
    """``mpreg-mq cluster run`` in a process of its own; what it says is in :attr:`said`."""

    def __init__(self, name: str, address: str, lease_seconds: float, directory: Path) -> None:
        self.name = name
        self._command = [
            *(sys.executable, "-m", "mpreg_mq.cli", "cluster", "run", address),
            *("--node-id", name, "--lease-seconds", str(lease_seconds)),
        ]
        self._output = directory / f"node-{name}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; it joins soon."""
        with self._output.open("ab") as output:
            self._process = subprocess.Popen(self._command, stdout=output, stderr=output)

    @property
    def said(self) -> str:
        """Everything it has written, over all its lives."""
        return self._output.read_text(errors="replace") if self._output.exists() else ""

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


class Proxy:
    """A TCP proxy to one server: while it is cut nothing passes, and nobody is told."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._open = asyncio.Event()
        self._open.set()
        self._server: asyncio.Server | None = None
        self._pumps: set[asyncio.Task[None]] = set()

    async def start(self) -> int:
        """Listen; the port."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def cut(self) -> None:
        """Let nothing pass from now on."""
        self._open.clear()

    def heal(self) -> None:
        """Let everything pass again, what was held back first."""
        self._open.set()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._open.wait()
        try:
            onward = await asyncio.open_connection("127.0.0.1", self._to)
        except OSError:
            writer.close()
            return
        for source, sink in ((reader, onward[1]), (onward[0], writer)):
            pump = asyncio.get_running_loop().create_task(self._pump(source, sink))
            self._pumps.add(pump)
            pump.add_done_callback(self._pumps.discard)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65536):
                await self._open.wait()
                sink.write(data)
                await sink.drain()
        except OSError:
            pass
        finally:
            sink.close()

    async def stop(self) -> None:
        """Close everything."""
        if self._server is not None:
            self._server.close()
        for pump in set(self._pumps):
            pump.cancel()
        if self._pumps:
            await asyncio.wait(set(self._pumps))


class Clients:
    """Senders and receivers of one queue through one manager, and what they saw."""

    def __init__(self, manager: Any, queue: str, seed: int) -> None:
        self.history = ClientHistory()
        self.redeliveries = 0
        self.refused = 0
        self.accepted = 0
        self._manager = manager
        self._queue = queue
        self._random = random.Random(seed)
        self._sending = True
        self._acknowledged: set[Any] = set()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, senders: int = 3, receivers: int = 3) -> None:
        """Begin to send and to receive."""
        loop = asyncio.get_running_loop()
        self._tasks += [loop.create_task(self._send(number)) for number in range(senders)]
        self._tasks += [loop.create_task(self._receive(number)) for number in range(receivers)]

    async def _send(self, number: int) -> None:
        """One group each, so that the order in which it is delivered can be judged."""
        name = f"sender-{number}"
        count = 0
        while self._sending:
            count += 1
            value = f"{number}-{count}"
            operation = self.history.invoke(name, "send", value, self._now(), group=name)
            result = await self._manager.send_message(self._queue, "t", value, group_id=name)
            if result.success:
                self.accepted += 1
                self.history.end(operation, Outcome.OK, self._now())
            else:
                self.refused += 1
                unknown = result.rejection is RejectionReason.STORE_ERROR
                outcome = Outcome.UNKNOWN if unknown else Outcome.FAIL
                self.history.end(operation, outcome, self._now(), result.error_message)
                await asyncio.sleep(0.05)
            await asyncio.sleep(self._random.uniform(0.0, 0.03))

    async def _receive(self, number: int) -> None:
        name = f"receiver-{number}"
        while True:
            asked = self.history.ordinal
            try:
                messages = await self._manager.receive_messages(
                    self._queue, name, 5, 1.0, visibility_timeout_seconds=1.0
                )
            except MessageQueueError:
                await asyncio.sleep(0.05)
                continue
            for message in messages:
                self.history.invoke(name, "deliver", message.payload, self._now(), asked=asked)
                if message.delivery_attempt > 1:
                    self.redeliveries += 1
                elif self._random.random() < 0.05:
                    # A worker that forgets: somebody else gets it when its lease has run out.
                    continue
                operation = self.history.invoke(name, "acknowledge", message.payload, self._now())
                try:
                    counted = await self._manager.acknowledge_message(self._queue, message.id, name)
                except MessageQueueError as error:
                    self.history.end(operation, Outcome.UNKNOWN, self._now(), str(error))
                    continue
                self.history.end(operation, Outcome.OK if counted else Outcome.FAIL, self._now())
                if counted:
                    self._acknowledged.add(message.payload)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    async def more_accepted(self, count: int) -> None:
        """Wait until that many more sends were accepted."""
        wanted = self.accepted + count
        await until(lambda: self.accepted >= wanted)

    async def drain(self) -> None:
        """Send no more, and wait until the queue is empty."""
        self._sending = False
        while True:
            with contextlib.suppress(MessageQueueError):
                statistics = await self._manager.get_queue_statistics(self._queue)
                if statistics.current_queue_size + statistics.current_in_flight_count == 0:
                    break
            await asyncio.sleep(0.05)

    async def stop(self) -> None:
        """End all clients."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def judge(self) -> None:
        """Nothing that was promised was broken (I5, L2, O1)."""
        problems = check_clients(self.history)
        assert problems == [], "\n".join(map(str, problems[:5]))
