"""What a queue takes from outside besides clock and log, and how a simulation replaces it with seeded values."""

from __future__ import annotations

import uuid
from asyncio import _get_running_loop
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from importlib import import_module
from random import Random
from typing import Any

import attrs

from mpreg_mq.testing.disk import SimulatedJournal
from mpreg_mq.testing.retention import SimulatedRetention

SEAMS: tuple[tuple[str, str], ...] = (
    ("mpreg_mq.actors.queue_actor", "secrets"),
    ("mpreg_mq.queue", "uuid"),
    ("mpreg_mq.actors.store", "Journal"),
    ("mpreg_mq.actors.turns", "time"),
    ("mpreg_mq.actors.dispatching", "STEPS_BETWEEN_LOOKS"),
    ("mpreg_mq.actors.dispatching", "SHORTEST_ROW"),
    ("mpreg_mq.actors.recording", "time"),
    ("mpreg_mq.actors.retention", "EVENTS_PER_STEP"),
    ("mpreg_mq.manager", "RetentionThread"),
)
"""Module and attribute of everything that is replaced."""


@attrs.frozen
class _Secrets:
    random: Random

    def token_hex(self, count: int) -> str:
        return self.random.randbytes(count).hex()


@attrs.frozen
class _Uuid:
    random: Random

    def uuid4(self) -> uuid.UUID:
        return uuid.UUID(int=self.random.getrandbits(128), version=4)


class _LoopTime:
    """The module ``time`` for who asks it how long ago something was, on a loop."""

    @staticmethod
    def monotonic() -> float:
        loop = _get_running_loop()
        assert loop is not None, "what is measured happens on a loop"
        return loop.time()


class _TurnTime:
    """The module ``time`` for who gives turns: each is over at its first look at the clock, and after none or each of
    them it is time for what else the loop has to do."""

    def __init__(self, step: float) -> None:
        self._step = step
        # Long ago for those who look at the real one.
        self._now = -1e9

    def perf_counter(self) -> float:
        self._now += self._step
        return self._now


@contextmanager
def deterministic(random: Random) -> Iterator[None]:
    """Within the block, identifiers come from ``random``, journals and retention need no threads, and nothing measures
    real time.

    How many deliveries end a delivering turn, how many messages have to be pending for deliveries in a row, how many
    events end a step of a compaction, and whether queues take turns in one iteration of the loop is drawn once.
    """
    # Drawn apart, so that what else a seed says does not depend on it.
    apart = copy(random)
    values: dict[tuple[str, str], Any] = {
        ("mpreg_mq.actors.queue_actor", "secrets"): _Secrets(random),
        ("mpreg_mq.queue", "uuid"): _Uuid(random),
        ("mpreg_mq.actors.store", "Journal"): SimulatedJournal,
        ("mpreg_mq.actors.dispatching", "STEPS_BETWEEN_LOOKS"): random.choice((1, 2, 3, 16)),
        ("mpreg_mq.actors.recording", "time"): _LoopTime,
        ("mpreg_mq.actors.retention", "EVENTS_PER_STEP"): apart.choice((1, 4, 20, 500)),
        ("mpreg_mq.actors.dispatching", "SHORTEST_ROW"): apart.choice((1, 2, 4)),
        ("mpreg_mq.actors.turns", "time"): _TurnTime(apart.choice((0.0, 1.0))),
        ("mpreg_mq.manager", "RetentionThread"): SimulatedRetention.start,
    }
    before = {seam: getattr(import_module(seam[0]), seam[1]) for seam in SEAMS}
    try:
        for (module, name), value in values.items():
            setattr(import_module(module), name, value)
        yield
    finally:
        for (module, name), value in before.items():
            setattr(import_module(module), name, value)
