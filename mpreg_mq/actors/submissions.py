"""What is submitted to a journal, the intake where it waits, and how its outcome reaches whoever submitted it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import NamedTuple, Protocol

import attrs

from mpreg_mq.events.log import Append

MAX_APPENDS_PER_COMMIT = 4096

OnDone = Callable[[BaseException | None], Callable[[], None] | None]
"""Called once for each append: with None when it is committed, or with what went wrong.

What it returns is called when that was done for all appends of the same commit: so those who are answered, and may send
something, come before what is planned then.
"""


class Unknown(Enum):
    """The outcome of an append that no loop has been told of."""

    YET = "yet"


logger = logging.getLogger("mpreg_mq")


class Record(Protocol):
    """Where the outcome of an append is kept that a loop is to be told of, which may end before it comes to that."""

    outcome: BaseException | Unknown | None
    """As ``on_done`` gets it, once a loop is told."""


class Submission(NamedTuple):
    append: Append | None
    """None for the mark that a flush leaves in the queue, and for a task."""
    on_done: OnDone
    loop: asyncio.AbstractEventLoop | None
    task: Callable[[], object] | None = None
    """What to do on the journal's thread once what was submitted before is committed or has failed, and before what is
    submitted later: a state is not to be saved as that of other events, which took the place of those that failed."""
    record: Record | None = None


Outcome = tuple[Submission, BaseException | None]


@attrs.define(eq=False)
class Intake:
    """What submitters and writers share: submitting takes no lock.

    Each side writes before it reads the other's: a submitter adds and then looks at the flags, the actor
    changes a flag and then looks at the queue. So one of the two always sees what the other did.
    """

    hold_seconds: float
    queue: deque[Submission] = attrs.field(factory=deque)
    turn: threading.Lock = attrs.field(factory=threading.Lock)
    """Who has it takes from the queue and writes, so that what is submitted first is written first."""
    urgent: bool = False
    """Whether somebody waits for the thread to see to something in the queue, or did a moment ago."""
    wake_under_way: bool = False
    hold_wanted: bool = False
    """Whether something that nobody waits for was left to the actor, which has not seen it yet."""
    holding: bool = False
    """Whether the actor looks at the queue again by itself after a while."""
    put_wake_up: Callable[[], None] = lambda: None
    """Sends the journal's thread a message; see :meth:`wake`."""
    stopped: bool = False
    """Nothing is written any more; set by who has the turn."""
    forked: bool = False
    """Whether this is the copy of a forked child, where there is no thread."""
    finished: threading.Event = attrs.field(factory=threading.Event)
    thread_id: int | None = None

    def wake(self) -> None:
        """Have the journal's thread look at the queue, unless it is about to."""
        if not self.wake_under_way:
            self.wake_under_way = True
            self.put_wake_up()

    def demand(self) -> None:
        """Have the journal's thread see to the queue, and to what a loop left, at once."""
        self.urgent = True
        self.wake()

    def take(self) -> list[Submission]:
        """The oldest submissions, enough for one commit; each is taken by one caller only.

        A task is the last of them: it is done before what was submitted after it is committed.
        """
        taken: list[Submission] = []
        with contextlib.suppress(IndexError):
            while len(taken) < MAX_APPENDS_PER_COMMIT:
                taken.append(self.queue.popleft())
                if taken[-1].task is not None:
                    break
        return taken

    def take_quick(self, events: int, taken: list[Submission]) -> None:
        """Take the oldest submissions of up to so many events together, up to the first that only the thread can do.

        An interruption may leave the newest that was taken in the queue as well; see :meth:`drop_twice`.
        """
        queue = self.queue
        while queue:
            append = queue[0].append
            if append is None:
                break
            events -= len(append.events)
            if events < 0:
                break
            taken.append(queue[0])
            queue.popleft()

    def drop_twice(self, taken: list[Submission]) -> None:
        """After an interruption of :meth:`take_quick`: have nothing in the queue that was taken."""
        if taken and self.queue and self.queue[0] is taken[-1]:
            self.queue.popleft()


def post(outcomes: list[Outcome], here: asyncio.AbstractEventLoop | None = None) -> list[Outcome]:
    """Have every ``on_done`` called on its loop, with one wake-up for each loop; those that are to be called here.

    ``here`` is the loop that runs on this thread. It is for who has the turn, so that answers come in the order in
    which their events were written; what is given back is called without it, by :func:`run_all`.
    """
    by_loop: dict[asyncio.AbstractEventLoop, list[Outcome]] = {}
    at_once: list[Outcome] = []
    for outcome in outcomes:
        loop = outcome[0].loop
        if loop is None or loop is here:
            at_once.append(outcome)
        else:
            by_loop.setdefault(loop, []).append(outcome)
    for loop, of_loop in by_loop.items():
        record(of_loop)
        try:
            loop.call_soon_threadsafe(run_all, of_loop)
        except RuntimeError:
            # The loop is closed: better on this thread than never.
            at_once = of_loop + at_once
    return at_once


def record(outcomes: list[Outcome]) -> None:
    """Keep what came of each append, where it is wanted and a loop is told later."""
    for submission, error in outcomes:
        if submission.record is not None:
            submission.record.outcome = error


def run_all(outcomes: list[Outcome]) -> None:
    """Call every ``on_done``, and then what these have returned."""
    afterwards: list[Callable[[], None]] = []
    for submission, error in outcomes:
        try:
            after = submission.on_done(error)
        # Not even a SystemExit of one queue's completion may keep the others from theirs.
        except BaseException:
            logger.exception("journal: the completion of %r raised", submission.append)
            continue
        # Of appends of one queue that follow each other it is the same.
        if after is not None and not (afterwards and after == afterwards[-1]):
            afterwards.append(after)
    for after in afterwards:
        try:
            after()
        except BaseException:
            logger.exception("journal: what follows a completion raised: %r", after)
