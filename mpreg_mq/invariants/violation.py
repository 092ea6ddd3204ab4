"""What a broken rule looks like: which rule, where, and the records that contradict each other."""

from __future__ import annotations

import attrs

from mpreg_mq.events.log import RecordedEvent

_SHOWN = 300


@attrs.frozen
class Violation:
    """A rule of docs/semantics.md that a history does not keep.

    ``position``, ``stream`` and ``message_id`` say where (``message_id`` is None where no single message is meant);
    ``evidence`` are the records that cannot all be right, oldest first, the last being the one that broke the rule.
    """

    rule: str
    position: int
    stream: str
    message_id: str | None
    sentence: str
    evidence: tuple[RecordedEvent, ...] = ()

    def __str__(self) -> str:
        where = f"{self.rule} at position {self.position} of {self.stream}"
        lines = [f"{where}: {self.sentence}"]
        lines += [f"  {record.position}: {_shorten(repr(record.event))}" for record in self.evidence]
        return "\n".join(lines)


def _shorten(text: str) -> str:
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
