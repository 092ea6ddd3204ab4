"""A layer of a queue actor: how one delivery reaches its subscriber, and what becomes of the attempt.

User code is called only between two decisions, when the state is consistent, so it may ask its own queue for anything
that does not suspend.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable

import msgspec
import pykka

from mpreg_mq.actors import commands as c
from mpreg_mq.actors.attachments import Attachment
from mpreg_mq.actors.current import current_delivery
from mpreg_mq.actors.decider.delivering import Dispatched, row_of_deliveries
from mpreg_mq.actors.decider.settling import acknowledge
from mpreg_mq.actors.futures import LoopFuture
from mpreg_mq.actors.left_loops import LeftLoopsActor
from mpreg_mq.actors.store import Store
from mpreg_mq.actors.subscriber_actor import Deliver, Later, Outcome, Settled, Started, begun, failed
from mpreg_mq.actors.views import queued_message
from mpreg_mq.clock import Clock
from mpreg_mq.errors import MessageQueueError, PayloadError
from mpreg_mq.events import types as e
from mpreg_mq.model import Callback, QueuedMessage
from mpreg_mq.projections import QueueState
from mpreg_mq.projections.everyday import delivered_and_acknowledged, delivered_and_acknowledged_in_a_row

logger = logging.getLogger("mpreg_mq")

MOST_DEPARTED = 64
"""So many subscribers that have left are kept at least until one more leaves, if a callback of theirs ran then."""


class _Last(msgspec.Struct, frozen=True, gc=False):
    """The delivery that ends a row: what its callback came to, and itself where nobody had it folded in."""

    event: e.MessageDelivered
    copy: QueuedMessage
    outcome: Outcome | Started
    unopened: e.MessageDelivered | None


class DeliveringActor(LeftLoopsActor):
    """Calls subscribers, and records what became of it."""

    __slots__ = (
        "_attachments",
        "_calling_out",
        "_departed",
        "_drained",
        "_in_a_row",
        "_most_departed",
        "_row_goes_on",
        "_running",
        "_unopened",
        "deliveries",
    )

    def __init__(self, name: str, store: Store, clock: Clock, run: str, state: QueueState | None = None) -> None:
        super().__init__(name, store, clock, run, state)
        self.deliveries = 0
        self._attachments: dict[str, Attachment] = {}
        # Subscribers without a subscription of whose attachments something may still run.
        self._departed: set[str] = set()
        self._most_departed = MOST_DEPARTED
        self._running: dict[tuple[str, str, int], str] = {}
        self._drained: LoopFuture[None] | None = None
        self._calling_out = False
        self._unopened: e.MessageDelivered | None = None
        # Deliveries with their acknowledgments that are not folded in yet.
        self._in_a_row: list[e.Event] = []
        self._row_goes_on = False

    @property
    def _answers_callback(self) -> bool:
        """Whether it may be asked for something by who calls on its own thread while it is in a turn: a callback.

        Not by a signal's handler, a finaliser or a clock between two callbacks of a row, whose deliveries are in no
        state yet.
        """
        return self._calling_out and (self._unopened is not None or not self._row_goes_on)

    def _deliver_in_a_row(self, end: float, between_looks: int) -> int:
        """Call the next subscriber for one message after another, until ``end`` or something else has to come first.

        Part of a turn; how many were delivered. As long as nobody asks the queue for anything, and each callback
        returns and so acknowledges its message, all of it is folded in after the last: see :meth:`_open_lease`. The
        clock of the slice is looked at once in ``between_looks`` deliveries.
        """
        row = row_of_deliveries(self.state, self._shared_context)
        if row is None:
            return 0
        attachment = self._attachments.get(row.subscriber_id)
        if attachment is None or row.subscription_id not in attachment.end_at_once:
            return 0
        attached = attachment.begin_row(row.subscription_id)
        if attached is None:
            return 0
        try:
            # In the context of the callback, which is entered once for all.
            made, last = attached.run(self._deliver_each, row.deliveries, attached.callback, end, between_looks)
            if last is not None:
                self._end_row_with(last, attachment)
            return int(made)
        finally:
            try:
                # Also where something ends the turn before its time.
                self._fold_row()
            finally:
                attachment.end_row()

    def _deliver_each(
        self, deliveries: Iterable[Dispatched], callback: Callback, end: float, between_looks: int
    ) -> tuple[int, _Last | None]:
        """Call a callback for one message after another; how many, and the last where it is settled by itself."""
        context, configuration = self._shared_context, self.state.configuration
        now_by_clock, set_current = self._now, current_delivery.set
        told = self._in_a_row
        made = 0
        last: _Last | None = None
        # As in _hand_over and the subscriber's actor, in place: nobody else asks for anything meanwhile.
        self._row_goes_on = self._calling_out = True
        try:
            for accepted, event in deliveries:
                try:
                    copy = queued_message(accepted, configuration, event.attempt, event.deadline)
                except PayloadError:
                    # One that is handed over by itself.
                    break
                made += 1
                outcome: Outcome | Started = None
                self._unopened = event
                try:
                    set_current(copy)
                    returned = callback(copy)
                    if returned is not None:
                        outcome = begun(returned)
                except BaseException as error:
                    outcome = failed(error)
                unopened, self._unopened = self._unopened, None
                if outcome is not None or unopened is None:
                    last = _Last(event, copy, outcome, unopened)
                    break
                # As _context, in place.
                now = now_by_clock()
                if now > context.now:
                    context.now = now
                # As acknowledge, in place; both or, where Ctrl-C comes in between, neither.
                told += (event, e.MessageAcknowledged(context.now, event.message_id, event.subscriber_id, True))
                if made % between_looks == 0 and time.perf_counter() >= end:
                    break
        finally:
            self._calling_out = self._row_goes_on = False
            self._unopened = None
            # The context stays, and would keep the message.
            set_current(None)
        return made, last

    def _end_row_with(self, last: _Last, attachment: Attachment) -> None:
        """Settle the attempt that ended a row, as any other. Part of a turn."""
        event, outcome = last.event, last.outcome
        settled: Outcome | Later
        if type(outcome) is Started:
            delivery = Deliver(last.copy, event.subscription_id, event.subscriber_id, event.attempt)
            settled = attachment.go_on(outcome, delivery)
        else:
            settled = outcome
        self._fold_row()
        self.deliveries += 1
        self._settle_attempt(event, attachment, settled, last.unopened)

    def _fold_row(self) -> None:
        """Fold in what was delivered and acknowledged in a row. Part of a turn."""
        told, outbox = self._in_a_row, self._outbox
        if told and outbox is not None:
            self._in_a_row = []
            self.deliveries += len(told) // 2
            delivered_and_acknowledged_in_a_row(self.state, told)
            outbox += told

    def _hand_over(self, event: e.MessageDelivered) -> None:
        """Call the subscriber, and settle the attempt where the callback is over. Part of a turn."""
        self.deliveries += 1
        accepted = self.state.messages.accepted(event.message_id)
        attachment = self._attachments.get(event.subscriber_id)
        assert accepted is not None
        self._unopened = event
        if attachment is None:
            self._open_lease()
            self._settle_failure(event, "the subscriber is not attached in this process")
            return
        try:
            copy = queued_message(accepted, self.state.configuration, event.attempt, event.deadline)
        except PayloadError as error:
            self._open_lease()
            self._settle_failure(event, str(error))
            return
        self._calling_out = True
        try:
            outcome = attachment.deliver(copy, event.subscription_id, event.attempt)
        finally:
            self._calling_out = False
            unopened, self._unopened = self._unopened, None
        self._settle_attempt(event, attachment, outcome, unopened)

    def _settle_attempt(
        self,
        event: e.MessageDelivered,
        attachment: Attachment,
        outcome: Outcome | Later,
        unopened: e.MessageDelivered | None,
    ) -> None:
        """Settle an attempt whose callback has returned; ``unopened`` is its delivery where nobody had it folded in."""
        # The callback took time, and may have changed anything.
        state, outbox = self.state, self._outbox
        assert outbox is not None, "a turn has an outbox"
        # As _context, in place; its delivery may not be folded in yet.
        context = self._shared_context
        now, last = self._now(), state.last_at
        if last < event.at:
            last = event.at
        context.now = now if now >= last else self._behind(now, last)
        context.durable_version = self._durable
        subscribe = attachment.subscriptions.get(event.subscription_id)
        settles = outcome is None and (
            subscribe.auto_acknowledge
            if subscribe is not None
            else attachment.acknowledges_ended(event.subscription_id)
        )
        if unopened is not None:
            if settles:
                # As acknowledge, in place, for what most deliveries come to; the fold refuses all others.
                ended = e.MessageAcknowledged(context.now, event.message_id, event.subscriber_id, True)
                if delivered_and_acknowledged(state, event, ended):
                    outbox += (event, ended)
                    return
            # In a turn this is all that recording is: what fails fails the turn.
            state.apply(event)
            outbox.append(event)
        if settles:
            events = acknowledge(state, event.message_id, event.subscriber_id, event.attempt, context)
            for settled in events:
                state.apply(settled)
            outbox += events
        elif outcome is None:
            return
        elif isinstance(outcome, str):
            self._settle_failure(event, outcome)
        else:
            self._running[event.message_id, event.subscriber_id, event.attempt] = event.subscription_id
            attachment.running += 1

    def _open_lease(self) -> None:
        """Fold in the delivery whose callback runs, and what came before it in a row.

        Somebody is about to see or change the state. Where nobody does, and the message is done with when the callback
        returns, its lease is never opened.
        """
        event, outbox = self._unopened, self._outbox
        if event is None or outbox is None:
            return
        self._unopened = None
        # This callback is the last of its row.
        self._row_goes_on = False
        try:
            self._fold_row()
            self.state.apply(event)
        except Exception as error:
            raise self._rebuilt_after(error) from error
        outbox.append(event)

    def _report(self, settled: Settled) -> None:
        """Called from any thread when a callback that went on is over."""
        try:
            self.actor_ref.tell(settled)
        except pykka.ActorDeadError:
            logger.info("queue %s is closed; the outcome of message %s comes too late", self.name, settled.message_id)

    def _on_settled(self, message: Settled) -> None:
        if message.attempt:
            self._running.pop((message.message_id, message.subscriber_id, message.attempt), None)
            attachment = self._attachments.get(message.subscriber_id)
            # Each by itself: a queue that was rebuilt from its log makes attempts that the log lacks once more.
            if attachment is not None and attachment.running:
                attachment.running -= 1
            self._context()
            try:
                if message.outcome is None:
                    self._settle_success(message, attachment)
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
        if message.subscriber_id in self._departed:
            self._let_go(message.subscriber_id)
        if self._drained is not None and not self._running and not self._drained.done():
            self._drained.set(None)

    def _depart(self, subscriber_id: str) -> None:
        """The last subscription of a subscriber of this process has ended. O(1), amortised."""
        departed = self._departed
        departed.add(subscriber_id)
        self._let_go(subscriber_id)
        if len(departed) > self._most_departed:
            # Among them those that have left within their own callback, of whose end nobody hears.
            for one in tuple(departed):
                self._let_go(one)
            self._most_departed = 2 * len(departed) + MOST_DEPARTED

    def _let_go(self, subscriber_id: str) -> None:
        """Stop the actors of a subscriber that has left, unless it has come back or something of it still runs."""
        attachment = self._attachments[subscriber_id]
        is_over = attachment.is_over
        if is_over:
            attachment.stop()
            del self._attachments[subscriber_id]
        if is_over or attachment.subscriptions:
            self._departed.discard(subscriber_id)

    def _settle_success(self, done: Settled, attachment: Attachment | None) -> None:
        subscribe = attachment.subscriptions.get(done.subscription_id) if attachment is not None else None
        if subscribe is not None:
            acknowledges = subscribe.auto_acknowledge
        else:
            acknowledges = attachment is None or attachment.acknowledges_ended(done.subscription_id)
        if acknowledges:
            context = self._shared_context
            events = acknowledge(self.state, done.message_id, done.subscriber_id, done.attempt, context)
            if events:
                self._record(events)

    def _settle_failure(self, event: e.MessageDelivered, error: str) -> None:
        self._settle(c.NegativeAcknowledge(event.message_id, event.subscriber_id, error, None, event.attempt))

    def _settle(self, command: c.Acknowledge | c.NegativeAcknowledge) -> None:
        self._carry_out(self._decide_command(command), wait=False)
