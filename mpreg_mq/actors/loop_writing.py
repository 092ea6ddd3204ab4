"""What a journal does on an event loop: it writes there, and the kernel waits for the disk, or the loop does.

Handing appends to a thread and hearing from it costs two wake-ups, and the interpreter's lock each time. Where a log
can be written without waiting (:class:`~mpreg_mq.events.log.QuickWriter`), the loop that submits writes itself at the
end of its iteration, and a descriptor that it watches becomes readable when the disk has it. Whatever would have to
wait is left to the thread of the journal, and so is everything that goes wrong. The thread also looks now and then
whether the loop still writes, which may be blocked or have ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from asyncio import _get_running_loop
from collections import deque
from contextvars import Context

import attrs

from mpreg_mq.actors.submissions import Intake, Outcome, Submission, post, record, run_all
from mpreg_mq.errors import EventLogError
from mpreg_mq.events.log import QuickWriter

MOST_EVENTS_ON_LOOP = 4096
"""More events than so many at once are encoded and written by the thread, so that the loop is not held up for long."""

logger = logging.getLogger("mpreg_mq")


@attrs.define(eq=False)
class _Stay:
    """What is planned on one loop while it is the one that writes; nothing of it is done once it is not any more."""

    loop: asyncio.AbstractEventLoop
    context: Context = attrs.field(factory=Context)
    """Of its own: answers are nobody's callback, and whoever submits first is not to be kept."""
    planned: bool = False
    hold: asyncio.TimerHandle | None = None
    to_answer: int = 0
    """How many batches wait for their answers behind what the thread has posted."""

    def answered(self, _: BaseException | None) -> None:
        """The last answer of such a batch was given."""
        self.to_answer -= 1


@attrs.define(eq=False)
class LoopWriting:
    """Writes for one loop at a time, that of whoever submits.

    Who writes, loop or thread, has ``intake.turn``. The loop only tries to get it, and gives it back before its
    iteration goes on; the thread may keep it for as long as its disk takes, and sees to what the loop left.
    """

    _writer: QuickWriter
    _intake: Intake
    _stay: _Stay | None = None
    _urgent: bool = False
    """Whether somebody waits for the loop to see to something in the intake, or did a moment ago."""
    _flights: deque[list[Submission]] = attrs.field(factory=deque)
    """What is written, and with the disk."""
    _left: list[list[Submission]] = attrs.field(factory=list)
    """What went wrong here, for the thread; it may have been written."""
    _unable: bool = False
    _closed: bool = False
    answers_posted: bool = False
    """Whether the thread has posted answers since the loop last gave any itself; set with the turn."""
    watched: bool = False
    """Whether the thread looks every now and then whether the loop still writes."""
    _batches: int = 0
    """How many were written."""
    _batches_seen: int = 0
    """How many had been when the thread last looked."""
    may_wait: bool = attrs.field(init=False)
    """Whether the loop ever waits for the disk; nothing was slow yet that would keep it from that."""

    def __attrs_post_init__(self) -> None:
        self.may_wait = self._writer.waits

    # --- on the loop --------------------------------------------------------------------------------------

    def plan(self, loop: asyncio.AbstractEventLoop | None, urgent: bool, at_once: bool = False) -> bool:
        """Whether this loop will write what was just put into the intake, or has; if not, the thread has to."""
        if loop is None or _get_running_loop() is not loop or self._left:
            return False
        stay = self._stay
        if stay is None or stay.loop is not loop:
            stay = self._move_to(loop)
            if stay is None:
                return False
        if urgent:
            self._urgent = True
            if not stay.planned:
                if self._flights:
                    self._plan_soon(stay)
                elif self._writer.waits:
                    # With what else comes in this iteration, unless nothing will.
                    if at_once:
                        # As when it was planned; a copy, for this may be called from an answer.
                        stay.context.copy().run(self._write, stay)
                    else:
                        self._plan_soon(stay)
                else:
                    self._write(stay, may_wait=False)
        elif stay.hold is None:
            stay.hold = loop.call_later(self._intake.hold_seconds, self._end_hold, stay, context=stay.context)
        if not self.watched:
            self.watched = True
            self._intake.wake()
        return True

    def _plan_soon(self, stay: _Stay) -> None:
        # Where too much is under way, its end looks at the intake.
        if len(self._flights) < self._writer.most_under_way:
            stay.loop.call_soon(self._write, stay, context=stay.context)
            stay.planned = True

    def _move_to(self, loop: asyncio.AbstractEventLoop) -> _Stay | None:
        before, turn = self._stay, self._intake.turn
        if self._unable or (before is not None and before.loop.is_running()) or not turn.acquire(blocking=False):
            return None
        try:
            if self._stay is not before:
                return None
            self._leave()
            stay = _Stay(loop)
            try:
                stay.context.run(loop.add_reader, self._writer.descriptor, self._on_synced, stay)
            # Not every loop can watch a descriptor, nor any number of them.
            except (NotImplementedError, OSError):
                self._unable = True
                return None
            self._stay = stay
            return stay
        finally:
            turn.release()

    def _leave(self) -> None:
        # What this loop would have done it does not do any more; the new one, or the thread, sees to it.
        stay, self._stay = self._stay, None
        if stay is not None and not stay.loop.is_closed():
            stay.loop.remove_reader(self._writer.descriptor)

    def _end_hold(self, stay: _Stay) -> None:
        stay.hold = None
        if self._stay is stay:
            self._urgent = True
            if not stay.planned:
                self._write(stay)

    def _write(self, stay: _Stay, *, may_wait: bool = True) -> None:
        """Write what there is, and answer it where its sync can be waited for."""
        stay.planned = False
        if self._stay is not stay:
            return
        intake = self._intake
        if not intake.turn.acquire(blocking=False):
            # The thread has it, and looks once more when it gives it back.
            return
        here: list[Outcome] = []
        try:
            waits = may_wait and not self._flights and self._writer.waits
            try:
                self._depart(stay, waits=waits)
            finally:
                if waits and self._flights:
                    landed = self._land(wait=False)
                    here = self._answers(stay, landed)
                    # There was more than goes into one batch, and no end of a sync looks at the intake again.
                    if landed and self._urgent:
                        self._plan_soon(stay)
        finally:
            intake.turn.release()
            if here:
                run_all(here)

    def _depart(self, stay: _Stay, *, waits: bool) -> None:
        """Write what there is, and begin its sync or wait for it; with the turn."""
        intake = self._intake
        if intake.stopped or self._left or not intake.queue or len(self._flights) >= self._writer.most_under_way:
            return
        self._urgent = False
        batch: list[Submission] = []
        written = False
        try:
            intake.take_quick(MOST_EVENTS_ON_LOOP, batch)
            if batch:
                self._batches += 1
                if stay.hold is not None:
                    stay.hold.cancel()
                    stay.hold = None
                if self._writer.write([one.append for one in batch if one.append is not None]):
                    if waits:
                        self._writer.sync_here()
                    else:
                        self._writer.begin_sync()
                    written = True
        # The thread finds out what became of it, and tells whoever waits.
        except Exception as error:
            logger.info("journal: a batch is left to the thread: %s", error)
        finally:
            if written:
                self._flights.append(batch)
            elif batch:
                self._left.append(batch)
                intake.drop_twice(batch)
            if intake.queue:
                self._urgent = True
            if not written:
                # Too much at once, nothing that a loop can do, or something went wrong.
                intake.demand()
            elif self._writer.untidy:
                intake.wake()

    def _on_synced(self, stay: _Stay) -> None:
        if self._stay is not stay:
            return
        self._writer.heard()
        intake = self._intake
        if not intake.turn.acquire(blocking=False):
            # Most likely the thread has it, and waits for this sync as well.
            intake.demand()
            return
        here: list[Outcome] = []
        try:
            landed = self._land(wait=False)
            try:
                # First, so that the disk has something to do meanwhile; last, where the loop would have to wait for it.
                if self._urgent and not self._writer.waits:
                    self._depart(stay, waits=False)
                elif self._urgent and not stay.planned:
                    self._plan_soon(stay)
            finally:
                # Also where Ctrl-C came while the next batch was written.
                here = self._answers(stay, landed)
        finally:
            intake.turn.release()
            if here:
                run_all(here)

    def _answers(self, stay: _Stay, landed: list[Outcome]) -> list[Outcome]:
        """What is to be called at once; nothing where it has to come after what the thread has posted."""
        here = post(landed, stay.loop) if landed else landed
        if not here or not (self.answers_posted or stay.to_answer):
            return here
        self.answers_posted = False
        stay.to_answer += 1
        record(here)
        here.append((Submission(None, stay.answered, stay.loop), None))
        stay.loop.call_soon(run_all, here, context=stay.context)
        return []

    # --- by whoever has the turn --------------------------------------------------------------------------

    def _land(self, *, wait: bool) -> list[Outcome]:
        """What is on disk now of what was under way."""
        flights = self._flights
        try:
            landed = self._writer.end_sync(wait=wait) if flights else 0
            if wait and flights and not landed:
                # An interruption came between its end and its answers; to wait again would be to wait for ever.
                raise EventLogError("nothing is under way of what has been written")
        # Not only what the disk says: whatever it is, it must not keep the thread from going on.
        except Exception as error:
            logger.warning("journal: a sync failed: %s", error)
            # They are older than what was left before them.
            self._left[:0] = flights
            flights.clear()
            landed = 0
            self._intake.demand()
        # One that an interruption left to the thread right after its sync was begun may have come to disk as well.
        batches = [flights.popleft() if flights else self._left.pop(0) for _ in range(landed)]
        return [(submission, None) for batch in batches for submission in batch]

    # --- on the thread ------------------------------------------------------------------------------------

    def take_over(self) -> None:
        """Have the loop write what it could not while the thread had the turn."""
        stay = self._stay
        if self._urgent and stay is not None:
            # A loop that has ended has left it to the thread, which watches.
            with contextlib.suppress(RuntimeError):
                stay.loop.call_soon_threadsafe(self._write, stay, context=stay.context)

    def bring_down(self) -> tuple[list[Outcome], list[Submission]]:
        """Wait for what is under way, and find out about what went wrong; for the thread, with the turn.

        The outcomes, and what is not in the log and is to be tried again.
        """
        outcomes: list[Outcome] = []
        self._urgent = False
        stay = self._stay
        if stay is not None:
            # An interruption may have ended what was planned before it began.
            stay.planned = False
        while self._flights:
            outcomes += self._land(wait=True)
        left, self._left = self._left, []
        again = [submission for batch in left for submission in batch]
        if not left:
            return outcomes, again
        try:
            settled = self._writer.settle()
        # Whatever a store raises is the submitter's to know, and must not end the thread.
        except BaseException as error:
            return [*outcomes, *((submission, error) for submission in again)], []
        there = sum(map(len, left[:settled]))
        return [*outcomes, *((submission, None) for submission in again[:there])], again[there:]

    def stands_still(self) -> bool:
        """Whether nothing was written since this was last asked, although there is something to do.

        Where there is not, nothing is to be watched until the loop has something to do again.
        """
        seen, self._batches_seen = self._batches_seen, self._batches
        if not self.watched or seen != self._batches_seen:
            return False
        # In this order: the loop sets it after it has put something into the queue.
        self.watched = False
        return bool(self._intake.queue or self._flights or self._left)

    def tidy(self) -> None:
        """Do what the loop's writing has put off; for the thread, without the turn."""
        if self._writer.untidy:
            self._writer.tidy()

    def close(self) -> None:
        """Watch nothing any more; after the thread has ended. Calling it again does nothing."""
        if self._closed:
            return
        stay, self._unable, self._closed = self._stay, True, True
        loop = None if stay is None else stay.loop
        if loop is None or loop.is_closed() or not loop.is_running() or loop is _get_running_loop():
            self._let_go()
        else:
            try:
                loop.call_soon_threadsafe(self._let_go)
            # It has been closed meanwhile.
            except RuntimeError:
                self._let_go()

    def _let_go(self) -> None:
        self._leave()
        self._writer.close()
