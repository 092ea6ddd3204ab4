"""The table of measurements: which rows there are, and who takes part in each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from benchmarks.contestants import disk, event_logs, limits, many_queues, scale
from benchmarks.contestants import sqlite_libraries as libraries
from benchmarks.contestants.bare_queues import ManyBareQueues
from benchmarks.contestants.base import RATE, AsyncQueue, Load, QueueUnderLoad
from benchmarks.contestants.disk import DiskUse
from benchmarks.contestants.fairness import Fairness
from benchmarks.contestants.latency import MESSAGES_PER_SECOND, PacedQueue
from benchmarks.contestants.nats import JetStream
from benchmarks.contestants.postgres import PostgresTable
from benchmarks.contestants.queue_api import (
    MpregFireAndForget,
    MpregQueue,
    QueueApi,
    QueueWaitingOnLoop,
    QueueWrittenOnLoop,
)
from benchmarks.contestants.rabbitmq import RabbitQueue
from benchmarks.contestants.redis import RedisStreams
from benchmarks.harness.model import Contestant, Context, Entry, Kind, Metric, Row

EVERY_ANSWER = "fsync before each answer"
MEMORY = "memory only"
OURS, PEER, LIMIT = Kind.OURS, Kind.PEER, Kind.LIMIT
FEW, MANY = 1_000, 1_000_000

RATES = (Metric(RATE, RATE),)
EVENT_RATES = (Metric(event_logs.RATE, event_logs.RATE),)
LATENCIES = (
    Metric("p50", "ms", "half of them within", higher_is_better=False),
    Metric("p99", "ms", "99 of 100 within", higher_is_better=False),
)

Wrap = Callable[[QueueUnderLoad], Contestant]
"""What to do with a queue, where its rate is not what is measured."""


def _under(
    queue: Callable[[Context, Load], QueueUnderLoad], load: Load, wrap: Wrap | None
) -> Callable[[Context], Contestant]:
    def make(context: Context) -> Contestant:
        made = queue(context, load)
        return made if wrap is None else wrap(made)

    return make


SQLITE_LOG = partial(QueueApi, log="sqlite")

Listed = tuple[str, str, str, Callable[[Context, Load], QueueUnderLoad], Kind, str | None]
_OURS: Listed = ("ours", "mpreg-mq, SQLite log", EVERY_ANSWER, SQLITE_LOG, OURS, None)
_OURS_ON_LOOP: Listed = (
    "ours-on-loop",
    "mpreg-mq, SQLite log written on the loop",
    EVERY_ANSWER,
    QueueWrittenOnLoop,
    OURS,
    None,
)
_OURS_WAITING: Listed = (
    "ours-waiting",
    "mpreg-mq, SQLite log waited for on the loop",
    EVERY_ANSWER,
    QueueWaitingOnLoop,
    OURS,
    None,
)
_OURS_DURABLE = (_OURS, _OURS_ON_LOOP, _OURS_WAITING)
_RAW: Listed = ("raw-sqlite", "raw sqlite3, same batches", "fsync a batch", limits.RawSqlite, LIMIT, None)
_RAW_ON_LOOP: Listed = (
    "raw-on-loop",
    "raw sqlite3 on the loop, each send awaited",
    EVERY_ANSWER,
    limits.RawSqliteTogether,
    LIMIT,
    None,
)
_APPEND: Listed = ("raw-append", "append + fdatasync, same bytes", "fsync a batch", limits.RawAppend, LIMIT, None)
_REDIS: Listed = ("redis-always", "Redis Streams, fsync always", EVERY_ANSWER, RedisStreams, PEER, "redis-always")
_REDIS_SECOND: Listed = (
    "redis-everysec",
    "Redis Streams, fsync everysec",
    "up to 1 s can be lost",
    RedisStreams,
    PEER,
    "redis-everysec",
)
_NATS: Listed = ("nats-always", "NATS JetStream, sync always", EVERY_ANSWER, JetStream, PEER, "nats-always")
_NATS_DEFAULT: Listed = (
    "nats-default",
    "NATS JetStream, default sync",
    "up to 2 min can be lost",
    JetStream,
    PEER,
    "nats-default",
)
_RABBIT: Listed = (
    "rabbitmq",
    "RabbitMQ, confirms",
    "on disk or consumed by its confirm",
    RabbitQueue,
    PEER,
    "rabbitmq",
)
_POSTGRES: Listed = ("postgresql", "PostgreSQL, SKIP LOCKED", EVERY_ANSWER, PostgresTable, PEER, "postgresql")
_PERSIST: Listed = ("persist-queue", "persist-queue, one thread", EVERY_ANSWER, libraries.PersistQueue, PEER, None)
_LITE: Listed = ("litequeue", "litequeue, one thread", "none: fsync at checkpoints", libraries.LiteQueue, PEER, None)
_LITE_FULL: Listed = (
    "litequeue-full",
    "litequeue, synchronous=FULL",
    EVERY_ANSWER,
    libraries.LiteQueueFull,
    PEER,
    None,
)
_HUEY: Listed = ("huey", "huey on SQLite, fsync=True", "fsync; no acknowledgment", libraries.HueyQueue, PEER, None)

SERVERS = (_REDIS, _REDIS_SECOND, _NATS, _NATS_DEFAULT, _RABBIT, _POSTGRES)
LIBRARIES = (_PERSIST, _LITE, _LITE_FULL, _HUEY)


def _entries(load: Load, listed: Sequence[Listed], wrap: Wrap | None = None) -> tuple[Entry, ...]:
    return tuple(
        Entry(name, label, durability, _under(queue, load, wrap), kind, server)
        for name, label, durability, queue, kind, server in listed
    )


def _durable(name: str, title: str, load: Load, listed: Sequence[Listed], webhooks: bool = False) -> Row:
    return Row(name, title, RATES, _entries(load, listed), webhooks=webhooks)


def _memory(name: str, title: str, load: Load, guarantee: str = "AT_LEAST_ONCE", mpreg: type = MpregQueue) -> Row:
    entries = (
        ("ours", "mpreg-mq, memory log", MEMORY, partial(QueueApi, guarantee=guarantee), OURS, None),
        ("mpreg", "MPREG's queue", MEMORY, partial(mpreg, guarantee=guarantee), PEER, None),
        ("future-hop", "bare asyncio future hop", MEMORY, limits.FutureHop, LIMIT, None),
    )
    return Row(name, title, RATES, _entries(load, entries))


def _scale(name: str, what: str, contestant: type[scale.Filled]) -> Row:
    entries = tuple(
        Entry(label, f"{held:,} {what}", MEMORY, partial(contestant, held=held), OURS)
        for label, held in (("few", FEW), ("many", MANY))
    )
    metric = Metric(scale.COST, "µs a message", higher_is_better=False)
    return Row(f"scale-{name}", f"cost of a message with few and many {what}", (metric,), entries)


def _paced(queue: QueueUnderLoad) -> Contestant:
    assert isinstance(queue, AsyncQueue)
    return PacedQueue(queue)


ONE, MANY_SENDERS, CROWD, BATCHES = Load(), Load(senders=64), Load(senders=512), Load(batch=100)

ROWS: tuple[Row, ...] = (
    _durable(
        "durable-64",
        "durable, 64 concurrent single senders: send, deliver, acknowledge",
        MANY_SENDERS,
        (*_OURS_DURABLE, *SERVERS, *LIBRARIES, _RAW, _RAW_ON_LOOP, _APPEND),
    ),
    _durable(
        "durable-512",
        "durable, 512 concurrent single senders",
        CROWD,
        (*_OURS_DURABLE, _REDIS, _NATS, _RAW, _RAW_ON_LOOP, _APPEND),
    ),
    _durable(
        "durable-batch",
        "durable, one sender of batches of 100",
        BATCHES,
        (*_OURS_DURABLE, *SERVERS, _RAW, _APPEND),
    ),
    _durable(
        "durable-1",
        "durable, one sequential sender",
        ONE,
        (*_OURS_DURABLE, *SERVERS, *LIBRARIES, _RAW, _RAW_ON_LOOP, _APPEND),
    ),
    _durable(
        "webhooks-64",
        "durable, webhook bodies, 64 concurrent single senders",
        MANY_SENDERS,
        (_OURS, *SERVERS, _RAW, _APPEND),
        webhooks=True,
    ),
    _durable(
        "webhooks-batch",
        "durable, webhook bodies, one sender of batches of 100",
        BATCHES,
        (_OURS, *SERVERS, _RAW, _APPEND),
        webhooks=True,
    ),
    Row(
        "latency",
        f"send to callback at {MESSAGES_PER_SECOND:,} messages/s, durable",
        LATENCIES,
        _entries(MANY_SENDERS, (*_OURS_DURABLE, _REDIS, _REDIS_SECOND, _NATS, _RABBIT), _paced)
        + _entries(MANY_SENDERS, (_RAW_ON_LOOP,), _paced)
        + _entries(ONE, (("fsync", "one append + fdatasync", EVERY_ANSWER, limits.OneFsync, LIMIT, None),)),
    ),
    Row(
        "disk",
        "bytes on disk for a completed message of 100 bytes, before compaction",
        (Metric(disk.SIZE, "bytes", higher_is_better=False),),
        _entries(MANY_SENDERS, (_OURS, _REDIS_SECOND, _RAW), DiskUse)
        + _entries(ONE, (_PERSIST, _LITE), partial(DiskUse, messages_a_second=500)),
    ),
    _memory("memory-64", "memory log, 64 senders, at-least-once: send, deliver, acknowledge", MANY_SENDERS),
    _memory("memory-1", "memory log, one sequential sender, at-least-once", ONE),
    _memory("fire-and-forget", "fire-and-forget, one subscriber", ONE, "FIRE_AND_FORGET", MpregFireAndForget),
    Row(
        "replay",
        "replay into full state",
        EVENT_RATES,
        (
            Entry("ours", "mpreg-mq, from the SQLite file", "read", partial(event_logs.Replay, log="sqlite"), OURS),
            Entry("ours-memory", "mpreg-mq, from memory", "read", partial(event_logs.Replay, log="memory"), OURS),
            Entry("eventsourcing", "eventsourcing, SQLite", "read", event_logs.EventSourcingReplay),
            Entry("msgspec", "bare msgspec decode loop", "read", event_logs.DecodeLoop, LIMIT),
        ),
    ),
    Row(
        "append",
        "append events, a commit for every 100",
        EVENT_RATES,
        (
            Entry("ours", "mpreg-mq, SQLite log", "fsync a commit", event_logs.AppendEvents, OURS),
            Entry("eventsourcing", "eventsourcing, SQLite", "fsync a commit", event_logs.EventSourcing),
        ),
    ),
    _scale("pending", "messages pending", scale.PendingMessages),
    _scale("deduplication", "deduplication keys held", scale.DeduplicationKeys),
    _scale("patterns", "patterns", scale.Patterns),
    Row(
        "queues",
        "10,000 queues at one manager",
        (
            Metric(many_queues.CREATE, "s", "time to create them", higher_is_better=False),
            Metric(many_queues.BYTES, "bytes", "memory of each", higher_is_better=False),
            Metric(many_queues.IDLE, "% of a core", "CPU while idle", higher_is_better=False),
            Metric(many_queues.SPREAD, "x", "cost of a message over all of them, to one", higher_is_better=False),
        ),
        (
            Entry("ours", "mpreg-mq, memory log", MEMORY, partial(many_queues.ManyQueues, log="memory:"), OURS),
            Entry(
                "ours-sqlite", "mpreg-mq, SQLite log", EVERY_ANSWER, partial(many_queues.ManyQueues, log="sqlite"), OURS
            ),
            Entry("mpreg", "MPREG's queues", MEMORY, many_queues.ManyMpregQueues),
            Entry("bare", "a deque, a dictionary and a list each", MEMORY, ManyBareQueues, LIMIT),
        ),
        fresh=True,
    ),
    Row(
        "fairness",
        "a single message beside a queue under full load: send to callback",
        (*LATENCIES, Metric("load", RATE, "done by the busy queue meanwhile")),
        (
            Entry("ours", "mpreg-mq, memory log", MEMORY, partial(Fairness, log="memory:"), OURS),
            Entry("ours-sqlite", "mpreg-mq, SQLite log", EVERY_ANSWER, partial(Fairness, log="sqlite"), OURS),
        ),
    ),
)


def row_named(name: str) -> Row:
    """The row of this name.

    Raises:
        KeyError: there is none.
    """
    return {row.name: row for row in ROWS}[name]
