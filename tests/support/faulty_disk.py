"""A disk that loses power, fails and fills up where a test says, and a log on it.

SQLite's files lie in a real directory, but every operation passes through here, and so do the syncs that the kernel is
asked for. What was written since the last sync of its file is remembered: when the power fails, each sector of it may
be on the disk or not, in any order.
"""

from __future__ import annotations

import errno
import os
import random
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import apsw

from mpreg_mq.events import SQLiteEventLog
from mpreg_mq.events.sqlite.file import LogFile
from mpreg_mq.events.sqlite.kernel_sync import MOST_UNDER_WAY
from mpreg_mq.events.sqlite.writer_file import HeadFile
from tests.support.apsw_sqlite3 import Connection

SECTOR_BYTES = 512
_VFS = "faulty"

Fault = Callable[[int, str], Exception | None]
"""Given the number of an operation and its name, the error that it raises instead, or None."""

Ending = Callable[[Sequence[int]], Collection[int]]
"""Given the numbers of the kernel's syncs that are under way, oldest first, those that end now."""


class Disk:
    """The disk under one directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.operations = 0
        self.fault: Fault | None = None
        self.synced: dict[str, bytes] = {}
        self.unsynced: dict[str, list[tuple[int, bytes] | int]] = {}
        """Writes as (offset, bytes), truncations as a size, by file name."""
        self.changes: dict[str, int] = {}
        """How many there ever were, by file name."""
        self.forgets = False
        """Whether a sync that fails leaves a part of what it covered, and no later one puts the rest on the disk."""
        self.failed_syncs: dict[str, int] = {}
        self.ending: Ending = lambda under_way: under_way
        self.heads: list[bytes] = []

    def operation(self, name: str) -> None:
        """Count an operation, and let it fail if it is to."""
        self.operations += 1
        if self.fault is not None:
            error = self.fault(self.operations, name)
            if error is not None:
                raise error

    def note(self, file: str, change: tuple[int, bytes] | int) -> None:
        """Remember a change that is not synced."""
        self.unsynced.setdefault(file, []).append(change)
        self.changes[file] = self.changes.get(file, 0) + 1

    def sync(self, file: str, changes: int | None = None) -> None:
        """What was changed in a file is on the disk: all of it, or its first so many changes."""
        self._put(file, self._covered(file, changes))

    def fail_sync(self, file: str, changes: int | None = None) -> None:
        """A sync that covers all changes, or the first so many, has failed."""
        self.failed_syncs[file] = self.failed_syncs.get(file, 0) + 1
        if self.forgets:
            chance = random.Random(self.operations)
            parts = [part for change in self._covered(file, changes) for part in _sectors(change)]
            # A file's size is kept by the file system, which does not forget.
            self._put(file, [part for part in parts if isinstance(part, int) or chance.random() < 0.5])

    def _covered(self, file: str, changes: int | None) -> list[tuple[int, bytes] | int]:
        """Take the unsynced changes away that are among the first so many."""
        unsynced = self.unsynced.pop(file, [])
        made = self.changes.get(file, 0)
        count = len(unsynced) - max(0, made - (made if changes is None else changes))
        if count < len(unsynced):
            self.unsynced[file] = unsynced[max(0, count) :]
        return unsynced[: max(0, count)]

    def _put(self, file: str, changes: Sequence[tuple[int, bytes] | int]) -> None:
        content = bytearray(self.synced.get(file, b""))
        for change in changes:
            _apply(content, change)
        self.synced[file] = bytes(content)

    def remove(self, file: str) -> None:
        """A file is gone."""
        self.synced.pop(file, None)
        self.unsynced.pop(file, None)

    def forget(self) -> None:
        """It is not used any more; what was logged of its errors refers to it until the test ends."""
        self.synced.clear()
        self.unsynced.clear()
        self.heads.clear()

    def after_power_cut(self, chance: random.Random, target: Path) -> None:
        """Write to ``target`` what the disk may hold when it comes back."""
        target.mkdir()
        for file in self.synced.keys() | self.unsynced.keys():
            content = bytearray(self.synced.get(file, b""))
            parts = [part for change in self.unsynced.get(file, []) for part in _sectors(change)]
            keep = chance.choice([0.0, 0.5, 0.9, 1.0])
            chosen = [part for part in parts if chance.random() < keep]
            if chance.random() < 0.5:
                chance.shuffle(chosen)
            for part in chosen:
                _apply(content, part)
            (target / file).write_bytes(content)
        if self.heads:
            (target / "log.db-head").write_bytes(chance.choice(self.heads))


def _apply(content: bytearray, change: tuple[int, bytes] | int) -> None:
    if isinstance(change, int):
        del content[change:]
        return
    offset, written = change
    if len(content) < offset:
        content.extend(bytes(offset - len(content)))
    content[offset : offset + len(written)] = written


def _sectors(change: tuple[int, bytes] | int) -> Iterator[tuple[int, bytes] | int]:
    if isinstance(change, int):
        yield change
        return
    offset, written = change
    for start in range(0, len(written), SECTOR_BYTES):
        yield offset + start, written[start : start + SECTOR_BYTES]


_disk: Disk | None = None


def _current() -> Disk:
    assert _disk is not None, "a log on a faulty disk is used only within opened()"
    return _disk


class _OpenFile:
    """Who has a file open hears once of each sync of it that failed, whoever asked for that: so it is on Linux."""

    def __init__(self, disk: Disk, name: str) -> None:
        self._disk = disk
        self._name = name
        self._heard_of = disk.failed_syncs.get(name, 0)

    def sync(self, changes: int | None = None) -> None:
        """Sync the file, all of it or its first so many changes."""
        disk = self._disk
        try:
            disk.operation("sync")
        except Exception:
            disk.fail_sync(self._name, changes)
            self._heard_of = disk.failed_syncs[self._name]
            raise
        failed = disk.failed_syncs.get(self._name, 0)
        if failed > self._heard_of:
            self._heard_of = failed
            raise apsw.IOError("a sync of this file has failed before")
        disk.sync(self._name, changes)


class FaultySync:
    """What :class:`~mpreg_mq.events.sqlite.kernel_sync.KernelSync` is, on a faulty disk."""

    def __init__(self, disk: Disk, path: Path) -> None:
        self._disk = disk
        self.made = 0
        self._under_way: dict[int, tuple[_OpenFile, int]] = {}
        """Of each request, what it syncs, and how many changes."""
        self._open: list[int] = []
        """The numbers of those that have not ended well."""
        self._refused: list[int] = []
        self.reopen(path)
        self.descriptor, self._bell = os.pipe()
        self._is_rung = False
        self._is_closed = False

    @property
    def under_way(self) -> int:
        """How many requests have not ended."""
        return len(self._under_way)

    def begin(self) -> None:
        """Ask for a sync of what is written now."""
        with _as_os_error():
            self._disk.operation("begin sync")
        if not self._files:
            raise OSError(errno.EAGAIN, "too much is under way")
        self.made += 1
        self._open.append(self.made)
        self._under_way[self.made] = self._files.pop(), self._disk.changes.get(self._name, 0)
        if not self._is_rung:
            self._is_rung = True
            os.write(self._bell, b"!")

    def here(self) -> None:
        """Sync what is written now, while nothing is under way."""
        assert not self._under_way
        self.made += 1
        self._open.append(self.made)
        try:
            with _as_os_error():
                self._files[-1].sync()
        except OSError:
            self._refused.append(self.made)
            raise
        self._open.remove(self.made)

    def ended(self, *, wait: bool) -> int:
        """The number up to which all requests have ended well, with those that end now."""
        before = self._well_up_to()
        self._hear(wait)
        while wait and self._under_way and self._well_up_to() == before:
            self._hear(wait)
        return self._well_up_to()

    def _well_up_to(self) -> int:
        return self._open[0] - 1 if self._open else self.made

    def _hear(self, wait: bool) -> None:
        numbers = sorted(self._under_way)
        ending = set(self._disk.ending(numbers)) or (set(numbers[:1]) if wait else set())
        error: OSError | None = None
        for number in sorted(ending):
            try:
                with _as_os_error():
                    self._end(*self._under_way.pop(number))
                self._open.remove(number)
            except OSError as found:
                self._refused.append(number)
                error = found
        if error is not None:
            raise error

    def _end(self, file: _OpenFile, changes: int) -> None:
        self._files.append(file)
        file.sync(changes)

    def heard(self) -> None:
        """Make the descriptor unreadable, unless something is under way that may have ended."""
        if self._is_rung and not self._under_way:
            self._is_rung = False
            os.read(self.descriptor, 1)

    def reopen(self, path: Path) -> None:
        """Sync the file that is there now."""
        with _as_os_error():
            self._disk.operation("open")
        self._name = path.name
        # One for each request: one that ends must not hear in another's place that the disk refused.
        self._files = [_OpenFile(self._disk, self._name) for _ in range(MOST_UNDER_WAY - len(self._under_way))]
        self._open = [number for number in self._open if number not in self._refused]
        self._refused.clear()

    def end(self) -> None:
        """What is under way may still be done, or not."""
        self._under_way.clear()

    def close(self) -> None:
        """Give the descriptor back as well; calling it again does nothing."""
        self.end()
        if not self._is_closed:
            self._is_closed = True
            os.close(self.descriptor)
            os.close(self._bell)


@contextmanager
def _as_os_error() -> Iterator[None]:
    """What a test has fail is what the kernel says of it."""
    try:
        yield
    except apsw.FullError as error:
        raise OSError(errno.ENOSPC, str(error)) from error
    except apsw.Error as error:
        raise OSError(errno.EIO, str(error)) from error


class _FaultyFile(apsw.VFSFile):
    def __init__(self, name: Any, flags: list[int]) -> None:
        super().__init__("", name, flags)
        self._name = Path(name.filename() if isinstance(name, apsw.URIFilename) else name).name
        self._open = _OpenFile(_current(), self._name)

    def xRead(self, amount: int, offset: int) -> bytes:  # noqa: N802
        _current().operation("read")
        return super().xRead(amount, offset)

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        _current().operation("write")
        super().xWrite(data, offset)
        _current().note(self._name, (offset, bytes(data)))

    def xTruncate(self, size: int) -> None:  # noqa: N802
        _current().operation("truncate")
        super().xTruncate(size)
        _current().note(self._name, size)

    def xSync(self, flags: int) -> None:  # noqa: N802
        # The directory is in memory, so there is nothing to wait for.
        self._open.sync()

    def xFileSize(self) -> int:  # noqa: N802
        _current().operation("size")
        return super().xFileSize()


class _FaultyVFS(apsw.VFS):
    def __init__(self) -> None:
        super().__init__(_VFS, "")

    def xOpen(self, name: Any, flags: list[int]) -> _FaultyFile:  # noqa: N802
        _current().operation("open")
        return _FaultyFile(name, flags)

    def xDelete(self, name: str, sync_directory: bool) -> None:  # noqa: N802
        _current().operation("delete")
        super().xDelete(name, sync_directory)
        _current().remove(Path(name).name)


_vfs = _FaultyVFS()
_write_head = HeadFile.write


def _about_others(hook: Callable[[sys.UnraisableHookArgs], object]) -> Callable[[sys.UnraisableHookArgs], None]:
    """The hook, but for errors of the disk that SQLite has no way to pass on, which apsw reports as unraisable.

    Where they are only ignored, pytest keeps them until the end of the test, and thousands of disks with them.
    """

    def about_others(unraisable: sys.UnraisableHookArgs) -> None:
        if not isinstance(unraisable.exc_value, apsw.Error):
            hook(unraisable)

    return about_others


@contextmanager
def on_disk(disk: Disk) -> Iterator[None]:
    """Logs that are opened and used meanwhile are on this disk."""
    global _disk

    def connect(file: LogFile, mode: str) -> Any:
        return Connection(str(file.path), _VFS, read_only=mode != "rw" and mode != "rwc")

    def write_head(self: HeadFile, head: Any) -> None:
        _write_head(self, head)
        # A head that was written through the memory map is on the disk now, later, or never.
        disk.heads.append(bytes(self._map[:]))

    syncs: list[FaultySync] = []

    def make_kernel_sync(file: LogFile) -> FaultySync | None:
        try:
            syncs.append(FaultySync(disk, file._wal))
        except OSError:
            return None
        return syncs[-1]

    def write_again(path: Path) -> None:
        with _as_os_error():
            disk.operation("write")
            disk.note(path.name, (0, path.read_bytes()))
            _OpenFile(disk, path.name).sync()

    def fill(path: Path, step: int, size: int) -> int:
        end = path.stat().st_size
        wanted = max(end, min(end + step, size))
        with _as_os_error():
            try:
                disk.operation("write")
                os.truncate(path, wanted)
                disk.note(path.name, (end, bytes(wanted - end)))
                _OpenFile(disk, path.name).sync()
            except apsw.Error:
                os.truncate(path, end)
                disk.note(path.name, end)
                raise
        return wanted

    before, _disk = _disk, disk
    try:
        with (
            mock.patch.object(LogFile, "_connect", connect),
            mock.patch.object(LogFile, "_make_kernel_sync", make_kernel_sync),
            mock.patch.object(LogFile, "_write_again", staticmethod(write_again)),
            mock.patch.object(LogFile, "_fill", staticmethod(fill)),
            # Whatever is written there takes the place of what was written ahead, so a little of it will do.
            mock.patch("mpreg_mq.events.sqlite.file.FILL_AFTER_PAGES", 8),
            mock.patch("mpreg_mq.events.sqlite.file.FILL_STEP_BYTES", 20_000),
            mock.patch("mpreg_mq.events.sqlite.file.FILLED_PAGES", 24),
            mock.patch.object(HeadFile, "write", write_head),
            mock.patch.object(sys, "unraisablehook", _about_others(sys.unraisablehook)),
        ):
            yield
    finally:
        _disk = before
        disk.forget()
        # A log that lost its power closes nothing, and thousands of them are more than a process may have open.
        for sync in syncs:
            sync.close()


def open_on(disk: Disk, **arguments: Any) -> SQLiteEventLog:
    """The log of a disk; call it within :func:`on_disk`."""
    return SQLiteEventLog(disk.directory / "log.db", **{"reserve_bytes": 0, "writes_on_loop": True, **arguments})
