"""The actor runtime: pykka actors that an asyncio event loop drains.

:class:`LoopActor` is a pykka actor in every respect (references, proxies, registry, hooks) but has no thread. Its
:class:`~mpreg_mq.actors.inbox.LoopInbox` decides on which thread its messages are handled, and a
:class:`~mpreg_mq.actors.futures.LoopFuture` carries each reply.
"""

from __future__ import annotations

import logging
import queue
import sys
from asyncio import AbstractEventLoop, _get_running_loop
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

import pykka
from pykka.messages import ProxyCall, ProxyGetAttr, ProxySetAttr, _ActorStop

from mpreg_mq.actors.futures import LoopFuture
from mpreg_mq.actors.inbox import MAX_MAILBOX_DEPTH, LoopInbox
from mpreg_mq.actors.stopped import StoppedFlag

if TYPE_CHECKING:
    from pykka._envelope import Envelope

logger = logging.getLogger(__name__)

_PYKKA_MESSAGES = frozenset((ProxyCall, ProxyGetAttr, ProxySetAttr, _ActorStop))
"""What pykka's own ``_handle_receive`` treats specially; asking it about every message would cost a tenth of a tell."""

R = TypeVar("R")


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
    """Most messages that may wait; a send beyond raises :class:`~mpreg_mq.actors.inbox.MailboxFullError`."""

    actor_inbox: LoopInbox

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.actor_stopped = self._actor_ref.actor_stopped = StoppedFlag()
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

    def on_stranded(self) -> None:
        """Called where somebody waits while ``loop`` does not run: in the actor's turn on a thread without a loop.

        After the actor's end it is called on any thread. The place to see to what that loop was told and did not come
        to. An exception is handled as under ``tell``.
        """

    def on_told_too_late(self, message: Any) -> None:
        """Called with each message without a reply that waited when the actor stopped; others wait for its outcome."""

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

    def _run_stranded(self) -> None:
        try:
            self.on_stranded()
        # Ctrl-C is for whoever waits.
        except Exception:
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
