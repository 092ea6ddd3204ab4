"""The subscriber actors of one queue: who has which callbacks, and how a delivery gets to them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Container
from contextvars import Context
from inspect import iscoroutinefunction
from typing import Any

import attrs
import pykka

from mpreg_mq.actors.commands import Subscribe
from mpreg_mq.actors.inbox import BUSY
from mpreg_mq.actors.subscriber_actor import (
    Attach,
    Attached,
    BlockingSubscriberActor,
    Cancel,
    Deliver,
    Detach,
    Later,
    Outcome,
    Report,
    Settled,
    Started,
    SubscriberActor,
)
from mpreg_mq.clock import VirtualClock
from mpreg_mq.model import QueuedMessage

logger = logging.getLogger("mpreg_mq")


def _is_coroutine_function(callback: object) -> bool:
    """As far as it tells: an object that is called may raise when it is asked for its marks."""
    try:
        return iscoroutinefunction(callback)
    except Exception:
        return False


def _tell(ref: pykka.ActorRef[Any], message: object) -> bool:
    """Whether the actor still is: who stops all actors of a process may begin with this one."""
    try:
        ref.tell(message)
    except pykka.ActorDeadError:
        return False
    return True


def _attach(subscribe: Subscribe) -> Attach:
    assert subscribe.callback is not None, "who pulls has no actor"
    return Attach(subscribe.subscription_id, subscribe.callback, subscribe.context or Context())


@attrs.frozen
class _Ended:
    """A subscription that is over while its callback may still run, and the thread where that is blocking."""

    subscribe: Subscribe
    thread: pykka.ActorRef[BlockingSubscriberActor] | None


@attrs.define(eq=False)
class Attachment:
    """A push subscriber of this process: its actor and its subscriptions."""

    subscriber_id: str
    report: Report
    virtual: VirtualClock | None
    """The queue's clock where it stands still, and so has to know of what takes real time."""
    subscriptions: dict[str, Subscribe] = attrs.field(factory=dict)
    end_at_once: set[str] = attrs.field(factory=set)
    """Ids of the subscriptions whose callbacks most likely are over, and acknowledge, when they return."""
    running: int = 0
    """Attempts whose callbacks go on after the delivery, and whose outcomes the queue has not heard of yet."""
    call_alone: Callable[[QueuedMessage, str, str, int], Any] | None = None
    """The shortest way to the callbacks on the loop, where there are any: that of the actor that has them."""
    _ended: dict[str, _Ended] = attrs.field(factory=dict)
    _loop_actor: SubscriberActor | None = None
    _thread: pykka.ActorRef[BlockingSubscriberActor] | None = None

    def attach(self, subscribe: Subscribe) -> None:
        """Take a subscription with its callback; blocking ones share a thread, the others the loop."""
        self.subscriptions[subscribe.subscription_id] = subscribe
        if subscribe.auto_acknowledge and not subscribe.blocking and not _is_coroutine_function(subscribe.callback):
            self.end_at_once.add(subscribe.subscription_id)
        attach = _attach(subscribe)
        if subscribe.blocking:
            if self._thread is None:
                self._thread = self._new_thread()
            self._thread.tell(attach)
        else:
            if self._loop_actor is None:
                self._loop_actor = SubscriberActor.launch(self.report)
                self.call_alone = self._loop_actor.call_alone
            self._loop_actor.actor_ref.tell(attach)

    def detach(self, subscription_id: str, running: Container[str]) -> None:
        """End a subscription; what it runs goes on, if it is among those whose callbacks are ``running``."""
        subscribe = self.subscriptions.pop(subscription_id, None)
        self.end_at_once.discard(subscription_id)
        if subscribe is None:
            return
        self._ended[subscription_id] = _Ended(subscribe, self._thread)
        self._ended = {one: ended for one, ended in self._ended.items() if one in running}
        ref = self._ref(subscribe)
        if ref is not None:
            _tell(ref, Detach(subscription_id))
        if not self.subscriptions and self._thread is not None:
            self._thread.stop(block=False)
            self._thread = None

    @property
    def is_over(self) -> bool:
        """Whether it has neither a subscription nor a callback that runs, or is about to: nobody will ask for it."""
        actor = self._loop_actor
        return not self.subscriptions and not self.running and (actor is None or (actor.idle and not actor.is_awaiting))

    def acknowledges_ended(self, subscription_id: str) -> bool:
        """Whether the end of a callback acknowledges its message although its subscription is over (L4)."""
        ended = self._ended.get(subscription_id)
        return ended is None or ended.subscribe.auto_acknowledge

    def deliver(self, message: QueuedMessage, subscription_id: str, attempt: int) -> Outcome | Later:
        """Hand a message over to a subscription of this process; the outcome, or that it will be reported."""
        alone = self.call_alone
        if alone is not None:
            outcome = alone(message, subscription_id, self.subscriber_id, attempt)
            if outcome is not BUSY:
                settled: Outcome | Later = outcome
                return settled
        return self.tell_of(Deliver(message, subscription_id, self.subscriber_id, attempt))

    def tell_of(self, delivery: Deliver) -> Outcome | Later:
        """Have an actor see to a message that is busy, or has a thread of its own."""
        subscribe = self.subscriptions.get(delivery.subscription_id)
        if subscribe is None:
            return f"subscription {delivery.subscription_id} has no callback in this process"
        ref = self._ref(subscribe)
        assert ref is not None
        if self.virtual is not None and subscribe.blocking:
            self.virtual.call_begins((self, delivery.message.id.id, delivery.attempt))
        if not _tell(ref, delivery):
            return f"the actor of subscriber {self.subscriber_id} has been stopped"
        return Later.REPORTED

    def _new_thread(self) -> pykka.ActorRef[BlockingSubscriberActor]:
        return BlockingSubscriberActor.start(self.report if self.virtual is None else self._report_end)

    def _report_end(self, settled: Settled) -> None:
        """As ``report``, from a thread; a clock that stands still waits until then."""
        self.report(settled)
        assert self.virtual is not None
        self.virtual.call_ends((self, settled.message_id, settled.attempt))

    def begin_row(self, subscription_id: str) -> Attached | None:
        """The callback of a subscription, for many messages until :meth:`end_row`; None where it is busy."""
        return None if self._loop_actor is None else self._loop_actor.begin_row(subscription_id)

    def go_on(self, started: Started, delivery: Deliver) -> Later:
        """Have the outcome reported of a callback of a row that has not come to its end."""
        assert self._loop_actor is not None
        return self._loop_actor.go_on(started, delivery)

    def end_row(self) -> None:
        """No more of what :meth:`begin_row` has begun."""
        assert self._loop_actor is not None
        self._loop_actor.end_row()

    def give_up(self, subscription_id: str, message_id: str, attempt: int) -> None:
        """The lease of an attempt ran out: cancel its coroutine, or leave its thread behind for a new one."""
        subscribe, thread = self.subscriptions.get(subscription_id), self._thread
        if subscribe is None and (ended := self._ended.get(subscription_id)) is not None:
            subscribe, thread = ended.subscribe, ended.thread
        if self._loop_actor is not None and (subscribe is None or not subscribe.blocking):
            _tell(self._loop_actor.actor_ref, Cancel(message_id, attempt))
        elif subscribe is not None and self._thread is not None and thread is self._thread:
            logger.warning(
                "subscriber %s: a blocking callback did not return in time for message %s; its thread is left behind",
                self.subscriber_id,
                message_id,
            )
            self._thread.stop(block=False)
            self._thread = self._new_thread()
            for other in self.subscriptions.values():
                if other.blocking:
                    self._thread.tell(_attach(other))

    def cancel_all(self) -> None:
        """Cancel every coroutine that runs."""
        if self._loop_actor is not None:
            _tell(self._loop_actor.actor_ref, Cancel())

    def stop(self) -> None:
        """Stop the actors; a thread that is in a callback ends after it."""
        if self._loop_actor is not None:
            self._loop_actor.actor_ref.stop(block=False)
        if self._thread is not None:
            self._thread.stop(block=False)

    def _ref(self, subscribe: Subscribe) -> pykka.ActorRef[Any] | None:
        """The actor that calls this subscription's callback."""
        if subscribe.blocking:
            return self._thread
        return None if self._loop_actor is None else self._loop_actor.actor_ref
