"""Retention: what is old goes to an archive, or away, in small steps beside live traffic.

Events leave a log only at its beginning. What stands for them is a snapshot of each stream at the cut, folded from
the events themselves, so whatever is read later gives the same state as before. Unfinished messages and dead letters
are part of that state: what they lose is their history.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from operator import eq
from pathlib import Path

import attrs

from mpreg_mq.actors.store import STREAM_PREFIX
from mpreg_mq.configuration import RetentionPolicy
from mpreg_mq.errors import EventLogError
from mpreg_mq.events.codec import CODEC
from mpreg_mq.events.directories import sync_directory
from mpreg_mq.events.log import EventLog, RecordedEvent, RetainingLog, Snapshot, base_version, read_events, retaining
from mpreg_mq.events.opening import open_log
from mpreg_mq.events.transfer import ExportFile, base_of, remove_partials
from mpreg_mq.events.types import Event
from mpreg_mq.projections import QueueState
from mpreg_mq.projections.loading import state_at_base

logger = logging.getLogger("mpreg_mq")

EVENTS_PER_STEP = 500
_ARCHIVES = "[0-9]*-[0-9]*.jsonl.gz"
"""What archives are called: by their first and last position."""


@attrs.frozen
class Compaction:
    """What a compaction did: events up to ``position`` are gone, ``archive`` is where they are."""

    position: int
    events: int
    archive: Path | None


class Compactor:
    """Applies a policy to one log, in steps of a few milliseconds each; not for use by several threads at once."""

    def __init__(self, log: RetainingLog, policy: RetentionPolicy, now: Callable[[], float]) -> None:
        self._log = log
        self._policy = policy
        self._now = now
        self.last: Compaction | None = None

    def steps(self) -> Iterator[None]:
        """One compaction, if there is enough to do, and then the space that is still to be freed.

        Raises:
            EventLogError: the log or the archive could not be written; nothing has changed then.
            CorruptLogError: an event that was to go is damaged.
        """
        log = self._log
        cut = self._cut()
        if cut is not None:
            yield from self._compact(log.base_position(), cut)
        while log.reclaim():
            yield

    def _cut(self) -> int | None:
        log, policy = self._log, self._policy
        base, last = log.base_position(), log.last_position()
        events = sum(log.stream_version(stream) - log.base_version(stream) for stream in log.streams())
        if not events:
            return None
        cut = base
        # Positions may have gaps: a replicated log's do.
        positions_per_event = (last - base) / events
        if policy.keep_events is not None:
            cut = max(cut, last - int(policy.keep_events * positions_per_event))
        if policy.keep_bytes is not None and (size := log.size_bytes()) > policy.keep_bytes:
            cut = max(cut, last - int((last - base) * policy.keep_bytes / size))
        if policy.keep_seconds is not None:
            cut = max(cut, self._last_before(self._now() - policy.keep_seconds, base, last))
        cut = log.record_end(cut)
        return cut if cut - base >= policy.least_events * positions_per_event else None

    def _last_before(self, moment: float, base: int, last: int) -> int:
        """The last position whose event is older; times rise in a stream and nearly so in a log. O(log n) reads."""
        low, high = base, last
        while low < high:
            middle = (low + high + 1) // 2
            record = next(self._log.read_all(middle - 1), None)
            if record is not None and record.event.at < moment:
                low = middle
            else:
                high = middle - 1
        return low

    def _compact(self, base: int, cut: int) -> Iterator[None]:
        log = self._log
        # Of those queues alone that have events which go: each is as large as what it holds.
        folds: dict[str, Fold] = {}
        archive = self._archive(base, cut)
        try:
            for count, record in enumerate(log.read_all(base), 1):
                if record.position > cut:
                    break
                fold = folds.get(record.stream)
                if fold is None:
                    fold = folds[record.stream] = Fold(log, record.stream)
                fold.apply(record)
                if archive is not None:
                    archive.write(record)
                if count % EVENTS_PER_STEP == 0:
                    yield
            path = None if archive is None else archive.finish(cut)
        finally:
            if archive is not None:
                archive.abandon()
        log.truncate(cut, {stream: fold.snapshot() for stream, fold in folds.items()})
        self.last = Compaction(cut, cut - base, path)
        logger.info("log %s: events up to %d are compacted", log.location, cut)
        yield

    def _archive(self, base: int, cut: int) -> ExportFile | None:
        directory = self._policy.archive_directory
        if directory is None:
            return None
        try:
            directory.mkdir(parents=True, exist_ok=True)
            sync_directory(directory.parent)
            # One process writes a log, so whoever began these is not there any more.
            remove_partials(directory, _ARCHIVES)
        except OSError as error:
            raise EventLogError(f"archive to {directory}: {error}") from error
        # The same name after an interruption, so that the file of that time is replaced.
        path = directory / f"{base + 1:015d}-{cut:015d}.jsonl.gz"
        self._check_archive(path, base)
        return ExportFile(path, self._log, None, replace=True)

    def _check_archive(self, path: Path, base: int) -> None:
        """Raise where an archive of another log is in the place of ours; one that cannot be read is replaced."""
        if not path.exists():
            return
        try:
            there = open_log(path, read_only=True)
            with closing(there):
                ours = all(map(eq, there.read_all(base), self._log.read_all(base)))
        except EventLogError:
            return
        if not ours:
            raise EventLogError(
                f"archive to {path}: got a directory in which this file is of another log, expected one for this log "
                "alone; give each log an archive_directory of its own"
            )


class Fold:
    """A stream folded up to the cut: the state of a queue, or the events themselves of any other stream."""

    def __init__(self, log: RetainingLog, stream: str) -> None:
        self._stream = stream
        self._is_queue = stream.startswith(STREAM_PREFIX)
        self.version = log.base_version(stream)
        self._state = state_at_base(log, stream) if self._is_queue else QueueState()
        self._events: list[Event] = []
        if self.version and not self._is_queue:
            self._events = CODEC.decode_many(base_of(log, stream).body)

    def apply(self, record: RecordedEvent) -> None:
        """Fold an event in."""
        self.version = record.version
        if self._is_queue:
            self._state.apply(record.event)
        else:
            self._events.append(record.event)

    def snapshot(self) -> Snapshot:
        """What stands for the events so far."""
        body = self._state.dump() if self._is_queue else CODEC.encode_many(self._events)
        return Snapshot(self._stream, self.version, body)


def all_events(log: EventLog, stream: str) -> Iterator[Event]:
    """The events of a stream that is no queue, those that retention has taken included."""
    if base_version(log, stream):
        kept = retaining(log)
        assert kept is not None, "a log with a base is one"
        yield from CODEC.decode_many(base_of(kept, stream).body)
    for events in read_events(log, stream):
        yield from events


class RetentionThread:
    """Applies a policy now and then, for as long as a log is open."""

    def __init__(self, log: RetainingLog, policy: RetentionPolicy, now: Callable[[], float]) -> None:
        self._policy = policy
        self._compactor = Compactor(log, policy, now)
        self._stop = threading.Event()
        self._busy = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="mpreg-mq-retention", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(self._policy.check_seconds):
            try:
                self.compact_now()
            # The next time may do better; the log grows meanwhile, which is better than to stop.
            except Exception:
                logger.exception("retention: a compaction failed")

    def compact_now(self, *, pausing: bool = True) -> Compaction | None:
        """One compaction on the calling thread; what it did, or None where there was nothing to do."""
        with self._busy:
            self._compactor.last = None
            begun = time.perf_counter()
            for _ in self._compactor.steps():
                share = self._policy.share_of_time
                if self._stop.is_set() or (
                    pausing and self._stop.wait((time.perf_counter() - begun) * (1 - share) / share)
                ):
                    break
                begun = time.perf_counter()
            return self._compactor.last

    def stop(self) -> None:
        """Stop after the step under way."""
        self._stop.set()
        self._thread.join()
