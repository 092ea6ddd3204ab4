"""What the order of unfinished messages is when a queue becomes one of another type (SEMANTICS O1-O3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sortedcontainers import SortedList

from mpreg_mq.projections.message import Defaults

if TYPE_CHECKING:
    from mpreg_mq.projections.messages import Messages


def reorder(messages: Messages, defaults: Defaults, now: float) -> None:
    """Put unfinished messages where a queue with these defaults has them; O(n log n).

    What is delivered first of a group may be another message then, unless the first one has been delivered.
    """
    ready = [slot for message in messages for slot in message.slots() if slot.lane is not None]
    lanes = messages.lanes
    for slot in ready:
        lanes.remove(slot)
    for message in messages:
        message.rank = defaults.message(message.event, message.seq, message.version).rank
    for slot in sorted(ready, key=lambda slot: (slot.message.rank, slot.message.seq)):
        lanes.place(slot)
    for group_id, group in list(messages._groups.items()):
        before = messages.group_head(group_id)
        messages._groups[group_id] = SortedList((message.rank, message.seq, message) for _, _, message in group)
        head = messages.group_head(group_id)
        if before is not None and head is not None and head is not before:
            messages._withdraw(before.slot)
            messages._queue(head.slot, now)
