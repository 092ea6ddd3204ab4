"""A layer of a queue actor: who waits, what is due, and when something is delivered.

Deliveries are made in turns, each of which ends after a short time: see :mod:`mpreg_mq.actors.turns`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from asyncio import AbstractEventLoop, _get_running_loop
from collections.abc import Callable
from typing import Any

import pykka

from mpreg_mq.actors import commands as c
from mpreg_mq.actors.decider import Context, decide_tick, next_dispatch
from mpreg_mq.actors.decider.sending import decide_wait_over
from mpreg_mq.actors.delivering import DeliveringActor
from mpreg_mq.actors.futures import LoopFuture
from mpreg_mq.actors.inbox import BUSY
from mpreg_mq.actors.messages import TURN, Abandon, Turn
from mpreg_mq.actors.store import Store
from mpreg_mq.actors.turns import LoopTurns
from mpreg_mq.actors.views import queued_message
from mpreg_mq.actors.waiting import Alarm, ParkedSend, WaitingReceive
from mpreg_mq.clock import Clock
from mpreg_mq.errors import MessageQueueError, PayloadError
from mpreg_mq.events import types as e
from mpreg_mq.projections import QueueState

logger = logging.getLogger("mpreg_mq")

STEPS_BETWEEN_LOOKS = 16
"""Deliveries between two looks at the clock of a slice."""

FIRST_RETRY_SECONDS = 0.05
LAST_RETRY_SECONDS = 5.0
"""Bounds of the wait before delivering is tried again after the store failed."""

BURST_LIMIT = 10_000
"""Sends without a pause that are all accepted before the first of them is delivered, so that a burst obeys priority."""

RUN_LIMIT = 1_000
"""How far ahead of deliveries a run that was longer than a burst may be; fewer messages at once are less to hold."""


SHORTEST_ROW = 4
"""So many messages have to be pending for a look whether some can be delivered in a row, which takes its own time."""

MOST_TURNS_PLANNED = 64
"""Queues that plan a turn before a sender lets them have it: what its sends have touched is still in the caches."""


class DispatchingActor(DeliveringActor):
    """Delivers: to callbacks in turns, to receivers when they ask or while they wait."""

    __slots__ = (
        "_ahead_limit",
        "_alarm",
        "_closing",
        "_gathered",
        "_gathered_futures",
        "_loop_turns",
        "_parked",
        "_receivers",
        "_rejoin",
        "_retry",
        "_retry_seconds",
        "_turn_scheduled",
        "sends_ahead",
        "sends_before_look",
        "started",
        "turns",
        "waits_for_turn",
    )

    def __init__(self, name: str, store: Store, clock: Clock, run: str, state: QueueState | None = None) -> None:
        super().__init__(name, store, clock, run, state)
        self.started = True
        self._receivers: list[WaitingReceive] = []
        self._parked: list[ParkedSend] = []
        self._gathered: list[c.Send] = []
        self._gathered_futures: list[asyncio.Future[Any]] = []
        self._closing = False
        self.sends_ahead = 0
        self.sends_before_look = 0
        self._ahead_limit = BURST_LIMIT
        self._turn_scheduled = False
        self._alarm: Alarm | None = None
        self._retry: Alarm | None = None
        self._retry_seconds = FIRST_RETRY_SECONDS
        self._rejoin = False
        self.turns = store.turns
        self._loop_turns: LoopTurns | None = None
        self.waits_for_turn = False

    def has_to_yield(self, yielded: bool) -> bool:
        """Whether a sender that never suspends should let queues deliver before its next send (C1).

        So it is when the queue is full or the run of sends is long, and a delivering turn is due; and when the turns
        of many other queues are, unless the sender has ``yielded`` for this send before. It is not so while
        ``sends_ahead`` is less than ``sends_before_look``.
        """
        turns = self.turns
        if turns.planned >= MOST_TURNS_PLANNED and not yielded:
            turns.planned = 0
            return True
        if not self._turn_scheduled:
            # Until a send leaves something to be delivered.
            self.sends_before_look = self.sends_ahead + 1
            return False
        if self.sends_ahead >= self._ahead_limit:
            return True
        if self._unopened is not None and self.in_own_thread():
            # A callback sends; the message that it has is pending no more.
            with contextlib.suppress(MessageQueueError):
                self._open_lease()
        state = self.state
        if state.messages.pending_count + len(self._gathered) >= state.configuration.max_size:
            return True
        self._plan_look()
        return False

    def _plan_look(self) -> None:
        """How far ahead sends must be for :meth:`has_to_yield` to look closer: before they can fill the queue."""
        state = self.state
        room = state.configuration.max_size - state.messages.pending_count if state.created else 0
        room -= len(self._gathered)
        self.sends_before_look = min(self._ahead_limit, self.sends_ahead + room)

    # --- for the layers above -----------------------------------------------------------------------------

    def _command(self, command: Any) -> Any:
        """Decide a command and record its events; the reply, or a future of it where it has to wait for the commit."""
        reply = self._carry_out(self._decide_command(command), wait=True)
        self._after()
        return reply

    def _take_in(self, *, hand_over: bool = False) -> None:
        """Accept the sends that were gathered, in their order; ``hand_over`` them to the journal at once."""

    # --- after a failure ----------------------------------------------------------------------------------

    def _after_rebuild(self) -> None:
        self._rejoin = True
        self._retry_later()

    def _after_commit(self) -> None:
        self._retry_seconds = FIRST_RETRY_SECONDS

    def _after_step(self) -> None:
        """Set all alarms anew: those that were set by the clock alone may come late by as much as it was put back."""
        loop = self.loop
        if loop is None or not loop.is_running():
            return
        limits = [waiting.limit for waiting in (*self._parked, *self._receivers)]
        for alarm in (self._alarm, self._retry, *limits):
            if alarm is not None:
                alarm.set_anew(self._clock, loop)

    def _join_again(self) -> None:
        """Record the subscriptions of this process that a rebuilt state does not know."""
        for attachment in self._attachments.values():
            for subscription_id, subscribe in attachment.subscriptions.items():
                if self.state.subscribers.subscription(subscription_id) is None:
                    self._carry_out(self._decide_command(subscribe), wait=False)
        self._rejoin = False

    def _retry_later(self) -> None:
        """Look again after a while that grows, so that a store that keeps failing costs little."""
        loop = self.loop
        if loop is not None and loop.is_running():
            wait, self._retry_seconds = self._retry_seconds, min(self._retry_seconds * 2, LAST_RETRY_SECONDS)
            self._turn_scheduled = True
            self._retry = Alarm(self._clock.now() + wait, self._on_retry, self._clock, loop)

    def _on_retry(self) -> None:
        self._retry = None
        self._time_has_come()

    # --- those who wait: for room, for a message ----------------------------------------------------------

    def _park(self, send: c.Send) -> LoopFuture[Any]:
        parked = ParkedSend(LoopFuture(), send=send)
        self._parked.append(parked)
        self._set_timeout(parked, self.state.configuration.overflow_wait_seconds, lambda: self._stop_parking(parked))
        return parked.future

    def _set_timeout(self, waiting: ParkedSend | WaitingReceive, seconds: float, end: Callable[[], None]) -> None:
        loop = self.loop
        if loop is None or not loop.is_running():
            end()
            return

        def time_is_up() -> None:
            self.run_now(end, ahead=True)

        waiting.limit = Alarm(self._clock.now() + seconds, time_is_up, self._clock, loop)

    def _stop_parking(self, parked: ParkedSend) -> None:
        # What filled the queue may have been refused by the disk, and nobody has looked since.
        if self._recovering is None:
            self._after()
        if parked in self._parked:
            self._parked.remove(parked)
            try:
                parked.answer(self._carry_out(self._decide(decide_wait_over, parked.send), wait=False))
            except MessageQueueError as error:
                parked.fail(error)

    def _stop_receiving(self, receiver: WaitingReceive) -> None:
        if receiver in self._receivers:
            self._receivers.remove(receiver)
            receiver.answer([])

    def _let_parked_in(self) -> bool:
        """Accept sends that waited for room, in the order in which they came, while there is some; whether any was."""
        before = self.state.version
        while self._parked and self.state.messages.pending_count < self.state.configuration.max_size:
            parked = self._parked.pop(0)
            try:
                decision = self._decide_command(parked.send)
                reply = self._carry_out(decision, wait=True)
            except MessageQueueError as error:
                parked.fail(error)
                break
            parked.answer(reply)
        return self.state.version > before

    def _lease(self, command: c.Receive) -> list[Any]:
        """Lease what there is to a pull subscriber. Deliveries need only be in order, so nothing waits.

        What is due is seen to first: a lease that ran out just now may stand before what there is else (O1-O3).
        """
        # What is looked at and what is leased is so at one time: another thread may have the processor in between.
        context = self._context()
        while self.state.messages.deadlines.earliest <= context.now and self._act_on_time(context):
            context = self._context()
        decision = self._decide_command(command, context)
        self._carry_out(decision, wait=False)
        delivered = {event.message_id: event for event in decision.events if type(event) is e.MessageDelivered}
        messages = []
        for message_id in decision.reply:
            message = self.state.messages.get(message_id)
            assert message is not None
            event = delivered[message_id]
            try:
                messages.append(queued_message(message.event, self.state.configuration, event.attempt, event.deadline))
            except PayloadError as error:
                self._settle_failure(event, str(error))
        return messages

    def _serve_receivers(self) -> bool:
        """Give waiting receivers what there is now; whether anybody got something."""
        for receiver in self._receivers:
            taken = self._lease(receiver.command)
            if taken:
                self._receivers.remove(receiver)
                receiver.answer(taken)
                return True
        return False

    def _abandon(self, message: Abandon) -> None:
        for parked in self._parked:
            if parked.send is message.command:
                self._parked.remove(parked)
                parked.cancel_limit()
                return
        for receiver in self._receivers:
            if receiver.command is message.command:
                self._receivers.remove(receiver)
                receiver.cancel_limit()
                return

    # --- turns: what is due, and deliveries ---------------------------------------------------------------

    def _after(self) -> None:
        """After anything that happened: let others in, plan a turn, set the timer."""
        if self._parked:
            self._let_parked_in()
        # What happened may have made messages pending again, so that less than was planned fills the queue.
        self.sends_before_look = 0
        if self._turn_scheduled:
            return
        state = self.state
        if not self._closing and (state.messages.may_deliver or self._receivers) and not state.paused:
            self._schedule_turn()
        self._set_alarm()

    def _schedule_turn(self) -> None:
        loop = self.loop
        if loop is not None and self.started and loop.is_running():
            self._plan_turn_on(loop)

    def _plan_turn_on(self, loop: AbstractEventLoop) -> None:
        self._turn_scheduled = self.waits_for_turn = True
        turns = self._loop_turns
        if turns is None or turns.loop is not loop:
            turns = self._loop_turns = self.turns.on(loop)
        turns.plan(self)

    def _time_has_come(self) -> None:
        """Of a timer: have a turn, also where nothing is to be delivered."""
        loop = self.loop
        if loop is not None and _get_running_loop() is loop:
            self._plan_turn_on(loop)
        else:
            # The actor has moved since.
            self.take_turn()

    def take_turn(self) -> None:
        """Deliver what can be delivered, and act on what is due, as far as there is time."""
        self._turn_scheduled = self.waits_for_turn = False
        if self._recovering is None and self.actor_inbox.try_now(self._on_turn, TURN) is not BUSY:
            return
        try:
            self.actor_ref.tell(TURN)
        except pykka.ActorDeadError:
            self._cancel_alarm()

    def _set_alarm(self) -> None:
        """Be woken at the next deadline; an alarm that comes early finds nothing to do, which is cheap."""
        if self._turn_scheduled:
            return
        first = self.state.messages.deadlines.first()
        if first is None or (self._alarm is not None and self._alarm.when <= first.when):
            return
        loop = self.loop
        if loop is None or not loop.is_running():
            return
        self._cancel_alarm()
        self._alarm = Alarm(first.when, self._on_alarm, self._clock, loop)

    def _cancel_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def _on_alarm(self) -> None:
        self._alarm = None
        if not self._turn_scheduled:
            self._time_has_come()

    def _on_turn(self, message: Turn) -> None:
        # So that the disk has something to do meanwhile. What the turn records goes with the next.
        if self._gathered:
            self._take_in(hand_over=True)
        unsent = self._unsent
        if unsent is not None and unsent.waiters:
            self.send_off()
        self._outbox = []
        delivered_before = self.deliveries
        rebuilt = self._rebuilt
        more = False
        try:
            turns = self._loop_turns
            # Where another turn has been given since, it is over after its first steps.
            end = time.perf_counter() if turns is None else turns.ends_at
            if self._rejoin and self._recovering is None:
                self._join_again()
            self._context()
            more = self._work_until(end)
            self._flush_outbox(self.state.version, plan=False)
            # What nobody waits for goes with what comes after the append that is on its way.
            if not self._handed_over or not self._waits:
                self._plan_unsent()
        except Exception as error:
            logger.exception("queue %s: a turn failed", self.name)
            if self._rebuilt == rebuilt:
                self._rebuilt_after(error)
            return
        finally:
            self._outbox = None
        if self._immediate:
            self._retry_seconds = FIRST_RETRY_SECONDS
        # Who is let in last has nobody else who would plan its delivery.
        let_in = bool(self._parked) and self._let_parked_in()
        if (more or let_in) and not self._turn_scheduled:
            self._schedule_turn()
        if self.sends_ahead >= self._ahead_limit:
            self._ahead_limit = RUN_LIMIT
        if more:
            self.sends_ahead = max(0, self.sends_ahead - (self.deliveries - delivered_before))
        else:
            self.sends_ahead = 0
            if self._ahead_limit != BURST_LIMIT:
                self._look_for_pause()
        # The next send looks whether others have to be let deliver first.
        self.sends_before_look = 0
        self._set_alarm()

    def _look_for_pause(self) -> None:
        """A long run of sends is over when an iteration of the loop brings none.

        That everything is delivered is no pause: on a fast machine that is so after each part of a run.
        """
        loop = self.loop
        if loop is None or not loop.is_running():
            self._end_run()
        else:
            loop.call_soon(self._end_run)

    def _end_run(self) -> None:
        if not self.sends_ahead:
            self._ahead_limit = BURST_LIMIT

    def _work_until(self, end: float) -> bool:
        """Do what is due or can be delivered, one thing after another; whether the slice ended before that."""
        outbox = self._outbox
        assert outbox is not None, "a turn has an outbox"
        # Its time is that of the turn's beginning, or of the latest thing that took any.
        context = self._shared_context
        steps = look_for_row = 0
        while self._recovering is None:
            state = self.state
            if state.messages.deadlines.earliest <= context.now and self._act_on_time(context):
                pass
            elif self._closing or not self.started:
                return False
            elif self._receivers and self._serve_receivers():
                pass
            else:
                if steps >= look_for_row and state.messages.pending_count >= SHORTEST_ROW:
                    made = self._deliver_in_a_row(end, STEPS_BETWEEN_LOOKS)
                    if made < SHORTEST_ROW:
                        # It was not worth the look, and the next ones will hardly be.
                        look_for_row = steps + STEPS_BETWEEN_LOOKS
                    if made:
                        if time.perf_counter() >= end:
                            return True
                        continue
                event = next_dispatch(state, context)
                if event is None:
                    return False
                if type(event) is e.MessageDelivered:
                    self._hand_over(event)
                else:
                    # In a turn this is all that recording is: what fails fails the turn.
                    state.apply(event)
                    outbox.append(event)
            steps += 1
            if steps % STEPS_BETWEEN_LOOKS == 0 and time.perf_counter() >= end:
                return True
        return False

    def _act_on_time(self, context: Context) -> bool:
        due = decide_tick(self.state, context)
        if not due.events:
            return False
        ended = _leases_that_end(self.state, due.events)
        self._record(due.events)
        for subscriber_id, subscription_id, message_id, attempt in ended:
            attachment = self._attachments.get(subscriber_id)
            if attachment is not None:
                attachment.give_up(subscription_id, message_id, attempt)
        return True


def _leases_that_end(state: QueueState, events: tuple[e.Event, ...]) -> list[tuple[str, str, str, int]]:
    """Subscriber, subscription, message and attempt of the push leases that these events end by time."""
    ended = []
    for event in events:
        if type(event) is not e.LeaseExpired:
            continue
        message = state.messages.get(event.message_id)
        slot = message.slot_for(event.subscriber_id) if message is not None else None
        if slot is not None and slot.lease is not None and not slot.lease.pull:
            ended.append((event.subscriber_id, slot.lease.subscription_id, event.message_id, event.attempt))
    return ended
