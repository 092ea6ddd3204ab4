"""The lowest layer of a queue actor: decisions become events, events reach state and log, and a failure rebuilds.

State is applied and recorded before anybody hears of it, and replies to senders wait for the commit where the log
needs one.
"""

from __future__ import annotations

import contextlib
import logging
import time
from asyncio import _get_running_loop
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import pykka

from mpreg_mq.actors import commands as c
from mpreg_mq.actors.decider import DECIDERS, Context, Decision
from mpreg_mq.actors.futures import LoopFuture, Waiter, answer
from mpreg_mq.actors.inbox import BUSY
from mpreg_mq.actors.messages import TURN, Committed, Unsent
from mpreg_mq.actors.queue_clock import STEP_SECONDS, QueueClock
from mpreg_mq.actors.runtime import LoopActor
from mpreg_mq.actors.store import LEAST_EVENTS_AT_THE_END, Store, stream_of
from mpreg_mq.clock import Clock
from mpreg_mq.errors import EventLogError, LogFullError, MessageQueueError, QueueClosedError
from mpreg_mq.events import types as e
from mpreg_mq.events.log import Append, retaining
from mpreg_mq.events.memory import MemoryEventLog
from mpreg_mq.projections import QueueState

logger = logging.getLogger("mpreg_mq")

NEVER_WAIT = 1 << 62

NO_ROOM_SECONDS = 1.0
"""How long sends are refused without asking, after the log had no room."""

SNAPSHOT_SHARE = 4
"""A state is saved at most once in so many events for each message in it."""

_NOTHING: deque[float] = deque(maxlen=0)
"""Shared by the many queues that have nothing on its way: an empty deque takes 760 bytes."""

_NEVER_RISKED = (e.QueueCreated, e.QueueDeleted)
"""Answered when they are in the log, whatever the durability: who makes a queue anew begins with what the log says."""

_AFTER_DELETION = (c.Open, c.Detach, c.EndLease)


class RecordingActor(LoopActor):
    """Decides, records, and rebuilds its state from the log after a failure."""

    __slots__ = (
        "_append_next",
        "_clock",
        "_durable",
        "_handed_over",
        "_immediate",
        "_now",
        "_outbox",
        "_rebuilt",
        "_recovering",
        "_run",
        "_shared_context",
        "_stash",
        "_store",
        "_submitting",
        "_synchronous",
        "_unsent",
        "commits_at_once",
        "name",
        "state",
        "stream",
    )

    def __init__(self, name: str, store: Store, clock: Clock, run: str, state: QueueState | None = None) -> None:
        super().__init__()
        self.name = name
        self.stream = stream_of(name)
        self.state = QueueState() if state is None else state
        self._store = store
        self._clock = clock
        self._now = clock.now
        # Not of a log that is one of those with something else around it, which wants to hear of each append.
        self._append_next: Callable[[str, int, Sequence[e.Event]], None] = (
            store.log.append_next if type(store.log) is MemoryEventLog else self._append_one
        )
        self._immediate = store.journal is None
        # Without a journal an append is there at once, and with a buffered one nobody waits for it.
        self._waits = store.journal is not None and store.buffered_seconds is None
        self.commits_at_once = self._waits and store.journal is not None and store.journal.may_wait_on_loop
        """Whether a send that nobody else sends beside is committed within the call, where the loop waits for it."""
        self._durable = self.state.version if self._waits else NEVER_WAIT
        self._on_their_way = _NOTHING if store.buffered_seconds is None else deque()
        self._no_room_until: float | None = None
        self._next_snapshot = NEVER_WAIT
        self._saved_version = self.state.version
        self._plan_snapshot()
        self._run = run
        self._shared_context = Context(0.0, run, self._durable)
        self._unsent: Unsent | None = None
        # What the journal has been given and was not heard of since, oldest first.
        self._handed_over: list[Unsent] = []
        self._submitting = False
        self._outbox: list[e.Event] | None = None
        self._synchronous = False
        self._recovering: BaseException | None = None
        self._rebuilt = 0
        self._stash: list[tuple[Any, LoopFuture[Any]]] = []

    # --- for the layers above -----------------------------------------------------------------------------

    def _after(self) -> None:
        """After anything that happened: let others in, plan a turn, set the timer."""

    def _after_rebuild(self) -> None:
        """The state is another one; see to what the log does not know of."""

    def _after_commit(self) -> None:
        """The store works."""

    def _after_step(self) -> None:
        """The time of the queue is another than before, measured by the clock."""

    # --- deciding and recording ---------------------------------------------------------------------------

    def _context(self) -> Context:
        """The context of the next decision; one object, because no decision keeps it."""
        context = self._shared_context
        now = self._now()
        last = self.state.last_at
        context.now = now if now >= last else self._behind(now, last)
        context.durable_version = self._durable
        return context

    def _behind(self, now: float, last: float) -> float:
        """The time where the clock reads less than the ``last`` event's: not before that, and no standstill."""
        if last - now >= STEP_SECONDS:
            clock = self._clock
            if type(clock) is not QueueClock:
                clock = self._clock = QueueClock(clock, self.name, self._after_step)
                self._now = clock.now
            clock.go_on_from(last)
        return last

    def _decide_command(self, command: Any, context: Context | None = None) -> Decision:
        """Ask the decider of a command, now or at a time that was looked at already.

        A fault of ours rebuilds the queue and reaches the caller as an error.
        """
        state = self.state
        if state.deleted and type(command) not in _AFTER_DELETION:
            raise QueueClosedError(f"queue {self.name!r} was deleted; create it again, or use another one")
        try:
            # Looked up at each call, so that a test can put a faulty decider in its place.
            return DECIDERS[type(command)](state, command, context or self._context())
        except MessageQueueError:
            raise
        except Exception as error:
            raise self._rebuilt_after(error) from error

    def _decide(self, decider: Callable[..., Decision], *arguments: Any) -> Decision:
        """Ask a decider that no command names; a fault is handled as in :meth:`_decide_command`."""
        try:
            return decider(self.state, *arguments, self._context())
        except MessageQueueError:
            raise
        except Exception as error:
            raise self._rebuilt_after(error) from error

    def _carry_out(self, decision: Decision, *, wait: bool) -> Any:
        """Record the events; the reply, or a future of it where it has to wait for the commit."""
        if not decision.events:
            return decision.reply
        return self._record(decision.events, decision.reply, wait)

    def _record(self, events: tuple[e.Event, ...], reply: Any = None, wait: bool = False, awaited: bool = False) -> Any:
        """Apply and store events; the reply, or a future of it where it has to wait for the commit.

        ``awaited`` says that nobody but a task of this loop will wait for it, for whom the loop's own future will do.
        """
        state = self.state
        before = state.version
        outbox = self._outbox
        try:
            if len(events) == 1:
                state.apply(events[0])
            else:
                state.apply_all(events)
            if outbox is not None:
                if not wait:
                    outbox += events
                    return reply
                self._flush_outbox(before)
            if self._immediate:
                self._append_next(self.stream, before, events)
                return reply
            loop = self.loop
            if loop is None or not loop.is_running() or (wait and self._synchronous):
                self._append(before, events)
                return reply
        except Exception as error:
            raise self._rebuilt_after(error) from error
        if not wait or (not self._waits and type(events[-1]) not in _NEVER_RISKED and self._may_risk_more()):
            self._submit(before, events)
            return reply
        later: Waiter = loop.create_future() if awaited else LoopFuture()
        self._submit(before, events).waiters.append((later, reply))
        return later

    def _append_one(self, stream: str, version: int, events: Sequence[e.Event]) -> None:
        self._store.log.append((Append(stream, version, events),))

    def _append(self, before: int, events: Sequence[e.Event]) -> None:
        """Append and wait for the commit, after everything before it."""
        self.send_off()
        self._store.append(self.stream, before, events)
        if self._waits:
            self._durable = before + len(events)

    def _submit(self, before: int, events: Sequence[e.Event], *, plan: bool = True) -> Unsent:
        """Have events appended soon: all that come in this iteration of the loop go to the journal as one append.

        Without a ``plan`` for that the caller sends them off, or the end of an append that is on its way does.
        """
        unsent = self._unsent
        if unsent is None:
            unsent = self._unsent = Unsent(before, False)
            if not self._waits:
                self._on_their_way.append(time.monotonic())
        if plan and not unsent.planned:
            self._plan_to_send(unsent)
        unsent.events += events
        return unsent

    def _plan_to_send(self, unsent: Unsent) -> None:
        unsent.planned = True
        loop = self.loop
        assert loop is not None, "without a loop events are appended at once"
        loop.call_soon(self._send_planned, unsent)

    def _send_planned(self, unsent: Unsent) -> None:
        # Unless it was sent before; what has gathered since has a plan of its own.
        if self._unsent is unsent:
            self.send_off()

    def _submit_at_once(self, before: int, events: Sequence[e.Event]) -> Unsent | None:
        """Have events appended now, for the only one who waits for anything; None where they are committed already."""
        unsent = self._unsent
        if unsent is None:
            unsent = self._unsent = Unsent(before, True)
        unsent.events += events
        self._submitting = True
        try:
            self.send_off(at_once=True)
        finally:
            self._submitting = False
        return None if self._durable >= before + len(events) else unsent

    def send_off(self, *, at_once: bool = False) -> None:
        """Hand what was gathered to the journal; ``at_once`` where nobody else is about to."""
        unsent = self._unsent
        if unsent is None:
            return
        self._unsent = None
        self._handed_over.append(unsent)

        def done(error: BaseException | None) -> Callable[[], None] | None:
            if _get_running_loop() is None and self._is_for_others():
                return None
            committed = Committed(unsent, error)
            if error is None:
                if self._submitting and _get_running_loop() is self.loop:
                    # Called from within send_off: this is the actor's turn.
                    self._committed(committed)
                    return None
                heard = self.actor_inbox.try_now(self._hear, committed)
                if heard is not BUSY:
                    return self._go_on if heard else None
            try:
                self.actor_ref.tell(committed)
            except pykka.ActorDeadError:
                self.on_told_too_late(committed)
            return None

        urgent = at_once or bool(unsent.waiters)
        self._store.submit(
            self.stream, unsent.before, unsent.events, done, self.loop, urgent=urgent, at_once=at_once, record=unsent
        )

    def _is_for_others(self) -> bool:
        """Whether who comes next is to find out the end of an append, which was told on a thread without a loop.

        It is the journal's, because the loop is closed, and cannot do what waits for the journal.
        """
        return self.loop is not None and not self.actor_inbox.closed

    def _flush_outbox(self, version: int, *, plan: bool = True) -> None:
        """Submit what a turn has recorded so far; ``version`` is the state's after it. See :meth:`_submit`."""
        outbox = self._outbox
        if outbox:
            events = tuple(outbox)
            outbox.clear()
            if self._immediate:
                self._append_next(self.stream, version - len(events), events)
            else:
                self._submit(version - len(events), events, plan=plan)

    def _may_risk_more(self) -> bool:
        """Whether a reply need not wait: the oldest event that is not on disk yet is young enough."""
        limit = self._store.buffered_seconds
        if limit is None or self._is_forked():
            # In a forked child nothing is on its way, and the refusal is the reply.
            return False
        waiting = self._on_their_way
        return not waiting or time.monotonic() - waiting[0] < limit

    @property
    def _outstanding(self) -> int:
        """How many appends were gathered or handed over and have not come to their end."""
        return len(self._handed_over) + (self._unsent is not None)

    def _is_forked(self) -> bool:
        journal = self._store.journal
        return journal is not None and journal.is_forked

    def _committed(self, message: Committed) -> None:
        if self._hear(message):
            self._look_on()

    def _hear(self, message: Committed) -> bool:
        """Answer those who waited for a commit, and take note of it; whether to :meth:`_look_on` after that."""
        append = message.append
        try:
            self._handed_over.remove(append)
        except ValueError:
            # It was found out before a loop that had been left ran again.
            return False
        if not self._waits and self._on_their_way:
            self._on_their_way.popleft()
        if message.error is None:
            version = append.before + len(append.events)
            self._durable = max(self._durable, version)
            answer(append.waiters, None)
            if version >= self._next_snapshot:
                self.save_snapshot()
        else:
            if isinstance(message.error, LogFullError):
                self._no_room_until = time.monotonic() + NO_ROOM_SECONDS
            if self._recovering is None:
                self._recovering = message.error
            answer(append.waiters, self._store_error(message.error))
        if self._recovering is None:
            return True
        # It waited for this one; recovering waits for all.
        self.send_off()
        # What was on its way when this process was forked off is answered to the parent alone.
        if self._outstanding == 0 or self._is_forked():
            self._recover_from(self._recovering)
        return False

    def _look_on(self, _: object = None) -> None:
        """Plan what a commit has made possible, and to send what has waited for that."""
        if self._recovering is None:
            self._after_commit()
            self._after()
        # Behind the turn that was planned: what tasks send until then, and what that hands over, goes with it.
        self._plan_unsent()

    def _plan_unsent(self) -> None:
        """Plan to send what has waited for the end of an append."""
        unsent, loop = self._unsent, self.loop
        if unsent is not None and not unsent.planned:
            if loop is None or not loop.is_running():
                self.send_off()
            else:
                self._plan_to_send(unsent)

    def _go_on(self) -> None:
        """As :meth:`_look_on`, from outside of a turn."""
        if self.actor_inbox.try_now(self._look_on, None) is BUSY:
            with contextlib.suppress(pykka.ActorDeadError):
                self.actor_ref.tell(TURN)

    # --- snapshots and room -------------------------------------------------------------------------------

    def save_snapshot(self) -> None:
        """Save the state, which the log keeps if the events that lead to it are stored. O(size of the state)."""
        if self._recovering is None and self.state.created:
            self.send_off()
            self._saved_version = self.state.version
            self._plan_snapshot()
            try:
                self._store.save(self.stream, self.state)
            # For one, too large for the memory: the events are there, and what else a commit brings has to go on.
            except Exception:
                logger.exception("queue %s: its state could not be saved; it is tried again later", self.name)

    def _plan_snapshot(self) -> None:
        every = self._store.snapshot_events
        if every is not None and self._store.journal is not None:
            # A large state is saved less often, so that saving it stays a small part of the work.
            self._next_snapshot = self.state.version + max(every, SNAPSHOT_SHARE * len(self.state.messages))

    def _save_at_the_end(self) -> None:
        if (
            self._store.snapshot_events is not None
            and self.state.version - self._saved_version >= LEAST_EVENTS_AT_THE_END
        ):
            self.save_snapshot()

    def _has_room(self) -> bool:
        """Whether the log takes new messages, as far as is known; asks it now and then after it did not."""
        if self._no_room_until is None:
            return True
        now = time.monotonic()
        if now < self._no_room_until:
            return False
        log = retaining(self._store.log)
        if log is not None and not log.has_room():
            self._no_room_until = now + NO_ROOM_SECONDS
            return False
        self._no_room_until = None
        return True

    # --- failing and coming back --------------------------------------------------------------------------

    def _rebuilt_after(self, error: Exception) -> MessageQueueError:
        """Rebuild from the log after a failure inside a decision or the store; the error for whoever asked."""
        if self._outbox is not None:
            self._outbox.clear()
        self._rebuilt += 1
        if self._outstanding == 0 or self._is_forked():
            self._rebuild(error)
        else:
            self._recovering = error
        return self._store_error(error)

    def _store_error(self, error: BaseException) -> MessageQueueError:
        if isinstance(error, MessageQueueError):
            return error
        return EventLogError(
            f"queue {self.name!r} failed and was rebuilt from its log: {type(error).__name__}: {error}"
        )

    def _recover_from(self, error: BaseException) -> None:
        self._recovering = None
        self._rebuild(error)
        stash, self._stash = self._stash, []
        for message, later in stash:
            try:
                reply = self.on_receive(message)
            except BaseException as refused:
                later.set_exception((type(refused), refused, None))
                continue
            if isinstance(reply, LoopFuture):
                reply.forward_to(later)
            else:
                later.set(reply)

    def _rebuild(self, error: BaseException) -> None:
        """Fold the log anew."""
        self._rebuilt += 1
        logger.warning("queue %s: rebuilding its state from the log after %r", self.name, error)
        try:
            state = self._store.load(self.stream)
        except Exception:
            logger.exception("queue %s: its log cannot be read; it goes on refusing until that works", self.name)
            state = self.state
        if state.created:
            self.state = state
        if self._waits:
            self._durable = self.state.version
        elif self._store.buffered_seconds is not None:
            # Clients may hold ids of messages that were on their way to the log, and others must not get these.
            self._shared_context.run = f"{self._run}.{self._rebuilt}"
        self._saved_version = min(self._saved_version, self.state.version)
        self._plan_snapshot()
        self._after_rebuild()
