"""``mpreg-mq cluster`` and ``mpreg-mq log copy``, against real servers."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from mpreg_mq import CorruptLogError, EventLogError, MessageQueueManager, QueueConfiguration
from mpreg_mq.cli.commands import root
from mpreg_mq.events import Append, MemoryEventLog, MessageCompleted, SQLiteEventLog, open_log
from mpreg_mq.events.copying import compare_stream, copy_log
from tests.support.clusters import created, make_node, owned_by, running_nodes, until


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(root, list(arguments), prog_name="mpreg-mq")


async def run(*arguments: str) -> Result:
    """A command in another thread, while nodes run on this loop."""
    return await asyncio.to_thread(invoke, *arguments)


def records(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


# --- status -------------------------------------------------------------------------------------------------


def test_status_shows_nodes_and_queues(url: str) -> None:
    """Given nodes, a client and a queue, then status shows who owns what and how it is, for people and as JSON."""

    async def story() -> None:
        async with running_nodes(url, "a", "b") as nodes, make_node(url, "visitor", owns_queues=False):
            owner, _ = await created(nodes, "orders")
            await owner.send_messages("orders", [("t", 1), ("t", 2)])
            await owner.receive_messages("orders", "w")
            shown = await run("cluster", "status", url)
            assert shown.exit_code == 0, shown.output
            for word in ("a", "b", "visitor", "client", "orders", "lease age"):
                assert word in shown.stdout
            found = records(await run("cluster", "status", url, "--json"))
            assert [(one["node"], one["state"]) for one in found if one["kind"] == "node"] == [
                ("a", "up"),
                ("b", "up"),
                ("visitor", "client"),
            ]
            (queue,) = [one for one in found if one["kind"] == "queue"]
            assert (queue["name"], queue["owner"]) == ("orders", owner.node.configuration.node_id)
            assert (queue["owned"]["pending"], queue["owned"]["in_flight"]) == (1, 1)
            metrics = next(one for one in found if one.get("node") == queue["owner"])["status"]["metrics"]
            assert {"lease_age_seconds", "replay_lag_events", "append_seconds_p99"} <= set(metrics)
            assert metrics["appends"] > 0

    asyncio.run(story())


def test_status_tells_who_does_not_answer(url: str) -> None:
    """Given a node that crashed with its queue, then status says that neither answers, with exit status 1."""

    async def story() -> None:
        node = make_node(url, "a")
        await node.start()
        await node.create_queue("orders")
        await node.node.kill()
        shown = await run("cluster", "status", url)
        assert shown.exit_code == 1
        assert "no answer from node a" in shown.stderr
        assert "no owner answers for queue orders" in shown.stderr

    asyncio.run(story())


def test_a_log_that_is_not_there_has_no_status(url: str) -> None:
    """Given no such log, or a log without a cluster, then the error says so."""
    missing = invoke("cluster", "status", url)
    assert (missing.exit_code, "stream not found" in missing.stderr) == (1, True)
    open_log(url).close()
    none = invoke("cluster", "status", url)
    assert (none.exit_code, "there is none on nats://" in none.stderr) == (1, True)


# --- moving and draining ------------------------------------------------------------------------------------


def test_a_queue_moves_where_it_is_told_and_stays_there(url: str) -> None:
    """Given a queue, when it is moved, then the other node has it, with its messages, until it may go anywhere."""

    async def story() -> None:
        async with running_nodes(url, "a", "b") as nodes:
            owner, other = await created(nodes, "orders")
            await owner.send_message("orders", "t", "kept")
            target = other.node.configuration.node_id
            moved = await run("cluster", "move", url, "orders", target)
            assert moved.stdout == f"orders is owned by {target}\n", moved.output
            await owned_by(nodes, "orders", other)
            (message,) = await owner.receive_messages("orders", "w")
            assert message.payload == "kept"
            back = records(await run("cluster", "move", url, "orders", "--anywhere", "--json"))
            await owned_by(nodes, "orders", owner)
            assert back[0]["queue"] == "orders"

    asyncio.run(story())


def test_moving_what_cannot_move_says_what_can(url: str) -> None:
    """Given a queue or node that is not there, or no destination, then the error lists what there is."""

    async def story() -> None:
        async with running_nodes(url, "a") as (node,):
            await node.create_queue("orders")
            unknown = await run("cluster", "move", url, "nothing", "a")
            assert (unknown.exit_code, "there are: orders" in unknown.stderr) == (1, True)
            nowhere = await run("cluster", "move", url, "orders", "z")
            assert (nowhere.exit_code, "those that do: a" in nowhere.stderr) == (1, True)
            assert (await run("cluster", "move", url, "orders")).exit_code == 2
            drained = await run("cluster", "drain", url, "z")
            assert (drained.exit_code, "there are: a" in drained.stderr) == (1, True)

    asyncio.run(story())


def test_a_drained_node_stays_drained_until_that_is_undone(url: str) -> None:
    """Given a node, when it is drained, then it owns nothing, also after a restart, until it may take queues again."""

    async def story() -> None:
        async with running_nodes(url, "a", "b") as (a, b):
            for number in range(6):
                await a.create_queue(f"q{number}")
            await until(lambda: len(a.node.ownership.queues) > 0 and len(b.list_queues()) == 6)
            drained = await run("cluster", "drain", url, "a")
            assert (drained.exit_code, "a owns no queues any more" in drained.stdout) == (0, True), drained.output
            await until(lambda: a.node.ownership.queues == {} and len(b.node.ownership.queues) == 6)
            undone = records(await run("cluster", "drain", url, "a", "--undo", "--json"))
            assert undone == [{"node": "a", "drained": False}]
            await until(lambda: len(a.node.ownership.queues) > 0)

    asyncio.run(story())


def test_draining_the_only_node_says_that_it_still_owns_queues(url: str) -> None:
    """Given nobody to take the queues, then draining fails in time and says so."""

    async def story() -> None:
        async with running_nodes(url, "a") as (node,):
            await node.create_queue("q")
            drained = await run("cluster", "drain", url, "a", "--timeout", "0.5")
            assert (drained.exit_code, "still owns queues within 0.5 s" in drained.stderr) == (1, True)

    asyncio.run(story())


# --- a node without a program -------------------------------------------------------------------------------


def test_run_owns_queues_until_it_is_told_to_end(url: str) -> None:
    """Given a node in a process of its own, then it serves clients, and SIGTERM makes it leave in order."""

    command = [sys.executable, "-m", "mpreg_mq.cli", "cluster", "run", url, "--node-id", "alone", "--json"]

    async def story(node: subprocess.Popen[bytes]) -> None:
        assert node.stdout is not None
        assert json.loads(await asyncio.to_thread(node.stdout.readline)) == {"node": "alone", "state": "up"}
        async with make_node(url, "client", owns_queues=False) as client:
            await client.create_queue("q")
            assert (await client.send_message("q", "t", 1)).success
            node.send_signal(signal.SIGTERM)
            _, said = await asyncio.to_thread(node.communicate)
            assert node.returncode == 0, said
            assert b"hands its queues over" in said
            await until(lambda: client.owner_of("q") is None)

    with subprocess.Popen([*command, "--lease-seconds", "1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as node:
        try:
            asyncio.run(story(node))
        finally:
            node.kill()


# --- copying a log ------------------------------------------------------------------------------------------


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """An SQLite log of two queues."""
    path = tmp_path / "orders.db"

    async def write() -> None:
        async with MessageQueueManager(log=path) as manager:
            for name in ("orders", "mail"):
                await manager.create_queue(name, QueueConfiguration(name, enable_deduplication=True))
                await manager.send_messages(name, [("t", number) for number in range(30)])
                for message in await manager.receive_messages(name, "w", 10):
                    await manager.acknowledge_message(name, message.id, "w")

    asyncio.run(write())
    return path


def test_a_log_is_copied_to_a_cluster_and_goes_on_there(url: str, written: Path) -> None:
    """Given an SQLite log, when it is copied to JetStream, then it is compared, and its queues go on on a node."""
    copied = invoke("log", "copy", f"sqlite:///{written}", url)
    assert copied.exit_code == 0, copied.output
    assert "and compared: the same" in copied.stdout
    again = invoke("log", "copy", str(written), url)
    assert (again.exit_code, "import into a new log" in again.stderr) == (1, True)

    async def story() -> None:
        async with running_nodes(url, "a") as (node,):
            await until(lambda: node.list_queues() == ["mail", "orders"])
            statistics = await node.get_queue_statistics("orders")
            assert (statistics.messages_sent, statistics.messages_acknowledged) == (30, 10)
            duplicate = await node.send_message("orders", "t", 29)
            assert duplicate.duplicate_of is not None
            assert len(await node.receive_messages("orders", "w", 100)) == 20

    asyncio.run(story())


def test_a_log_is_copied_back(url: str, written: Path, tmp_path: Path) -> None:
    """Given a log on JetStream, then it is copied to SQLite, as JSON tells."""
    assert invoke("log", "copy", str(written), url).exit_code == 0
    back = invoke("log", "copy", url, str(tmp_path / "back.db"), "--json")
    assert back.exit_code == 0, back.output
    (record,) = records(back)
    assert record["verified"] is True
    ours, theirs = SQLiteEventLog(written), SQLiteEventLog(tmp_path / "back.db")
    for stream in ours.streams():
        assert compare_stream(ours, theirs, stream) == ours.stream_version(stream)
    ours.close()
    theirs.close()


def test_a_copy_that_is_not_like_its_original_is_found() -> None:
    """Given a stream that differs, or a source that grows meanwhile, then the copy fails and says where."""
    source, target = MemoryEventLog(), MemoryEventLog()
    source.append([Append("s", 0, [MessageCompleted(1.0, "a"), MessageCompleted(2.0, "b")])])
    target.append([Append("s", 0, [MessageCompleted(1.0, "a"), MessageCompleted(2.0, "c")])])
    with pytest.raises(CorruptLogError, match=r"has version 2, .*'c'.*expected version 2, .*'b'"):
        compare_stream(source, target, "s")
    source.append([Append("s", 2, [MessageCompleted(3.0, "d")])])
    target = MemoryEventLog()
    target.append([Append("s", 0, [MessageCompleted(1.0, "a"), MessageCompleted(2.0, "b")])])
    with pytest.raises(CorruptLogError, match="has nothing, expected version 3"):
        compare_stream(source, target, "s")
    grown = [0]

    def grow(progress: object) -> None:
        if not grown[0]:
            grown[0] = 1
            source.append([Append("s", 3, [MessageCompleted(4.0, "e")])])

    with pytest.raises(EventLogError, match="grew meanwhile"):
        copy_log(source, MemoryEventLog(), on_progress=grow)
