"""Which node a queue belongs to, and when a lease is over: rules that need no server."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("nats", reason="nats-py is not installed (pip install 'mpreg-mq[nats]')")

from mpreg_mq.cluster import ClusterConfiguration
from mpreg_mq.cluster.bucket import Entry
from mpreg_mq.cluster.directory import Directory
from mpreg_mq.cluster.metrics import Histogram
from mpreg_mq.cluster.placement import wanted_owner
from mpreg_mq.cluster.records import DrainRecord, NodeRecord, QueueRecord, encode_record, node_key, queue_key
from mpreg_mq.configuration import QueueConfiguration
from mpreg_mq.errors import ConfigurationError

node_sets = st.sets(st.text("abcdefgh", min_size=1, max_size=3), min_size=1, max_size=8)


@given(queue=st.text(max_size=10), nodes=node_sets)
def test_everybody_finds_the_same_owner(queue: str, nodes: set[str]) -> None:
    """For all nodes in whatever order: the owner is one of them, and the same."""
    assert wanted_owner(queue, sorted(nodes)) == wanted_owner(queue, sorted(nodes, reverse=True))
    assert wanted_owner(queue, nodes) in nodes


@given(queue=st.text(max_size=10), nodes=node_sets, new=st.just("new"))
def test_a_node_that_joins_takes_queues_only_for_itself(queue: str, nodes: set[str], new: str) -> None:
    """For all nodes: when one joins, a queue stays where it was or goes to the new one; and back when that leaves."""
    before = wanted_owner(queue, nodes)
    assert wanted_owner(queue, nodes | {new}) in (before, new)


def test_queues_spread_over_the_nodes() -> None:
    """Given many queues and four nodes, then each has about a quarter; without nodes there is no owner."""
    nodes = ["a", "b", "c", "d"]
    owners = [wanted_owner(f"queue-{number}", nodes) for number in range(2000)]
    assert all(400 < owners.count(node) < 600 for node in nodes)
    assert wanted_owner("q", []) is None


@pytest.mark.parametrize(
    "settings",
    [{"node_id": "a.b"}, {"node_id": ""}, {"lease_seconds": 0.0}, {"request_timeout_seconds": 0}, {"owns_queues": 1}],
)
def test_a_bad_configuration_is_refused(settings: dict[str, Any]) -> None:
    """Given a value out of its range, then the error names it."""
    with pytest.raises(ConfigurationError, match=f"ClusterConfiguration.{next(iter(settings))}: got"):
        ClusterConfiguration(**settings)


def test_node_ids_are_made_where_none_is_given() -> None:
    """Given no node id, then two configurations have different ones that are fit to be one."""
    assert ClusterConfiguration().node_id != ClusterConfiguration().node_id


# --- leases -------------------------------------------------------------------------------------------------


class FakeBucket:
    """Entries in memory."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []

    async def changes(self, after_revision: int) -> list[Entry]:
        return [entry for entry in self.entries if entry.revision > after_revision]

    def write(self, key: str, value: Any) -> None:
        encoded = None if value is None else encode_record(value)
        self.entries.append(Entry(key, encoded, len(self.entries) + 1))

    def renew(self, node: str, incarnation: str = "1", **fields: Any) -> None:
        self.write(node_key(node), NodeRecord(node, incarnation, True, 2.0, **fields))


class Looking:
    """A directory over a fake bucket, at a time that the test sets."""

    def __init__(self) -> None:
        self.now = 100.0
        self.bucket = FakeBucket()
        fake: Any = self.bucket
        self.directory = Directory(fake, lambda: self.now, 1.0)

    async def look(self, seconds: float) -> Directory:
        """Let time pass, looking twice a second as a node does."""
        for _ in range(int(seconds * 2)):
            self.now += 0.5
            await self.directory.refresh()
        return self.directory


def test_a_lease_lasts_from_the_last_renewal_that_was_seen() -> None:
    """Given a node that stops renewing, then it is a member for its lease; renewing makes it one again."""

    async def story() -> None:
        looking = Looking()
        looking.bucket.renew("a")
        assert (await looking.look(0.5)).members() == {"a.1"}
        looking.bucket.renew("a", renewals=1)
        assert (await looking.look(2.0)).members() == {"a.1"}
        assert (await looking.look(0.5)).members() == set()
        assert [seen.record.node for seen in looking.directory.expired()] == ["a"]
        looking.bucket.renew("a", renewals=2)
        assert (await looking.look(0.5)).members() == {"a.1"}
        looking.bucket.write(node_key("a"), None)
        assert (await looking.look(0.5)).members() == set()

    asyncio.run(story())


def test_while_nobody_can_look_no_lease_runs_out() -> None:
    """Given servers that did not answer for a minute, then nobody has lost a lease for that."""

    async def story() -> None:
        looking = Looking()
        looking.bucket.renew("a")
        await looking.look(0.5)
        looking.now += 60
        await looking.directory.refresh()
        assert looking.directory.members() == {"a.1"}
        assert (await looking.look(2.0)).members() == set()

    asyncio.run(story())


def test_a_restarted_node_is_another_member() -> None:
    """Given a node that restarts, then what its life before owned has no owner any more, at once."""

    async def story() -> None:
        looking = Looking()
        looking.bucket.renew("a", "1")
        looking.bucket.write(queue_key("q.x"), QueueRecord("q.x", QueueConfiguration("q.x"), "a.1", 1))
        assert (await looking.look(0.5)).owner("q.x") == "a.1"
        looking.bucket.renew("a", "2")
        assert (await looking.look(0.5)).owner("q.x") is None

    asyncio.run(story())


def test_who_drains_is_no_candidate() -> None:
    """Given nodes that drain of themselves, or because an operator wants it, then they live and get no queues."""

    async def story() -> None:
        looking = Looking()
        looking.bucket.renew("a", draining=True)
        looking.bucket.renew("b")
        looking.bucket.renew("c")
        looking.bucket.write("drain.b", DrainRecord("b"))
        directory = await looking.look(0.5)
        assert directory.members() == {"a.1", "b.1", "c.1"}
        assert directory.candidates() == {"c": "c.1"}
        looking.bucket.write("drain.b", None)
        assert set((await looking.look(0.5)).candidates()) == {"b", "c"}

    asyncio.run(story())


def test_waiting_for_a_change_ends_with_it_or_with_the_time() -> None:
    """Given somebody who waits, then a change of a queue wakes them, and without one the time does."""

    async def story() -> None:
        looking = Looking()
        await looking.directory.changed(0.0)
        waiting = asyncio.create_task(looking.directory.changed(60))
        await asyncio.sleep(0)
        looking.bucket.write(queue_key("q"), QueueRecord("q", QueueConfiguration("q")))
        await looking.look(0.5)
        await waiting

    asyncio.run(story())


def test_a_histogram_knows_its_quantiles() -> None:
    """Given durations, then a quantile is the bound of the bucket it lies in, and at most the longest."""
    histogram = Histogram()
    assert histogram.quantile(0.5) == 0.0
    for seconds in (0.0005, 0.0015, 0.004, 30.0):
        histogram.add(seconds)
    assert (histogram.quantile(0.25), histogram.quantile(0.5), histogram.quantile(1.0)) == (0.001, 0.002, 30.0)
    assert (histogram.count, histogram.longest_seconds) == (4, 30.0)
