"""A layer of a queue actor: sends, which are accepted one by one or as many as come together (S1-S5, G1).

Where a log has what is appended only after a commit, tasks that send wait for it anyway: what they send in one
iteration of their loop is gathered, and accepted together when that is over, or before, when anything else is asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from asyncio import _get_running_loop
from collections.abc import Callable
from functools import partial
from typing import Any

import pykka

from mpreg_mq.actors import commands as c
from mpreg_mq.actors.decider import DECIDERS, WAIT_FOR_ROOM
from mpreg_mq.actors.decider.decision import rejected
from mpreg_mq.actors.decider.sending import NOBODY, decide_fire_and_forget, record_fire_and_forget
from mpreg_mq.actors.dispatching import DispatchingActor
from mpreg_mq.actors.futures import FuturesTogether, LoopFuture, answer
from mpreg_mq.actors.inbox import BUSY
from mpreg_mq.actors.messages import TAKE_IN, Stored, Unsent
from mpreg_mq.actors.store import Store
from mpreg_mq.actors.subscriber_actor import Deliver, Later
from mpreg_mq.actors.views import fired_message
from mpreg_mq.clock import Clock
from mpreg_mq.errors import MessageQueueError, QueueClosedError
from mpreg_mq.events import types as e
from mpreg_mq.model import (
    DEFAULT_OPTIONS,
    CircuitState,
    DeliveryGuarantee,
    DeliveryResult,
    MessageId,
    RejectionReason,
)
from mpreg_mq.projections import QueueState

logger = logging.getLogger("mpreg_mq")

_CLOSED = CircuitState.CLOSED
_OPEN = CircuitState.OPEN
_FIRE_AND_FORGET = DeliveryGuarantee.FIRE_AND_FORGET


class AcceptingActor(DispatchingActor):
    """Accepts messages, or refuses them."""

    __slots__ = (
        "_fired",
        "_firing",
        "try_send",
    )

    def __init__(self, name: str, store: Store, clock: Clock, run: str, state: QueueState | None = None) -> None:
        super().__init__(name, store, clock, run, state)
        self._fired = 0
        # Keys of fire-and-forget sends whose attempt is under way: they are in no event yet.
        self._firing: frozenset[str] = frozenset()
        send_now: Callable[[c.Send], Any] = partial(self.actor_inbox.try_now, self._send)
        self.try_send = partial(self._gather, send_now) if self._waits else send_now
        """Have a send of a task handled, by the shortest way; ``BUSY`` where it has to take the longer one.

        What it has to wait for may be a future of asyncio. :class:`Stored` is the reply that it need not wait for.
        """

    # --- for the layer above ------------------------------------------------------------------------------

    def closed_error(self) -> QueueClosedError:
        """What whoever asks a closed queue gets."""
        return QueueClosedError(f"queue {self.name!r} is closed; open it again, or use another one")

    # --- gathered sends -----------------------------------------------------------------------------------

    def _gather(self, send_now: Callable[[c.Send], Any], send: c.Send) -> Any:
        """Have a send accepted with others of this iteration of the loop; a future of its result where that may be."""
        loop = _get_running_loop()
        inbox = self.actor_inbox
        if (
            loop is None
            or inbox.loop is not loop
            # What waits there came before.
            or inbox._queue
            or not inbox._open
            or send.options is not DEFAULT_OPTIONS
            or send.fingerprint is not None
            or send.guarantee is _FIRE_AND_FORGET
        ):
            return send_now(send)
        if self.commits_at_once:
            others = self.turns
            if not others.senders:
                return send_now(send)
            others.lone_sends = 0
        gathered = self._gathered
        if not gathered:
            turns = self._loop_turns
            # Its turn takes in what was gathered, where nothing comes before that.
            if turns is None or turns.loop is not loop or not turns.is_next(self):
                loop.call_soon(self._end_gathering)
        future = loop.create_future()
        gathered.append(send)
        self._gathered_futures.append(future)
        self.sends_ahead += 1
        return future

    def _end_gathering(self) -> None:
        if self._gathered and self.actor_inbox.try_now(self._on_take_in, TAKE_IN) is BUSY:
            # A stop that comes before it sees to them.
            with contextlib.suppress(pykka.ActorDeadError):
                self.actor_ref.tell(TAKE_IN)

    def on_stop(self) -> None:
        """Accept what was sent before, whoever stops the actor."""
        self._take_in(hand_over=True)
        self.send_off()
        if self.loop is not None and not self.loop.is_running():
            self.on_stranded()
        self._send_away()

    def _send_away(self) -> None:
        """Answer those who wait for room or for a message: there will be none."""
        for receiver in self._receivers:
            receiver.answer([])
        self._receivers.clear()
        for parked in self._parked:
            parked.answer(self._closing_result())
        self._parked.clear()

    def _on_take_in(self, message: object) -> None:
        self._take_in(hand_over=True)
        self.send_off()

    def _take_in(self, *, hand_over: bool = False) -> None:
        if not self._gathered:
            return
        gathered, self._gathered = self._gathered, []
        futures, self._gathered_futures = self._gathered_futures, []
        taken = 0
        if self._recovering is None and not self._closing and not self.state.deleted and self._has_room():
            try:
                taken = self._accept_each(gathered, futures, plan=not hand_over)
            except MessageQueueError as error:
                answer([(future, None) for future in futures], error)
                return
            if hand_over:
                self.send_off()
        for send, future in zip(gathered[taken:], futures[taken:], strict=True):
            self.sends_ahead -= 1
            self._take_in_alone(send, future)
        if self._parked:
            self._after()
        else:
            # Nothing can be delivered before its commit.
            self._set_alarm()

    def _accept_each(self, sends: list[c.Send], futures: list[asyncio.Future[Any]], *, plan: bool) -> int:
        """Accept the first of them, as far as there is nothing special about them; how many. See :meth:`_submit`."""
        state = self.state
        decision = self._decide_command(c.SendEach(tuple(sends)))
        results: list[Any] = decision.reply
        if not results:
            return 0
        before = state.version
        loop = self.loop
        waiting = FuturesTogether(futures[0].get_loop(), futures[: len(results)])
        try:
            state.apply_all(decision.events)
            if self._outbox is not None:
                self._flush_outbox(before)
            if loop is None or not loop.is_running():
                self._append(before, decision.events)
                waiting.settle(results, None)
                return len(results)
        except Exception as error:
            raise self._rebuilt_after(error) from error
        self._submit(before, decision.events, plan=plan).waiters.append((waiting, results))
        return len(results)

    def _take_in_alone(self, send: c.Send, future: asyncio.Future[Any]) -> None:
        try:
            reply = self._send_asked(send)
        except MessageQueueError as error:
            answer([(future, None)], error)
            return
        if isinstance(reply, LoopFuture):
            reply.add_done_callback(partial(self._pass_on, future))
        else:
            answer([(future, reply)], None)

    def _pass_on(self, future: asyncio.Future[Any], reply: LoopFuture[Any]) -> None:
        try:
            answer([(future, reply.get())], None)
        except pykka.ActorDeadError:
            answer([(future, None)], self.closed_error())
        except MessageQueueError as error:
            answer([(future, None)], error)

    # --- single sends, and batches ------------------------------------------------------------------------

    def _send_asked(self, command: c.Send) -> Any:
        return self._send(command, awaited=False)

    def _send(self, command: c.Send, awaited: bool = True) -> Any:
        if self._gathered:
            # They came before.
            self._take_in()
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
        context.now = now if now >= state.last_at else self._behind(now, state.last_at)
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
                self._append_next(self.stream, before, events)
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
            if self.commits_at_once and self.turns.is_lone_sender():
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
        return rejected(RejectionReason.STORE_ERROR, detail, self._now())

    def _closing_result(self) -> Any:
        detail = f"queue {self.name!r} is closing; it takes no more messages"
        return rejected(RejectionReason.CLOSING, detail, self._now())

    def _fire_and_forget(self, send: c.Send) -> Any:
        state = self.state
        # As _context and _decide, in place.
        context = self._shared_context
        now = self._now()
        context.now = now if now >= state.last_at else self._behind(now, state.last_at)
        context.durable_version = self._durable
        key = send.fingerprint
        # As decide_fire_and_forget, in place, where no other rule has anything to say.
        if (
            key is not None
            or send.options is not DEFAULT_OPTIONS
            or len(send.payload) > state.configuration.max_payload_bytes
        ):
            decision = self._decide(decide_fire_and_forget, send)
            if decision.reply is not None:
                return self._carry_out(decision, wait=False)
        if key is None:
            return self._fire(send)
        self._firing |= {key}
        try:
            return self._fire(send)
        finally:
            self._firing -= {key}

    def _fire(self, send: c.Send) -> Any:
        self._fired = fired = self._fired + 1
        missed: list[str] = []
        failed: list[str] = []
        state = self.state
        subscribers, topic = state.subscribers, send.topic
        delivered = audience = () if state.paused else subscribers.audience(topic)
        # The time of the decision to let it go.
        now = self._shared_context.now
        id_ = MessageId(f"f{fired}-{self._run}", now, self.name)
        outer, self._calling_out = self._calling_out, True
        try:
            for subscriber_id in audience:
                subscriber = subscribers.get(subscriber_id)
                attachment = self._attachments.get(subscriber_id)
                # Who fetches now may have had a callback before, which is still running.
                if subscriber is None or attachment is None or subscriber.pull:
                    missed.append(subscriber_id)
                    continue
                if subscriber.circuit is not _CLOSED and (subscriber.circuit is _OPEN or subscriber.probe is not None):
                    failed.append(subscriber_id)
                    continue
                subscription_id = subscriber.only_subscription
                if subscription_id is None:
                    if not subscriber.subscriptions:
                        # The callback of another has ended its subscription, and it has leases left.
                        missed.append(subscriber_id)
                        continue
                    subscription_id = subscribers.subscription_for(subscriber, topic)
                message = fired_message(send, id_, state.configuration)
                # As Attachment.deliver, in place.
                alone = attachment.call_alone
                outcome = BUSY if alone is None else alone(message, subscription_id, subscriber_id, 0)
                if outcome is BUSY:
                    outcome = attachment.tell_of(Deliver(message, subscription_id, subscriber_id, 0))
                if outcome is not None and outcome is not Later.REPORTED:
                    failed.append(subscriber_id)
                    logger.warning(
                        "queue %s: fire-and-forget message %s failed at %s: %s", self.name, id_, subscriber_id, outcome
                    )
        finally:
            self._calling_out = outer
        state, context = self.state, self._shared_context
        # Callbacks may have had something recorded, which was later.
        context.now = now = now if now >= state.last_at else state.last_at
        if missed or failed:
            delivered = tuple([one for one in audience if one not in missed and one not in failed])
            event, result = record_fire_and_forget(send, context, id_, delivered, tuple(failed))
        else:
            # As that, in place.
            event = e.FireAndForgetSent(now, id_.id, topic, delivered, (), send.fingerprint)
            result = DeliveryResult(True, id_, frozenset(delivered), NOBODY, None, now)
        if not self._immediate or self._outbox is not None:
            return self._record((event,), result)
        # As _record, in place, for a log that has at once what is appended.
        before = state.version
        try:
            state.apply_fired(event)
            self._append_next(self.stream, before, (event,))
        except Exception as error:
            raise self._rebuilt_after(error) from error
        return result
