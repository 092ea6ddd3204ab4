"""A disk that loses power, fails and fills up where a test says, and a log on it.

SQLite's files lie in a real directory, but every operation passes through here. What was written since the last
sync of its file is remembered: when the power fails, each sector of it may be on the disk or not, in any order.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import apsw

from mpreg_mq.events import SQLiteEventLog
from mpreg_mq.events.sqlite.file import LogFile
from mpreg_mq.events.sqlite.writer_file import HeadFile
from tests.support.apsw_sqlite3 import Connection

SECTOR_BYTES = 512
_VFS = "faulty"

Fault = Callable[[int, str], Exception | None]
"""Given the number of an operation and its name, the error that it raises instead, or None."""


class Disk:
    """The disk under one directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.operations = 0
        self.fault: Fault | None = None
        self.synced: dict[str, bytes] = {}
        self.unsynced: dict[str, list[tuple[int, bytes] | int]] = {}
        """Writes as (offset, bytes), truncations as a size, by file name."""
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

    def sync(self, file: str) -> None:
        """What was changed in a file is on the disk."""
        content = bytearray(self.synced.get(file, b""))
        for change in self.unsynced.pop(file, []):
            _apply(content, change)
        self.synced[file] = bytes(content)

    def remove(self, file: str) -> None:
        """A file is gone."""
        self.synced.pop(file, None)
        self.unsynced.pop(file, None)

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


class _FaultyFile(apsw.VFSFile):
    def __init__(self, name: Any, flags: list[int]) -> None:
        super().__init__("", name, flags)
        self._name = Path(name.filename() if isinstance(name, apsw.URIFilename) else name).name

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
        _current().operation("sync")
        # The directory is in memory, so there is nothing to wait for.
        _current().sync(self._name)

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


@contextmanager
def on_disk(disk: Disk) -> Iterator[None]:
    """Logs that are opened and used meanwhile are on this disk."""
    global _disk
    write = HeadFile.write

    def connect(file: LogFile, mode: str) -> Any:
        return Connection(str(file.path), _VFS, read_only=mode != "rw" and mode != "rwc")

    def write_head(self: HeadFile, head: Any) -> None:
        write(self, head)
        # A head that was written through the memory map is on the disk now, later, or never.
        disk.heads.append(bytes(self._map[:]))

    before, _disk = _disk, disk
    try:
        with mock.patch.object(LogFile, "_connect", connect), mock.patch.object(HeadFile, "write", write_head):
            yield
    finally:
        _disk = before


def open_on(disk: Disk, **arguments: Any) -> SQLiteEventLog:
    """The log of a disk; call it within :func:`on_disk`."""
    return SQLiteEventLog(disk.directory / "log.db", **{"reserve_bytes": 0, **arguments})
