"""A process under load is killed, again and again: nothing acknowledged is lost, and nothing acknowledged comes back.

What the process was told, as sender and as consumer, it writes to a file of its own before it goes on; this is
compared with the log and with what is delivered to whoever comes after it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from mpreg_mq.events import SQLiteEventLog, check_log
from mpreg_mq.events import types as e
from mpreg_mq.payload import decode_payload
from mpreg_mq.projections import QueueState
from tests.support.effort import repetitions

CYCLES = repetitions(test=40, ci=60, soak=1000)

WORKER = """
import asyncio, json, os, sys
from mpreg_mq import MessageQueueManager, QueueConfiguration, QueueManagerConfiguration, QueueType
from mpreg_mq.events import SQLiteEventLog

path, diary, first = sys.argv[1], os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644), int(sys.argv[3])


def note(*entry):
    os.write(diary, json.dumps(entry).encode() + b"\\n")


async def send(manager, number):
    while True:
        note("try", number)
        result = await manager.send_message("q", "t", number)
        assert result.success, result
        note("sent", number)
        number += 64


async def consume(manager):
    while True:
        for message in await manager.receive_messages("q", "puller", 5, wait_seconds=1.0, topic_pattern="#"):
            note("got", message.payload)
            if await manager.acknowledge_message("q", message.id, "puller"):
                note("done", message.payload)


async def main():
    config = QueueManagerConfiguration(snapshot_every_events=200)
    waits = 60.0 if sys.argv[4] == "wait" else 0.0
    log = SQLiteEventLog(path, writes_on_loop=sys.argv[4] != "thread", loop_waits_seconds=waits)
    async with MessageQueueManager(config, log=log) as manager:
        await manager.create_queue(
            "q", QueueConfiguration("q", max_size=1000000, default_visibility_timeout_seconds=0.2, max_retries=1000000)
        )
        note("up")
        print("up", flush=True)
        await asyncio.gather(consume(manager), *(send(manager, first + each) for each in range(64)))


asyncio.run(main())
"""


def run_and_kill(place: Path, cycle: int) -> None:
    """Start a worker on the log, and kill it while it sends and consumes; by turns it is written on its loop."""
    writer = ("thread", "loop", "wait")[cycle % 3]
    arguments = [str(place / "log.db"), str(place / "diary"), str(cycle * 1_000_000), writer]
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert worker.stdout is not None
    assert worker.stderr is not None
    if worker.stdout.readline() != "up\n":
        pytest.fail(f"cycle {cycle}: {worker.stderr.read()}")
    # At once, or a little later at each cycle: in an acknowledgment, in a commit, in a checkpoint, while a snapshot is
    # saved. The first 900 bytes of a diary are tries; only what is beyond them can be an answer.
    moment = cycle % 37
    size = (place / "diary").stat().st_size
    while (place / "diary").stat().st_size < size + (1000 + 200 * moment if moment else 0):
        assert worker.poll() is None
        os.sched_yield()
    worker.send_signal(signal.SIGKILL)
    worker.communicate()


def entries(diary: Path) -> Iterator[list[Any]]:
    """What the workers have noted, but what one was killed in the middle of."""
    lines = diary.read_text().splitlines()
    for number, line in enumerate(lines, 1):
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            # The next worker goes on behind it.
            assert number == len(lines) or line.endswith('["up"]')


def test_nothing_acknowledged_is_lost_or_comes_back_when_a_process_is_killed(place: Path) -> None:
    """For many kills under load: every acknowledged send is in the log, what was acknowledged by a consumer is never
    delivered again, and some messages are delivered twice, because their consumer died with them (S1, L2, I5)."""
    for cycle in range(CYCLES):
        run_and_kill(place, cycle)
    tried, sent, done = set(), set(), set()
    came_back = 0
    delivered: list[int] = []
    for kind, *rest in entries(place / "diary"):
        if kind == "try":
            tried.update(rest)
        elif kind == "sent":
            sent.update(rest)
        elif kind == "got":
            delivered += rest
            came_back += rest[0] in done
        elif kind == "done":
            done.update(rest)
    assert check_log(place / "log.db") is None
    with closing(SQLiteEventLog(place / "log.db", read_only=True)) as log:
        events = [record.event for record in log.read_all()]
    stored = {decode_payload(event.payload) for event in events if isinstance(event, e.MessageEnqueued)}
    state = QueueState.replay(events)
    state.check()
    pending = {decode_payload(message.event.payload) for message in state.messages}
    assert sent <= stored <= tried
    assert came_back == 0
    assert not done & pending
    assert len(sent) > CYCLES
    if CYCLES >= 40:
        assert len(delivered) > len(set(delivered))
