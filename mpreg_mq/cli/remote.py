"""The queues of a running MPREG server, as the commands that also take a log see them.

MPREG is imported when a server is asked, and only then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from typing import TYPE_CHECKING, Any, TypeVar

import attrs

from mpreg_mq.errors import MessageQueueError
from mpreg_mq.replay.statistics import QueueFigures, figures_of

if TYPE_CHECKING:
    from mpreg_mq.mpreg.client import QueueClient

T = TypeVar("T")

SCHEMES = ("ws://", "wss://")
MAX_LISTED = 1000
"""Dead letters that a server is asked for at once."""


@attrs.frozen
class Server:
    """A server by its URL, and the token that its access rules ask for."""

    url: str
    token: str | None = attrs.field(default=None, repr=False)

    def figures(
        self, queue: str | None = None, before: dict[str, QueueFigures] | None = None, seconds: float = 0.0
    ) -> dict[str, QueueFigures]:
        """The figures of one queue or all, and rates since ``before``."""

        async def question(client: QueueClient) -> dict[str, QueueFigures]:
            names = await client.list_queues() if queue is None else [queue]
            known = before or {}
            return {name: figures_of(name, await client.statistics(name), known.get(name), seconds) for name in names}

        return self._ask(question)

    def dead_letters(self, queue: str | None = None) -> list[dict[str, Any]]:
        """Dead letters with the names of their queues, oldest first in each."""

        async def question(client: QueueClient) -> list[dict[str, Any]]:
            names = await client.list_queues() if queue is None else [queue]
            return [_row(name, letter) for name in names for letter in await client.dead_letters(name, MAX_LISTED)]

        return self._ask(question)

    def dead_letters_whole(self, queue: str | None, beginnings: Collection[str]) -> list[dict[str, Any]]:
        """Dead letters whose ids begin so, with their headers and payloads."""

        async def question(client: QueueClient) -> list[dict[str, Any]]:
            names = await client.list_queues() if queue is None else [queue]
            return [
                {**_row(name, letter), "headers": letter["headers"], "payload": letter["payload"]}
                for name in names
                for letter in await client.dead_letters(name, MAX_LISTED)
                if letter["id"].startswith(tuple(beginnings))
            ]

        return self._ask(question)

    def purge(self, queue: str, message_ids: Collection[str] | None) -> int:
        """Remove dead letters for good, those named or all; how many."""

        async def question(client: QueueClient) -> int:
            return await client.purge_dead_letters(queue, message_ids)

        return self._ask(question)

    def redrive(
        self,
        queue: str,
        message_ids: Collection[str] | None,
        limit: int | None,
        target_queue: str | None,
        dry_run: bool,
    ) -> list[str]:
        """Accept dead letters again; the ids of the new messages."""

        async def question(client: QueueClient) -> list[str]:
            return await client.redrive(queue, message_ids, limit=limit, target_queue=target_queue, dry_run=dry_run)

        return self._ask(question)

    def _ask(self, question: Callable[[QueueClient], Awaitable[T]]) -> T:
        from mpreg_mq.mpreg.client import QueueClient

        async def asked() -> T:
            async with QueueClient(self.url, token=self.token) as client:
                return await question(client)

        try:
            return asyncio.run(asked())
        except ModuleNotFoundError as missing:
            raise MessageQueueError(
                f"{self.url}: asking a server needs {missing.name}; install MPREG: "
                'pip install "mpreg @ git+https://github.com/mattsta/mpreg"'
            ) from missing


def _row(queue: str, letter: dict[str, Any]) -> dict[str, Any]:
    """A dead letter as the server tells it, with the names that those of a log have."""
    return {
        "kind": "dead_letter",
        "queue": queue,
        "message_id": letter["id"],
        "topic": letter["topic"],
        "sent_at": letter["created_at"],
        "dead_at": letter["dead_lettered_at"],
        "reason": letter["failure_reason"],
        "error": letter["last_error"],
        "attempts": letter["attempts"],
        "subscriber_id": letter["subscriber_id"],
        "redriven_from": letter["redriven_from"],
    }
