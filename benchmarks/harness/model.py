"""The vocabulary of the runner: rows of the table, entries of a row, and what an entry has to offer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

import attrs

from benchmarks.harness.payloads import Payloads

Values = Mapping[str, float]
"""What one round gave, by the name of the metric."""


class UnavailableError(Exception):
    """What an entry needs is not on this machine; the text says what. The entry is skipped."""


@attrs.frozen
class Context:
    """What an entry is told in its process.

    ``directory`` is an empty one on the file system that all logs and servers of the run share. ``seconds`` is
    about how long one round should take; ``quick`` asks for small sizes where they do not follow from that.
    """

    directory: Path
    payloads: Payloads
    seconds: float
    quick: bool = False
    address: str | None = None
    mpreg_source: str | None = None


class Contestant(Protocol):
    """One side of a measurement, in a process of its own."""

    async def prepare(self) -> None:
        """Connect, fill, warm up: once, and not measured.

        Raises:
            UnavailableError: it cannot run here.
        """

    async def measure(self) -> Values:
        """One round."""

    async def close(self) -> None:
        """Release everything."""


class Kind(Enum):
    """Whose figure it is."""

    OURS = "ours"
    PEER = "peer"
    LIMIT = "limit"


@attrs.frozen
class Entry:
    """One contestant of a row; ``durability`` says what an answer of it promises."""

    name: str
    label: str
    durability: str
    make: Callable[[Context], Contestant]
    kind: Kind = Kind.PEER
    server: str | None = None


@attrs.frozen
class Metric:
    """What a round measures, and which way is better."""

    name: str
    unit: str
    title: str = ""
    higher_is_better: bool = True


@attrs.frozen
class Row:
    """One measurement: the same workload for all its entries.

    ``fresh`` starts a process for every round, where the first round of a process differs from later ones.
    """

    name: str
    title: str
    metrics: tuple[Metric, ...]
    entries: tuple[Entry, ...]
    fresh: bool = False
    webhooks: bool = False

    def entry(self, name: str) -> Entry:
        """The entry of this name.

        Raises:
            KeyError: there is none.
        """
        return {entry.name: entry for entry in self.entries}[name]


@attrs.frozen
class Outcome:
    """What an entry gave over all rounds: values by metric, or why there are none."""

    row: str
    entry: str
    values: Mapping[str, tuple[float, ...]] = attrs.field(factory=dict)
    skipped: str | None = None
    failed: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Plain data, without what is empty."""
        return {key: value for key, value in attrs.asdict(self).items() if value}
