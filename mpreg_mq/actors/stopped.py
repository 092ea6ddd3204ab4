"""The flag that says that an actor has stopped: an event that is small until somebody waits for it."""

from __future__ import annotations

import threading

# One lock for all flags, as for all futures: it is held for a few instructions, when an actor stops or is waited for.
_flags_lock = threading.Lock()


class StoppedFlag(threading.Event):
    """A :class:`threading.Event` for the many that are only asked whether they are set.

    Of an event of the library's, the condition inside takes 1.2 kB; here it is made by the first :meth:`wait`.
    """

    def __init__(self) -> None:
        # Without the base's initialiser, which makes that condition; the methods that use it are replaced.
        self._is_set = False
        self._waited_for: threading.Event | None = None

    def __repr__(self) -> str:
        return f"<StoppedFlag: {'set' if self._is_set else 'unset'}>"

    def is_set(self) -> bool:
        """Whether it is set."""
        return self._is_set

    def set(self) -> None:
        """Set it, and wake whoever waits."""
        with _flags_lock:
            self._is_set = True
            if self._waited_for is not None:
                self._waited_for.set()

    def clear(self) -> None:
        """Unset it."""
        with _flags_lock:
            self._is_set = False
            if self._waited_for is not None:
                self._waited_for.clear()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is set, at most ``timeout`` seconds; whether it is."""
        with _flags_lock:
            if self._is_set:
                return True
            if self._waited_for is None:
                self._waited_for = threading.Event()
            event = self._waited_for
        return event.wait(timeout)
