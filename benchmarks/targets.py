"""What is to be reached, and whether a run reached it. Every figure comes from that one run."""

from __future__ import annotations

from collections.abc import Callable

import attrs

from benchmarks.contestants import disk, event_logs, many_queues, scale
from benchmarks.contestants.base import RATE
from benchmarks.results import Results

Value = Callable[[Results], float | None]


def figure(row: str, entry: str, metric: str) -> Value:
    """The median of a metric."""

    def value(results: Results) -> float | None:
        summary = results.summary(row, entry, metric)
        return None if summary is None else summary.median

    return value


def ratio(above: Value, below: Value) -> Value:
    """One median divided by another."""

    def value(results: Results) -> float | None:
        first, second = above(results), below(results)
        return None if first is None or not second else first / second

    return value


@attrs.frozen
class Target:
    """A bound for a value; ``at_least`` or else at most.

    ``limit`` is the same value of the least that could do the work, where the run has it: what no queue comes past.
    """

    row: str
    what: str
    value: Value
    bound: float
    form: str
    at_least: bool = True
    strict: bool = False
    limit: Value | None = None

    def text(self, value: float) -> str:
        """A value in the target's own form."""
        return self.form.format(value)

    @property
    def wanted(self) -> str:
        """The bound in words."""
        sign = {(True, False): ">=", (True, True): ">", (False, False): "<=", (False, True): "<"}
        return f"{sign[self.at_least, self.strict]} {self.text(self.bound)}"

    def reached(self, value: float) -> bool:
        """Whether a value is within the bound."""
        if value == self.bound:
            return not self.strict
        return (value > self.bound) is self.at_least


@attrs.frozen
class Verdict:
    """A target beside what was measured; ``reached`` is None where something it needs was not."""

    target: Target
    measured: str
    reached: bool | None
    limit: str = "-"

    @property
    def word(self) -> str:
        """Yes, no, or that it was not measured."""
        return {True: "yes", False: "no", None: "not measured"}[self.reached]


TIMES, RATE_FORM, SHARE = "{:.2f}x", "{:,.0f}/s", "{:.0%}"


def _rate(row: str, entry: str = "ours") -> Value:
    return figure(row, entry, RATE)


def _times(row: str, entry: str, of: str = "ours") -> Value:
    return ratio(_rate(row, of), _rate(row, entry))


def _on_loop(row: str, to: Value, bound: float, limit: str) -> Target:
    value = ratio(_rate(row, "ours-on-loop"), to)
    return Target(row, "the line before, written on the loop", value, bound, TIMES, limit=ratio(_rate(row, limit), to))


def _flat(name: str, things: str) -> Target:
    row = f"scale-{name}"
    value = ratio(figure(row, "many", scale.COST), figure(row, "few", scale.COST))
    return Target(row, f"cost with 1 million {things}, to that with 1 thousand", value, 1.5, TIMES, at_least=False)


def _latency(metric: str, bound: float) -> Target:
    fsync = figure("latency", "fsync", "p50")
    value, limit = (ratio(figure("latency", entry, metric), fsync) for entry in ("ours", "raw-on-loop"))
    return Target("latency", f"{metric} to one fsync", value, bound, TIMES, at_least=False, limit=limit)


def _queues(what: str, metric: str, bound: float, form: str, limit: Value | None = None) -> Target:
    return Target("queues", what, figure("queues", "ours", metric), bound, form, at_least=False, limit=limit)


_REDIS_BATCHES = _rate("durable-batch", "redis-always")

TARGETS: tuple[Target, ...] = (
    Target(
        "durable-64",
        "to Redis Streams, fsync always",
        _times("durable-64", "redis-always"),
        4.0,
        TIMES,
        limit=_times("durable-64", "redis-always", "raw-on-loop"),
    ),
    _on_loop("durable-64", _rate("durable-64", "redis-always"), 4.0, "raw-on-loop"),
    Target(
        "durable-64", "messages/s", _rate("durable-64"), 30_000, RATE_FORM, limit=_rate("durable-64", "raw-on-loop")
    ),
    Target(
        "durable-512",
        "512 senders, to Redis Streams, fsync always, pipelined by 100",
        ratio(_rate("durable-512"), _REDIS_BATCHES),
        2.0,
        TIMES,
        limit=ratio(_rate("durable-512", "raw-on-loop"), _REDIS_BATCHES),
    ),
    _on_loop("durable-512", _REDIS_BATCHES, 2.0, "raw-on-loop"),
    Target(
        "durable-512",
        "512 senders, of raw SQLite",
        _times("durable-512", "raw-sqlite"),
        0.35,
        SHARE,
        limit=_times("durable-512", "raw-sqlite", "raw-on-loop"),
    ),
    Target(
        "durable-batch",
        "batches of 100, to Redis Streams, fsync always, pipelined by 100",
        _times("durable-batch", "redis-always"),
        2.0,
        TIMES,
        limit=_times("durable-batch", "redis-always", "raw-sqlite"),
    ),
    _on_loop("durable-batch", _REDIS_BATCHES, 2.0, "raw-sqlite"),
    Target("durable-batch", "batches of 100, of raw SQLite", _times("durable-batch", "raw-sqlite"), 0.35, SHARE),
    Target(
        "durable-1",
        "sequential, waited for on the loop, of raw SQLite commits",
        _times("durable-1", "raw-sqlite", "ours-waiting"),
        0.75,
        SHARE,
        limit=_times("durable-1", "raw-sqlite", "raw-on-loop"),
    ),
    Target("memory-64", "messages/s", _rate("memory-64"), 80_000, RATE_FORM, limit=_rate("memory-64", "future-hop")),
    Target("memory-1", "messages/s", _rate("memory-1"), 60_000, RATE_FORM, limit=_rate("memory-1", "future-hop")),
    Target("fire-and-forget", "to MPREG's own", _times("fire-and-forget", "mpreg"), 1.5, TIMES),
    Target(
        "replay",
        "events/s",
        figure("replay", "ours", event_logs.RATE),
        300_000,
        RATE_FORM,
        limit=figure("replay", "msgspec", event_logs.RATE),
    ),
    Target(
        "replay",
        "to eventsourcing",
        ratio(figure("replay", "ours", event_logs.RATE), figure("replay", "eventsourcing", event_logs.RATE)),
        20.0,
        TIMES,
    ),
    _latency("p50", 2.0),
    _latency("p99", 5.0),
    _flat("pending", "messages pending"),
    _flat("deduplication", "keys held"),
    _flat("patterns", "patterns"),
    _queues("seconds to create 10,000", many_queues.CREATE, 3.0, "{:.2f} s"),
    _queues("memory of each", many_queues.BYTES, 10_240, "{:,.0f} bytes"),
    _queues("CPU while idle", many_queues.IDLE, 0.5, "{:.2f} % of a core"),
    _queues(
        "cost of a message over all of them, to one",
        many_queues.SPREAD,
        1.5,
        TIMES,
        figure("queues", "bare", many_queues.SPREAD),
    ),
    Target(
        "disk", "bytes a completed message", figure("disk", "ours", disk.SIZE), 450, "{:,.0f} bytes", at_least=False
    ),
    Target("fairness", "p99, memory log", figure("fairness", "ours", "p99"), 20, "{:.1f} ms", False, True),
    Target("fairness", "p99, SQLite log", figure("fairness", "ours-sqlite", "p99"), 20, "{:.1f} ms", False, True),
)


def verdicts(results: Results) -> list[Verdict]:
    """Every target whose row was run, beside what was measured."""
    rows = {outcome.row for outcome in results.outcomes}
    found = []
    for target in TARGETS:
        if target.row in rows:
            value = target.value(results)
            reached = None if value is None else target.reached(value)
            limit = None if target.limit is None else target.limit(results)
            measured, at_best = ("-" if one is None else target.text(one) for one in (value, limit))
            found.append(Verdict(target, measured, reached, at_best))
    return found
