"""The queue actor: takes commands, lets the pure decider decide, records the events, and carries out what follows.

Everything here is about order: state is applied and recorded before anybody hears of it, replies to senders wait
for the commit where the log needs one, and user code is called only when the state is consistent.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

import pykka

from mpreg_mq.actors import commands as c
from mpreg_mq.actors.attachments import Attachment, Later
from mpreg_mq.actors.decider import WAIT_FOR_ROOM, Context, Decision, decide, decide_admit, decide_dispatch, decide_tick
from mpreg_mq.actors.decider.decision import rejected
from mpreg_mq.actors.decider.sending import decide_fire_and_forget, decide_wait_over, record_fire_and_forget
from mpreg_mq.actors.decider.settling import acknowledge
from mpreg_mq.actors.messages import TURN, Abandon, BeginClose, Committed, FinishClose, Inspect, Recover, Start, Turn
from mpreg_mq.actors.runtime import BUSY, LoopActor, LoopFuture
from mpreg_mq.actors.store import Store, stream_of
from mpreg_mq.actors.subscriber_actor import Deliver, Outcome, Settled
from mpreg_mq.actors.views import delivered_message, queued_message
from mpreg_mq.actors.waiting import ParkedSend, WaitingReceive
from mpreg_mq.clock import Clock, TimerHandle
from mpreg_mq.errors import EventLogError, MessageQueueError, PayloadError, QueueClosedError
from mpreg_mq.events import types as e
from mpreg_mq.model import Callback, CircuitState, DeliveryGuarantee, RejectionReason
from mpreg_mq.projections import QueueState

logger = logging.getLogger("mpreg_mq")

SLICE_SECONDS = 0.004
"""Longest a queue delivers before the loop's other tasks get their turn."""

STEPS_BETWEEN_LOOKS = 16
"""Deliveries between two looks at the clock of a slice."""

NEVER_WAIT = 1 << 62

FIRST_RETRY_SECONDS = 0.05
LAST_RETRY_SECONDS = 5.0
"""Bounds of the wait before delivering is tried again after the store failed."""


class QueueActor(LoopActor):
    """One queue. It is bound to the event loop that first uses it; without one it works on the caller's thread."""

    def __init__(self, name: str, store: Store, clock: Clock, run: str, state: QueueState | None = None) -> None:
        super().__init__()
        self.name = name
        self.stream = stream_of(name)
        self.state = QueueState() if state is None else state
        self.started = True
        self.deliveries = 0
        self.sends_since_turn = 0
        self._store = store
        self._clock = clock
        self._run = run
        self._fired = 0
        self._attachments: dict[str, Attachment] = {}
        self._running: dict[tuple[str, str, int], str] = {}
        self._receivers: list[WaitingReceive] = []
        self._parked: list[ParkedSend] = []
        self._closing = False
        self._drained: LoopFuture[None] | None = None
        self._calling_out = False
        self._synchronous = False
        self._turn_scheduled = False
        self._timer: TimerHandle | None = None
        self._timer_at = 0.0
        self._retry_seconds = FIRST_RETRY_SECONDS
        # Without a journal an append is there at once, so nothing ever waits to be durable.
        self._durable = self.state.version if store.journal is not None else NEVER_WAIT
        self._shared_context = Context(0.0, run, self._durable)
        self._outstanding = 0
        self._outbox: list[e.Event] | None = None
        self._recovering: BaseException | None = None
        self._rebuilt = 0
        self._rejoin = False
        self._stash: list[tuple[Any, LoopFuture[Any]]] = []

    # --- being asked --------------------------------------------------------------------------------------

    def call(self, message: Any) -> Any:
        """Handle a message at once where this thread may; else a :class:`LoopFuture` of the reply.

        Raises:
            MessageQueueError: the message was refused.
            QueueClosedError: the queue is closed.
        """
        reply = self.actor_inbox.try_now(self.on_receive, message)
        if reply is not BUSY:
            return reply
        try:
            if self._calling_out and self.in_own_thread():
                return self.on_receive(message)
            return self.actor_ref.ask(message, block=False)
        except pykka.ActorDeadError:
            raise self.closed_error() from None

    def call_now(self, message: Any) -> Any:
        """Handle a message and wait for the reply without suspending; ahead of others on the actor's own thread.

        Raises:
            MessageQueueError: the message was refused.
            QueueClosedError: the queue is closed.
        """
        try:
            if not self.in_own_thread():
                return self.actor_ref.ask(message)
            outer, self._synchronous = self._synchronous, True
            try:
                reply = (
                    self.on_receive(message)
                    if self._calling_out
                    else self.run_now(self.on_receive, message, ahead=True)
                )
            finally:
                self._synchronous = outer
        except pykka.ActorDeadError:
            raise self.closed_error() from None
        return reply.get() if isinstance(reply, LoopFuture) else reply

    def callbacks(self) -> dict[str, Callback | None]:
        """Callbacks of this process by subscription id."""
        return {
            subscription_id: subscribe.callback
            for attachment in list(self._attachments.values())
            for subscription_id, subscribe in list(attachment.subscriptions.items())
        }

    async def wait_at_most(self, future: LoopFuture[Any], seconds: float) -> None:
        """Wait for a reply, or until the time is up by the queue's clock."""
        loop = asyncio.get_running_loop()
        over = asyncio.Event()
        timer = self._clock.call_at(loop, self._clock.now() + seconds, over.set)
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(over.set))
        await over.wait()
        timer.cancel()

    def close_now(self, reason: str) -> None:
        """Close without waiting for callbacks; blocks for the commit where the log needs one."""
        try:
            if self.in_own_thread():
                self.run_now(self._close_at_once, reason, ahead=True)
            else:
                self.actor_ref.ask(Inspect(lambda state, now: self._close_at_once(reason)))
        except pykka.ActorDeadError:
            return
        self.actor_ref.stop(block=False)

    def _close_at_once(self, reason: str) -> None:
        self._begin_close(BeginClose())
        self._finish_close(FinishClose(reason))
        if self._store.journal is not None:
            self._store.journal.flush()

    def closed_error(self) -> QueueClosedError:
        """What whoever asks a closed queue gets."""
        return QueueClosedError(f"queue {self.name!r} is closed; open it again, or use another one")

    def on_receive(self, message: Any) -> Any:
        """Carry out a command of :mod:`mpreg_mq.actors.commands`, or a message about the actor itself."""
        handler = self._handlers.get(type(message))
        if handler is None:
            raise TypeError(f"queue {self.name!r}: got {message!r}, expected a command of mpreg_mq.actors.commands")
        if self._recovering is not None and type(message) is not Committed:
            later: LoopFuture[Any] = LoopFuture()
            self._stash.append((message, later))
            return later
        return handler(self, message)

    def has_to_yield(self, run_limit: int) -> bool:
        """Whether a sender that never suspends should let the queue deliver before its next send (C1).

        So it is when the queue is full or the run of sends is long, and a delivering turn is due.
        """
        return self._turn_scheduled and (
            self.sends_since_turn >= run_limit or self.state.messages.pending_count >= self.state.configuration.max_size
        )

    # --- deciding and recording ---------------------------------------------------------------------------

    def _context(self) -> Context:
        """The context of the next decision; one object, because no decision keeps it."""
        context = self._shared_context
        now = self._clock.now()
        last = self.state.last_at
        context.now = now if now >= last else last
        context.durable_version = self._durable
        return context

    def _carry_out(self, decision: Decision, *, wait: bool) -> Any:
        """Record the events; the reply, or a future of it where it has to wait for the commit."""
        if not decision.events:
            return decision.reply
        return self._record(decision.events, decision.reply, wait)

    def _decide(self, decider: Callable[..., Decision], *arguments: Any) -> Decision:
        """Ask the decider; a fault of ours rebuilds the queue and reaches the caller as an error."""
        try:
            return decider(self.state, *arguments, self._context())
        except MessageQueueError:
            raise
        except Exception as error:
            raise self._rebuilt_after(error) from error

    def _record(self, events: tuple[e.Event, ...], reply: Any = None, wait: bool = False) -> Any:
        state = self.state
        before = state.version
        outbox = self._outbox
        try:
            for event in events:
                state.apply(event)
            if outbox is not None:
                if not wait:
                    outbox += events
                    return reply
                self._flush_outbox(before)
            journal = self._store.journal
            loop = self.loop
            if journal is None or loop is None or not loop.is_running() or (wait and self._synchronous):
                self._append(before, events)
                return reply
        except Exception as error:
            raise self._rebuilt_after(error) from error
        if not wait:
            self._submit(before, events, ())
            return reply
        later: LoopFuture[Any] = LoopFuture()
        self._submit(before, events, ((later, reply),))
        return later

    def _append(self, before: int, events: Sequence[e.Event]) -> None:
        self._store.append(self.stream, before, events)
        if self._store.journal is not None:
            self._durable = before + len(events)

    def _submit(
        self, before: int, events: tuple[e.Event, ...], waiters: tuple[tuple[LoopFuture[Any], Any], ...]
    ) -> None:
        version = before + len(events)
        self._outstanding += 1

        def done(error: BaseException | None) -> None:
            committed = Committed(version, waiters, error)
            try:
                self.actor_ref.tell(committed)
            except pykka.ActorDeadError:
                _answer(waiters, None if error is None else self._store_error(error))

        self._store.submit(self.stream, before, events, done, self.loop)

    def _flush_outbox(self, version: int) -> None:
        """Submit what a turn has recorded so far; ``version`` is the state's after it."""
        outbox = self._outbox
        if outbox:
            events = tuple(outbox)
            outbox.clear()
            if self._store.journal is None:
                self._append(version - len(events), events)
            else:
                self._submit(version - len(events), events, ())

    def _committed(self, message: Committed) -> None:
        self._outstanding -= 1
        if message.error is None:
            self._durable = max(self._durable, message.version)
            _answer(message.waiters, None)
        else:
            if self._recovering is None:
                self._recovering = message.error
            _answer(message.waiters, self._store_error(message.error))
        if self._recovering is not None:
            if self._outstanding == 0:
                self._recover_from(self._recovering)
            return
        self._retry_seconds = FIRST_RETRY_SECONDS
        self._after()

    # --- failing and coming back --------------------------------------------------------------------------

    def _rebuilt_after(self, error: Exception) -> MessageQueueError:
        """Rebuild from the log after a failure inside a decision or the store; the error for whoever asked."""
        if self._outbox is not None:
            self._outbox.clear()
        self._rebuilt += 1
        if self._outstanding == 0:
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
        """Fold the log anew; subscriptions whose events were lost are recorded again."""
        self._rebuilt += 1
        logger.warning("queue %s: rebuilding its state from the log after %r", self.name, error)
        try:
            state = self._store.load(self.stream)
        except Exception:
            logger.exception("queue %s: its log cannot be read; it goes on refusing until that works", self.name)
            state = self.state
        if state.created:
            self.state = state
        if self._store.journal is not None:
            self._durable = self.state.version
        self._rejoin = True
        self._retry_later()

    def _join_again(self) -> None:
        """Record the subscriptions of this process that a rebuilt state does not know."""
        for attachment in self._attachments.values():
            for subscription_id, subscribe in attachment.subscriptions.items():
                if self.state.subscribers.subscription(subscription_id) is None:
                    self._record(decide(self.state, subscribe, self._context()).events)
        self._rejoin = False

    def _retry_later(self) -> None:
        """Look again after a while that grows, so that a store that keeps failing costs little."""
        loop = self.loop
        if loop is not None and loop.is_running():
            wait, self._retry_seconds = self._retry_seconds, min(self._retry_seconds * 2, LAST_RETRY_SECONDS)
            self._turn_scheduled = True
            self._clock.call_at(loop, self._clock.now() + wait, self._take_turn)

    # --- commands -----------------------------------------------------------------------------------------

    def _command(self, command: Any) -> Any:
        reply = self._carry_out(self._decide(_decide_command, command), wait=True)
        self._after()
        return reply

    def _command_in_order(self, command: Any) -> Any:
        """For what only has to be in order: the reply does not wait for the commit."""
        reply = self._carry_out(self._decide(_decide_command, command), wait=False)
        self._after()
        return reply

    def _send(self, command: c.Send) -> Any:
        if self._closing or self.state.deleted:
            return self._closing_result()
        if command.guarantee is DeliveryGuarantee.FIRE_AND_FORGET:
            return self._fire_and_forget(command)
        decision = self._decide(_decide_command, command)
        if decision.reply is WAIT_FOR_ROOM:
            return self._park(command)
        self.sends_since_turn += 1
        reply = self._record(decision.events, decision.reply, decision.reply.success)
        self._after()
        return reply

    def _send_batch(self, command: c.SendBatch) -> Any:
        if self._closing:
            return [self._closing_result() for _ in command.sends]
        self.sends_since_turn += len(command.sends)
        return self._command(command)

    def _closing_result(self) -> Any:
        detail = f"queue {self.name!r} is closing; it takes no more messages"
        return rejected(RejectionReason.CLOSING, detail, self._clock.now())

    def _fire_and_forget(self, send: c.Send) -> Any:
        decision = self._decide(decide_fire_and_forget, send)
        if decision.reply is not None:
            return self._carry_out(decision, wait=False)
        self._fired += 1
        message_id = f"f{self._fired}-{self._run}"
        delivered: list[str] = []
        failed: list[str] = []
        state = self.state
        audience = () if state.paused else state.subscribers.audience(send.topic)
        enqueued = e.MessageEnqueued(
            self._clock.now(), message_id, send.topic, send.payload, send.guarantee, send.options
        )
        for subscriber_id in audience:
            subscriber = state.subscribers.get(subscriber_id)
            attachment = self._attachments.get(subscriber_id)
            if subscriber is None or attachment is None:
                continue
            if subscriber.circuit is CircuitState.OPEN:
                failed.append(subscriber_id)
                continue
            subscription_id = state.subscribers.subscription_for(subscriber, send.topic)
            message = queued_message(enqueued, state.configuration)
            delivery = Deliver(message, subscription_id, subscriber_id, 0)
            outcome = self._call_out(attachment, delivery)
            if isinstance(outcome, str):
                failed.append(subscriber_id)
                logger.warning(
                    "queue %s: fire-and-forget message %s failed at %s: %s",
                    self.name,
                    message_id,
                    subscriber_id,
                    outcome,
                )
            else:
                delivered.append(subscriber_id)
                if isinstance(outcome, LoopFuture):
                    outcome.add_done_callback(partial(self._report_later, delivery))
        decision = record_fire_and_forget(
            self.state, send, self._context(), message_id, tuple(delivered), tuple(failed)
        )
        return self._carry_out(decision, wait=False)

    def _subscribe(self, command: c.Subscribe) -> Any:
        reply = self._carry_out(self._decide(_decide_command, command), wait=False)
        if command.callback is not None:
            attachment = self._attachments.get(command.subscriber_id)
            if attachment is None:
                attachment = self._attachments[command.subscriber_id] = Attachment(command.subscriber_id, self._report)
            attachment.attach(command)
        self._carry_out(self._decide(decide_admit, command.subscriber_id), wait=False)
        self._after()
        return reply

    def _unsubscribe(self, command: c.Unsubscribe) -> Any:
        subscription = self.state.subscribers.subscription(command.subscription_id)
        reply = self._carry_out(self._decide(_decide_command, command), wait=False)
        if subscription is not None:
            attachment = self._attachments.get(subscription.subscriber_id)
            if attachment is not None:
                attachment.detach(command.subscription_id)
        self._after()
        return reply

    def _receive(self, command: c.Receive) -> Any:
        if self._closing:
            return []
        taken = self._lease(command)
        if taken or not command.wait_seconds:
            self._after()
            return taken
        receiver = WaitingReceive(LoopFuture(), command=command)
        self._receivers.append(receiver)
        self._set_timeout(receiver, command.wait_seconds, lambda: self._stop_receiving(receiver))
        self._after()
        return receiver.future

    def _lease(self, command: c.Receive) -> list[Any]:
        """Lease what there is to a pull subscriber. Deliveries need only be in order, so nothing waits."""
        decision = self._decide(_decide_command, command)
        self._carry_out(decision, wait=False)
        delivered = {event.message_id: event for event in decision.events if type(event) is e.MessageDelivered}
        messages = []
        for message_id in decision.reply:
            message = self.state.messages.get(message_id)
            assert message is not None
            try:
                messages.append(delivered_message(message, delivered[message_id], self.state.configuration))
            except PayloadError as error:
                self._settle_failure(delivered[message_id], str(error))
        return messages

    def _purge(self, command: c.Purge) -> Any:
        for (message_id, subscriber_id, attempt), subscription_id in list(self._running.items()):
            self._attachments[subscriber_id].give_up(subscription_id, message_id, attempt)
        return self._command(command)

    def _inspect(self, message: Inspect) -> Any:
        return message.function(self.state, max(self._clock.now(), self.state.last_at))

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

        waiting.timer = self._clock.call_at(loop, self._clock.now() + seconds, time_is_up)

    def _stop_parking(self, parked: ParkedSend) -> None:
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

    def _let_parked_in(self) -> None:
        """Accept sends that waited for room, in the order in which they came, while there is some."""
        while self._parked and self.state.messages.pending_count < self.state.configuration.max_size:
            parked = self._parked.pop(0)
            try:
                decision = self._decide(_decide_command, parked.send)
                reply = self._carry_out(decision, wait=True)
            except MessageQueueError as error:
                parked.fail(error)
                return
            parked.answer(reply)

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
                parked.cancel_timer()
                return
        for receiver in self._receivers:
            if receiver.command is message.command:
                self._receivers.remove(receiver)
                receiver.cancel_timer()
                return

    # --- turns: what is due, and deliveries ---------------------------------------------------------------

    def _after(self) -> None:
        """After anything that happened: let others in, plan a turn, set the timer."""
        if self._parked:
            self._let_parked_in()
        state = self.state
        if (
            not self._turn_scheduled
            and not self._closing
            and (state.messages.lanes.may_deliver or self._receivers)
            and not state.paused
        ):
            self._schedule_turn()
        self._set_timer()

    def _schedule_turn(self) -> None:
        loop = self.loop
        if loop is not None and self.started and loop.is_running():
            self._turn_scheduled = True
            loop.call_soon(self._take_turn)

    def _take_turn(self) -> None:
        self._turn_scheduled = False
        try:
            self.actor_ref.tell(TURN)
        except pykka.ActorDeadError:
            self._cancel_timer()

    def _set_timer(self) -> None:
        """Be woken at the next deadline; an alarm that comes early finds nothing to do, which is cheap."""
        first = self.state.messages.deadlines.first()
        if first is None or (self._timer is not None and self._timer_at <= first.when):
            return
        loop = self.loop
        if loop is None or not loop.is_running() or self._turn_scheduled:
            return
        self._cancel_timer()
        self._timer_at = first.when
        self._timer = self._clock.call_at(loop, first.when, self._on_timer)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_timer(self) -> None:
        self._timer = None
        if not self._turn_scheduled:
            self._take_turn()

    def _on_turn(self, message: Turn) -> None:
        self.sends_since_turn = 0
        self._outbox = []
        rebuilt = self._rebuilt
        more = False
        try:
            end = time.perf_counter() + SLICE_SECONDS
            steps = 0
            if self._rejoin and self._recovering is None:
                self._join_again()
            while self._step():
                steps += 1
                if steps % STEPS_BETWEEN_LOOKS == 0 and time.perf_counter() >= end:
                    more = True
                    break
            self._flush_outbox(self.state.version)
        except Exception as error:
            logger.exception("queue %s: a turn failed", self.name)
            if self._rebuilt == rebuilt:
                self._rebuilt_after(error)
            return
        finally:
            self._outbox = None
        if self._store.journal is None:
            self._retry_seconds = FIRST_RETRY_SECONDS
        if self._parked:
            self._let_parked_in()
        if more and not self._turn_scheduled:
            self._schedule_turn()
        self._set_timer()

    def _step(self) -> bool:
        """Do the first thing that is due or can be delivered; whether there was one."""
        if self._recovering is not None:
            return False
        state = self.state
        context = self._context()
        first = state.messages.deadlines.first()
        if first is not None and first.when <= context.now and self._act_on_time(context):
            return True
        if self._closing or not self.started:
            return False
        if self._receivers and self._serve_receivers():
            return True
        events = decide_dispatch(state, context).events
        if not events:
            return False
        self._record(events)
        for event in events:
            if type(event) is e.MessageDelivered:
                self._hand_over(event)
        return True

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

    def _hand_over(self, event: e.MessageDelivered) -> None:
        """Call the subscriber, and settle the attempt where the callback is over."""
        self.deliveries += 1
        message = self.state.messages.get(event.message_id)
        attachment = self._attachments.get(event.subscriber_id)
        assert message is not None
        if attachment is None:
            self._settle_failure(event, "the subscriber is not attached in this process")
            return
        try:
            copy = delivered_message(message, event, self.state.configuration)
        except PayloadError as error:
            self._settle_failure(event, str(error))
            return
        delivery = Deliver(copy, event.subscription_id, event.subscriber_id, event.attempt)
        outcome = self._call_out(attachment, delivery)
        if outcome is None:
            self._settle_success(event.message_id, event.subscriber_id, event.subscription_id, event.attempt)
        elif isinstance(outcome, str):
            self._settle_failure(event, outcome)
        else:
            self._running[event.message_id, event.subscriber_id, event.attempt] = event.subscription_id
            if isinstance(outcome, LoopFuture):
                outcome.add_done_callback(partial(self._report_later, delivery))

    def _call_out(self, attachment: Attachment, delivery: Deliver) -> Outcome | LoopFuture[Outcome] | Later:
        """User code runs here; meanwhile it may ask this queue for anything that does not suspend."""
        outer, self._calling_out = self._calling_out, True
        try:
            return attachment.deliver(delivery)
        finally:
            self._calling_out = outer

    def _report_later(self, delivery: Deliver, done: LoopFuture[Outcome]) -> None:
        try:
            outcome = done.get()
        except BaseException as error:
            outcome = f"{type(error).__name__}: {error}"
        self._report(
            Settled(delivery.message.id.id, delivery.subscriber_id, delivery.subscription_id, delivery.attempt, outcome)
        )

    def _report(self, settled: Settled) -> None:
        """Called from any thread when a callback that went on is over."""
        try:
            self.actor_ref.tell(settled)
        except pykka.ActorDeadError:
            logger.info("queue %s is closed; the outcome of message %s comes too late", self.name, settled.message_id)

    def _on_settled(self, message: Settled) -> None:
        if message.attempt:
            self._running.pop((message.message_id, message.subscriber_id, message.attempt), None)
            try:
                if message.outcome is None:
                    self._settle_success(
                        message.message_id, message.subscriber_id, message.subscription_id, message.attempt
                    )
                else:
                    self._settle(
                        c.NegativeAcknowledge(
                            message.message_id, message.subscriber_id, message.outcome, None, message.attempt
                        )
                    )
            except MessageQueueError:
                logger.exception("queue %s: an outcome could not be recorded; the lease will run out", self.name)
            self._after()
        elif message.outcome is not None:
            logger.warning(
                "queue %s: fire-and-forget failed at %s: %s", self.name, message.subscriber_id, message.outcome
            )
        if self._drained is not None and not self._running and not self._drained.done():
            self._drained.set(None)

    def _settle_success(self, message_id: str, subscriber_id: str, subscription_id: str, attempt: int) -> None:
        attachment = self._attachments.get(subscriber_id)
        subscribe = attachment.subscriptions.get(subscription_id) if attachment is not None else None
        if subscribe is None or subscribe.auto_acknowledge:
            events = acknowledge(self.state, message_id, subscriber_id, attempt, self._context()).events
            if events:
                self._record(events)

    def _settle_failure(self, event: e.MessageDelivered, error: str) -> None:
        self._settle(c.NegativeAcknowledge(event.message_id, event.subscriber_id, error, None, event.attempt))

    def _settle(self, command: c.Acknowledge | c.NegativeAcknowledge) -> None:
        self._carry_out(self._decide(_decide_command, command), wait=False)

    # --- beginning and end --------------------------------------------------------------------------------

    def _recover(self, message: Recover) -> None:
        self._end_push_leases("the process that had it ended")
        self._carry_out(self._decide(_decide_command, c.Detach()), wait=False)
        self._after()

    def _end_push_leases(self, reason: str, *, pull_too: bool = False) -> None:
        leases = [
            (message.id, slot.lease.subscriber_id)
            for message in self.state.messages.leased()
            for slot in message.slots()
            if slot.lease is not None and (pull_too or not slot.lease.pull)
        ]
        for message_id, subscriber_id in leases:
            self._carry_out(self._decide(_decide_command, c.EndLease(message_id, subscriber_id, reason)), wait=False)

    def _start(self, message: Start) -> None:
        self.started = True
        self._after()

    def _begin_close(self, message: BeginClose) -> Any:
        self._closing = True
        for receiver in self._receivers:
            receiver.answer([])
        self._receivers.clear()
        for parked in self._parked:
            parked.answer(self._closing_result())
        self._parked.clear()
        if not self._running:
            return None
        if self._drained is None:
            self._drained = LoopFuture()
        return self._drained

    def _finish_close(self, message: FinishClose) -> Any:
        self._closing = True
        self._cancel_timer()
        for attachment in self._attachments.values():
            attachment.cancel_all()
        try:
            self._end_push_leases(message.reason, pull_too=True)
            decision = self._decide(_decide_command, c.Detach())
        finally:
            for attachment in self._attachments.values():
                attachment.stop()
            self._attachments.clear()
            self._running.clear()
        return self._carry_out(decision, wait=True)

    def on_loop_changed(self) -> None:
        """The timers and turns of the loop before are lost; plan them anew."""
        self._timer = None
        self._turn_scheduled = False
        self._after()

    _handlers: ClassVar[dict[type[Any], Callable[[Any, Any], Any]]] = {
        c.Send: _send,
        c.SendBatch: _send_batch,
        c.RecordRejection: _command_in_order,
        c.Subscribe: _subscribe,
        c.Unsubscribe: _unsubscribe,
        c.Receive: _receive,
        c.Acknowledge: _command,
        c.NegativeAcknowledge: _command,
        c.ExtendLease: _command,
        c.EndLease: _command_in_order,
        c.Pause: _command_in_order,
        c.Resume: _command_in_order,
        c.Purge: _purge,
        c.Delete: _command,
        c.Open: _command,
        c.Redrive: _command,
        c.AcceptRedriven: _command,
        c.RecordRedriven: _command,
        c.PurgeDeadLetters: _command,
        Settled: _on_settled,
        Committed: _committed,
        Turn: _on_turn,
        Inspect: _inspect,
        Abandon: _abandon,
        Recover: _recover,
        Start: _start,
        BeginClose: _begin_close,
        FinishClose: _finish_close,
    }


_AFTER_DELETION = (c.Open, c.Detach, c.EndLease)


def _decide_command(state: QueueState, command: Any, context: Context) -> Decision:
    if state.deleted and type(command) not in _AFTER_DELETION:
        raise QueueClosedError(f"queue {state.configuration.name!r} was deleted; create it again, or use another one")
    # Looked up at each call, so that a test can put a faulty decider in its place.
    return decide(state, command, context)


def _answer(waiters: tuple[tuple[LoopFuture[Any], Any], ...], error: BaseException | None) -> None:
    for future, reply in waiters:
        if error is None:
            future.set(reply)
        else:
            future.set_exception((type(error), error, None))


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
