"""The disk fills up, files are limited, the process is stopped: nothing that was answered is untrue."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from mpreg_mq.errors import EventLogError
from mpreg_mq.events import Append, SQLiteEventLog, check_log
from mpreg_mq.events import types as e
from mpreg_mq.projections import QueueState

PATIENCE_SECONDS = 60.0


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of 24 megabytes in memory."""
    with tempfile.TemporaryDirectory() as directory:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", directory], capture_output=True, text=True, check=False
        )
        if mounted.returncode:
            pytest.skip(f"a full disk is not tested here: tmpfs cannot be mounted ({mounted.stderr.strip()})")
        try:
            yield Path(directory)
        finally:
            subprocess.run(["umount", directory], check=True)


HEADER = """
import asyncio, os, resource, signal, sys
from mpreg_mq import *
from mpreg_mq.events import SQLiteEventLog
"""


def run(program: str, *arguments: object) -> str:
    """Run a program in a process of its own; its output."""
    done = subprocess.run(
        [sys.executable, "-c", HEADER + textwrap.dedent(program), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


FILL = """
async def main():
    log = SQLiteEventLog(sys.argv[1])
    {prepare}
    async with MessageQueueManager(log=log) as manager:
        await manager.create_queue("q", QueueConfiguration("q", max_size=1_000_000))
        sent = 0
        while True:
            result = await manager.send_message("q", "t", "x" * 100_000)
            if not result.success:
                break
            sent += 1
        assert result.rejection is RejectionReason.STORE_ERROR, result
        {meanwhile}
        done = 0
        for message in await manager.receive_messages("q", "s", 20):
            done += await manager.acknowledge_message("q", message.id, "s")
        {again}
        print(sent, done)
    log.close()

asyncio.run(main())
"""


def test_a_full_disk_loses_nothing_and_recovers(small_disk: Path) -> None:
    """Given a disk that is really full, then sends are refused, what is there is delivered and acknowledged, and when
    there is room again sends are accepted; everything that was answered is in the log."""
    again = """
        os.unlink(sys.argv[2])
        async with asyncio.timeout(30):
            while not (result := await manager.send_message("q", "t", "after")).success:
                await asyncio.sleep(0.01)
        sent += 1
    """
    (small_disk / "other").write_bytes(bytes(2_000_000))
    program = FILL.format(prepare="", meanwhile="", again=textwrap.indent(textwrap.dedent(again), " " * 8).strip())
    sent, done = map(int, run(program, small_disk / "log.db", small_disk / "other").split())
    assert sent > 10
    assert done == 20
    check(small_disk / "log.db", sent, done)


COMPACT = """
async def main():
    policy = RetentionPolicy(keep_events=0, check_seconds=3600, least_events=1)
    async with MessageQueueManager(QueueManagerConfiguration(retention=policy), log=sys.argv[1]) as manager:
        await manager.create_queue("q", QueueConfiguration("q", max_size=1_000_000))
        sent = 0
        while (await manager.send_message("q", "t", os.urandom(100_000))).success:
            sent += 1
        done = 0
        while found := await manager.receive_messages("q", "s", 10):
            for message in found:
                done += await manager.acknowledge_message("q", message.id, "s")
        await manager.compact()
        async with asyncio.timeout(30):
            while not (await manager.send_message("q", "t", "after")).success:
                await asyncio.sleep(0.01)
        print(sent, done, os.path.getsize(sys.argv[1]))

asyncio.run(main())
"""


def test_retention_makes_room_on_a_full_disk(small_disk: Path) -> None:
    """Given a disk that large messages have filled, all of them acknowledged, then a compaction gives their room back,
    and sends are accepted again, by this process and by the next."""
    for times in range(2):
        sent, done, size = map(int, run(COMPACT, small_disk / "log.db").split())
        assert sent > 10
        assert done == sent + times
        assert size < 1_000_000
    assert check_log(small_disk / "log.db") is None


def test_a_log_that_cannot_be_opened_on_a_full_disk_says_so(small_disk: Path) -> None:
    """Given a disk without any room, then opening a log there raises and tells why; with room it opens."""
    with closing(SQLiteEventLog(small_disk / "log.db")) as log:
        log.append([Append("queue:a", 0, (e.QueuePaused(1.0),))])
    rest = small_disk / "rest"
    with rest.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    with pytest.raises(EventLogError):
        SQLiteEventLog(small_disk / "log.db")
    rest.unlink()
    with closing(SQLiteEventLog(small_disk / "log.db")) as log:
        assert log.last_position() == 1


def test_a_limit_of_file_size_loses_nothing(tmp_path: Path) -> None:
    """Given a limit of the size of files, then sends beyond it are refused, what was answered is in the log, and when
    the limit is gone it all goes on."""
    prepare = "resource.setrlimit(resource.RLIMIT_FSIZE, (12_000_000, resource.RLIM_INFINITY))"
    lift = "resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))"
    program = FILL.format(prepare=prepare, meanwhile=lift, again="")
    sent, done = map(int, run(program, tmp_path / "log.db").split())
    assert sent > 10
    check(tmp_path / "log.db", sent, done)


def check(path: Path, sent: int, done: int) -> None:
    assert check_log(path) is None
    with closing(SQLiteEventLog(path, read_only=True)) as log:
        events = [record.event for record in log.read_all()]
    assert sum(isinstance(event, e.MessageEnqueued) for event in events) == sent
    state = QueueState.replay(events)
    state.check()
    assert state.statistics.counts.messages_acknowledged >= done


def test_a_process_that_is_stopped_for_longer_than_its_timeouts_goes_on(tmp_path: Path) -> None:
    """Given a process that stands still for longer than its leases, then it goes on: leases that ran out meanwhile end,
    every message is acknowledged just once, and the log is whole."""
    program = """
        import asyncio, sys
        from mpreg_mq import *

        async def main():
            async with MessageQueueManager(log=sys.argv[1]) as manager:
                await manager.create_queue("q", QueueConfiguration(
                    "q", default_visibility_timeout_seconds=0.2, max_retries=1000))
                for number in range(20):
                    await manager.send_message("q", "t", number)
                taken = await manager.receive_messages("q", "s", 10)
                print("stop me", flush=True)
                sys.stdin.readline()
                done = 0
                for one in taken:
                    done += await manager.acknowledge_message("q", one.id, "s")
                    await asyncio.sleep(0.01)
                while done < 20:
                    for one in await manager.receive_messages("q", "s", 20, wait_seconds=0.5):
                        done += await manager.acknowledge_message("q", one.id, "s")
                counts = manager.queue("q").get_statistics()
                print(done, counts.messages_acknowledged, counts.leases_expired)

        asyncio.run(main())
    """
    worker = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), str(tmp_path / "log.db")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert worker.stdout is not None
    assert worker.stdin is not None
    assert worker.stdout.readline() == "stop me\n"
    worker.send_signal(signal.SIGSTOP)
    worker.stdin.write("\n")
    worker.stdin.flush()
    # Real time, because it is a real process that stands still; more of it changes nothing.
    time.sleep(0.5)
    worker.send_signal(signal.SIGCONT)
    out, err = worker.communicate(timeout=PATIENCE_SECONDS)
    assert worker.returncode == 0, err
    done, acknowledged, expired = map(int, out.split())
    assert done == acknowledged == 20
    assert expired > 0
    check(tmp_path / "log.db", 20, 20)
