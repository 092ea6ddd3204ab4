"""A log file: how it is changed, and how it comes back after a failure."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from mpreg_mq.errors import EventLogError
from mpreg_mq.events.log import Snapshot
from mpreg_mq.events.sqlite import schema, snapshots
from mpreg_mq.events.sqlite.failures import changed_by_others, explain, is_full, is_refusal
from mpreg_mq.events.sqlite.filling import fill
from mpreg_mq.events.sqlite.kernel_sync import KernelSync
from mpreg_mq.events.sqlite.opened import CHECKPOINT_PAGES, OpenedFile
from mpreg_mq.events.sqlite.places import Unplaced, note, remove
from mpreg_mq.events.sqlite.records import EMPTY, Head
from mpreg_mq.events.sqlite.transactions import Addition, Stream, insert, transaction

logger = logging.getLogger("mpreg_mq")

_T = TypeVar("_T")

_PAGE_BYTES = 4096
FRAME_BYTES = 24 + _PAGE_BYTES
"""What a page takes in the write-ahead log."""
WAL_HEADER_BYTES = 32
FILL_AFTER_PAGES = 100
"""A write-ahead log that has got so many pages will most likely get many more."""
FILL_STEP_BYTES = 1 << 18
FILLED_PAGES = CHECKPOINT_PAGES
"""So many it has when it begins anew."""
_CHUNK_BYTES = 1 << 20
_MOST_PAGES = 4 * CHECKPOINT_PAGES
"""So large the write-ahead log may become before those who write have to wait until all of it is copied."""
_TRUNCATED = "SELECT position, length(body) FROM records WHERE position <= ? ORDER BY position LIMIT ?"
_QUICK = (
    "PRAGMA synchronous = NORMAL",
    "PRAGMA wal_autocheckpoint = 0",
    "PRAGMA busy_timeout = 0",
)
"""How the writing connection is set so that a commit waits for nothing."""


class LogFile(OpenedFile):
    """One file, opened for writing or for reading; not safe for use by several threads at once."""

    # --- committing ---------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def transaction(self, kind: str = "IMMEDIATE") -> Iterator[sqlite3.Connection]:
        """Run statements in a transaction of the writing connection, which waits for the disk."""
        with self._suspecting(), transaction(self._thorough(), kind) as connection:
            yield connection

    @contextlib.contextmanager
    def _suspecting(self) -> Iterator[None]:
        """An error of the disk may have cost what was committed quickly and is not synced yet.

        The system tells of a sync that failed only once, and does not try again what it covered: the next one would
        end well, on top of a hole.
        """
        try:
            yield
        except sqlite3.Error as error:
            if not self._is_synced and not is_refusal(error):
                self.fail(error)
            raise

    def commit(self, addition: Addition) -> None:
        """Make an addition in one transaction, which waits for the disk."""
        try:
            placed = self._insert(self._thorough(), addition)
        except sqlite3.Error as error:
            if is_refusal(error):
                if changed_by_others(error):
                    self.fail(error)
                raise
            logger.warning("log %s: a commit failed (%s); opening it again to see what it holds", self.path, error)
            self.fail(error)
            if not self.settle([addition.head]):
                raise explain(error, "append", self.path) from error
        except BaseException as error:
            self.fail(error)
            raise
        self._come_to(addition, placed)
        self.synced(addition.head)
        if not self._filled:
            self._new_pages += _pages(addition)
            if self.wants_filling:
                self.fill_ahead()

    def commit_quickly(self, addition: Addition) -> bool:
        """As :meth:`commit`, but the disk has yet to be waited for; False where others keep the file busy.

        After an error, :meth:`settle` tells what became of it.
        """
        writer = self._writer
        assert writer is not None, "only a log that is open for writing changes"
        try:
            self._set_quick(writer)
            placed = self._insert(writer, addition)
            self._is_synced = False
            self._come_to(addition, placed)
            pages = _pages(addition)
            self.quick_pages += pages
            self._new_pages += pages
        except BaseException as error:
            if isinstance(error, sqlite3.Error) and is_refusal(error) and not changed_by_others(error):
                return False
            self.fail(error)
            raise
        return True

    def _set_quick(self, writer: sqlite3.Connection) -> None:
        if not self._quick:
            for setting in _QUICK:
                writer.execute(setting)
            self._quick = True

    def _insert(self, writer: sqlite3.Connection, addition: Addition) -> bool:
        """Make an addition, and note places where it is time to; whether that was done."""
        self.check_in_place()
        places = self._unplaced.with_more(addition.rows)
        if not places:
            insert(writer, addition)
            return False
        insert(writer, addition, lambda connection: note(connection, places, addition.head.position))
        return True

    def _come_to(self, addition: Addition, placed: bool) -> None:
        """Know what is in the file now."""
        # Before the versions: who knows of a record can read it.
        if placed:
            self._unplaced = Unplaced()
        else:
            self._unplaced.add(addition.rows)
        self.head = addition.head
        for stream in addition.new_streams:
            self.streams[stream.name] = stream
            self._names[stream.id] = stream.name
        for name, version in addition.versions.items():
            if version:
                self.streams[name].version = version

    def note_head(self) -> None:
        """Note in the file itself where the log ends, and the places of all records."""
        places = self._unplaced.places
        with self.transaction() as connection:
            schema.write_head(connection, "head", self.head)
            if places:
                note(connection, places, self.head.position)
        self._unplaced = Unplaced()

    @property
    def synced_position(self) -> int:
        """Position up to which all that was committed is on disk, as far as ``synchronous`` goes."""
        # In this order: what is committed quickly is noted as not synced before it is the head.
        position = self.head.position
        return position if self._is_synced else self._synced_to

    def synced(self, head: Head) -> None:
        """What was committed up to ``head`` is on disk; for a sync that ends late, more of it may have been already."""
        if head.position < self._synced_to:
            return
        self._synced_to = head.position
        self._is_synced = head == self.head
        if self._head_file is not None:
            self._head_file.write(head)

    @property
    def wants_filling(self) -> bool:
        """Whether it is time to :meth:`fill_ahead`; where no commit waits for the disk it never is."""
        return not self._filled and self._new_pages >= FILL_AFTER_PAGES and self._synchronous == "FULL"

    def fill_ahead(self) -> None:
        """Come a step nearer to the size that the write-ahead log has when it begins anew.

        Syncs need not note a new size then. In steps, because those who sync meanwhile wait for each. For a thread
        that may wait, while nobody writes: no other program either, whose frames would be where the zeros go. Where one
        does, it is left for later; where there is no room, as it is.
        """
        wanted = WAL_HEADER_BYTES + FILLED_PAGES * FRAME_BYTES
        writer = self._writer
        assert writer is not None, "only a log that is open for writing changes"
        with contextlib.suppress(sqlite3.Error):
            # Waiting for nobody: what was committed before this is still to be answered.
            self._set_quick(writer)
            writer.execute("BEGIN IMMEDIATE")
            try:
                # Unless the step is made and there are others left.
                self._filled = True
                with contextlib.suppress(OSError):
                    self._filled = self._fill(self._wal, FILL_STEP_BYTES, wanted) >= wanted
            finally:
                writer.execute("ROLLBACK")

    @staticmethod
    def _fill(path: Path, step: int, size: int) -> int:
        return fill(path, step, size)

    @property
    def takes_quick_commits(self) -> bool:
        """Whether nothing has to be waited for before the next commit."""
        return not self.closed and not self.forked and self._failed is None and self.has_reserve

    def checkpoint(self) -> bool:
        """Copy the write-ahead log into the file while others write on; whether it is time to :meth:`restart` it.

        For a thread that may wait. What this cannot do now the next one does: the events are on disk either way.
        """
        self.quick_pages = 0
        with self._checkpointing:
            if self.closed or self.forked:
                return False
            try:
                if self._checkpointer is None:
                    self._checkpointer = self._connect("rw")
                _, pages, copied = self._checkpointer.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            except sqlite3.Error as error:
                logger.warning("log %s: a checkpoint failed: %s", self.path, error)
                return False
        return bool(pages == copied or pages >= _MOST_PAGES)

    def restart(self) -> None:
        """Copy the rest of the write-ahead log, and begin it anew, as far as readers allow; nobody writes meanwhile.

        A first write syncs the new beginning, which is not for one that must not wait.
        """
        with contextlib.suppress(sqlite3.Error), self._suspecting():
            self._thorough().execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            self.note_head()

    def open_kernel_sync(self) -> KernelSync | None:
        """What syncs the commits that do not wait; None where each has to. Give it to :meth:`close_kernel_sync`."""
        if self._synchronous != "FULL":
            return None
        made = self._make_kernel_sync()
        if made is not None:
            self._kernel_syncs.append(made)
        return made

    def close_kernel_sync(self, sync: KernelSync) -> None:
        """It is not used any more; also after the file was closed."""
        if sync in self._kernel_syncs:
            self._kernel_syncs.remove(sync)
        sync.close()

    def _reopen_kernel_syncs(self) -> None:
        try:
            for sync in self._kernel_syncs:
                sync.reopen(self._wal)
        except OSError as error:
            raise EventLogError(f"open {self.path}: its write-ahead log cannot be opened again: {error}") from error

    def _make_kernel_sync(self) -> KernelSync | None:
        return KernelSync.of(self._wal)

    @staticmethod
    def _write_again(path: Path) -> None:
        """Put on disk what a sync that failed has left out: the system still has it, but takes it for written.

        Otherwise the write-ahead log would have a hole there on disk, and after a power cut SQLite would copy what is
        before the hole over what a checkpoint has copied since.
        """
        with path.open("r+b", buffering=0) as file:
            while chunk := file.read(_CHUNK_BYTES):
                file.seek(-len(chunk), os.SEEK_CUR)
                file.write(chunk)
            os.fsync(file.fileno())

    @property
    def _wal(self) -> Path:
        return self.path.with_name(self.path.name + "-wal")

    # --- failing and coming back --------------------------------------------------------------------------

    def fail(self, error: BaseException) -> None:
        """What was committed last may not be in the file, or not on disk."""
        self._failed = error

    def settle(self, heads: Sequence[Head]) -> int:
        """After a failure: open the file again; how many of the commits that led to ``heads`` it holds, on disk.

        Raises:
            EventLogError: that cannot be found out now, so the file takes nothing until it can.
        """
        if self._failed is None and not self._is_synced:
            self.fail(EventLogError("it was interrupted before it was on disk"))
        error = self._failed
        try:
            self.recover()
        except (sqlite3.Error, EventLogError) as second:
            raise EventLogError(
                f"append {self.path}: {_said(error)}; whether the events are in the log is not known, and it "
                f"cannot be opened again ({second}); it takes no events until that works"
            ) from error
        return sum(map(self._holds, heads))

    def _holds(self, head: Head) -> bool:
        # Of what was truncated since, only the end of it is known; only what was there can be truncated.
        return head.position <= self.base.position or self._find_checksum(head.position) == head.checksum

    def recover(self) -> None:
        """Open the file again after a failure; nothing to do where there was none.

        The write-ahead log is emptied into the file, so that what was found is on disk, and a transaction that was
        not found cannot turn up after the next failure.
        """
        if self._failed is None:
            return
        assert self._head_file is not None, "only a log that is open for writing fails"
        self.check_in_place()
        if isinstance(self._failed, sqlite3.Error) and is_full(self._failed):
            self._head_file.give_up_reserve()
        if self._writer is not None:
            with contextlib.suppress(sqlite3.Error):
                self._writer.close()
        try:
            self._write_again(self._wal)
        except OSError as error:
            raise EventLogError(f"open {self.path}: its write-ahead log cannot be synced: {error}") from error
        self._writer = self._connect("rw")
        self._set_up(self._writer)
        self.reader.replace(self._connect_reader())
        self.load()
        self._check_last()
        self.note_head()
        with self._checkpointing:
            if self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
                raise EventLogError(f"open {self.path}: readers kept its write-ahead log from being emptied; try again")
        self._reopen_kernel_syncs()
        self._head_file.write(self.head)
        self._synced_to = self.head.position
        self._is_synced = True
        self.quick_pages = self._new_pages = 0
        # It has been cut.
        self._filled = False
        self._failed = None

    @property
    def has_reserve(self) -> bool:
        """Whether there is room for more than finishing the messages that are there."""
        return self._head_file is None or self._head_file.reserved

    def take_reserve(self) -> bool:
        """Take the reserve back, where the disk has room for it again."""
        return self._head_file is None or self._head_file.reserve()

    # --- retention ----------------------------------------------------------------------------------------

    def making_room(self, step: Callable[[], _T]) -> _T:
        """Do what in the end makes room on the disk: with the reserve, where there is no other for it."""
        try:
            return step()
        except sqlite3.Error as error:
            head_file = self._head_file
            if self._failed is not None or not is_full(error) or head_file is None or not head_file.give_up_reserve():
                raise
            logger.info("log %s: using its reserve to make room", self.path)
            return step()

    def adopt(self, bases: Mapping[str, Snapshot]) -> None:
        """Begin an empty log after the events that ``bases`` stand for."""
        if self.head != EMPTY or self.streams:
            raise EventLogError(f"adopt {self.path}: found a log with events, expected an empty one")
        # Positions have no gaps here, as they have where some streams were chosen, or in a replicated log.
        base = Head(sum(snapshot.version for snapshot in bases.values()), EMPTY.checksum)
        streams = [Stream(id_, name, 0, 0) for id_, name in enumerate(sorted(bases), 1)]
        with self.transaction() as connection:
            connection.executemany(
                "INSERT INTO streams (id, name, base_version) VALUES (?, ?, 0)",
                [(stream.id, stream.name) for stream in streams],
            )
            snapshots.rebase(connection, base, [(stream, bases[stream.name]) for stream in streams])
            schema.write_head(connection, "head", base)
        self.load()
        if self._head_file is not None:
            self._head_file.write(self.head)

    def reclaim(self, records: int, pages: int) -> bool:
        """Remove some truncated records, or give some free pages back; whether there is more to do."""

        def step() -> bool:
            with self._suspecting():
                return self._reclaim(self._thorough(), records, pages)

        return self.making_room(step)

    def _reclaim(self, writer: sqlite3.Connection, records: int, pages: int) -> bool:
        if not self.has_reserve:
            # Each step goes where the one before was in the write-ahead log, which must not grow.
            writer.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        with transaction(writer, "IMMEDIATE"):
            last, count = self._first_truncated(writer, records)
            remove(writer, last, count)
            writer.execute("DELETE FROM records WHERE position <= ?", (last,))
        if count:
            return True
        free = writer.execute("PRAGMA freelist_count").fetchone()[0]
        if not free:
            return False
        # It goes on at each step, and only a script is stepped to its end where there are no columns.
        writer.executescript(f"PRAGMA incremental_vacuum({pages})")
        return bool(free > pages)

    def _first_truncated(self, writer: sqlite3.Connection, records: int) -> tuple[int, int]:
        """The position of the last of the first truncated records, and how many these are: not more than are removed
        in a few milliseconds, for what is removed takes as much of the write-ahead log as what is added."""
        positions = [0]
        size = 0
        for position, length in writer.execute(_TRUNCATED, (self.base.position, records)):
            positions.append(position)
            size += length or 0
            if size >= _CHUNK_BYTES:
                break
        return positions[-1], len(positions) - 1

    def versions_at(self, position: int) -> dict[str, int]:
        """Versions of the streams that have events at or below ``position``; O(streams)."""
        self.note_head()
        found = {}
        for name, stream in self.streams.items():
            row = self._reading.execute(
                "SELECT max(version) FROM places WHERE stream_id = ? AND position <= ?", (stream.id, position)
            ).fetchone()
            version = max(row[0] or 0, stream.base_version)
            if version:
                found[name] = version
        return found

    def head_at(self, position: int) -> Head:
        """The head that the log had at the end of the record that ends at ``position``."""
        if position == self.base.position:
            return self.base
        sum_ = self._find_checksum(position)
        if sum_ is None:
            raise EventLogError(
                f"truncate {self.path}: got position {position}, expected the end of a record; ask record_end"
            )
        return Head(position, sum_)

    # --- the end ------------------------------------------------------------------------------------------

    def sync(self) -> bool:
        """Move everything into the file and to disk; whether no reader was in the way."""
        if self._synchronous == "FULL" and self._is_synced:
            return True
        self.note_head()
        # A checkpoint syncs the write-ahead log before it copies from it, and the database after.
        with self._suspecting(), self._checkpointing:
            return not self._thorough().execute("PRAGMA wal_checkpoint(FULL)").fetchone()[0]

    def close(self) -> None:
        """Note the head in the file, and leave it alone in its directory."""
        if self.closed:
            return
        self.closed = True
        if self.forked:
            return
        ended = False
        try:
            if self._writer is not None and self._failed is None:
                self.note_head()
                ended = True
        finally:
            self._abandon(remove_head=ended)


def _pages(addition: Addition) -> int:
    """Roughly how many pages an addition changes."""
    return 1 + sum([len(row[-1]) for row in addition.rows]) // _PAGE_BYTES


def _said(error: BaseException | None) -> str:
    return f"SQLite says: {error}" if isinstance(error, sqlite3.Error) else str(error)
