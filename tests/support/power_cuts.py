"""What clients do to a log whose power is about to be cut, at random."""

from __future__ import annotations

import itertools
import random

from mpreg_mq.events import Append, Event, MessageCompleted, Snapshot, SQLiteEventLog

STREAMS = ("queue:a", "queue:b", "queue:c")

Made = list[tuple[str, Event]]
"""Events with their streams, in the order of the log."""


class RandomWork:
    """Batches, snapshots and truncations of one seed; every event is another one."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self._numbers = itertools.count(1)

    def batch(self, log: SQLiteEventLog) -> tuple[list[Append], Made]:
        """A few appends that fit, small and large, and what they would add."""
        batch = []
        versions = {stream: log.stream_version(stream) for stream in STREAMS}
        for _ in range(self.chance.randrange(1, 4)):
            stream = self.chance.choice(STREAMS)
            events = tuple(
                MessageCompleted(at=float(next(self._numbers)), message_id="m" * self.chance.choice([1, 1, 300, 3000]))
                for _ in range(self.chance.randrange(1, 4))
            )
            batch.append(Append(stream, versions[stream], events))
            versions[stream] += len(events)
        return batch, [(append.stream, event) for append in batch for event in append.events]

    def snapshot(self, log: SQLiteEventLog) -> None:
        """Save a state of a stream, if it has one."""
        stream = self.chance.choice(STREAMS)
        if version := log.stream_version(stream):
            log.save_snapshot(Snapshot(stream, version, b"state" * self.chance.randrange(200)))


def truncate(log: SQLiteEventLog, made: Made) -> None:
    """Take away about two thirds of a log that holds these events, and their space."""
    position = log.record_end(log.last_position() * 2 // 3)
    if position > log.base_position():
        versions: dict[str, int] = {}
        for stream, _ in made[:position]:
            versions[stream] = versions.get(stream, 0) + 1
        log.truncate(position, {name: Snapshot(name, version, b"base") for name, version in versions.items()})
        while log.reclaim():
            pass
