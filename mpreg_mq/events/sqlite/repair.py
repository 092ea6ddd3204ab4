"""Checking a log file from end to end, and cutting a damaged one at the damage, after a backup."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import attrs

from mpreg_mq.errors import CorruptLogError, EventLogError, LogLockedError, UnknownEventError
from mpreg_mq.events.codec import CODEC
from mpreg_mq.events.directories import sync_directory
from mpreg_mq.events.jsonlines import FORMAT
from mpreg_mq.events.sqlite import schema, snapshots
from mpreg_mq.events.sqlite.failures import UNREADABLE
from mpreg_mq.events.sqlite.header import MAGIC, header_problem, read_header, restore
from mpreg_mq.events.sqlite.log import SQLiteEventLog
from mpreg_mq.events.sqlite.records import EMPTY, Head, checksum, old_checksum
from mpreg_mq.events.sqlite.sizes import size_of
from mpreg_mq.events.sqlite.transactions import Row, Stream
from mpreg_mq.events.sqlite.writer_file import WriterLock, head_path, linked, read_head
from mpreg_mq.events.transfer import base_of, truncated

_ROWS = 200
_EXPORTS = (b"\x1f\x8b", b'{"format":"' + FORMAT.encode())
"""How an export begins, with and without gzip."""
_LARGEST_PAGE = 1 << 16
"""The first page of a log says what its tables are."""

OnChecked = Callable[[int, int], None]
"""Called now and then with the position that was reached and the last one."""


@attrs.frozen
class Damage:
    """What is wrong with a log. ``position`` is that of the first event that cannot be believed, where it is known.

    ``lost_bases`` are the streams that cannot be folded any more, because the snapshot in place of their truncated
    events is damaged; what else may be wrong is then only seen where nothing of that is.
    """

    position: int | None
    reason: str
    lost_bases: tuple[str, ...] = ()


@attrs.frozen
class Repair:
    """What a repair did. Events from ``cut_at`` on are gone.

    ``known_last`` is the last position that anything in the damaged log speaks of; 0 where nothing does.
    ``lost_bases`` are the streams that cannot be folded, before and after: see :class:`Damage`.
    """

    path: Path
    backup: Path
    kept_events: int
    cut_at: int
    known_last: int
    reason: str
    lost_bases: tuple[str, ...] = ()


def check_log(path: str | os.PathLike[str], *, on_progress: OnChecked | None = None) -> Damage | None:
    """Read a whole log file, its checksums and SQLite's own structure; what is wrong with it, or None.

    So is what stands for events that were truncated.

    It is opened read-only, and may be in use. O(size) time, O(1) memory. A header that only forbids to write the file
    is not noticed while there is a write-ahead log: opening it for writing and :func:`repair_log` notice it.

    Raises:
        EventLogError: the file is missing, no log in SQLite, another program's, or a newer release's.
    """
    try:
        log = SQLiteEventLog(path, read_only=True)
    except CorruptLogError as error:
        _check_ours(Path(path), error)
        return Damage(error.position, str(error))
    with closing(log):
        try:
            _read_all(log, on_progress)
            found = log.check_structure()
            if found is not None:
                return Damage(None, found)
            lost = _lost_bases(log)
        except CorruptLogError as error:
            return Damage(error.position, str(error))
    return Damage(None, next(iter(lost.values())), tuple(lost)) if lost else None


def _read_all(log: SQLiteEventLog, on_progress: OnChecked | None) -> None:
    """Have everything checked that is in the log; what is compacted meanwhile need not be."""
    last = log.last_position()
    reached = 0
    while True:
        base = log.base_position()
        try:
            for record in log.read_all(reached):
                reached = record.position
                if on_progress is not None and reached % 10_000 == 0:
                    on_progress(reached, last)
            return
        except CorruptLogError:
            raise
        except EventLogError:
            if log.base_position() == base:
                raise


def _lost_bases(log: SQLiteEventLog) -> dict[str, str]:
    """By stream, what is wrong with the snapshot in place of its truncated events."""
    lost = {}
    for stream in truncated(log):
        try:
            base_of(log, stream)
        except CorruptLogError as error:
            lost[stream] = str(error)
    return lost


def repair_log(path: str | os.PathLike[str]) -> Repair | None:
    """Cut a damaged log file before its first damaged record; None where it is not damaged.

    The damaged files are kept: as ``<path>.damaged-1``, or the next number that is free. What was intact is copied
    to a new file, which then takes the place of the old one; an interrupted repair changes nothing.

    Raises:
        LogLockedError: the log is in use.
        CorruptLogError: what is damaged cannot be cut off: the snapshot in place of truncated events, or what says
            where the log begins.
        EventLogError: the file is missing, an export or an archive, or nothing says that it is a log; or there is no
            room for the copies.
    """
    log = linked(Path(os.path.abspath(path)))
    damage = check_log(log) or _damaged_header(log)
    if damage is None:
        return None
    if damage.lost_bases:
        raise CorruptLogError(f"repair {log}: {damage.reason}; no repair brings it back, and nothing was changed")
    lock = WriterLock(log)
    try:
        backup = _back_up(log)
        repaired = log.with_name(log.name + ".repaired")
        repaired.unlink(missing_ok=True)
        found = _salvage(backup, repaired)
        left = check_log(repaired)
        if left is not None and not left.lost_bases:
            for file in (repaired, *_sidecars(repaired), backup, *_sidecars(backup)):
                file.unlink(missing_ok=True)
            raise CorruptLogError(
                f"repair {log}: {damage.reason}; what could be kept of it is no whole log ({left.reason}), so nothing "
                "was changed; restore the log from a copy, or from its archives"
            )
        _take_place(repaired, log)
    except OSError as error:
        raise EventLogError(f"repair {log}: {error}") from error
    finally:
        lock.release()
    kept, known = found.head.position, found.known_last
    return Repair(log, backup, kept, kept + 1, max(known, kept), damage.reason, found.lost_bases)


def _damaged_header(log: Path) -> Damage | None:
    """What a check does not ask where there is a write-ahead log: of a log in use it would end SQLite's locks.

    Whoever has it open to write it has found that it can be written.
    """
    if all(size_of(f"{log}{suffix}") == 0 for suffix in ("-wal", "-journal")):
        # The check has asked.
        return None
    try:
        lock = WriterLock(log)
    except LogLockedError:
        return None
    try:
        problem = header_problem(read_header(log))
    finally:
        lock.release()
    return None if problem is None else Damage(None, f"open {log}: {problem}")


def _sidecars(log: Path) -> list[Path]:
    return [log.with_name(log.name + suffix) for suffix in ("-wal", "-shm")] + [head_path(log)]


def _back_up(log: Path) -> Path:
    for number in count(1):
        backup = log.with_name(f"{log.name}.damaged-{number}")
        if not backup.exists():
            break
    for source, target in zip([log, *_sidecars(log)], [backup, *_sidecars(backup)], strict=True):
        if source.exists() and not source.name.endswith("-shm"):
            shutil.copyfile(source, target)
            with target.open("rb+") as file:
                os.fsync(file.fileno())
    sync_directory(log.parent)
    return backup


def _check_ours(path: Path, error: CorruptLogError) -> None:
    """Raise where a file that cannot be read as a log may be anything: what takes its place would be an empty log."""
    try:
        with path.open("rb") as file:
            begin = file.read(_LARGEST_PAGE)
    except OSError as missing:
        raise EventLogError(f"check {path}: {missing}") from error
    if begin.startswith(_EXPORTS):
        raise EventLogError(
            f"check {path}: found an export or an archive, expected a log in SQLite; it is read as it is "
            "(mpreg-mq verify), and one that is damaged cannot be repaired: make it again, or use another copy"
        ) from error
    of_log = begin.startswith(MAGIC) and begin[68:72] == schema.APPLICATION_ID.to_bytes(4, "big")
    if not of_log and not any(table.encode() in begin for table in schema.TABLES) and _recorded_last(path) is None:
        raise EventLogError(
            f"check {path}: found a file that begins with {begin[:16]!r}, of which nothing says that it ever was an "
            "event log; give another path, or restore the log from a copy"
        ) from error


def _recorded_last(log: Path) -> int | None:
    """The last position that the head file knows; None where there is none that can be read."""
    with suppress(EventLogError):
        recorded = read_head(log)
        if recorded is not None:
            return recorded.head.position
    return None


def _known_last(source: sqlite3.Connection, path: Path) -> int:
    """The last position that anything in a damaged log speaks of."""
    found = [_recorded_last(path) or 0]
    with suppress(*UNREADABLE, CorruptLogError):
        found.append(schema.read_head(source, "head", path).position)
    found += [row[0] for row in _readable(source, "SELECT max(position) FROM records") if isinstance(row[0], int)]
    return max(found)


class _Salvaged(NamedTuple):
    """What was copied, and what is known of the rest."""

    head: Head
    lost_bases: tuple[str, ...]
    known_last: int


def _salvage(damaged: Path, repaired: Path) -> _Salvaged:
    """Copy the records up to the first that is damaged."""
    # Read from a copy of the backup: recovering its write-ahead log would change it.
    scratch = damaged.with_name(damaged.name + ".scratch")
    try:
        for source, target in zip([damaged, *_sidecars(damaged)], [scratch, *_sidecars(scratch)], strict=True):
            if source.exists():
                shutil.copyfile(source, target)
        _restore_tables(scratch)
        with (
            closing(sqlite3.connect(scratch, isolation_level=None)) as source_connection,
            closing(sqlite3.connect(repaired, isolation_level=None)) as target_connection,
        ):
            target_connection.execute("PRAGMA synchronous = FULL")
            target_connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            target_connection.execute("BEGIN EXCLUSIVE")
            schema.create_tables(target_connection)
            head, lost = _copy(source_connection, target_connection, scratch)
            target_connection.execute("COMMIT")
            return _Salvaged(head, lost, _known_last(source_connection, scratch))
    finally:
        for file in (scratch, *_sidecars(scratch)):
            file.unlink(missing_ok=True)


def _restore_tables(path: Path) -> None:
    """Have the file say what it is and what its tables are, as each log does: one wrong byte there hides all of it."""
    restore(path)
    with suppress(*UNREADABLE), closing(sqlite3.connect(path, isolation_level=None)) as connection:
        # Also has SQLite pass by what it does not understand there.
        connection.execute("PRAGMA writable_schema = ON")
        for statement in (*schema.TABLES, schema.OLD_INDEX):
            name = statement.split(" (" if " TABLE " in statement else " ON ")[0].split()[-1]
            connection.execute("UPDATE sqlite_master SET sql = ? WHERE name = ?", (statement, name))


def _copy(source: sqlite3.Connection, target: sqlite3.Connection, path: Path) -> tuple[Head, tuple[str, ...]]:
    def fetch(statement: str, *parameters: object) -> list[Any]:
        try:
            return source.execute(statement, parameters).fetchall()
        except UNREADABLE as error:
            raise CorruptLogError(f"read {path}: {error}") from error

    base = EMPTY
    with suppress(*UNREADABLE, CorruptLogError):
        base = schema.read_head(source, "base", path)
    streams: dict[int, Stream] = {}
    for row in _readable(source, "SELECT id, name, base_version FROM streams"):
        with suppress(TypeError, ValueError, sqlite3.IntegrityError):
            stream = Stream(int(row[0]), str(row[1]), int(row[2]), int(row[2]))
            target.execute(
                "INSERT INTO streams (id, name, base_version) VALUES (?, ?, ?)",
                (stream.id, stream.name, stream.base_version),
            )
            streams[stream.id] = stream
    head = base
    for record in _intact(source, base, streams):
        target.execute(f"{schema.INSERT_RECORD} (?, ?, ?, ?, ?, ?)", record)
        head = Head(record[0], record[4])
        streams[record[1]].version = record[2]
    lost = []
    for stream in streams.values():
        if not stream.version:
            target.execute("DELETE FROM streams WHERE id = ?", (stream.id,))
            continue
        needed = stream.base_version
        with suppress(CorruptLogError):
            for snapshot in snapshots.read(fetch, stream, path):
                snapshots.save(target, stream, snapshot)
                if snapshot.version == stream.base_version:
                    needed = 0
        if needed:
            lost.append(stream.name)
    schema.write_head(target, "base", base)
    schema.write_head(target, "head", head)
    schema.note_all_places(target)
    return head, tuple(sorted(lost))


def _readable(connection: sqlite3.Connection, statement: str, *parameters: int) -> Iterator[tuple[Any, ...]]:
    """Rows until SQLite cannot go on."""
    with suppress(*UNREADABLE):
        yield from connection.execute(statement, parameters)


def _intact(connection: sqlite3.Connection, base: Head, streams: dict[int, Stream]) -> Iterator[Row]:
    """The records from the base on whose checksums chain, in order, until one does not."""
    position, before = base
    while True:
        rows = list(
            _readable(
                connection,
                "SELECT position, stream_id, version, count, checksum, body FROM records "
                "WHERE position > ? ORDER BY position LIMIT ?",
                position,
                _ROWS,
            )
        )
        if not rows:
            return
        for row in rows:
            if not _chains(row, position, before, streams):
                return
            yield row
            position, before = row[0], row[4]


def _chains(row: tuple[Any, ...], position: int, before: bytes, streams: dict[int, Stream]) -> bool:
    last, stream_id, version, events, sum_, body = row
    stream = streams.get(stream_id)
    # Damage can have made anything of the columns.
    with suppress(Exception):
        if stream is None or last != position + events or version != stream.version + events:
            return False
        content = (before, last, version, events, stream.name, body)
        return bool(sum_ == checksum(*content) or sum_ == old_checksum(*content)) and _is_readable(body)
    return False


def _is_readable(body: bytes) -> bool:
    """Whether the events of a record can be read, by this release or by a newer one."""
    try:
        CODEC.decode_many(body)
    except UnknownEventError:
        return True
    except CorruptLogError:
        return False
    return True


def _take_place(repaired: Path, log: Path) -> None:
    with repaired.open("rb+") as file:
        os.fsync(file.fileno())
    for file_beside in _sidecars(log):
        file_beside.unlink(missing_ok=True)
    repaired.replace(log)
    sync_directory(log.parent)
