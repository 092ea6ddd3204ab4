"""The node's log: measures its appends, and tells when one for a queue failed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from mpreg_mq.cluster.metrics import ClusterMetrics
from mpreg_mq.errors import EventLogError
from mpreg_mq.events.log import Append
from mpreg_mq.events.nats import NatsEventLog, NatsTarget

OnFailure = Callable[[str, EventLogError], None]
"""Called, on the thread that appends, with the stream and what went wrong."""


class WatchedLog(NatsEventLog):
    """A log on NATS that is watched."""

    def __init__(self, target: NatsTarget, metrics: ClusterMetrics, on_failure: OnFailure) -> None:
        super().__init__(target)
        self._metrics = metrics
        self._on_failure = on_failure

    def append(self, batch: Sequence[Append]) -> None:
        """As :meth:`NatsEventLog.append`. Of a batch of several streams nobody knows which one failed."""
        start = time.perf_counter()
        try:
            super().append(batch)
        except EventLogError as error:
            streams = {append.stream for append in batch}
            if len(streams) == 1:
                self._on_failure(streams.pop(), error)
            raise
        self._metrics.appends.add(time.perf_counter() - start)

    def append_each(self, batch: Sequence[Append]) -> list[EventLogError | None]:
        """As :meth:`NatsEventLog.append_each`."""
        start = time.perf_counter()
        outcomes = super().append_each(batch)
        self._metrics.appends.add(time.perf_counter() - start)
        failed = {append.stream: error for append, error in zip(batch, outcomes, strict=True) if error is not None}
        for stream, error in failed.items():
            self._on_failure(stream, error)
        return outcomes
