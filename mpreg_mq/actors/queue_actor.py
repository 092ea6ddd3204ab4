"""The queue actor: takes commands, lets the pure decider decide, records the events, and carries out what follows.

Four layers, each in a file: :mod:`~mpreg_mq.actors.recording` below, on it :mod:`~mpreg_mq.actors.delivering` and
:mod:`~mpreg_mq.actors.dispatching`, and here what a queue can be asked for.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from asyncio import _get_running_loop
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import pykka

from mpreg_mq.actors import commands as c
from mpreg_mq.actors.attachments import Attachment
from mpreg_mq.actors.decider import DECIDERS, WAIT_FOR_ROOM
from mpreg_mq.actors.decider.decision import rejected
from mpreg_mq.actors.decider.sending import decide_fire_and_forget, record_fire_and_forget
from mpreg_mq.actors.dispatching import DispatchingActor
from mpreg_mq.actors.futures import LoopFuture
from mpreg_mq.actors.inbox import BUSY
from mpreg_mq.actors.messages import Abandon, BeginClose, Committed, FinishClose, Inspect, Recover, Start, Stored, Turn
from mpreg_mq.actors.recording import Unsent
from mpreg_mq.actors.store import Store, stream_of
from mpreg_mq.actors.subscriber_actor import Deliver, Later, Settled
from mpreg_mq.actors.views import fired_message
from mpreg_mq.actors.waiting import WaitingReceive
from mpreg_mq.clock import Clock
from mpreg_mq.errors import MessageQueueError, QueueClosedError
from mpreg_mq.events.log import Append
from mpreg_mq.model import Callback, CircuitState, DeliveryGuarantee, MessageId, RejectionReason
from mpreg_mq.projections import QueueState

logger = logging.getLogger("mpreg_mq")

_OPEN = CircuitState.OPEN


class QueueActor(DispatchingActor):
    """One queue. It is bound to the event loop that first uses it; without one it works on the caller's thread."""

    __slots__ = (
        "_fired",
        "_firing",
        "try_send",
    )

    def __init__(self, name: str, store: Store, clock: Clock, run: str, state: QueueState | None = None) -> None:
        super().__init__(name, store, clock, run, state)
        self._fired = 0
        self.try_send: Callable[[c.Send], Any] = partial(self.actor_inbox.try_now, self._send)
        """:meth:`call` for a send of a task, by the shortest way; ``BUSY`` where it has to take the longer one.

        What it has to wait for may be a future of asyncio. :class:`Stored` is the reply that it need not wait for.
        """
        # Keys of fire-and-forget sends whose attempt is under way: they are in no event yet.
        self._firing: frozenset[str] = frozenset()

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
            if self._calling_out and self.in_own_thread() and not self._waits_for_key(message):
                self._open_lease()
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
                if self._calling_out:
                    self._open_lease()
                    reply = self.on_receive(message)
                else:
                    reply = self.run_now(self.on_receive, message, ahead=True)
            finally:
                self._synchronous = outer
        except pykka.ActorDeadError:
            raise self.closed_error() from None
        return reply.get() if isinstance(reply, LoopFuture) else reply

    def _waits_for_key(self, message: Any) -> bool:
        """Whether a callback sends a key of the very send that it is called for, which is decided after that (U1)."""
        if not self._firing:
            return False
        sends = message.sends if type(message) is c.SendBatch else (message,)
        return any(type(send) is c.Send and send.fingerprint in self._firing for send in sends)

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

    # --- commands -----------------------------------------------------------------------------------------

    def _command(self, command: Any) -> Any:
        reply = self._carry_out(self._decide_command(command), wait=True)
        self._after()
        return reply

    def _command_in_order(self, command: Any) -> Any:
        """For what only has to be in order: the reply does not wait for the commit."""
        reply = self._carry_out(self._decide_command(command), wait=False)
        self._after()
        return reply

    def _send_asked(self, command: c.Send) -> Any:
        return self._send(command, awaited=False)

    def _send(self, command: c.Send, awaited: bool = True) -> Any:
        if self._recovering is not None:
            return self.on_receive(command)
        if self._closing or self.state.deleted:
            return self._closing_result()
        if command.guarantee is DeliveryGuarantee.FIRE_AND_FORGET:
            return self._fire_and_forget(command)
        if self._no_room_until is not None and not self._has_room():
            return self._no_room_result()
        state = self.state
        # As _context, in place.
        context = self._shared_context
        now = self._now()
        context.now = now if now >= state.last_at else state.last_at
        context.durable_version = self._durable
        try:
            decision = DECIDERS[c.Send](state, command, context)
        except MessageQueueError:
            raise
        except Exception as error:
            raise self._rebuilt_after(error) from error
        reply = decision.reply
        if reply is WAIT_FOR_ROOM:
            return self._park(command)
        self.sends_ahead += 1
        if self._immediate and self._outbox is None:
            # As _record, in place, for a log that has at once what is appended.
            events = decision.events
            before = state.version
            try:
                for event in events:
                    state.apply(event)
                self._log_append((Append(self.stream, before, events),))
            except Exception as error:
                raise self._rebuilt_after(error) from error
        elif (
            awaited
            and reply.success
            and self._waits
            and self._outbox is None
            and not self._synchronous
            and (loop := _get_running_loop()) is not None
        ):
            # As _record, in place, for a log that has it only after a commit, which a task of this loop waits for.
            before = state.version
            try:
                for event in decision.events:
                    state.apply(event)
            except Exception as error:
                raise self._rebuilt_after(error) from error
            unsent: Unsent | None
            if self._commits_at_once and self.turns.is_lone_sender():
                # There is nothing to gather this with.
                unsent = self._submit_at_once(before, decision.events)
            else:
                unsent = self._submit(before, decision.events)
            if unsent is None:
                reply = Stored(reply)
            else:
                later = loop.create_future()
                unsent.waiters.append((later, reply))
                reply = later
        else:
            reply = self._record(decision.events, reply, reply.success, awaited)
        # A turn that is planned sets the timer at its end.
        if not self._turn_scheduled or self._parked:
            self._after()
        return reply

    def _send_batch(self, command: c.SendBatch) -> Any:
        if self._closing:
            return [self._closing_result() for _ in command.sends]
        if not self._has_room():
            return [self._no_room_result() for _ in command.sends]
        self.sends_ahead += len(command.sends)
        return self._command(command)

    def _no_room_result(self) -> Any:
        detail = f"queue {self.name!r}: there is no room for messages on the disk of its log; make room, or wait"
        return rejected(RejectionReason.STORE_ERROR, detail, self._clock.now())

    def _closing_result(self) -> Any:
        detail = f"queue {self.name!r} is closing; it takes no more messages"
        return rejected(RejectionReason.CLOSING, detail, self._clock.now())

    def _fire_and_forget(self, send: c.Send) -> Any:
        state = self.state
        # As _context and _decide, in place.
        context = self._shared_context
        now = self._now()
        context.now = now if now >= state.last_at else state.last_at
        context.durable_version = self._durable
        try:
            decision = decide_fire_and_forget(state, send, context)
        except MessageQueueError:
            raise
        except Exception as error:
            raise self._rebuilt_after(error) from error
        if decision.reply is not None:
            return self._carry_out(decision, wait=False)
        key = send.fingerprint
        if key is None:
            return self._fire(send)
        self._firing |= {key}
        try:
            return self._fire(send)
        finally:
            self._firing -= {key}

    def _fire(self, send: c.Send) -> Any:
        self._fired = fired = self._fired + 1
        delivered: list[str] = []
        failed: list[str] = []
        state = self.state
        subscribers, topic = state.subscribers, send.topic
        # The time of the decision to let it go.
        now = self._shared_context.now
        id_ = MessageId(f"f{fired}-{self._run}", now, self.name)
        outer, self._calling_out = self._calling_out, True
        try:
            for subscriber_id in () if state.paused else subscribers.audience(topic):
                subscriber = subscribers.get(subscriber_id)
                attachment = self._attachments.get(subscriber_id)
                if subscriber is None or attachment is None:
                    continue
                if subscriber.circuit is _OPEN:
                    failed.append(subscriber_id)
                    continue
                subscription_id = subscriber.only_subscription or subscribers.subscription_for(subscriber, topic)
                delivery = Deliver(fired_message(send, id_, state.configuration), subscription_id, subscriber_id, 0)
                outcome = attachment.deliver(delivery, attachment.subscriptions.get(subscription_id))
                if outcome is None or outcome is Later.REPORTED:
                    delivered.append(subscriber_id)
                else:
                    failed.append(subscriber_id)
                    logger.warning(
                        "queue %s: fire-and-forget message %s failed at %s: %s", self.name, id_, subscriber_id, outcome
                    )
        finally:
            self._calling_out = outer
        state, context = self.state, self._shared_context
        # Callbacks may have had something recorded, which was later.
        context.now = now if now >= state.last_at else state.last_at
        decision = record_fire_and_forget(send, context, id_, tuple(delivered), tuple(failed))
        if not self._immediate or self._outbox is not None:
            return self._record(decision.events, decision.reply)
        # As _record, in place, for a log that has at once what is appended.
        before = state.version
        try:
            state.apply(decision.events[0])
            self._log_append((Append(self.stream, before, decision.events),))
        except Exception as error:
            raise self._rebuilt_after(error) from error
        return decision.reply

    def _subscribe(self, command: c.Subscribe) -> Any:
        reply = self._carry_out(self._decide_command(command), wait=False)
        if command.callback is not None:
            attachment = self._attachments.get(command.subscriber_id)
            if attachment is None:
                attachment = self._attachments[command.subscriber_id] = Attachment(command.subscriber_id, self._report)
            attachment.attach(command)
        self._after()
        return reply

    def _unsubscribe(self, command: c.Unsubscribe) -> Any:
        subscription = self.state.subscribers.subscription(command.subscription_id)
        reply = self._carry_out(self._decide_command(command), wait=False)
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

    def _purge(self, command: c.Purge) -> Any:
        for (message_id, subscriber_id, attempt), subscription_id in list(self._running.items()):
            self._attachments[subscriber_id].give_up(subscription_id, message_id, attempt)
        return self._command(command)

    def _inspect(self, message: Inspect) -> Any:
        return message.function(self.state, max(self._clock.now(), self.state.last_at))

    # --- beginning and end --------------------------------------------------------------------------------

    def _recover(self, message: Recover) -> None:
        self._end_push_leases("the process that had it ended")
        self._carry_out(self._decide_command(c.Detach()), wait=False)
        self._after()

    def _end_push_leases(self, reason: str, *, pull_too: bool = False) -> None:
        leases = [
            (message.id, slot.lease.subscriber_id)
            for message in self.state.messages.leased()
            for slot in message.slots()
            if slot.lease is not None and (pull_too or not slot.lease.pull)
        ]
        for message_id, subscriber_id in leases:
            self._carry_out(self._decide_command(c.EndLease(message_id, subscriber_id, reason)), wait=False)

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
            decision = self._decide_command(c.Detach())
        finally:
            for attachment in self._attachments.values():
                attachment.stop()
            self._attachments.clear()
            self._running.clear()
        reply = self._carry_out(decision, wait=True)
        self._save_at_the_end()
        # The journal may stop before this loop comes to what is planned on it.
        self.send_off()
        return reply

    def on_loop_changed(self) -> None:
        """The timers and turns of the loop before are lost; plan them anew."""
        self._timer = None
        self._turn_scheduled = False
        self.send_off()
        self._after()

    _handlers: ClassVar[dict[type[Any], Callable[[Any, Any], Any]]] = {
        c.Send: _send_asked,
        c.SendBatch: _send_batch,
        c.RecordRejection: _command_in_order,
        c.Subscribe: _subscribe,
        c.Unsubscribe: _unsubscribe,
        c.Receive: _receive,
        c.Acknowledge: _command,
        c.NegativeAcknowledge: _command,
        c.ExtendLease: _command,
        c.EndLease: _command_in_order,
        c.Detach: _command_in_order,
        c.Pause: _command_in_order,
        c.Resume: _command_in_order,
        c.Purge: _purge,
        c.Delete: _command,
        c.Open: _command,
        c.Redrive: _command,
        c.AcceptRedriven: _command,
        c.RecordRedriven: _command,
        c.PurgeDeadLetters: _command,
        Settled: DispatchingActor._on_settled,
        Committed: DispatchingActor._committed,
        Turn: DispatchingActor._on_turn,
        Inspect: _inspect,
        Abandon: DispatchingActor._abandon,
        Recover: _recover,
        Start: _start,
        BeginClose: _begin_close,
        FinishClose: _finish_close,
    }


def make_actor(name: str, store: Store, clock: Clock, state: QueueState | None = None) -> QueueActor:
    """The actor of a queue; takes up what the log holds of it, unless ``state`` has been folded already."""
    if state is None:
        state = store.load(stream_of(name))
    return QueueActor.launch(name, store, clock, secrets.token_hex(6), state)
