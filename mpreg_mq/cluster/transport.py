"""How a request gets to another node: over NATS request and reply, or over whatever else speaks this protocol."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg

from mpreg_mq.cluster.parts import Kept, cut
from mpreg_mq.ending import Tasks
from mpreg_mq.events.nats.engine import HEADROOM_BYTES, UnansweredError
from mpreg_mq.events.nats.subjects import PREFIX

logger = logging.getLogger("mpreg_mq")

Handler = Callable[[bytes], Awaitable[bytes]]

PART_SECONDS = 5.0
"""How long one part of a long request or reply may take to be confirmed or fetched."""

PART_OF_REQUEST = "Mpreg-Mq-Request"
"""Header of a part of a request: its id, the part's number, and how many there are."""
PARTS_OF_REPLY = "Mpreg-Mq-Reply"
"""Header of the first part of a reply: its id, and how many there are. In a request: fetch the part of that number."""
GONE = "Mpreg-Mq-Gone"
"""Header of the answer where parts before are not there any more."""


class NobodyThereError(Exception):
    """The request reached nobody, so nothing was done."""


class Transport(Protocol):
    """Carries requests between the members of a cluster."""

    async def serve(self, member: str, handler: Handler) -> None:
        """Answer requests to ``member`` with what ``handler`` returns, until :meth:`stop`."""

    async def ask(self, member: str, request: bytes, seconds: float) -> bytes:
        """Ask a member.

        Raises:
            NobodyThereError: nobody is there by that name.
            UnansweredError: no answer in time; the request may have been carried out.
        """

    async def stop(self) -> None:
        """Take no more requests."""


class NatsTransport:
    """Requests over core NATS, on a subject for each member.

    What is longer than a message may be (``max_payload`` of the servers) goes in parts. Those of a request are
    confirmed one by one, and it is carried out when the last is there; those of a reply are fetched one by one.
    """

    def __init__(self, client: Client, stream: str) -> None:
        self._client = client
        self._prefix = f"{PREFIX}.{stream}.node."
        self._subscription: Any = None
        self._tasks = Tasks()
        self._requests = Kept()
        self._replies = Kept()

    @property
    def _part_bytes(self) -> int:
        return max(1, int(self._client.max_payload) - HEADROOM_BYTES)

    # --- answering ----------------------------------------------------------------------------------------

    async def serve(self, member: str, handler: Handler) -> None:
        """See :meth:`Transport.serve`; requests are handled at the same time."""

        async def take(message: Msg) -> None:
            self._tasks.begin(self._answer(message, handler))

        self._subscription = await self._client.subscribe(self._prefix + member, cb=take)

    async def _answer(self, message: Msg, handler: Handler) -> None:
        reply, headers = await self._reply_to(message, handler)
        try:
            await self._client.publish(message.reply, reply, headers=headers)
        except (nats.errors.Error, OSError) as error:
            logger.info("cluster: a reply could not be sent: %s", error)

    async def _reply_to(self, message: Msg, handler: Handler) -> tuple[bytes, dict[str, str] | None]:
        headers = message.headers or {}
        if PARTS_OF_REPLY in headers:
            identifier, number = headers[PARTS_OF_REPLY].split()
            part = self._replies.take(identifier, int(number))
            return (b"", {GONE: "1"}) if part is None else (part, None)
        request = message.data
        if PART_OF_REQUEST in headers:
            identifier, number, count = headers[PART_OF_REQUEST].split()
            if not self._requests.add(identifier, int(number), request):
                return b"", {GONE: "1"}
            if int(number) < int(count) - 1:
                return b"", None
            request = self._requests.whole(identifier)
        first, *others = cut(await handler(request), self._part_bytes)
        if not others:
            return first, None
        identifier = uuid.uuid4().hex
        self._replies.keep(identifier, [b"", *others])
        return first, {PARTS_OF_REPLY: f"{identifier} {len(others) + 1}"}

    # --- asking -------------------------------------------------------------------------------------------

    async def ask(self, member: str, request: bytes, seconds: float) -> bytes:
        """See :meth:`Transport.ask`. A long answer may take longer, as long as its parts keep coming."""
        *before, last = cut(request, self._part_bytes)
        headers: dict[str, str] | None = None
        if before:
            identifier, count = uuid.uuid4().hex, len(before) + 1
            for number, part in enumerate(before):
                headers = {PART_OF_REQUEST: f"{identifier} {number} {count}"}
                try:
                    await self._confirmed(member, part, PART_SECONDS, headers)
                except UnansweredError as error:
                    # Without its last part nobody carries it out.
                    raise NobodyThereError(str(error)) from error
            headers = {PART_OF_REQUEST: f"{identifier} {count - 1} {count}"}
        answer = await self._request(member, last, seconds, headers)
        found = answer.headers or {}
        if GONE in found:
            raise NobodyThereError(f"{member}: parts of the request did not arrive")
        if PARTS_OF_REPLY not in found:
            return answer.data
        identifier, total = found[PARTS_OF_REPLY].split()
        parts = [answer.data]
        for number in range(1, int(total)):
            parts.append(await self._confirmed(member, b"", PART_SECONDS, {PARTS_OF_REPLY: f"{identifier} {number}"}))
        return b"".join(parts)

    async def _confirmed(self, member: str, part: bytes, seconds: float, headers: dict[str, str]) -> bytes:
        answer = await self._request(member, part, seconds, headers)
        if GONE in (answer.headers or {}):
            raise UnansweredError(f"{member}: parts of a long message are not there any more")
        return answer.data

    async def _request(self, member: str, payload: bytes, seconds: float, headers: dict[str, str] | None) -> Msg:
        try:
            return await self._client.request(self._prefix + member, payload, timeout=seconds, headers=headers)
        except nats.errors.NoRespondersError as error:
            raise NobodyThereError(member) from error
        except nats.errors.MaxPayloadError as error:
            # Another server may allow less than the one for which it was cut.
            raise NobodyThereError(f"{member}: {error}; nothing was sent") from error
        except (nats.errors.Error, TimeoutError, OSError) as error:
            raise UnansweredError(f"{member}: {error or type(error).__name__}") from error

    async def stop(self) -> None:
        """Take no more requests, and let those that are being answered come to their end."""
        if self._subscription is not None:
            try:
                await self._subscription.unsubscribe()
            except (nats.errors.Error, OSError) as error:
                logger.info("cluster: unsubscribing: %s", error)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=5.0)
        for task in self._tasks:
            task.cancel()
        self._requests.clear()
        self._replies.clear()
