"""``mpreg-mq serve`` as a process: it ends cleanly when it is asked to, and when it is killed nothing is lost."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from mpreg_mq import MessageQueueManager
from mpreg_mq.mpreg import QueueClient
from tests.support.effort import repetitions
from tests.support.exchanges import HAS_MPREG
from tests.support.mpreg_load import Consumers, Producers, kill, start
from tests.support.mpreg_servers import eventually, free_port

pytestmark = [
    pytest.mark.skipif(not HAS_MPREG, reason="mpreg cannot be imported; make test-mpreg MPREG_SOURCE=dir"),
    pytest.mark.filterwarnings("default"),
]

TOKEN = "a-token-of-some-length"


def settings_file(directory: Path) -> tuple[Path, str]:
    """The settings of a server on a log in this directory, and its URL."""
    port = free_port()
    path = directory / "server.toml"
    path.write_text(
        f"""
[mpreg]
name = "killed"
port = {port}
monitoring_enabled = false
log_level = "ERROR"

[mpreg-mq]
log = "sqlite:///{directory / "queues.db"}"

[[mpreg-mq.queues]]
name = "load"
max_size = 1000000
max_retries = 1000

[[mpreg-mq.rpc.rules]]
queues = "*"
operations = "*"
token = "{TOKEN}"
""",
        encoding="utf-8",
    )
    return path, f"ws://127.0.0.1:{port}"


def test_a_server_that_is_terminated_ends_cleanly(tmp_path: Path) -> None:
    """Given a served log, when the process is terminated, then it ends with status 0, and the log has all of it."""

    async def story() -> None:
        settings, url = settings_file(tmp_path)
        server = await start(settings, tmp_path / "server.log")
        async with QueueClient(url, token=TOKEN) as queues:
            for number in range(10):
                assert (await queues.send("load", "t", number)).success
        server.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(server.wait(), 60) == 0
        async with MessageQueueManager(log=tmp_path / "queues.db") as manager:
            assert [one.payload for one in manager.queue("load").pending_messages] == list(range(10))

    asyncio.run(story())


def test_a_server_that_is_killed_under_load_loses_nothing(tmp_path: Path) -> None:
    """Given clients that send and consume, when the server is killed and started again, several times, then every send
    that was acknowledged is consumed, and nothing that was not sent."""

    async def story() -> None:
        settings, url = settings_file(tmp_path)
        output = tmp_path / "server.log"
        server = await start(settings, output)
        producers, consumers = Producers(url, TOKEN, "load"), Consumers(url, TOKEN, "load")
        for _ in range(repetitions(test=3, soak=30)):
            before = len(producers.acknowledged)
            await eventually(lambda before=before: len(producers.acknowledged) >= before + 100)  # type: ignore[misc]
            await kill(server)
            server = await start(settings, output)
        before = len(producers.acknowledged)
        await eventually(lambda: len(producers.acknowledged) >= before + 50)
        await producers.stop()
        await eventually(lambda: producers.acknowledged <= set(consumers.got))
        async with QueueClient(url, token=TOKEN) as queues:
            async with asyncio.timeout(60):
                while (counts := await queues.statistics("load")).current_in_flight_count or counts.current_queue_size:
                    await asyncio.sleep(0.1)
        await consumers.stop()
        await kill(server)
        assert set(consumers.got) <= set(range(producers.attempted))
        print(
            f"attempted {producers.attempted}, acknowledged {len(producers.acknowledged)}, lost "
            f"{len(producers.acknowledged - set(consumers.got))}, consumed {len(set(consumers.got))} different ones in "
            f"{len(consumers.got)} deliveries"
        )

    asyncio.run(story())
