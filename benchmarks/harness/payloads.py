"""The bodies that are sent: 100 bytes of JSON, or those of a file of webhooks."""

from __future__ import annotations

from itertools import cycle, islice
from pathlib import Path
from typing import Any

import attrs
import msgspec

JSON_BYTES = 100
DISTINCT = 1_000
"""Different bodies of 100 bytes; a message repeats one after so many."""

Message = tuple[str, Any]
"""Topic and payload."""


def small_payload(number: int) -> dict[str, Any]:
    """An order that takes 100 bytes as compact JSON; ``number`` is below ten million."""
    return {
        "order": 10_000_000 + number,
        "customer": "lovelace@example.com",
        "sku": "KB-104-DE",
        "quantity": 2,
        "total": "129.90",
    }


@attrs.frozen
class Payloads:
    """Messages to send, taken in turn."""

    name: str
    messages: tuple[Message, ...]

    @classmethod
    def small(cls) -> Payloads:
        """Bodies of 100 bytes on one topic."""
        return cls("100-byte JSON", tuple(("order.paid", small_payload(number)) for number in range(DISTINCT)))

    @classmethod
    def from_file(cls, path: Path) -> Payloads:
        """The messages of a file of JSON lines, ``{"topic": ..., "payload": ...}``.

        Raises:
            OSError: the file cannot be read.
            ValueError: a line is not of that form, or there is none.
        """
        messages: list[Message] = []
        for number, line in enumerate(path.read_bytes().splitlines(), 1):
            if not line.strip():
                continue
            try:
                entry = msgspec.json.decode(line)
                messages.append((entry["topic"], entry["payload"]))
            except (msgspec.DecodeError, TypeError, KeyError) as error:
                raise ValueError(
                    f'{path}, line {number}: expected {{"topic": ..., "payload": ...}} ({error!r})'
                ) from None
        if not messages:
            raise ValueError(f"{path}: no messages in it; expected one JSON object a line")
        return cls(path.name, tuple(messages))

    @property
    def mean_bytes(self) -> float:
        """Mean size of a body as compact JSON."""
        return sum(len(msgspec.json.encode(payload)) for _, payload in self.messages) / len(self.messages)

    def take(self, count: int) -> list[Message]:
        """``count`` messages from the first on, beginning again where they end."""
        return list(islice(cycle(self.messages), count))
