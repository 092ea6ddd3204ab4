"""The actor runtime: pykka actors that an asyncio event loop drains, and futures that can be awaited.

:class:`LoopActor` is a pykka actor in every respect (references, proxies, registry, hooks) but has no thread.
:class:`LoopInbox` decides on which thread its messages are handled, one at a time. :class:`LoopFuture` carries
the replies: tasks await it without blocking their loop, other threads may block on it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import sys
import threading
import time
from asyncio import AbstractEventLoop, _get_running_loop
from collections import deque
from collections.abc import Callable, Generator
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

import attrs
import pykka
from pykka.messages import ProxyCall, ProxyGetAttr, ProxySetAttr, _ActorStop

from mpreg_mq.errors import MessageQueueError

if TYPE_CHECKING:
    from pykka._envelope import Envelope

    ExceptionInfo = tuple[type[BaseException] | None, BaseException | None, TracebackType | None]

logger = logging.getLogger(__name__)

MAX_MAILBOX_DEPTH = 1_000_000
"""Most messages that wait in one actor's inbox, unless its class says otherwise."""

ENVELOPES_PER_TURN = 256
"""Most messages that one actor handles in one turn of its loop, so that timers and other actors get theirs."""

STRANDED_CHECK_SECONDS = 0.25
"""How often a thread that blocks on a reply looks whether the loop that should give it has gone away."""

_PYKKA_MESSAGES = frozenset((ProxyCall, ProxyGetAttr, ProxySetAttr, _ActorStop))
"""What pykka's own ``_handle_receive`` treats specially; asking it about every message would cost a tenth of a tell."""

BUSY = object()
"""What :meth:`LoopInbox.try_now` returns where the caller has to queue for the actor."""

T = TypeVar("T")
R = TypeVar("R")


class MailboxFullError(MessageQueueError):
    """An actor's inbox holds as many messages as it may; the message was not taken."""


class WouldBlockError(MessageQueueError, RuntimeError):
    """A pending :class:`LoopFuture` was read with ``get()`` on a thread that runs an event loop.

    ``future`` is that future; None once the error is itself the outcome of another future.
    """

    def __init__(self, future: LoopFuture[Any]) -> None:
        super().__init__(
            "LoopFuture.get: got a call for a pending reply on a thread that runs an event loop, which would block "
            "the loop, and for ever if the reply is to come from it; write 'await future', or call get() on "
            "another thread"
        )
        self.future: LoopFuture[Any] | None = future


# One lock for all futures: it is held for a few instructions, and a lock in each would cost more than it saves.
# Re-entrant, because a finaliser that resolves a future may run while its thread holds it.
_futures_lock = threading.RLock()


class LoopFuture(pykka.Future[T]):
    """A reply that a task can await for real and that any thread without a loop can block on.

    It costs one small object; what blocking needs is made when somebody blocks.
    """

    _get_hook: Callable[[float | None], T] | None
    _value: Any
    _failure: tuple[BaseException, TracebackType | None] | None
    # Callables, and the waiters of tasks that are suspended here.
    _callbacks: list[Callable[[LoopFuture[T]], object] | asyncio.Future[None]] | None
    _inbox: LoopInbox | None

    def __init__(self) -> None:
        # The base initialiser sets up a cache for the value of a get hook; here ``_value`` is that cache.
        self._done = False
        self._get_hook = None
        self._value = None
        self._failure = None
        self._callbacks = None
        self._inbox = None

    def __repr__(self) -> str:
        state = "pending" if not self._done else "failed" if self._failure is not None else "resolved"
        return f"<LoopFuture {state}>"

    def done(self) -> bool:
        """Whether it has a value or an exception; for one with a get hook, whether the hook has given a value."""
        return self._done

    def set(self, value: T | None = None) -> None:
        """Resolve it with a value.

        Raises:
            queue.Full: it is resolved already, or has a get hook.
        """
        with _futures_lock:
            self._check_settable()
            self._value = value
            self._done = True
            callbacks = self._callbacks
            self._callbacks = None
        if callbacks is not None:
            self._run(callbacks)

    def set_exception(self, exc_info: ExceptionInfo | None = None) -> None:
        """Resolve it with an exception: the one given, or else the one being handled.

        Raises:
            queue.Full: it is resolved already, or has a get hook.
            ValueError: none was given and none is being handled.
        """
        kind, error, traceback = sys.exc_info() if exc_info is None else exc_info
        if error is None:
            if kind is None:
                raise ValueError(
                    "LoopFuture.set_exception: got no exception, expected one given as (type, value, traceback) or "
                    "one being handled; call it in an except block or pass exc_info"
                )
            error = kind()
        if isinstance(error, WouldBlockError):
            error.future = None
        with _futures_lock:
            self._check_settable()
            self._failure = (error, traceback)
            self._done = True
            callbacks = self._callbacks
            self._callbacks = None
        if callbacks is not None:
            self._run(callbacks)

    def set_get_hook(self, func: Callable[[float | None], T]) -> None:
        """Have ``func(timeout)`` give the value when it is first read (``map``, ``join`` and ``stop`` use this).

        Awaiting such a future suspends too: where the hook needs a pending LoopFuture, that one is awaited and the
        hook called again. Threads that read at the same moment may each call it; the first value stays.

        Raises:
            queue.Full: it is resolved already.
        """
        with _futures_lock:
            if self._done:
                raise queue.Full("LoopFuture.set_get_hook: it is resolved already; set the hook on a new future")
            self._get_hook = func

    def get(self, *, timeout: float | None = None) -> T:
        """The value, waiting up to ``timeout`` seconds for it (None: as long as it takes).

        Raises:
            pykka.Timeout: it is still pending after ``timeout`` seconds.
            WouldBlockError: it is pending and this thread runs an event loop; a ``RuntimeError``.
            BaseException: the exception it was resolved with.
        """
        if not self._done:
            if self._get_hook is not None:
                self._take_hook_value(self._get_hook(timeout))
            else:
                self._block(timeout)
        return self._outcome()

    def add_done_callback(self, callback: Callable[[LoopFuture[T]], object]) -> None:
        """Call ``callback(self)`` once it is resolved: at once where it is, else on the thread that resolves it.

        What a callback raises is logged and goes no further.
        """
        with _futures_lock:
            if not self._done:
                if self._callbacks is None:
                    self._callbacks = []
                self._callbacks.append(callback)
                return
        self._run([callback])

    def remove_done_callback(self, callback: Callable[[LoopFuture[T]], object]) -> None:
        """Forget a callback that has not run; without effect where there is none. O(callbacks)."""
        with _futures_lock:
            if self._callbacks is not None and callback in self._callbacks:
                self._callbacks.remove(callback)

    def forward_to(self, target: pykka.Future[T]) -> None:
        """Resolve ``target`` with this future's outcome, once there is one."""
        if self._get_hook is not None:
            target.set_get_hook(lambda timeout: self.get(timeout=timeout))
            return

        def copy(_: LoopFuture[T]) -> None:
            if self._failure is None:
                target.set(self._value)
            else:
                error, traceback = self._failure
                target.set_exception((type(error), error, traceback))

        self.add_done_callback(copy)

    def __await__(self) -> Generator[Any, None, T]:
        """Suspend the task until it is resolved; no suspension where it is."""
        while not self._done:
            pending: LoopFuture[Any] = self
            if self._get_hook is not None:
                try:
                    return self.get()
                except WouldBlockError as error:
                    if error.future is None:
                        raise
                    pending = error.future
            yield from pending._suspend()
        return self._outcome()

    __iter__ = __await__

    def _check_settable(self) -> None:
        if self._done or self._get_hook is not None:
            raise queue.Full(
                f"{self!r}: got a second outcome, expected one; "
                f"it {'has a get hook' if self._get_hook is not None else 'is resolved already'}"
            )

    def _take_hook_value(self, value: T) -> None:
        with _futures_lock:
            if self._done:
                return
            self._value = value
            self._done = True
            callbacks = self._callbacks
            self._callbacks = None
        if callbacks is not None:
            self._run(callbacks)

    def _outcome(self) -> T:
        if self._failure is not None:
            error, traceback = self._failure
            # Its own traceback again: each reader would otherwise add to the one that they all share.
            raise error.with_traceback(traceback)
        value: T = self._value
        return value

    def _run(self, callbacks: list[Callable[[LoopFuture[T]], object] | asyncio.Future[None]]) -> None:
        here = _get_running_loop()
        for callback in callbacks:
            if isinstance(callback, asyncio.Future):
                loop = callback.get_loop()
                if loop is here:
                    _release(callback)
                else:
                    # A closed loop has no task left to wake.
                    with contextlib.suppress(RuntimeError):
                        loop.call_soon_threadsafe(_release, callback)
                continue
            try:
                callback(self)
            except Exception:
                logger.exception("LoopFuture: the callback %r failed", callback)

    def _block(self, timeout: float | None) -> None:
        if timeout is not None and timeout <= 0:
            raise pykka.Timeout(f"{timeout} seconds")
        if _get_running_loop() is not None:
            raise WouldBlockError(self)
        resolved = threading.Event()

        def notify(_: LoopFuture[T]) -> None:
            resolved.set()

        deadline = None if timeout is None else time.monotonic() + timeout
        self.add_done_callback(notify)
        try:
            while True:
                remaining = STRANDED_CHECK_SECONDS if deadline is None else deadline - time.monotonic()
                if resolved.wait(min(remaining, STRANDED_CHECK_SECONDS)):
                    return
                if remaining <= 0:
                    raise pykka.Timeout(f"{timeout} seconds")
                if self._inbox is not None:
                    self._inbox.rescue()
        finally:
            self.remove_done_callback(notify)

    def _suspend(self) -> Generator[Any, None, None]:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        with _futures_lock:
            if self._done:
                return
            if self._callbacks is None:
                self._callbacks = [waiter]
            else:
                self._callbacks.append(waiter)
        try:
            yield from waiter
        except BaseException:
            # Cancelled: what resolves it has nobody to wake.
            with _futures_lock:
                if self._callbacks is not None:
                    self._callbacks.remove(waiter)
            raise


def _release(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


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
        here = _get_running_loop()
        if (here is self.loop or self.claim(here)) and self._open and not self._queue and self._turn.acquire(False):
            try:
                return function(argument)
            finally:
                self._turn.release()
                if self._queue:
                    self._dispatch()
        return BUSY

    def rescue(self) -> None:
        """See to messages left behind by a loop that stopped running before it handled them."""
        if self.loop is None or not self.loop.is_running():
            self._dispatch()

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
            elif isinstance(envelope.message, _ActorStop):
                envelope.reply_to.set(None)
            else:
                error = pykka.ActorDeadError(f"{self._actor.actor_ref} stopped before handling the message")
                envelope.reply_to.set_exception((pykka.ActorDeadError, error, None))
        if told:
            logger.info("%s stopped before handling %d messages that want no reply", self._actor, told)


class LoopActor(pykka.Actor):
    """A pykka actor without a thread of its own: an asyncio event loop drains its inbox.

    Messages are handled one at a time:

    * sent from the thread of the bound loop, to an idle actor: at once, to completion, within the call;
    * sent from that thread otherwise, or from another thread: by the loop, at most ``ENVELOPES_PER_TURN`` a turn;
    * while no loop is bound, or the bound one does not run: on the sending thread, or by a thread that is at it.

    The loop is the one that runs on the thread that first uses the actor. Where it no longer runs and the actor is
    used from a thread that runs another, the actor moves there.

    Any exception in :meth:`on_receive`, ``BaseException`` included, is the reply of an ``ask``; under ``tell`` it is
    logged, ``on_failure`` is called and this actor stops. Other actors go on.

    A handler that returns a :class:`LoopFuture` defers its reply: the reply is that future's outcome, and the actor
    goes on with other messages meanwhile.
    """

    max_mailbox_depth: ClassVar[int] = MAX_MAILBOX_DEPTH
    """Most messages that may wait; a send beyond raises :class:`MailboxFullError`."""

    actor_inbox: LoopInbox

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.actor_inbox.attach(self)

    @staticmethod
    def _create_actor_inbox() -> LoopInbox:
        return LoopInbox()

    @staticmethod
    def _create_future() -> LoopFuture[Any]:
        return LoopFuture()

    @classmethod
    def launch(cls, *args: Any, **kwargs: Any) -> Self:
        """Start an actor and return the actor itself, for :meth:`run_now`; its reference is ``actor_ref``."""
        inbox: Any = cls.start(*args, **kwargs).actor_inbox
        actor: Self = inbox.actor
        return actor

    def _start_actor_loop(self) -> None:
        self.actor_inbox.start(self._run_start)

    @property
    def loop(self) -> AbstractEventLoop | None:
        """The loop that handles the messages, if one is bound."""
        return self.actor_inbox.loop

    def bind(self, loop: AbstractEventLoop) -> None:
        """Have ``loop`` handle the messages from now on; from any thread."""
        self.actor_inbox.bind(loop)

    @property
    def idle(self) -> bool:
        """Whether it runs, handles nothing now and has no message waiting."""
        return self.actor_inbox.idle

    def in_own_thread(self) -> bool:
        """Whether the calling thread runs the bound loop, or no loop is bound and running.

        Counts as a use: in the second case it binds the loop that runs on the calling thread.
        """
        return self.actor_inbox.claim(_get_running_loop())

    def run_now(self, function: Callable[..., R], *args: Any, ahead: bool = False) -> R:
        """Call ``function(*args)`` as if it handled a message, with no envelope and no future.

        Messages that the actor is sent meanwhile wait, as they would for any other message. What the function
        raises is raised here. With ``ahead`` it goes before messages that wait already.

        Raises:
            RuntimeError: it is not ``idle`` (with ``ahead``: it handles something now), or
                :meth:`in_own_thread` is false.
            pykka.ActorDeadError: it has stopped.
        """
        return self.actor_inbox.run_now(function, *args, ahead=ahead)

    def on_loop_changed(self) -> None:
        """Called in the actor's turn whenever ``loop`` becomes another one after the actor has started.

        So also when an actor that started without a loop finds its first. The place to set timers again: those of
        the loop before are lost. An exception is handled as under ``tell``.
        """

    def _run_start(self) -> None:
        try:
            self.on_start()
        except BaseException:
            self._handle_failure(*sys.exc_info())

    def _run_loop_changed(self) -> None:
        try:
            self.on_loop_changed()
        except BaseException:
            self._fail()

    def _process(self, envelope: Envelope[Any]) -> None:
        """Handle one message and see to its reply; raises nothing."""
        reply_to = envelope.reply_to
        try:
            message = envelope.message
            response = self._handle_receive(message) if type(message) in _PYKKA_MESSAGES else self.on_receive(message)
            if isinstance(response, LoopFuture):
                if reply_to is None:
                    response.add_done_callback(self._log_lost_failure)
                else:
                    response.forward_to(reply_to)
            elif reply_to is not None:
                reply_to.set(response)
        except BaseException:
            if reply_to is None:
                self._fail()
                return
            logger.info("%s answers with an exception", self, exc_info=True)
            try:
                reply_to.set_exception()
            except queue.Full:
                logger.exception("%s cannot answer, because the reply has an outcome already", self)

    def _fail(self) -> None:
        """Stop because of the exception being handled, which nobody waits for."""
        self._handle_failure(*sys.exc_info())
        try:
            self.on_failure(*sys.exc_info())
        except BaseException:
            self._handle_failure(*sys.exc_info())

    def _log_lost_failure(self, response: LoopFuture[Any]) -> None:
        if response._failure is not None:
            error = response._failure[0]
            logger.error("%s: a deferred reply that nobody waits for failed", self, exc_info=error)

    def _handle_failure(
        self,
        exception_type: type[BaseException] | None,
        exception_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.actor_inbox.close()
        super()._handle_failure(exception_type, exception_value, traceback)

    def _stop(self) -> None:
        self.actor_inbox.close()
        try:
            super()._stop()
        except BaseException:
            self._handle_failure(*sys.exc_info())
