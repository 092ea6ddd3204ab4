"""The inbox of an actor: which thread handles its messages, one at a time.

:class:`LoopInbox` keeps what waits, binds the actor to an event loop, and has that loop or the sending thread handle
the messages.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from asyncio import AbstractEventLoop, _get_running_loop
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import attrs
import pykka
from pykka.messages import _ActorStop

from mpreg_mq.actors.futures import LoopFuture
from mpreg_mq.errors import MessageQueueError

if TYPE_CHECKING:
    from pykka._envelope import Envelope

    from mpreg_mq.actors.runtime import LoopActor

logger = logging.getLogger(__name__)

MAX_MAILBOX_DEPTH = 1_000_000
"""Most messages that wait in one actor's inbox, unless its class says otherwise."""

ENVELOPES_PER_TURN = 256
"""Most messages that one actor handles in one turn of its loop, so that timers and other actors get theirs."""

BUSY = object()
"""What :meth:`LoopInbox.try_now` returns where the caller has to queue for the actor."""

R = TypeVar("R")


def _in_child() -> None:
    # Without the lock of pykka's registry, which another thread may have had.
    for ref in list(pykka.ActorRegistry._actor_refs):
        if isinstance(ref.actor_inbox, LoopInbox):
            ref.actor_inbox.forget_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


class MailboxFullError(MessageQueueError):
    """An actor's inbox holds as many messages as it may; the message was not taken."""


@attrs.frozen(eq=False)
class _Hook:
    """One of the actor's own hooks, waiting in its inbox for its turn."""

    run: Callable[[], None]


@attrs.define(eq=False)
class LoopInbox:
    """An actor's inbox, and the rule for which thread handles what is in it.

    One message is handled at a time, in the turn that ``_turn`` stands for. It is only ever tried, never waited
    for: who does not get it leaves the message in the queue, and who gives it up looks at the queue again. So no
    message is stranded, and two actors that send to each other from two threads cannot deadlock.
    """

    max_mailbox_depth: int = MAX_MAILBOX_DEPTH
    loop: AbstractEventLoop | None = attrs.field(default=None, init=False)
    _actor: LoopActor = attrs.field(init=False)
    _queue: deque[Envelope[Any] | _Hook] = attrs.field(factory=deque, init=False)
    _turn: threading.Lock = attrs.field(factory=threading.Lock, init=False)
    _guard: threading.RLock = attrs.field(factory=threading.RLock, init=False)
    _woken: AbstractEventLoop | None = attrs.field(default=None, init=False)
    _open: bool = attrs.field(default=False, init=False)
    _closed: bool = attrs.field(default=False, init=False)

    # --- pykka's ActorInbox -------------------------------------------------------------------------------

    def put(self, envelope: Envelope[Any], /) -> None:
        """Take a message, and handle it at once where the actor is idle and this thread is its own.

        Raises:
            MailboxFullError: ``max_mailbox_depth`` messages wait already.
            pykka.ActorDeadError: the actor has stopped and the message has no reply to carry the error.
        """
        # As enter and leave, in place.
        here = _get_running_loop()
        if (here is self.loop or self.claim(here)) and self._open and not self._queue and self._turn.acquire(False):
            try:
                self._actor._process(envelope)
            finally:
                self._turn.release()
            if self._queue:
                self._dispatch()
            return
        if self._append(envelope):
            self._dispatch()

    def get(self) -> Envelope[Any]:
        """Take the oldest message out; does not wait.

        Raises:
            queue.Empty: there is none.
        """
        while True:
            try:
                envelope = self._queue.popleft()
            except IndexError:
                raise queue.Empty("LoopInbox.get: it is empty, and only its loop may wait for messages") from None
            if not isinstance(envelope, _Hook):
                return envelope

    def empty(self) -> bool:
        """Whether no message waits."""
        return not self._queue

    def __len__(self) -> int:
        """Number of messages that wait."""
        return len(self._queue)

    @property
    def actor(self) -> LoopActor:
        """Whose inbox this is."""
        return self._actor

    # --- for the actor ------------------------------------------------------------------------------------

    def attach(self, actor: LoopActor) -> None:
        """Belong to an actor; messages wait until :meth:`start`."""
        self._actor = actor
        self.max_mailbox_depth = actor.max_mailbox_depth

    def start(self, hook: Callable[[], None]) -> None:
        """Run ``hook`` before any message, and handle messages from now on."""
        self.claim(_get_running_loop())
        self._queue.appendleft(_Hook(hook))
        self._open = True
        self._run_first()

    def close(self) -> None:
        """Take no more messages; those that wait get :class:`pykka.ActorDeadError`. For the actor in its turn."""
        with self._guard:
            self._open = False
            self._closed = True

    @property
    def closed(self) -> bool:
        """Whether the actor has stopped, or is about to."""
        return self._closed

    @property
    def idle(self) -> bool:
        """Whether a message would be handled at once on the actor's own thread."""
        return self._open and not self._queue and not self._turn.locked()

    def claim(self, here: AbstractEventLoop | None) -> bool:
        """Whether the calling thread, which runs ``here``, may handle messages.

        Binds ``here`` where there is one and the bound loop is missing or does not run.
        """
        loop = self.loop
        if here is loop:
            return True
        if loop is not None and loop.is_running():
            return False
        if here is None:
            return True
        self._move(loop, here)
        return self.loop is here

    def bind(self, loop: AbstractEventLoop) -> None:
        """Handle messages on ``loop`` from now on."""
        while self.loop is not loop:
            self._move(self.loop, loop)

    def run_now(self, function: Callable[..., R], *args: Any, ahead: bool = False) -> R:
        """Run a function in the actor's turn; see :meth:`LoopActor.run_now`."""
        if self._closed:
            raise pykka.ActorDeadError(f"{self._actor.actor_ref} not found")
        mine = self.claim(_get_running_loop()) and self._open and (ahead or not self._queue)
        if not mine or not self._turn.acquire(False):
            raise RuntimeError(
                f"run_now: {self._actor} is not idle or belongs to another thread; "
                "check in_own_thread() and idle first, or use ask()"
            )
        try:
            return function(*args)
        finally:
            self._turn.release()
            if self._queue:
                self._dispatch()

    def try_now(self, function: Callable[[Any], R], argument: Any) -> R | object:
        """Call ``function(argument)`` in the actor's turn, where it is idle and this thread is its own.

        ``BUSY`` where it is not. The shortest way in: it makes neither an envelope nor a future.
        """
        # As enter and leave, in place.
        here = _get_running_loop()
        if (here is self.loop or self.claim(here)) and self._open and not self._queue and self._turn.acquire(False):
            try:
                return function(argument)
            finally:
                self._turn.release()
                if self._queue:
                    self._dispatch()
        return BUSY

    def enter(self) -> bool:
        """Take the actor's turn, where it is idle and this thread is its own; :meth:`leave` ends it."""
        here = _get_running_loop()
        return (here is self.loop or self.claim(here)) and self._open and not self._queue and self._turn.acquire(False)

    def leave(self) -> None:
        """End the turn that :meth:`enter` took."""
        self._turn.release()
        if self._queue:
            self._dispatch()

    def rescue(self) -> None:
        """See to what a loop left behind that stopped running: messages, and timers where there is a loop for them."""
        if self.loop is None or not self.loop.is_running():
            here = _get_running_loop()
            self.claim(here)
            if (here is None or self._closed) and self._turn.acquire(False):
                try:
                    self._actor._run_stranded()
                finally:
                    self._turn.release()
            self._dispatch()

    def forget_in_child(self) -> None:
        """In a forked child: wait for no other thread, for none went along; whoever calls handles the messages."""
        self._turn, self._guard, self._woken = threading.Lock(), threading.RLock(), None
        if self.loop is not _get_running_loop():
            self.loop = None

    # --- who handles what, and when -----------------------------------------------------------------------

    def _move(self, origin: AbstractEventLoop | None, loop: AbstractEventLoop) -> None:
        """Bind ``loop`` unless somebody else has changed the binding from ``origin`` meanwhile."""
        with self._guard:
            if self.loop is not origin or loop is origin:
                return
            self.loop = loop
            if not self._open:
                return
            self._queue.appendleft(_Hook(self._actor._run_loop_changed))
        self._run_first()

    def _append(self, envelope: Envelope[Any]) -> bool:
        """Queue a message, or refuse it where the actor has stopped; whether it was queued."""
        with self._guard:
            if not self._closed:
                # A full inbox must not keep its actor from being stopped.
                if len(self._queue) >= self.max_mailbox_depth and not isinstance(envelope.message, _ActorStop):
                    raise MailboxFullError(
                        f"LoopInbox: got a message more than {self.max_mailbox_depth} waiting (max_mailbox_depth); "
                        "send more slowly, await replies, or raise the limit on the actor's class"
                    )
                if isinstance(envelope.reply_to, LoopFuture):
                    envelope.reply_to._inbox = self
                self._queue.append(envelope)
                return True
        error = pykka.ActorDeadError(f"{self._actor.actor_ref} not found")
        if envelope.reply_to is None:
            raise error
        envelope.reply_to.set_exception((pykka.ActorDeadError, error, None))
        return False

    def _dispatch(self) -> None:
        """Make sure that somebody handles what waits: the bound loop if it runs, else the calling thread."""
        while self._queue:
            if not self._open:
                if self._closed:
                    self._bury()
                return
            loop, here = self.loop, _get_running_loop()
            if loop is not None and loop.is_running():
                if self._wake(loop, here):
                    return
            elif here is not None:
                self.claim(here)
            elif self._turn.acquire(False):
                try:
                    self._drain(ENVELOPES_PER_TURN)
                finally:
                    self._turn.release()
            else:
                return

    def _wake(self, loop: AbstractEventLoop, here: AbstractEventLoop | None) -> bool:
        """Have ``loop`` drain the queue; one outstanding wake-up is enough. False where the loop is closed."""
        with self._guard:
            if self._woken is loop:
                return True
            self._woken = loop
        try:
            if here is loop:
                loop.call_soon(self._on_wake, loop)
            else:
                loop.call_soon_threadsafe(self._on_wake, loop)
        except RuntimeError:
            with self._guard:
                self._woken = None
            return False
        return True

    def _on_wake(self, loop: AbstractEventLoop) -> None:
        with self._guard:
            if self._woken is loop:
                self._woken = None
        if self.loop is loop and self._open:
            if not self._turn.acquire(False):
                return
            try:
                self._drain(ENVELOPES_PER_TURN)
            finally:
                self._turn.release()
        self._dispatch()

    def _run_first(self) -> None:
        """Run the hook at the front of the queue at once where this thread may; see to the rest."""
        if self.claim(_get_running_loop()) and self._turn.acquire(False):
            try:
                self._drain(1)
            finally:
                self._turn.release()
        self._dispatch()

    def _drain(self, limit: int) -> None:
        """Handle up to ``limit`` messages; only for who has the turn."""
        for _ in range(limit):
            if not self._open:
                return
            try:
                envelope = self._queue.popleft()
            except IndexError:
                return
            if isinstance(envelope, _Hook):
                envelope.run()
            else:
                self._actor._process(envelope)

    def _bury(self) -> None:
        """Answer what waits in the inbox of a stopped actor, as pykka does."""
        told = 0
        while True:
            try:
                envelope = self.get()
            except queue.Empty:
                break
            if envelope.reply_to is None:
                told += not isinstance(envelope.message, _ActorStop)
                self._actor.on_told_too_late(envelope.message)
            elif isinstance(envelope.message, _ActorStop):
                envelope.reply_to.set(None)
            else:
                error = pykka.ActorDeadError(f"{self._actor.actor_ref} stopped before handling the message")
                envelope.reply_to.set_exception((pykka.ActorDeadError, error, None))
        if told:
            logger.info("%s stopped before handling %d messages that want no reply", self._actor, told)
