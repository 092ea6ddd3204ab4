"""What becomes of open log files in a forked child: nothing, because they are the parent's."""

from __future__ import annotations

import ctypes
import os
import weakref
from typing import Protocol


class Forgetting(Protocol):
    """Something that must not be used in a forked child."""

    def forget_in_child(self) -> None:
        """From now on refuse every use."""


_open: weakref.WeakSet[Forgetting] = weakref.WeakSet()


def forget_after_fork(file: Forgetting) -> None:
    """Have a file told when this process turns out to be a forked child, for as long as it exists."""
    _open.add(file)


def keep_for_ever(connection: object) -> None:
    """Never let a connection end: in a child that would checkpoint behind the parent's back."""
    if connection is not None:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))


def _in_child() -> None:
    for file in list(_open):
        file.forget_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
