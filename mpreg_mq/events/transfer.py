"""Export and import: a log out to JSON lines and back, one event at a time, without loss."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from gzip import GzipFile
from pathlib import Path
from secrets import token_hex
from typing import BinaryIO, cast

import attrs

from mpreg_mq.errors import CorruptLogError, EventLogError
from mpreg_mq.events.directories import sync_directory
from mpreg_mq.events.jsonlines import (
    FORMAT,
    FORMAT_VERSION,
    Base,
    Header,
    JSONLinesEventLog,
    Line,
    LineWriter,
)
from mpreg_mq.events.log import (
    Append,
    EventLog,
    RecordedEvent,
    RetainingLog,
    Snapshot,
    each_snapshot,
    retaining,
    truncated_below,
)

EVENTS_PER_STEP = 1000
"""Events between two calls of a progress callback, and in one append of an import."""

_PARTIAL = ".partial."
"""Between the two parts of the hidden name that an export has until it is complete."""


@attrs.frozen
class Progress:
    """How far an export or import is: ``events`` are done, at ``position`` of ``last_position`` of the source."""

    events: int
    position: int
    last_position: int


OnProgress = Callable[[Progress], None]
"""Called after each :data:`EVENTS_PER_STEP` events and at the end; what it raises ends the transfer."""


def export_log(
    log: EventLog,
    target: str | os.PathLike[str],
    *,
    streams: Collection[str] | None = None,
    on_progress: OnProgress | None = None,
) -> Progress:
    """Write the log's events as they are now to a file of JSON lines; gzip if the name ends in ``.gz``.

    ``streams`` chooses some; None means all. The file appears under its name when it is complete, so that an
    interrupted export leaves nothing that looks like one. O(events) time, O(1) memory; appends may go on.

    Raises:
        EventLogError: the target exists, cannot be written, or a stream is not there; or the log was compacted before
            it was read, and nothing is left of the export: begin again.
        CorruptLogError: the log is damaged; nothing is left of the export.
    """
    path = Path(os.path.abspath(target))
    missing = set(streams or ()) - set(log.streams())
    if missing:
        raise EventLogError(f"export: got the streams {sorted(missing)}, expected some of {log.streams()}")
    file = ExportFile(path, log, streams)
    try:
        return _write_events(file, log, streams, on_progress)
    finally:
        file.abandon()


class ExportFile:
    """An export that is being written; the file has its name when it is complete.

    Raises:
        EventLogError: the file exists and is not to be replaced, or cannot be written; so does every method. Nothing is
            left of one that could not be begun.
        CorruptLogError: the base of a stream is damaged.
    """

    def __init__(self, path: Path, log: EventLog, streams: Collection[str] | None, *, replace: bool = False) -> None:
        if path.exists() and not replace:
            raise EventLogError(f"export to {path}: the file exists; give another name, or remove it first")
        header = _header(log, streams)
        self.base_position = header.base_position
        """Position up to which the events were truncated when what stands for them was read."""
        self._path = path
        # Like no other's, for who finds that its own was taken away must not take another one for it.
        self._partial = path.with_name(f".{token_hex(8)}{_PARTIAL}{path.name}")
        self._events = 0
        with self._explained():
            self._disk = self._file = create(self._partial)
            try:
                if path.name.endswith(".gz"):
                    self._file = cast(BinaryIO, GzipFile("", "wb", fileobj=self._disk))
                self._writer = LineWriter(self._file)
                self._writer.write(header)
            except BaseException:
                self.abandon()
                raise

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise EventLogError(f"export to {self._path}: {error}") from error

    def write(self, record: RecordedEvent) -> None:
        """Add an event."""
        line = Line.of(record)
        self._events += 1
        with self._explained():
            self._writer.write(line)

    def finish(self, last_position: int) -> Path:
        """Complete the file and put it in its place, on disk; where that is."""
        with self._explained():
            self._writer.finish(self._events, last_position)
            if self._file is not self._disk:
                self._file.close()
            self._disk.flush()
            os.fsync(self._disk.fileno())
            self._disk.close()
            self._partial.replace(self._path)
        sync_directory(self._path.parent)
        return self._path

    def abandon(self) -> None:
        """Leave nothing behind, where it was not finished."""
        # On a full disk to close it fails as well, for want of room for what is in its buffers.
        for file in (self._file, self._disk):
            with suppress(OSError):
                file.close()
        with suppress(OSError):
            self._partial.unlink(missing_ok=True)


def create(path: Path) -> BinaryIO:
    """A new file to write to."""
    return path.open("xb")


def remove_partials(directory: Path, names: str) -> None:
    """Remove what exports left whose process was killed, of files whose names match a pattern; that nobody writes now.

    Raises:
        OSError: the directory cannot be read, or a file in it cannot be removed.
    """
    for partial in directory.glob(f".*{_PARTIAL}{names}"):
        partial.unlink(missing_ok=True)


def _header(log: EventLog, streams: Collection[str] | None) -> Header:
    chosen = None if streams is None else sorted(streams)
    # Before the bases, so that those of a later cut are noticed.
    position = _base_position(log)
    bases = [Base(stream=base.stream, version=base.version, body=base.body) for base in bases_of(log, streams).values()]
    return Header(format=FORMAT, format_version=FORMAT_VERSION, streams=chosen, base_position=position, bases=bases)


def _base_position(log: EventLog) -> int:
    kept = retaining(log)
    return 0 if kept is None else kept.base_position()


def _check_base(log: EventLog, position: int) -> None:
    """Raise where the log has been truncated since it began at ``position``."""
    if (base := _base_position(log)) != position:
        raise truncated_below("all", position, base)


def bases_of(log: EventLog, streams: Collection[str] | None = None) -> dict[str, Snapshot]:
    """The snapshot at the base of each stream, or of each of these, whose first events were truncated.

    Raises:
        CorruptLogError: one is damaged, so what remains of its stream cannot be folded.
    """
    kept = retaining(log)
    if kept is None:
        return {}
    return {stream: base_of(kept, stream) for stream in truncated(kept) if streams is None or stream in streams}


def truncated(log: RetainingLog) -> list[str]:
    """The streams whose first events were truncated, sorted."""
    return [stream for stream in log.streams() if log.base_version(stream)]


def base_of(log: RetainingLog, stream: str) -> Snapshot:
    """The snapshot at the base of a stream whose first events were truncated.

    Raises:
        CorruptLogError: it is damaged, so what remains of the stream cannot be folded.
    """
    version = log.base_version(stream)
    for snapshot in each_snapshot(log, stream, version):
        return snapshot
    if log.base_version(stream) != version:
        # It was truncated between the two looks.
        return base_of(log, stream)
    raise CorruptLogError(
        f"log {log.location}: the snapshot of {stream!r} at version {version}, below which its events were truncated, "
        "is damaged; restore the log from a copy, or from its archives"
    )


def _write_events(
    file: ExportFile, log: EventLog, streams: Collection[str] | None, on_progress: OnProgress | None
) -> Progress:
    last_position = log.last_position()
    events = 0
    records = log.read_all()
    # Those who truncate the log later than this the iterator itself notices.
    _check_base(log, file.base_position)
    for record in records:
        if record.position > last_position:
            break
        if streams is None or record.stream in streams:
            file.write(record)
            events += 1
            if on_progress is not None and events % EVENTS_PER_STEP == 0:
                on_progress(Progress(events, record.position, last_position))
    done = Progress(events, last_position, last_position)
    if on_progress is not None:
        on_progress(done)
    file.finish(last_position)
    return done


def import_log(
    source: str | os.PathLike[str] | EventLog, log: EventLog, *, on_progress: OnProgress | None = None
) -> Progress:
    """Append the events of an export, or of another log, to ``log``, in their order.

    The streams must not be in ``log`` yet, which must be empty where the source was truncated at its beginning.
    Into an empty log a whole export comes with the positions it had. An export is checked from end to end before its
    first event is appended; an import that fails in the middle, for want of space, leaves what it had appended:
    import into a new log, and put that in its place.

    Raises:
        EventLogError: a stream is in the log already, the log could not store the events, or the source was compacted
            before it was read: begin again, with a new log.
        CorruptLogError: the source is damaged.
    """
    if isinstance(source, str | os.PathLike):
        opened = JSONLinesEventLog(source)
        try:
            return import_log(opened, log, on_progress=on_progress)
        finally:
            opened.close()
    there = sorted(set(source.streams()) & set(log.streams()))
    if there:
        raise EventLogError(
            f"import: the log {log.location} has {there} already, expected none of them; import into a new log"
        )
    # In this order: the bases of a later cut are noticed, and what it takes away then by the iterator itself.
    base = _base_position(source)
    bases = bases_of(source)
    last_position = source.last_position()
    records = source.read_all()
    _check_base(source, base)
    if bases:
        into = retaining(log)
        if into is None:
            raise EventLogError(
                f"import: the source was truncated at its beginning, which {log.location} cannot represent; "
                "import into an SQLite log"
            )
        into.adopt(base, bases)
    done = Progress(0, 0, last_position)
    step: list[RecordedEvent] = []
    for record in records:
        step.append(record)
        if len(step) == EVENTS_PER_STEP:
            done = _append_step(log, step, done, on_progress)
            step.clear()
    return _append_step(log, step, attrs.evolve(done, position=last_position), on_progress)


def _append_step(
    log: EventLog, step: Iterable[RecordedEvent], done: Progress, on_progress: OnProgress | None
) -> Progress:
    batch = [Append(record.stream, record.version - 1, (record.event,)) for record in step]
    log.append(batch)
    position = step[-1].position if step else done.last_position  # type: ignore[index]
    progress = Progress(done.events + len(batch), position, done.last_position)
    if on_progress is not None:
        on_progress(progress)
    return progress
