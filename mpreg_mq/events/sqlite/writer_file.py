"""The two files beside a log that is open for writing: the lock, and the head that is kept apart.

The lock says that somebody writes. The head says how far the log had come when it was last written, so that a log
that has lost its end, which is as consistent as one that never had it, is told from a whole one. It is written
through a memory map: that costs no system call, survives the end of the process, and a power cut leaves an older
head at worst, which is never above the log.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

from mpreg_mq.errors import CorruptLogError, EventLogError, LogLockedError
from mpreg_mq.events.directories import sync_directory
from mpreg_mq.events.sqlite.failures import is_full
from mpreg_mq.events.sqlite.records import Head

if os.name == "nt":  # pragma: no cover
    import msvcrt

    def _lock(descriptor: int) -> None:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


_SLOT = struct.Struct("<8sQQ16s8s")
_MAGIC = b"mpmqhead"
_SLOT_AT = (1024, 2048)
_FILE_BYTES = 4096


class RecordedHead(NamedTuple):
    """What a head file says. ``certain``: every head in it was synced to disk before it was written."""

    head: Head
    sequence: int
    certain: bool


class WriterLock:
    """The right to write a log; it ends with :meth:`release`, or with the process.

    Raises:
        LogLockedError: another process, or another log object of this one, has it.
        EventLogError: the lock file cannot be made.
    """

    def __init__(self, log: Path) -> None:
        self._path = log.with_name(log.name + "-lock")
        while True:
            try:
                descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o644)
            except OSError as error:
                raise EventLogError(f"open {log}: its lock {self._path} cannot be made: {error}") from error
            try:
                _lock(descriptor)
            except OSError:
                owner = os.read(descriptor, 100).decode(errors="replace").strip() or "unknown"
                os.close(descriptor)
                if owner == str(os.getpid()):
                    raise LogLockedError(
                        f"open {log}: this process has it open for writing already; shut down the manager, queue or "
                        "log that has it, or open the log read_only"
                    ) from None
                raise LogLockedError(
                    f"open {log}: another process (pid {owner}) has it open for writing; stop that one, "
                    "or open the log read_only"
                ) from None
            # Whoever had it may have removed the file between the two calls; a lock on a file without a name is none.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), self._path.stat()):
                    break
            os.close(descriptor)
        self._descriptor: int | None = descriptor
        # Only for the message above; on a full disk there is no room for it.
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.write(descriptor, str(os.getpid()).encode())

    def release(self) -> None:
        """Let others write; calling it again does nothing."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                self._path.unlink()
            os.close(self._descriptor)
            self._descriptor = None

    def abandon(self) -> None:
        """In a forked child: leave the lock to the parent."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def linked(log: Path) -> Path:
    """The file itself where a log is a symbolic link: a lock or a head beside the link would not be seen by others.

    SQLite's write-ahead log is beside the file as well.
    """
    return Path(os.path.realpath(log)) if os.path.islink(log) else log


def is_written_here(log: Path) -> bool:
    """Whether this process has a log open for writing, as far as its lock file says."""
    try:
        return log.with_name(log.name + "-lock").read_bytes() == str(os.getpid()).encode()
    except OSError:
        return False


def head_path(log: Path) -> Path:
    """The head file of a log."""
    return log.with_name(log.name + "-head")


def read_head(log: Path) -> RecordedHead | None:
    """What the head file says; None where there is none, which is so after a clean end.

    Raises:
        CorruptLogError: the file is not what was written.
        EventLogError: it cannot be read.
    """
    path = head_path(log)
    try:
        with path.open("rb") as file:
            content = file.read(_FILE_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise EventLogError(f"open {log}: its head {path} cannot be read: {error}") from error
    found = [slot for at in _SLOT_AT if (slot := _read_slot(content[at : at + _SLOT.size])) is not None]
    if not found or len(content) != _FILE_BYTES:
        raise CorruptLogError(
            f"open {log}: {path} does not say where the log ends, so a lost end would go unnoticed; repair the log"
        )
    return max(found, key=lambda slot: slot.sequence)


def _read_slot(content: bytes) -> RecordedHead | None:
    try:
        magic, sequence, position, checksum, check = _SLOT.unpack(content)
    except struct.error:
        return None
    if magic != _MAGIC or check != _check(content[:-8]):
        return None
    return RecordedHead(Head(position, checksum), sequence >> 1, bool(sequence & 1))


def _check(content: bytes) -> bytes:
    return blake2b(content, digest_size=8).digest()


class HeadFile:
    """The head file of a log that is being written.

    It is made whole under another name first. Where there is no room for that, and it may be done ``in_place``, one
    that is there is written on, in its two slots in turn as at each commit: whenever that ends, one of them is whole.

    Behind the head it holds ``reserve_bytes`` of the disk: when this is full, they are given up, so that what is
    needed to finish the messages that are there can still be written.
    """

    def __init__(self, log: Path, head: Head, *, certain: bool, reserve_bytes: int, in_place: bool = False) -> None:
        self._path = head_path(log)
        self._certain = certain
        self._reserve_bytes = reserve_bytes
        self._sequence = 0
        self.reserved = False
        partial = self._path.with_name(self._path.name + ".partial")
        try:
            self._make(partial, head)
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink()
            recorded = read_head(log) if in_place and is_full(error) else None
            if recorded is None:
                raise
            self._write_on(recorded.sequence, head)
        self.reserve()

    def _make(self, partial: Path, head: Head) -> None:
        with partial.open("w+b") as file:
            # Written, not only made so long: a full disk is an error here, and the end of the process in a memory map.
            file.write(bytes(_FILE_BYTES))
            file.flush()
            os.fsync(file.fileno())
            self._map = mmap.mmap(file.fileno(), _FILE_BYTES)
            self.write(head)
            self.write(head)
            self._map.flush()
            os.fsync(file.fileno())
        partial.replace(self._path)
        sync_directory(self._path.parent)

    def _write_on(self, sequence: int, head: Head) -> None:
        self._sequence = sequence
        # Not through the map: where the file system wants room for this as well, it is an error here, too.
        with self._path.open("r+b", buffering=0) as file:
            # Of the two the newer one stays until the other one is on the disk.
            for _ in _SLOT_AT:
                at, content = self._next_slot(head)
                file.seek(at)
                file.write(content)
                os.fsync(file.fileno())
            self._map = mmap.mmap(file.fileno(), _FILE_BYTES)

    def reserve(self) -> bool:
        """Take the reserve, where it is not taken; whether it is there now."""
        if not self.reserved:
            with contextlib.suppress(OSError), self._path.open("r+b") as file:
                _allocate(file.fileno(), _FILE_BYTES + self._reserve_bytes)
                self.reserved = True
            if not self.reserved:
                self._give_back()
        return self.reserved

    def give_up_reserve(self) -> bool:
        """Give the reserve back to the disk; whether there was one."""
        was_reserved, self.reserved = self.reserved, False
        self._give_back()
        return was_reserved

    def _give_back(self) -> None:
        _cut(self._path)

    def write(self, head: Head) -> None:
        """Note how far the log has come."""
        at, content = self._next_slot(head)
        self._map[at : at + _SLOT.size] = content

    def _next_slot(self, head: Head) -> tuple[int, bytes]:
        """Where in the file the head goes, and as what."""
        self._sequence += 1
        content = _SLOT.pack(_MAGIC, self._sequence << 1 | self._certain, head.position, head.checksum, b"")[:-8]
        return _SLOT_AT[self._sequence & 1], content + _check(content)

    def remove(self) -> None:
        """After a clean end the log itself says where it ends."""
        self.abandon()
        self._path.unlink(missing_ok=True)

    def abandon(self) -> None:
        """Leave the file as it is."""
        self._map.close()


def give_back_reserve(log: Path) -> None:
    """Give the reserve back that the writer of a log had, who did not come to that; its head file has been read."""
    _cut(head_path(log))


def _cut(path: Path) -> None:
    with contextlib.suppress(OSError):
        # Never made longer: what is too short is damaged, and has to be seen.
        if path.stat().st_size > _FILE_BYTES:
            os.truncate(path, _FILE_BYTES)


def _allocate(descriptor: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    else:  # pragma: no cover
        os.lseek(descriptor, _FILE_BYTES, os.SEEK_SET)
        os.write(descriptor, bytes(size - _FILE_BYTES))
