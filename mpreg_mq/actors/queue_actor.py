"""The queue actor: takes commands, lets the pure decider decide, records the events, and carries out what follows.

Six layers, each in a file: :mod:`~mpreg_mq.actors.recording` below, on it :mod:`~mpreg_mq.actors.left_loops`,
:mod:`~mpreg_mq.actors.delivering`, :mod:`~mpreg_mq.actors.dispatching` and :mod:`~mpreg_mq.actors.accepting`, and here
what a queue can be asked for.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from asyncio import _get_running_loop
from collections.abc import Callable
from typing import Any, ClassVar

import msgspec
import pykka

from mpreg_mq.actors import commands as c
from mpreg_mq.actors.accepting import AcceptingActor
from mpreg_mq.actors.attachments import Attachment
from mpreg_mq.actors.decider.administration import up_to
from mpreg_mq.actors.dispatching import DispatchingActor
from mpreg_mq.actors.futures import LoopFuture
from mpreg_mq.actors.inbox import BUSY
from mpreg_mq.actors.messages import (
    Abandon,
    BeginClose,
    Committed,
    FinishClose,
    HoldDeadLetters,
    Inspect,
    Join,
    Recover,
    SeenTo,
    Start,
    TakeIn,
    Turn,
)
from mpreg_mq.actors.queue_clock import QueueClock
from mpreg_mq.actors.store import Store, stream_of
from mpreg_mq.actors.subscriber_actor import Settled
from mpreg_mq.actors.waiting import WaitingReceive
from mpreg_mq.arguments import check_fetches
from mpreg_mq.clock import Clock, VirtualClock
from mpreg_mq.errors import MessageQueueError
from mpreg_mq.events import types as e
from mpreg_mq.model import Callback
from mpreg_mq.projections import QueueState

logger = logging.getLogger("mpreg_mq")


class QueueActor(AcceptingActor):
    """One queue. It is bound to the event loop that first uses it; without one it works on the caller's thread."""

    __slots__ = ("redrives",)

    def __init__(self, name: str, store: Store, clock: Clock, run: str, state: QueueState | None = None) -> None:
        super().__init__(name, store, clock, run, state)
        self.redrives: dict[asyncio.Task[Any], frozenset[str]] = {}
        """Who has another queue accept dead letters of this one, and which."""

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
            if self._answers_callback and self.in_own_thread() and not self._waits_for_key(message):
                self._open_lease()
                return self.on_receive(message)
            return self.actor_ref.ask(message, block=False)
        except pykka.ActorDeadError:
            raise self.closed_error() from None

    def call_now(self, message: Any) -> Any:
        """Handle a message and wait for the reply without suspending; ahead of others on the actor's own thread.

        Raises:
            MessageQueueError: the message was refused, or its reply cannot be waited for on this thread, whose event
                loop would stand still; nothing was done then.
            QueueClosedError: the queue is closed.
        """
        try:
            if not self.in_own_thread():
                # An actor that has stopped says so at once.
                if _get_running_loop() is not None and self.actor_ref.is_alive():
                    raise self._cannot_wait("another event loop handles it: ask there, or in a thread without one")
                return self.actor_ref.ask(message)
            if self._recovering is not None and _get_running_loop() is not None:
                raise self._cannot_wait("it reads its log again after a failure: ask a moment later")
            outer, self._synchronous = self._synchronous, True
            try:
                if self._answers_callback:
                    self._open_lease()
                    reply = self.on_receive(message)
                else:
                    reply = self.run_now(self.on_receive, message, ahead=True)
            finally:
                self._synchronous = outer
        except pykka.ActorDeadError:
            raise self.closed_error() from None
        return reply.get() if isinstance(reply, LoopFuture) else reply

    def _cannot_wait(self, why: str) -> MessageQueueError:
        return MessageQueueError(f"queue {self.name!r} cannot answer within the call, because {why}")

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

    def on_receive(self, message: Any) -> Any:
        """Carry out a command of :mod:`mpreg_mq.actors.commands`, or a message about the actor itself."""
        handler = self._handlers.get(type(message))
        if handler is None:
            raise TypeError(f"queue {self.name!r}: got {message!r}, expected a command of mpreg_mq.actors.commands")
        if self._recovering is not None and type(message) not in (Committed, SeenTo):
            later: LoopFuture[Any] = LoopFuture()
            # Who waits for it looks whether the end of an append was told to a loop that is no more.
            later._inbox = self.actor_inbox
            self._stash.append((message, later))
            return later
        if self._gathered:
            # They came before.
            self._take_in()
        return handler(self, message)

    # --- commands -----------------------------------------------------------------------------------------

    def _command_in_order(self, command: Any) -> Any:
        """For what only has to be in order: the reply does not wait for the commit."""
        reply = self._carry_out(self._decide_command(command), wait=False)
        self._after()
        return reply

    def _subscribe(self, command: c.Subscribe) -> Any:
        reply = self._carry_out(self._decide_command(command), wait=False)
        if command.callback is not None:
            attachment = self._attachments.get(command.subscriber_id)
            if attachment is None:
                clock = self._clock.beneath if isinstance(self._clock, QueueClock) else self._clock
                virtual = clock if isinstance(clock, VirtualClock) else None
                attachment = Attachment(command.subscriber_id, self._report, virtual)
                self._attachments[command.subscriber_id] = attachment
            attachment.attach(command)
        self._after()
        return reply

    def _join(self, message: Join) -> None:
        command = message.subscribe
        subscriber = self.state.subscribers.get(command.subscriber_id)
        if subscriber is None or not subscriber.present:
            self._subscribe(command)
        else:
            check_fetches(subscriber, command.topic_pattern)

    def _unsubscribe(self, command: c.Unsubscribe) -> Any:
        subscription = self.state.subscribers.subscription(command.subscription_id)
        reply = self._carry_out(self._decide_command(command), wait=False)
        if subscription is not None:
            attachment = self._attachments.get(subscription.subscriber_id)
            if attachment is not None:
                attachment.detach(command.subscription_id, self._leased_to(subscription.subscriber_id))
                if not attachment.subscriptions:
                    self._depart(subscription.subscriber_id)
        self._after()
        return reply

    def _leased_to(self, subscriber_id: str) -> set[str]:
        """The subscriptions of a subscriber, also of the past, that were handed what it has leases of."""
        subscriber = self.state.subscribers.get(subscriber_id)
        held = [] if subscriber is None else map(self.state.messages.get, subscriber.held)
        slots = [message.slot_for(subscriber_id) for message in held if message is not None]
        return {slot.lease.subscription_id for slot in slots if slot is not None and slot.lease is not None}

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

    def _delete(self, command: c.Delete) -> Any:
        reply = self._command(command)
        if self.state.deleted:
            self._send_away()
        return reply

    # --- dead letters -------------------------------------------------------------------------------------

    def _hold_dead_letters(self, message: HoldDeadLetters) -> tuple[e.MessageEnqueued, ...]:
        if self._closing or self.state.deleted:
            raise self.closed_error()
        wanted = None if message.message_ids is None else set(message.message_ids)
        held = self._held_dead_letters()
        free = (
            entry.enqueued
            for entry in self.state.dead_letters
            if (wanted is None or entry.enqueued.message_id in wanted) and entry.enqueued.message_id not in held
        )
        chosen = tuple(up_to(message.limit, free, message.target))
        self.redrives[message.holder] = frozenset(enqueued.message_id for enqueued in chosen)
        return chosen

    def _held_dead_letters(self) -> set[str]:
        """Ids of the dead letters that another queue is accepting; a task whose loop was closed holds none."""
        held: set[str] = set()
        for holder, ids in list(self.redrives.items()):
            if holder.done() or holder.get_loop().is_closed():
                self.redrives.pop(holder, None)
            else:
                held |= ids
        return held

    def _of_dead_letters(self, command: c.Redrive | c.PurgeDeadLetters) -> Any:
        """For what takes dead letters away: as if those were gone that another queue is accepting."""
        held = self._held_dead_letters()
        if held:
            named = self.state.dead_letters.ids() if command.message_ids is None else command.message_ids
            left = tuple(message_id for message_id in named if message_id not in held)
            command = msgspec.structs.replace(command, message_ids=left)
        return self._command(command)

    def _inspect(self, message: Inspect) -> Any:
        return message.function(self.state, self._context().now)

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
        self._take_in()
        self._closing = True
        self._send_away()
        if not self._running:
            return None
        if self._drained is None:
            self._drained = LoopFuture()
        return self._drained

    def _finish_close(self, message: FinishClose) -> Any:
        self._closing = True
        self._cancel_alarm()
        for attachment in self._attachments.values():
            attachment.cancel_all()
        try:
            self._end_push_leases(message.reason, pull_too=True)
            decision = self._decide_command(c.Detach())
        finally:
            for attachment in self._attachments.values():
                attachment.stop()
            self._attachments.clear()
            self._departed.clear()
            self._running.clear()
        reply = self._carry_out(decision, wait=True)
        self._save_at_the_end()
        # The journal may stop before this loop comes to what is planned on it.
        self.send_off()
        return reply

    def on_loop_changed(self) -> None:
        """The timers and turns of the loop before are lost; plan them anew."""
        self._alarm = self._retry = None
        self._turn_scheduled = self.waits_for_turn = False
        # Those who wait may do so on yet other loops.
        self._after_step()
        self._find_out(self.loop)
        self._take_in()
        self.send_off()
        if self._recovering is None:
            self._after()

    _handlers: ClassVar[dict[type[Any], Callable[[Any, Any], Any]]] = {
        c.Send: AcceptingActor._send_asked,
        c.SendBatch: AcceptingActor._send_batch,
        c.RecordRejection: _command_in_order,
        c.Subscribe: _subscribe,
        Join: _join,
        c.Unsubscribe: _unsubscribe,
        c.Receive: _receive,
        c.Acknowledge: DispatchingActor._command,
        c.NegativeAcknowledge: DispatchingActor._command,
        c.ExtendLease: DispatchingActor._command,
        c.EndLease: _command_in_order,
        c.Detach: _command_in_order,
        c.Pause: _command_in_order,
        c.Resume: _command_in_order,
        c.Purge: _purge,
        c.Delete: _delete,
        c.Open: DispatchingActor._command,
        c.Redrive: _of_dead_letters,
        c.AcceptRedriven: DispatchingActor._command,
        c.RecordRedriven: DispatchingActor._command,
        c.PurgeDeadLetters: _of_dead_letters,
        HoldDeadLetters: _hold_dead_letters,
        Settled: DispatchingActor._on_settled,
        Committed: DispatchingActor._committed,
        SeenTo: DispatchingActor._on_seen_to,
        Turn: DispatchingActor._on_turn,
        TakeIn: AcceptingActor._on_take_in,
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
