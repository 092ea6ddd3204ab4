"""What becomes of open logs and their threads in a forked child: nothing, because they are the parent's."""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from typing import Protocol


class Forgetting(Protocol):
    """Something that must not be used in a forked child."""

    def forget_in_child(self) -> None:
        """From now on refuse every use."""


FORKED = (
    "was opened before this process was forked, and must not be used in it; open it anew in the process that uses it"
)

_open: weakref.WeakSet[Forgetting] = weakref.WeakSet()


def forget_after_fork(one: Forgetting) -> None:
    """Have one told when this process turns out to be a forked child, for as long as it exists."""
    _open.add(one)


def keep_for_ever(connection: object) -> None:
    """Never let a connection end: in a child that would checkpoint behind the parent's back."""
    if connection is not None:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))


def set_free(lock: threading.Lock) -> None:
    """In a forked child: whoever had a lock has not come along. The same lock, because others hold it as well."""
    if lock.locked():
        lock.release()


def _in_child() -> None:
    for one in list(_open):
        one.forget_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
