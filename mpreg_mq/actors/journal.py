"""The journal: the thread that waits for the disk, so that no event loop has to.

Appends from all queues gather while a commit is under way and go into the next one together (group commit). Those
that nobody waits for do not cause a commit at once: they go with the next append that somebody waits for, or after
:data:`HOLD_SECONDS`, so that the ends of earlier messages do not stand in the way of the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import attrs
import pykka
from pykka._envelope import Envelope

from mpreg_mq.errors import EventLogError
from mpreg_mq.events.log import Append, EventLog

MAX_APPENDS_PER_COMMIT = 4096

HOLD_SECONDS = 0.002
"""Longest that an idle journal leaves appends that nobody waits for uncommitted."""

OnDone = Callable[[BaseException | None], None]
"""Called once for each append: with None when it is committed, or with what went wrong."""

logger = logging.getLogger("mpreg_mq")

_WAKE: Envelope[Any] = Envelope("wake")
"""The same each time: it goes into the inbox as often as the thread is to look at what was submitted."""


class _Submission(NamedTuple):
    append: Append | None
    """None for the mark that a flush leaves in the queue, and for a task."""
    on_done: OnDone
    loop: asyncio.AbstractEventLoop | None
    task: Callable[[], object] | None = None
    """What to do on the journal's thread once what was submitted before is committed or has failed."""


_Outcome = tuple[_Submission, BaseException | None]
_AppendEach = Callable[[list[Append]], Sequence[BaseException | None]]


class _Inbox:
    """The inbox of the journal's thread: a queue in C, which wakes it in fewer steps than pykka's own does."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Envelope[Any]] = queue.SimpleQueue()
        self.put = self._queue.put
        self.empty = self._queue.empty
        self._wake_at: float | None = None

    def get(self) -> Envelope[Any]:
        """The oldest message, or a wake-up when a hold is over."""
        if self._wake_at is None:
            return self._queue.get()
        try:
            return self._queue.get(timeout=max(0.0, self._wake_at - time.monotonic()))
        except queue.Empty:
            return _WAKE

    def hold(self, seconds: float) -> None:
        """Wake the actor once so much time has passed."""
        self._wake_at = time.monotonic() + seconds

    def is_over(self) -> bool:
        """Whether the time of the hold has passed."""
        return self._wake_at is not None and time.monotonic() >= self._wake_at

    def release(self) -> None:
        """End the hold."""
        self._wake_at = None


@attrs.define(eq=False)
class _Intake:
    """What submitters and the actor share: submitting takes no lock.

    Each side writes before it reads the other's: a submitter adds and then looks at the flags, the actor
    changes a flag and then looks at the queue. So one of the two always sees what the other did.
    """

    hold_seconds: float
    queue: deque[_Submission] = attrs.field(factory=deque)
    urgent: bool = False
    """Whether somebody waits for something in the queue, or did a moment ago."""
    wake_under_way: bool = False
    holding: bool = False
    """Whether the actor looks at the queue again by itself after a while."""
    stopped: bool = False
    finished: threading.Event = attrs.field(factory=threading.Event)
    thread_id: int | None = None

    def take(self) -> list[_Submission]:
        """The oldest submissions, enough for one commit; each is taken by one caller only."""
        taken: list[_Submission] = []
        with contextlib.suppress(IndexError):
            while len(taken) < MAX_APPENDS_PER_COMMIT:
                taken.append(self.queue.popleft())
        return taken


class JournalActor(pykka.ThreadingActor):
    """Owns the writing of one log; use it through :class:`Journal`.

    It commits what was submitted before it stops, however it is stopped.
    """

    use_daemon_thread: ClassVar[bool] = True
    actor_inbox: _Inbox

    def __init__(self, log: EventLog, intake: _Intake) -> None:
        super().__init__()
        self._log = log
        self._intake = intake

    @staticmethod
    def _create_actor_inbox() -> _Inbox:
        return _Inbox()

    def on_start(self) -> None:
        """Note which thread this is."""
        self._intake.thread_id = threading.get_ident()

    def on_receive(self, message: object) -> None:
        """Commit one batch, unless nobody waits for it and it is not time yet; any message is a wake-up."""
        intake, inbox = self._intake, self.actor_inbox
        intake.wake_under_way = False
        if intake.urgent or (intake.holding and inbox.is_over()):
            inbox.release()
            intake.holding = intake.urgent = False
            # What one commit did not take may have to do with somebody who waits.
            if self._commit_batch() == MAX_APPENDS_PER_COMMIT and intake.queue:
                intake.urgent = True
        if intake.urgent:
            # Through the inbox rather than in a loop here, so that a stop gets its turn.
            if not intake.wake_under_way:
                intake.wake_under_way = True
                inbox.put(_WAKE)
        elif intake.queue and not intake.holding:
            inbox.hold(intake.hold_seconds)
            intake.holding = True

    def on_stop(self) -> None:
        """Commit what is left; what comes later is refused by its submitter."""
        self._commit_all()
        self._intake.stopped = True
        self._commit_all()
        # The system gives the ids of ended threads to new ones.
        self._intake.thread_id = None
        self._intake.finished.set()

    def on_failure(self, *_: object) -> None:
        """End as in a stop, so that nobody waits for ever."""
        self.on_stop()

    def _commit_all(self) -> None:
        while self._intake.queue:
            self._commit_batch()

    def _commit_batch(self) -> int:
        """Commit what there is, but not too much at once; how many submissions it was."""
        batch = self._intake.take()
        if batch:
            outcomes = self._outcomes(batch)
            for submission in batch:
                if submission.task is not None:
                    _run_task(submission.task)
            _complete(outcomes)
        return len(batch)

    def _outcomes(self, batch: list[_Submission]) -> list[_Outcome]:
        appends = [submission.append for submission in batch if submission.append is not None]
        append_each = getattr(self._log, "append_each", None)
        if append_each is not None and appends:
            return self._each(batch, append_each, appends)
        error = self._try(appends)
        if error is None or len(appends) == 1:
            return [(submission, error) for submission in batch]
        # One append that does not fit must not fail those of other queues.
        return [
            (submission, None if submission.append is None else self._try([submission.append])) for submission in batch
        ]

    @staticmethod
    def _each(batch: list[_Submission], append_each: _AppendEach, appends: list[Append]) -> list[_Outcome]:
        """For a log that appends to many streams at once and tells what became of each append."""
        try:
            errors = iter(append_each(appends))
        # As in _try.
        except BaseException as error:
            return [(submission, error) for submission in batch]
        return [(submission, None if submission.append is None else next(errors)) for submission in batch]

    def _try(self, appends: list[Append]) -> BaseException | None:
        try:
            if appends:
                self._log.append(appends)
        # Whatever a store raises is the submitter's to know, and must not end the thread.
        except BaseException as error:
            return error
        return None


def _nothing(error: BaseException | None) -> None:
    """Nobody waits for a task."""


def _run_task(task: Callable[[], object]) -> None:
    try:
        task()
    # A snapshot that cannot be stored, for one, must not end the thread that commits.
    except BaseException:
        logger.exception("journal: a task failed: %r", task)


def _complete(outcomes: list[_Outcome]) -> None:
    """Call every ``on_done`` on its loop, with one wake-up for each loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[_Outcome]] = {}
    here: list[_Outcome] = []
    for outcome in outcomes:
        loop = outcome[0].loop
        if loop is None:
            here.append(outcome)
        else:
            by_loop.setdefault(loop, []).append(outcome)
    for loop, of_loop in by_loop.items():
        try:
            loop.call_soon_threadsafe(_run_all, of_loop)
        except RuntimeError:
            # The loop is closed: better on this thread than never.
            _run_all(of_loop)
    # Last, because a flush is one of these and promises that the others are posted.
    _run_all(here)


def _run_all(outcomes: list[_Outcome]) -> None:
    for submission, error in outcomes:
        try:
            submission.on_done(error)
        # Not even a SystemExit of one queue's completion may keep the others from theirs.
        except BaseException:
            logger.exception("journal: the completion of %r raised", submission.append)


@attrs.frozen(eq=False)
class Journal:
    """A log that is written by a thread of its own. Methods may be called from any thread but that one."""

    log: EventLog
    _actor: pykka.ActorRef[JournalActor]
    _intake: _Intake

    @classmethod
    def start(cls, log: EventLog, *, hold_seconds: float = HOLD_SECONDS) -> Journal:
        """Start the thread for ``log``; it is a daemon, so call :meth:`stop_and_close` before the process ends.

        ``hold_seconds`` is how long it leaves appends uncommitted that nobody waits for, while there is no other.
        """
        intake = _Intake(hold_seconds)
        return cls(log, JournalActor.start(log, intake), intake)

    def submit(
        self, append: Append, on_done: OnDone, loop: asyncio.AbstractEventLoop | None, *, urgent: bool = True
    ) -> None:
        """Have ``append`` committed soon, and then ``on_done`` called; never waits, O(1).

        Where it is not ``urgent``, because nobody waits for it, it is committed with the next one that is, or with
        a flush, a task or the stop, and at the latest ``hold_seconds`` after the journal could have committed it.

        Submissions of one thread are committed in their order; one that fails does not keep later ones from
        being tried. ``on_done`` runs on ``loop``, or on the journal's thread where ``loop`` is None or closed.
        After a stop it gets an :class:`~mpreg_mq.errors.EventLogError`, on ``loop`` or else within this call.
        """
        self._put(_Submission(append, on_done, loop), urgent)

    def do(self, task: Callable[[], object]) -> None:
        """Have something done on the journal's thread once what was submitted before is committed; never waits.

        What it raises is logged. After a stop it is not done.
        """
        self._put(_Submission(None, _nothing, None, task))

    def _put(self, submission: _Submission, urgent: bool = True) -> None:
        intake = self._intake
        intake.queue.append(submission)
        if urgent:
            intake.urgent = True
        if intake.stopped:
            self._refuse()
        elif not intake.wake_under_way and (urgent or not intake.holding):
            intake.wake_under_way = True
            # Where it is stopping just now, it looks at the queue once more.
            self._actor.actor_inbox.put(_WAKE)

    def _refuse(self) -> None:
        error = EventLogError(f"submit: the journal of {self.log.location} is stopped; open the log again")
        while refused := self._intake.take():
            _complete([(submission, error) for submission in refused])

    def flush(self, timeout: float | None = None) -> None:
        """Return when everything submitted before is committed or failed, and its completions are posted.

        Raises:
            TimeoutError: that took longer than ``timeout`` seconds.
            RuntimeError: called on the journal's own thread, which would wait for itself.
        """
        self._forbid_own_thread("flush")
        reached = threading.Event()
        self._put(_Submission(None, lambda _: reached.set(), None))
        if not reached.wait(timeout):
            raise TimeoutError(
                f"flush: the journal of {self.log.location} needs more than {timeout} s; "
                "wait longer, or look at its disk"
            )

    def stop_and_close(self) -> None:
        """Commit everything submitted, stop the thread and close the log; calling it again does nothing.

        Raises:
            EventLogError: the log could not be closed.
            RuntimeError: called on the journal's own thread, which would wait for itself.
        """
        self._forbid_own_thread("stop_and_close")
        self.stop()
        self.log.close()

    def stop(self) -> None:
        """Commit everything submitted and stop the thread; the log stays open.

        Raises:
            RuntimeError: called on the journal's own thread, which would wait for itself.
        """
        self._forbid_own_thread("stop")
        self._actor.stop(block=False)
        self._intake.finished.wait()

    def _forbid_own_thread(self, what: str) -> None:
        if threading.get_ident() == self._intake.thread_id:
            raise RuntimeError(f"{what}: called on the journal's own thread; call it from another one")
