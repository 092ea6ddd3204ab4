"""An ``fdatasync`` that the kernel does meanwhile, where the system is Linux: no thread has to wait for the disk.

Linux takes it as a request for asynchronous I/O (``io_submit(2)``), and tells of its end through a descriptor that an
event loop can watch. The standard library has no such call, so the system calls are made through ``ctypes``.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import struct
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Self

import attrs


class _Calls(NamedTuple):
    """The numbers of the system calls."""

    setup: ctypes.c_long
    destroy: ctypes.c_long
    getevents: ctypes.c_long
    submit: ctypes.c_long


def _numbered(setup: int, destroy: int, getevents: int, submit: int) -> _Calls:
    return _Calls(*map(ctypes.c_long, (setup, destroy, getevents, submit)))


_GENERIC = _numbered(setup=0, destroy=1, getevents=4, submit=2)
_CALLS = {
    "x86_64": _numbered(setup=206, destroy=207, getevents=208, submit=209),
    "aarch64": _GENERIC,
    "riscv64": _GENERIC,
}

MOST_UNDER_WAY = 2

_REQUEST = struct.Struct("<QIIHhIQQqQII")
"""``struct iocb``: data, key, flags of the operation, operation, priority, file, buffer, size, offset, reserved, flags,
descriptor."""
_FDSYNC = 3
_TELL_DESCRIPTOR = 1
_FILE_AT = 20
"""Where the request has its file."""

_EVENT = struct.Struct("<QQqq")
"""``struct io_event``: data, request, result, second result."""

_NONE = ctypes.c_long(0)
_ONE = ctypes.c_long(1)
_MOST = ctypes.c_long(MOST_UNDER_WAY)
_NO_TIME = ctypes.create_string_buffer(16)
"""A ``struct timespec`` of nothing."""

_SystemCall = Callable[..., int]


@attrs.define(eq=False)
class KernelSync:
    """Syncs one file, with up to :data:`MOST_UNDER_WAY` requests at once; for one thread at a time, in no forked child.

    The kernel may end requests in another order than they were made in; they are told of in the order of their numbers.
    """

    _calls: _Calls
    _files: list[int]
    """One for each request that may be under way. The system tells each open file once that the disk refused a sync: of
    two requests with the same one, the other would end well."""
    descriptor: int
    """Becomes readable when a request has ended; see :meth:`heard`."""
    _context: ctypes.c_ulong
    # These return at once, so they keep the interpreter's lock: giving it up could cost milliseconds.
    _at_once: _SystemCall
    _waiting: _SystemCall
    _request: Any
    _requests: Any
    _events: Any = attrs.field(factory=lambda: ctypes.create_string_buffer(_EVENT.size * MOST_UNDER_WAY))
    made: int = 0
    """How many requests were made."""
    _flying: dict[int, int] = attrs.field(factory=dict)
    """The numbers of those that the kernel has, and which of the files each is for.

    It is changed right before the kernel is asked, and by nothing that is not the same when done twice: an interruption
    (Ctrl-C) may come after any call, and a request that nobody knows of would be waited for in vain, or taken for
    another.
    """
    _open: list[int] = attrs.field(factory=list)
    """The numbers of those that have not ended well, oldest first."""
    _ended: bool = False
    _close_descriptor: weakref.finalize[Any, Any] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        # Also where the loop that watched it has ended without anybody to tell.
        self._close_descriptor = weakref.finalize(self, os.close, self.descriptor)

    @classmethod
    def of(cls, path: Path) -> Self | None:
        """For the file at ``path``; None where the system, or what the file lies on, cannot do this. Tries it once."""
        calls = _CALLS.get(platform.machine())
        if sys.platform != "linux" or calls is None or sys.byteorder != "little" or ctypes.sizeof(ctypes.c_long) != 8:
            return None
        try:
            made = cls._made(calls, _opened(path))
        except OSError:
            return None
        try:
            made.begin()
            made.ended(wait=True)
        except OSError:
            made.close()
            return None
        made.heard()
        return made

    @classmethod
    def _made(cls, calls: _Calls, files: list[int]) -> Self:
        with contextlib.ExitStack() as undo:
            for file in files:
                undo.callback(os.close, file)
            descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            undo.callback(os.close, descriptor)
            at_once = ctypes.PyDLL(None, use_errno=True).syscall
            context = ctypes.c_ulong(0)
            _check(at_once(calls.setup, _MOST, ctypes.byref(context)))
            undo.pop_all()
        request = ctypes.create_string_buffer(
            _REQUEST.pack(0, 0, 0, _FDSYNC, 0, files[0], 0, 0, 0, 0, _TELL_DESCRIPTOR, descriptor)
        )
        requests = (ctypes.c_void_p * 1)(ctypes.addressof(request))
        waiting = ctypes.CDLL(None, use_errno=True).syscall
        return cls(calls, files, descriptor, context, at_once, waiting, request, requests)

    @property
    def under_way(self) -> int:
        """How many requests the kernel has."""
        return len(self._flying)

    def begin(self) -> None:
        """Ask for everything that is written now to be put on disk; the request's number is :attr:`made` then.

        Raises:
            OSError: the kernel does not take the request, too much is under way, or this was ended.
        """
        self._check_not_ended()
        flying = self._flying
        if len(flying) == MOST_UNDER_WAY:
            raise OSError(errno.EAGAIN, f"{MOST_UNDER_WAY} syncs are under way; wait for one to end")
        which = next(which for which in range(MOST_UNDER_WAY) if which not in flying.values())
        self.made = number = self.made + 1
        struct.pack_into("<Q", self._request, 0, number)
        struct.pack_into("<I", self._request, _FILE_AT, self._files[which])
        self._open.append(number)
        # No call may come between these two.
        flying[number] = which
        taken = self._at_once(self._calls.submit, self._context, _ONE, self._requests)
        if taken < 0:
            code = ctypes.get_errno()
            del flying[number]
            self._open.remove(number)
            self.made = number - 1
            raise OSError(code, os.strerror(code))

    def here(self) -> None:
        """Put everything that is written now on disk, and return then; as a request that has ended, with its number.

        For when nothing is under way.

        Raises:
            OSError: the disk refused, or this was ended.
        """
        self._check_not_ended()
        assert not self._flying, "a request under way has one of the open files, and is older"
        self.made = number = self.made + 1
        self._open.append(number)
        os.fdatasync(self._files[0])
        self._open.remove(number)

    def ended(self, *, wait: bool) -> int:
        """The number up to which all requests have ended well; ``wait`` for another one, if one is under way.

        Raises:
            OSError: the disk refused one of them; it may have forgotten anything that was not on it. Or this was ended.
        """
        self._check_not_ended()
        before = self._well_up_to()
        if not self._flying:
            return before
        self._hear(wait)
        while wait and self.under_way and self._well_up_to() == before:
            self._hear(wait)
        return self._well_up_to()

    def _well_up_to(self) -> int:
        return self._open[0] - 1 if self._open else self.made

    def _hear(self, wait: bool) -> None:
        self._note()
        if wait and self._flying:
            self._wait()
        else:
            self._look()
        self._note()

    def _note(self) -> None:
        """Note what is in the buffer, where an interruption may have left it."""
        error = 0
        for number, _, result, _ in _EVENT.iter_unpack(self._events.raw):
            if number not in self._flying:
                continue
            if result < 0:
                error = result
            else:
                self._open.remove(number)
            del self._flying[number]
        if error:
            raise OSError(-error, os.strerror(-error))

    def _look(self) -> None:
        _check(self._at_once(self._calls.getevents, self._context, _NONE, _MOST, self._events, _NO_TIME))

    def _wait(self) -> None:
        while True:
            # A signal interrupts the wait, not the request.
            with contextlib.suppress(InterruptedError):
                _check(self._waiting(self._calls.getevents, self._context, _ONE, _MOST, self._events, None))
                return

    def heard(self) -> None:
        """Make the descriptor unreadable until another request has ended."""
        if self._close_descriptor.alive:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self.descriptor)

    def reopen(self, path: Path) -> None:
        """From now on sync the file that is at ``path`` now; what is under way goes on with the one that was.

        Whatever the disk had refused until then is on it now.

        Raises:
            OSError: there is none.
        """
        before, self._files = self._files, _opened(path)
        for file in before:
            os.close(file)
        # Nor is there anything to be heard of what an interruption kept from being asked for.
        self._open = [number for number in self._open if number in self._flying]

    def end(self) -> None:
        """Wait for what is under way, and give everything back but the descriptor, which a loop may be watching."""
        if not self._ended:
            self._ended = True
            self._waiting(self._calls.destroy, self._context)
            # Nothing is known of what was under way, and there is nobody to ask.
            self._flying.clear()
            for file in self._files:
                os.close(file)

    def _check_not_ended(self) -> None:
        # The kernel gives the numbers of contexts and files to others.
        if self._ended:
            raise OSError(errno.EBADF, "the file is not synced any more")

    def close(self) -> None:
        """Give the descriptor back as well, which nobody may be watching any more."""
        self.end()
        self._close_descriptor()


def _opened(path: Path) -> list[int]:
    """The file, opened as often as requests may be under way."""
    with contextlib.ExitStack() as undo:
        files = []
        for _ in range(MOST_UNDER_WAY):
            files.append(os.open(path, os.O_RDWR | os.O_CLOEXEC))
            undo.callback(os.close, files[-1])
        undo.pop_all()
    return files


def _check(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
