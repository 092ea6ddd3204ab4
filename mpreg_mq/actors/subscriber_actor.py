"""Subscriber actors: they call the user's callbacks, and nothing a callback does gets past them (SEMANTICS L4).

A callback may raise anything, return at once, return an awaitable, or, on a thread of its own, take its time. It runs
in the context (:mod:`contextvars`) in which it was subscribed, whoever has sent the message.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import threading
from asyncio import _get_running_loop
from collections.abc import Awaitable, Callable
from contextvars import Context
from enum import Enum
from typing import Any, ClassVar, final

import attrs
import msgspec
import pykka

from mpreg_mq._validation import storable
from mpreg_mq.actors.current import current_delivery
from mpreg_mq.actors.inbox import BUSY
from mpreg_mq.actors.runtime import LoopActor
from mpreg_mq.model import Callback, QueuedMessage

logger = logging.getLogger("mpreg_mq")

Outcome = str | None
"""None when the callback came to its end, else what went wrong."""


class Deliver(msgspec.Struct, frozen=True, gc=False):
    """Call a callback with this message."""

    message: QueuedMessage
    subscription_id: str
    subscriber_id: str
    attempt: int


class Later(Enum):
    """The outcome comes as a :class:`Settled` message, when the callback's coroutine or thread is done with it."""

    REPORTED = "reported"


@final
class Started(msgspec.Struct, frozen=True, gc=False):
    """What a callback has returned is awaited by a task."""

    task: asyncio.Future[Outcome]
    awaitable: Awaitable[Any]


class Attached(msgspec.Struct, frozen=True, gc=False):
    """A callback on the loop, and ``run`` of the context that it runs in."""

    run: Callable[..., Any]
    callback: Callback


@attrs.frozen
class Attach:
    """A subscription of this subscriber has this callback, which runs in this context."""

    subscription_id: str
    callback: Callback
    context: Context


@attrs.frozen
class Detach:
    """A subscription is over; what runs goes on."""

    subscription_id: str


@attrs.frozen
class Cancel:
    """Stop the coroutine of this attempt, if it still runs; of all attempts when ``message_id`` is None."""

    message_id: str | None = None
    attempt: int = 0


class Settled(msgspec.Struct, frozen=True):
    """A callback that outlived its delivery came to its end."""

    message_id: str
    subscriber_id: str
    subscription_id: str
    attempt: int
    outcome: Outcome

    @classmethod
    def of(cls, delivery: Deliver, outcome: Outcome) -> Settled:
        """What became of a delivery."""
        return cls(delivery.message.id.id, delivery.subscriber_id, delivery.subscription_id, delivery.attempt, outcome)


Report = Callable[[Settled], None]


def error_text(error: BaseException) -> str:
    """``KeyError: 'sku'``, cut to a thousand characters; survives an error whose own ``str`` raises."""
    name = type(error).__name__
    try:
        text = str(error)
    except BaseException as broken:
        return f"{name} (its text cannot be shown: {type(broken).__name__})"
    return storable(f"{name}: {text}") if text else name


class SubscriberActor(LoopActor):
    """Runs callbacks on the event loop: functions at once, coroutines as tasks.

    ``report`` is called with each outcome that :meth:`deliver` does not answer with.
    """

    def __init__(self, report: Report) -> None:
        super().__init__()
        self._report = report
        self._callbacks: dict[str, Attached] = {}
        self._tasks: dict[tuple[str, int], asyncio.Future[Outcome]] = {}

    def on_receive(self, message: Any) -> Any:
        """Handle one of this module's messages."""
        if type(message) is Deliver:
            outcome = self.deliver(message)
            if outcome is not Later.REPORTED:
                self._report(Settled.of(message, outcome))
        elif type(message) is Attach:
            # One call at a time is in that context: each is made in this actor's turn.
            run = message.context.run
            # It may be that of a callback that has subscribed.
            run(current_delivery.set, None)
            self._callbacks[message.subscription_id] = Attached(run, message.callback)
        elif type(message) is Detach:
            self._callbacks.pop(message.subscription_id, None)
        elif type(message) is Cancel:
            self._cancel(message)
        else:
            raise TypeError(f"SubscriberActor: got {message!r}, expected Deliver, Attach, Detach or Cancel")
        return None

    def deliver(self, delivery: Deliver) -> Outcome | Later:
        """Call the callback; the outcome, unless the callback returned an awaitable."""
        attached = self._callbacks.get(delivery.subscription_id)
        if attached is None:
            return f"subscription {delivery.subscription_id} has no callback in this process"
        outcome: Outcome | Started = attached.run(_call, attached.callback, delivery.message)
        return self.go_on(outcome, delivery) if type(outcome) is Started else outcome

    def call_alone(self, message: QueuedMessage, subscription_id: str, subscriber_id: str, attempt: int) -> Any:
        """:meth:`deliver` by the shortest way, in a turn of its own; ``BUSY`` where it has to take the longer one."""
        inbox = self.actor_inbox
        # As try_now and deliver, in place.
        here = _get_running_loop()
        attached = self._callbacks.get(subscription_id)
        if (
            attached is None
            or not (here is inbox.loop or inbox.claim(here))
            or not inbox._open
            or inbox._queue
            or not inbox._turn.acquire(False)
        ):
            return BUSY
        try:
            outcome = attached.run(_call, attached.callback, message)
            if type(outcome) is Started:
                return self.go_on(outcome, Deliver(message, subscription_id, subscriber_id, attempt))
            return outcome
        finally:
            inbox._turn.release()
            if inbox._queue:
                inbox._dispatch()

    def begin_row(self, subscription_id: str) -> Attached | None:
        """Begin a turn for many deliveries to one subscription: its callback, or None if the actor is busy.

        It is to be called within its context as in :func:`_call`; what it has returned may have to be awaited: see
        :func:`begun` and :meth:`go_on`. What the actor is told until :meth:`end_row` it handles then.
        """
        attached = self._callbacks.get(subscription_id)
        return attached if attached is not None and self.actor_inbox.enter() else None

    def end_row(self) -> None:
        """End the turn of :meth:`begin_row`."""
        self.actor_inbox.leave()

    def go_on(self, started: Started, delivery: Deliver) -> Later:
        """A task awaits what the callback of a delivery has returned; its outcome will be reported."""
        key = (delivery.message.id.id, delivery.attempt)
        task = self._tasks[key] = started.task

        def finished(done: asyncio.Future[Outcome]) -> None:
            self._tasks.pop(key, None)
            if done.cancelled():
                # Cancelled before its first step, the callback's coroutine was never awaited.
                close = getattr(started.awaitable, "close", None)
                if close is not None:
                    close()
                self._report(Settled.of(delivery, "CancelledError: the callback was cancelled"))
            else:
                self._report(Settled.of(delivery, done.result()))

        task.add_done_callback(finished)
        return Later.REPORTED

    @property
    def is_awaiting(self) -> bool:
        """Whether what a callback has returned is awaited."""
        return bool(self._tasks)

    def _cancel(self, message: Cancel) -> None:
        for (message_id, attempt), task in list(self._tasks.items()):
            if message.message_id is None or (message_id, attempt) == (message.message_id, message.attempt):
                with contextlib.suppress(RuntimeError):
                    task.cancel()

    def on_stop(self) -> None:
        """Cancel what still runs."""
        self._cancel(Cancel())


class BlockingSubscriberActor(pykka.ThreadingActor):
    """Runs callbacks that were declared blocking, one after another on a thread of its own.

    ``report`` is called on that thread with each outcome.
    """

    use_daemon_thread: ClassVar[bool] = True

    def __init__(self, report: Report) -> None:
        super().__init__()
        self._report = report
        self._callbacks: dict[str, Attach] = {}

    def on_receive(self, message: Any) -> None:
        """Handle a message of this module; a thread cannot be cancelled, so Cancel does nothing."""
        if isinstance(message, Deliver):
            self._report(Settled.of(message, self._run(message)))
        elif isinstance(message, Attach):
            self._callbacks[message.subscription_id] = message
        elif isinstance(message, Detach):
            self._callbacks.pop(message.subscription_id, None)

    def _run(self, delivery: Deliver) -> Outcome:
        attached = self._callbacks.get(delivery.subscription_id)
        if attached is None:
            return f"subscription {delivery.subscription_id} has no callback in this process"
        try:
            # In a copy: a thread that was left behind may still be in it.
            attached.context.copy().run(_call_and_wait, attached.callback, delivery.message)
        # In pykka a BaseException would stop every actor of the process.
        except BaseException as error:
            return error_text(error)
        return None


def _call(callback: Callback, message: QueuedMessage) -> Outcome | Started:
    """Call a callback; the outcome, or the task that awaits what it returned. In the context of its subscription."""
    try:
        current_delivery.set(message)
        returned = callback(message)
        return None if returned is None else begun(returned)
    except BaseException as error:
        return failed(error)
    finally:
        # The context stays, and would keep the message.
        current_delivery.set(None)


def begun(returned: Any) -> Started | None:
    """The task that awaits what a callback has returned; None where there is nothing to await."""
    if not inspect.isawaitable(returned):
        return None
    return Started(asyncio.ensure_future(_guarded(returned)), returned)


def _call_and_wait(callback: Callback, message: QueuedMessage) -> None:
    """Call a callback on this thread, and wait for what it returns. In a copy of the context of its subscription."""
    current_delivery.set(message)
    returned = callback(message)
    if inspect.isawaitable(returned):
        asyncio.run(_wait_for(returned))


async def _guarded(awaitable: Awaitable[Any]) -> Outcome:
    """The outcome of an awaitable; a SystemExit must not get out of the task, for it would end the loop."""
    try:
        await awaitable
    except asyncio.CancelledError:
        raise
    except BaseException as error:
        return failed(error)
    return None


def failed(error: BaseException) -> str:
    """The outcome of a callback that raised, whatever that was.

    ``SystemExit`` included: one callback must not end the process of all the others. Ctrl-C, which no other thread than
    the first gets, is meant for the program, which gets it as soon as the failure has been seen to.
    """
    if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
        loop = _get_running_loop()
        if loop is not None:
            loop.call_soon(_interrupt, error)
    return error_text(error)


def _interrupt(error: KeyboardInterrupt) -> None:
    raise error


async def _wait_for(awaitable: Awaitable[Any]) -> None:
    await awaitable
