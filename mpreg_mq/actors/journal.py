"""The journal: the thread that waits for the disk, so that no event loop has to.

Appends from all queues gather while a commit is under way and go into the next one together (group commit). Those
that nobody waits for do not cause a commit at once: they go with the next append that somebody waits for, or after
:data:`HOLD_SECONDS`, so that the ends of earlier messages do not stand in the way of the next one.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import attrs
import pykka
from pykka._envelope import Envelope

from mpreg_mq.actors.loop_writing import LoopWriting
from mpreg_mq.actors.submissions import (
    MAX_APPENDS_PER_COMMIT,
    Intake,
    OnDone,
    Outcome,
    Record,
    Submission,
    post,
    run_all,
)
from mpreg_mq.errors import EventLogError
from mpreg_mq.events.log import Append, EventLog, quick_writer
from mpreg_mq.forking import FORKED, forget_after_fork

HOLD_SECONDS = 0.002
"""Longest that an idle journal leaves appends that nobody waits for uncommitted."""

WATCH_SECONDS = 0.1
"""How often the thread looks whether a loop that writes still does."""

logger = logging.getLogger("mpreg_mq")

_WAKE: Envelope[Any] = Envelope("wake")
"""The same each time: it goes into the inbox as often as the thread is to look at what was submitted."""

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

    @property
    def has_time(self) -> bool:
        """Whether a hold goes on."""
        return self._wake_at is not None

    def is_over(self) -> bool:
        """Whether the time of the hold has passed."""
        return self._wake_at is not None and time.monotonic() >= self._wake_at

    def release(self) -> None:
        """End the hold."""
        self._wake_at = None


class JournalActor(pykka.ThreadingActor):
    """Owns the writing of one log; use it through :class:`Journal`.

    It commits what was submitted before it stops, however it is stopped.
    """

    use_daemon_thread: ClassVar[bool] = True
    actor_inbox: _Inbox

    def __init__(self, log: EventLog, intake: Intake, on_loop: LoopWriting | None) -> None:
        super().__init__()
        self._log = log
        self._intake = intake
        self._on_loop = on_loop
        inbox = self.actor_inbox
        intake.put_wake_up = lambda: inbox.put(_WAKE)

    @staticmethod
    def _create_actor_inbox() -> _Inbox:
        return _Inbox()

    def on_start(self) -> None:
        """Note which thread this is."""
        self._intake.thread_id = threading.get_ident()

    def on_receive(self, message: object) -> None:
        """Commit one batch, unless nobody waits for it and it is not time yet; any message is a wake-up."""
        intake, inbox, on_loop = self._intake, self.actor_inbox, self._on_loop
        intake.wake_under_way = False
        time_is_over = inbox.is_over()
        if time_is_over:
            inbox.release()
        commits = intake.urgent or (intake.holding and time_is_over) or (time_is_over and self._loop_stands_still())
        if commits:
            inbox.release()
            intake.holding = intake.urgent = False
            # What one commit did not take may have to do with somebody who waits.
            if self._commit_batch() and intake.queue:
                intake.urgent = True
        if intake.urgent:
            # Through the inbox rather than in a loop here, so that a stop gets its turn.
            intake.wake()
        elif intake.hold_wanted and intake.queue and not intake.holding:
            intake.hold_wanted = False
            inbox.hold(intake.hold_seconds)
            intake.holding = True
        if on_loop is not None:
            if commits:
                on_loop.take_over()
            on_loop.tidy()
            if on_loop.watched and not inbox.has_time:
                inbox.hold(WATCH_SECONDS)

    def _loop_stands_still(self) -> bool:
        """Whether something waits for a loop that has not written since the last look."""
        return self._on_loop is not None and self._on_loop.stands_still()

    def on_stop(self) -> None:
        """Commit what is left; what comes later is refused by its submitter."""
        self._commit_all()
        with self._intake.turn:
            self._intake.stopped = True
        self._commit_all()
        # The system gives the ids of ended threads to new ones.
        self._intake.thread_id = None
        self._intake.finished.set()

    def on_failure(self, *_: object) -> None:
        """End as in a stop, so that nobody waits for ever."""
        self.on_stop()

    def _commit_all(self) -> None:
        while self._commit_batch() or self._intake.queue:
            pass

    def _commit_batch(self) -> bool:
        """Commit what there is, but not too much at once; whether more may have been there."""
        intake = self._intake
        outcomes: list[Outcome] = []
        batch: list[Submission] = []
        with intake.turn:
            if self._on_loop is not None:
                outcomes, batch = self._on_loop.bring_down()
            was_left = bool(batch)
            batch = batch or intake.take()
            if batch:
                outcomes += self._outcomes(batch)
            for submission in batch:
                if submission.task is not None:
                    _run_task(submission.task)
            at_once = post(outcomes)
            if self._on_loop is not None and outcomes:
                self._on_loop.answers_posted = True
        run_all(at_once)
        return was_left or len(batch) == MAX_APPENDS_PER_COMMIT or (bool(batch) and batch[-1].task is not None)

    def _outcomes(self, batch: list[Submission]) -> list[Outcome]:
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
    def _each(batch: list[Submission], append_each: _AppendEach, appends: list[Append]) -> list[Outcome]:
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


@attrs.frozen(eq=False)
class Journal:
    """A log that is written by a thread of its own. Methods may be called from any thread but that one."""

    log: EventLog
    _actor: pykka.ActorRef[JournalActor]
    _intake: Intake
    _on_loop: LoopWriting | None

    @classmethod
    def start(cls, log: EventLog, *, hold_seconds: float = HOLD_SECONDS) -> Journal:
        """Start the thread for ``log``; it is a daemon, so call :meth:`stop_and_close` before the process ends.

        ``hold_seconds`` is how long it leaves appends uncommitted that nobody waits for, while there is no other.
        """
        intake = Intake(hold_seconds)
        writer = quick_writer(log)
        on_loop = None if writer is None else LoopWriting(writer, intake)
        journal = cls(log, JournalActor.start(log, intake, on_loop), intake, on_loop)
        forget_after_fork(journal)
        return journal

    def forget_in_child(self) -> None:
        """In a forked child: refuse everything, for the thread that would see to it is the parent's."""
        intake = self._intake
        intake.forked = intake.stopped = True
        intake.finished.set()

    @property
    def is_forked(self) -> bool:
        """Whether this is the copy of a forked child, which commits nothing."""
        return self._intake.forked

    @property
    def may_wait_on_loop(self) -> bool:
        """Whether the loop that submits may wait for the disk itself."""
        return self._on_loop is not None and self._on_loop.may_wait

    def submit(
        self,
        append: Append,
        on_done: OnDone,
        loop: asyncio.AbstractEventLoop | None,
        *,
        urgent: bool = True,
        at_once: bool = False,
        record: Record | None = None,
    ) -> None:
        """Have ``append`` committed soon, and then ``on_done`` called; never waits, O(1).

        Where it is not ``urgent``, because nobody waits for it, it is committed with the next one that is, or with
        a flush, a task or the stop, and at the latest ``hold_seconds`` after the journal could have committed it.
        ``at_once`` says that nobody else is about to submit something that is urgent: where the loop may wait for the
        disk it does so now, and ``on_done`` has been called when this returns.

        Submissions of one thread are committed in their order; one that fails does not keep later ones from
        being tried. Those of one loop are answered in their order. ``on_done`` runs on ``loop``, or where that is
        None or closed, on the thread that committed the append: the journal's, or that of another loop that submits.
        After a stop it gets an :class:`~mpreg_mq.errors.EventLogError`, on ``loop`` or else within this call.

        ``loop`` may end before it comes to that, or stand still for ever. With a ``record`` the outcome is to be found
        there then, at the latest when a flush or a :meth:`mark` that come after this are over.
        """
        self._put(Submission(append, on_done, loop, None, record), urgent, at_once)

    def mark(self, on_done: OnDone, loop: asyncio.AbstractEventLoop | None) -> None:
        """Have ``on_done`` called once what was submitted before is committed or has failed; never waits.

        Where and with what it is called is as with :meth:`submit`.
        """
        self._put(Submission(None, on_done, loop))

    def do(self, task: Callable[[], object]) -> None:
        """Have something done on the journal's thread once what was submitted before is committed or has failed, and
        before what is submitted later is committed; never waits.

        What it raises is logged. After a stop it is not done.
        """
        self._put(Submission(None, _nothing, None, task))

    def _put(self, submission: Submission, urgent: bool = True, at_once: bool = False) -> None:
        intake = self._intake
        intake.queue.append(submission)
        if intake.stopped:
            self._refuse()
        elif self._on_loop is not None and self._on_loop.plan(submission.loop, urgent, at_once):
            pass
        elif urgent:
            # Where it is stopping just now, it looks at the queue once more.
            intake.demand()
        elif not intake.holding:
            intake.hold_wanted = True
            intake.wake()

    def _refuse(self) -> None:
        text = f"submit: the journal of {self.log.location} is stopped; open the log again"
        if self._intake.forked:
            text = f"submit: the event log {self.log.location} {FORKED}"
        error = EventLogError(text)
        while refused := self._intake.take():
            run_all(post([(submission, error) for submission in refused]))

    def flush(self, timeout: float | None = None) -> None:
        """Return when everything submitted before is committed or failed, and its completions are posted.

        Raises:
            TimeoutError: that took longer than ``timeout`` seconds.
            RuntimeError: called on the journal's own thread, which would wait for itself.
        """
        self._forbid_own_thread("flush")
        reached = threading.Event()
        self._put(Submission(None, lambda _: reached.set(), None))
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
        if self._on_loop is not None:
            self._on_loop.close()

    def _forbid_own_thread(self, what: str) -> None:
        if threading.get_ident() == self._intake.thread_id:
            raise RuntimeError(f"{what}: called on the journal's own thread; call it from another one")
