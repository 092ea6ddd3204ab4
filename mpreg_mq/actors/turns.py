"""Turns: which queue does something next on an event loop, and for how long.

The queues that share a store share the time that they take from their loop: however many of them have something to
deliver, all else on it waits for about one slice, and each of them gets its part of that.
"""

from __future__ import annotations

import threading
import time
from asyncio import AbstractEventLoop
from collections import deque
from contextvars import Context
from typing import Protocol

import attrs

SLICE_SECONDS = 0.004
"""Longest that queues deliver before the loop's other tasks get their turn."""

LEAST_SHARE = 16
"""The smallest part of a slice that a queue gets, where more than so many wait: less would be mostly beginnings."""

LONE_SENDS = 2
"""So many sends in a row that nobody else was beside, and the next one is taken for a lone one as well."""


class TurnTaker(Protocol):
    """What takes turns; :attr:`LoopTurns.ends_at` is when its turn is to end."""

    waits_for_turn: bool
    """Whether it has planned a turn that has not begun."""

    def take_turn(self) -> None:
        """Do something, or see to it that it is done."""


@attrs.define(eq=False)
class LoopTurns:
    """Turns on one loop, in the order in which they were planned."""

    loop: AbstractEventLoop
    _turns: Turns
    _waiting: deque[TurnTaker] = attrs.field(factory=deque, init=False)
    _is_planned: bool = attrs.field(default=False, init=False)
    ends_at: float = attrs.field(default=0.0, init=False)
    """When the turn that is being taken is to end, as ``time.perf_counter`` tells it."""

    def plan(self, taker: TurnTaker) -> None:
        """Let it take a turn soon. O(1)."""
        self._turns.planned += 1
        # In this order: who begins to give turns says so before looking who waits.
        self._waiting.append(taker)
        if not self._is_planned:
            self._plan_run()

    def is_next(self, taker: TurnTaker) -> bool:
        """Whether a turn is planned that is its own."""
        return self._is_planned and self._waiting[0] is taker

    def _plan_run(self) -> None:
        self._is_planned = True
        # Not in the context of whoever happens to be the first that sends something.
        self.loop.call_soon(self._run, context=Context())

    def _run(self) -> None:
        """Give a turn to each of those that wait now, until the slice is over; then it goes on where it was."""
        self._is_planned = False
        self._turns.planned = 0
        waiting = self._waiting
        left = len(waiting)
        now = time.perf_counter()
        last = now + SLICE_SECONDS
        share = SLICE_SECONDS / min(left, LEAST_SHARE) if left else 0.0
        try:
            while left and waiting:
                left -= 1
                self.ends_at = now + share
                taker = waiting[0]
                try:
                    waiting.popleft().take_turn()
                except (KeyboardInterrupt, SystemExit):
                    # Whoever has planned it counts on it.
                    if taker.waits_for_turn and taker not in waiting:
                        waiting.appendleft(taker)
                    raise
                if left:
                    now = time.perf_counter()
                    if now >= last:
                        break
        finally:
            # Also where a callback of the program's ended the loop.
            if waiting:
                self._turns.planned = len(waiting)
                if not self._is_planned:
                    self._plan_run()


@attrs.define(eq=False)
class Turns:
    """Who of all that use a store is about to do something on the loop; roughly, with several threads."""

    planned: int = 0
    """Queues that have planned a turn since one of them took its turn."""
    senders: int = 0
    """Sends that wait for their commit, or let others do something after it."""
    lone_sends: int = 0
    """How many in a row found no other that did."""
    _on: dict[AbstractEventLoop, LoopTurns] = attrs.field(factory=dict, init=False)
    _lock: threading.Lock = attrs.field(factory=threading.Lock, init=False)

    def on(self, loop: AbstractEventLoop) -> LoopTurns:
        """Those of a loop. O(loops)."""
        with self._lock:
            found = self._on.get(loop)
            if found is None:
                for ended in [other for other in self._on if other.is_closed()]:
                    del self._on[ended]
                found = self._on[loop] = LoopTurns(loop, self)
            return found

    def is_lone_sender(self) -> bool:
        """Whether nobody sends beside the one that sends now, as was so the last times; it counts.

        Not from the first time on: of many that begin together the first would commit by itself, and they would go on
        in two groups, each with commits of its own.
        """
        if self.senders:
            self.lone_sends = 0
            return False
        self.lone_sends += 1
        return self.lone_sends > LONE_SENDS
