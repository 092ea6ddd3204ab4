"""A layer of a queue actor: appends whose ends were told to a loop that was left, and that does not pass them on.

A loop that the journal tells may have had its last turn, or stand still for ever. What it is told is kept in the append
as well, so that whoever comes next finds it there, once the journal has seen to everything before.
"""

from __future__ import annotations

import logging
from asyncio import AbstractEventLoop, _get_running_loop
from typing import Any

import pykka

from mpreg_mq.actors.futures import answer
from mpreg_mq.actors.inbox import BUSY
from mpreg_mq.actors.messages import Committed, SeenTo
from mpreg_mq.actors.recording import RecordingActor

logger = logging.getLogger("mpreg_mq")


class LeftLoopsActor(RecordingActor):
    """Finds out what became of what it has handed over, where nobody tells it, or not any more."""

    __slots__ = ()

    def _find_out(self, loop: AbstractEventLoop | None) -> None:
        """Hear on ``loop`` what became of appends whose ends may have been told to another one."""
        journal = self._store.journal
        if not self._handed_over or journal is None:
            return
        if journal.is_forked:
            # They are its parent's, which is told.
            self._handed_over.clear()
            return
        seen_to = SeenTo(self._handed_over[:])

        def done(_: BaseException | None) -> None:
            if loop is not None and _get_running_loop() is None and self._is_for_others():
                return
            if self.actor_inbox.try_now(self._on_seen_to, seen_to) is BUSY:
                try:
                    self.actor_ref.tell(seen_to)
                except pykka.ActorDeadError:
                    self.on_told_too_late(seen_to)

        journal.mark(done, loop)

    def on_stranded(self) -> None:
        """Find out on a thread without a loop, which may wait for the journal, or after the end on any."""
        journal = self._store.journal
        if self.actor_inbox.closed or journal is None or journal.is_forked:
            self._find_out(None)
            return
        self.send_off()
        if self._handed_over:
            seen_to = SeenTo(self._handed_over[:])
            journal.flush()
            self._on_seen_to(seen_to)

    def _on_seen_to(self, message: SeenTo) -> None:
        for committed in message.committed():
            self._committed(committed)

    def on_told_too_late(self, message: Any) -> None:
        """Answer those who waited for a commit."""
        if type(message) is SeenTo:
            for committed in message.committed():
                self.on_told_too_late(committed)
        elif type(message) is Committed:
            # By whoever comes first: more than one thread may know by now.
            try:
                self._handed_over.remove(message.append)
            except ValueError:
                return
            error = message.error
            if error is not None:
                logger.warning("queue %s: closed without its last events, which are lost: %r", self.name, error)
            answer(message.append.waiters, None if error is None else self._store_error(error))
