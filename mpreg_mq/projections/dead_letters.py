"""The dead letter queue: messages whose attempts are used up (SEMANTICS D1)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import ClassVar

import attrs

from mpreg_mq.events import types as e
from mpreg_mq.projections.base import Handled, Handler, Projection, contradiction
from mpreg_mq.projections.dumps import DeadLettersDump, decode_events, encode_events


@attrs.frozen
class DeadEntry:
    """A dead letter as the log has it: how the message was accepted, and how it ended."""

    enqueued: e.MessageEnqueued
    ended: e.MessageDeadLettered


_OF_UNFINISHED = frozenset(
    (
        e.MessageEnqueued,
        e.MessageAcknowledged,
        e.MessageCompleted,
        e.MessageFailed,
        e.MessageExpired,
        e.MessageDropped,
        e.MessagesPurged,
    )
)


class DeadLetters(Projection):
    """Dead letters by message id, oldest first.

    The end of a message does not repeat its payload, so the accepted event of every unfinished message has to be
    known: ``accepted`` looks one up, before the projection that it asks has seen the message end. Without it this
    projection remembers them itself.
    """

    HANDLED: ClassVar[Handled] = {
        e.MessageEnqueued: "_on_enqueued",
        e.MessageAcknowledged: "_on_acknowledged",
        e.MessageCompleted: "_on_finished",
        e.MessageFailed: "_on_finished",
        e.MessageExpired: "_on_finished",
        e.MessageDropped: "_on_finished",
        e.MessagesPurged: "_on_purged",
        e.MessageDeadLettered: "_on_dead_lettered",
        e.DeadLetterRedriven: "_on_redriven",
        e.DeadLettersPurged: "_on_dead_letters_purged",
        e.QueueDeleted: "_on_deleted",
    }

    __slots__ = (
        "_accepted",
        "_entries",
        "_unfinished",
    )

    def __init__(self, accepted: Callable[[str], e.MessageEnqueued | None] | None = None) -> None:
        self._unfinished: dict[str, e.MessageEnqueued] = {}
        self._accepted = accepted
        self._entries: dict[str, DeadEntry] = {}

    def handler(self, event_type: type[e.Event]) -> Handler | None:
        """The bound method for events of this type, or None."""
        if self._accepted is not None and event_type in _OF_UNFINISHED:
            return None
        return super().handler(event_type)

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[DeadEntry]:
        return iter(self._entries.values())

    def get(self, message_id: str) -> DeadEntry | None:
        """The entry of this message, or None."""
        return self._entries.get(message_id)

    def ids(self) -> list[str]:
        """Ids of the dead messages, oldest first."""
        return list(self._entries)

    def _on_enqueued(self, event: e.MessageEnqueued) -> None:
        self._unfinished[event.message_id] = event

    def _on_acknowledged(self, event: e.MessageAcknowledged) -> None:
        if event.completes:
            self._on_finished(event)

    def _on_finished(
        self,
        event: e.MessageAcknowledged | e.MessageCompleted | e.MessageFailed | e.MessageExpired | e.MessageDropped,
    ) -> None:
        if self._unfinished.pop(event.message_id, None) is None:
            raise contradiction(event, "no unfinished message has this id")

    def _on_purged(self, event: e.MessagesPurged) -> None:
        self._take(event, event.message_ids, self._unfinished)

    def _on_dead_lettered(self, event: e.MessageDeadLettered) -> None:
        find = self._accepted
        enqueued = self._unfinished.pop(event.message_id, None) if find is None else find(event.message_id)
        if enqueued is None:
            raise contradiction(event, "no unfinished message has this id")
        self._entries[event.message_id] = DeadEntry(enqueued, event)

    def _on_redriven(self, event: e.DeadLetterRedriven) -> None:
        self._take(event, (event.message_id,), self._entries)

    def _on_dead_letters_purged(self, event: e.DeadLettersPurged) -> None:
        self._take(event, event.message_ids, self._entries)

    def _on_deleted(self, event: e.QueueDeleted) -> None:
        self._unfinished.clear()
        self._entries.clear()

    @staticmethod
    def _take(event: e.Event, ids: Iterable[str], store: dict[str, e.MessageEnqueued] | dict[str, DeadEntry]) -> None:
        for message_id in ids:
            if store.pop(message_id, None) is None:
                raise contradiction(event, f"{message_id} is not there")

    def dump(self) -> DeadLettersDump:
        """The entries as plain data; O(n). What unfinished messages were accepted with is the state's to dump."""
        entries = self._entries.values()
        return DeadLettersDump(
            encode_events(entry.enqueued for entry in entries), encode_events(entry.ended for entry in entries)
        )

    def restore(self, dump: DeadLettersDump) -> None:
        """Have the entries that were dumped."""
        for accepted, ended in zip(decode_events(dump.accepted), decode_events(dump.ended), strict=True):
            assert isinstance(accepted, e.MessageEnqueued)
            assert isinstance(ended, e.MessageDeadLettered)
            self._entries[accepted.message_id] = DeadEntry(accepted, ended)

    def check(self) -> None:
        """Assert that nothing is both dead and unfinished, and that entries carry their own id."""
        assert not self._unfinished.keys() & self._entries.keys()
        assert all(
            message_id == entry.enqueued.message_id == entry.ended.message_id
            for message_id, entry in self._entries.items()
        )
