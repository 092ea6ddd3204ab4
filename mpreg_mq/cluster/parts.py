"""Requests and replies that are longer than one message may be: cut into parts, and kept until all are there."""

from __future__ import annotations

import asyncio

KEPT_SECONDS = 30.0
"""How long parts are kept after the last sign of whoever sends or fetches them."""


def cut(data: bytes, part_bytes: int) -> list[bytes]:
    """The parts of some bytes in order; at least one."""
    if len(data) <= part_bytes:
        return [data]
    return [data[start : start + part_bytes] for start in range(0, len(data), part_bytes)]


class Kept:
    """Parts of requests or replies by id. They are dropped when nobody asks for them any more."""

    def __init__(self) -> None:
        self._parts: dict[str, list[bytes]] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def keep(self, identifier: str, parts: list[bytes]) -> None:
        """Keep all parts of one."""
        self._parts[identifier] = parts
        self._look_again(identifier)

    def add(self, identifier: str, number: int, part: bytes) -> bool:
        """Keep the next part; False where those before are not there."""
        parts = self._parts.setdefault(identifier, []) if number == 0 else self._parts.get(identifier)
        if parts is None or len(parts) != number:
            self.drop(identifier)
            return False
        parts.append(part)
        self._look_again(identifier)
        return True

    def whole(self, identifier: str) -> bytes:
        """All that was added, which is kept no longer."""
        parts = self._parts[identifier]
        self.drop(identifier)
        return b"".join(parts)

    def take(self, identifier: str, number: int) -> bytes | None:
        """A part; with the last one all are dropped. None where they are not there any more."""
        parts = self._parts.get(identifier)
        if parts is None or not 0 <= number < len(parts):
            return None
        self._look_again(identifier)
        if number == len(parts) - 1:
            self.drop(identifier)
        return parts[number]

    def _look_again(self, identifier: str) -> None:
        timer = self._timers.pop(identifier, None)
        if timer is not None:
            timer.cancel()
        self._timers[identifier] = asyncio.get_running_loop().call_later(KEPT_SECONDS, self.drop, identifier)

    def drop(self, identifier: str) -> None:
        """Forget one."""
        self._parts.pop(identifier, None)
        timer = self._timers.pop(identifier, None)
        if timer is not None:
            timer.cancel()

    def clear(self) -> None:
        """Forget all."""
        for identifier in list(self._parts):
            self.drop(identifier)
