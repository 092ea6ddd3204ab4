"""What a decision is, and what every decision needs to know besides the state."""

from __future__ import annotations

from typing import Any

import attrs
import msgspec

from mpreg_mq.events.types import Event
from mpreg_mq.model import DeliveryResult, MessageId, RejectionReason


class Decision(msgspec.Struct, frozen=True, gc=False):
    """Events to record, and the reply once they are; no events means that nothing changes."""

    events: tuple[Event, ...] = ()
    reply: Any = None


@attrs.define
class Context:
    """Inputs of a decision that are neither state nor command.

    ``now`` is the time, ``run`` a token of the actor's incarnation that makes message ids unique, and
    ``durable_version`` the version up to which events are committed: a message accepted after it is not
    delivered yet (principle "log first").
    """

    now: float
    run: str = "0"
    durable_version: int = 1 << 62

    def message_id(self, seq: int) -> str:
        """The id of the message with this sequence number in its queue."""
        return f"{seq}-{self.run}"


NOTHING = Decision()
"""Nothing to do."""

WAIT_FOR_ROOM = object()
"""Reply of a send that may wait for room (C1)."""


def accepted(message_id: str, now: float, queue_name: str) -> DeliveryResult:
    """The result of an accepted send."""
    return DeliveryResult(True, MessageId(message_id, now, queue_name), delivery_timestamp=now)


def rejected(
    reason: RejectionReason, detail: str, now: float, duplicate_of: str | None = None, queue_name: str = ""
) -> DeliveryResult:
    """The result of a refused send."""
    return DeliveryResult(
        False,
        None,
        error_message=detail,
        delivery_timestamp=now,
        rejection=reason,
        duplicate_of=None if duplicate_of is None else MessageId(duplicate_of, source_node=queue_name),
    )
