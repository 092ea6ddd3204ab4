"""The ``mq.*`` commands of a server, typed: for programs that are MPREG's clients.

It works over an ``MPREGClientAPI``. Connections that break are made again; a send that was under way then is not
repeated by itself, because it may have arrived: give it a ``deduplication_id`` and repeat it.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import Any, Self

import attrs

from mpreg_mq.actors.subscriber_actor import error_text
from mpreg_mq.arguments import dead_letter_ids
from mpreg_mq.ending import Tasks
from mpreg_mq.errors import MessageQueueError
from mpreg_mq.model import DeliveryGuarantee, DeliveryResult, MessageId, QueueStatistics, RejectionReason
from mpreg_mq.options import guarantee_of
from mpreg_mq.sending import batch_of

FIRST_RETRY_SECONDS = 0.1
LAST_RETRY_SECONDS = 5.0
POLL_SECONDS = 15.0
SETTLE_ATTEMPTS = 6

CANCEL = "mq.cancel"
"""The command that a client still gives while it closes."""

CANCEL_SECONDS = 2.0
"""How long whoever gives a receive up waits for the server to know of it."""

MAX_IDLE = 4
"""Most connections that are kept for the next receives."""


class QueueCommandError(MessageQueueError):
    """A command was refused. ``kind`` is ``denied``, ``not_found``, ``invalid``, ``unavailable`` or ``internal``."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@attrs.frozen
class ReceivedMessage:
    """A message that was fetched; settle it with the client that fetched it."""

    id: str
    topic: str
    payload: Any
    headers: dict[str, str]
    guarantee: DeliveryGuarantee
    priority: int
    created_at: float
    delivery_attempt: int
    lease_deadline: float | None
    group_id: str | None
    deduplication_id: str | None
    redriven_from: str | None
    queue: str
    subscriber: str


class QueueClient:
    """Queues of an MPREG server, for one of its clients::

        async with QueueClient("ws://127.0.0.1:9000", token=token) as queues:
            await queues.send("orders", "order.paid", {"id": 7})

    Args:
        server: the server's URL, or an ``MPREGClientAPI``, which then stays open. It no longer logs its requests,
            because the token is among them.
        token: what the server's access rules ask for.
        timeout_seconds: how long a command may take, without the time that ``receive`` waits.
        locs: which servers may answer, where several of a cluster offer the commands; see MPREG's ``call``.

    MPREG runs the commands of one connection one after another, so each ``receive`` that is under way has a connection
    of its own. One that is cancelled, or not answered in time, is cancelled at the server, so that nothing is leased to
    it; a client that just disappears may still be leased what comes within the time that it would have waited.

    Where the server cannot be reached ``async with`` raises ``ConnectionError``. Once it is closed it opens no
    connection any more: whatever is called then, or still runs, raises that, too.
    """

    def __init__(
        self,
        server: Any,
        *,
        token: str | None = None,
        timeout_seconds: float = 10.0,
        locs: frozenset[str] | None = None,
    ) -> None:
        self._owns_commands = isinstance(server, str)
        self._commands = _new_api(server) if isinstance(server, str) else server
        self._commands.full_log = False
        self._commands._client.full_log = False
        self._idle: list[Any] = []
        self._receiving: dict[str, tuple[Any, str, str]] = {}
        self._cancelling = Tasks()
        self._token = token
        self._timeout = timeout_seconds
        self._locs = locs
        self._connecting: dict[int, asyncio.Lock] = {}
        self._closed = False

    # --- connections --------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        self._check_open("connect")
        await self._connect(self._commands, "connect")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections that are ours; receives that are under way are cancelled, and consumers end with a
        ``ConnectionError``."""
        self._closed = True
        under_way = list(self._receiving.items())
        await asyncio.gather(*(self._cancel(queue, name, which) for which, (_, queue, name) in under_way))
        if late := list(self._cancelling):
            for task in late:
                task.cancel()
            await asyncio.wait(late)
        idle, self._idle = self._idle, []
        for api in (*idle, *(api for _, (api, _, _) in under_way), *((self._commands,) if self._owns_commands else ())):
            await self._drop(api)

    async def _drop(self, api: Any) -> None:
        self._connecting.pop(id(api), None)
        with contextlib.suppress(Exception):
            await api.disconnect()

    def _check_open(self, command: str) -> None:
        if self._closed:
            raise ConnectionError(f"{command}: the client is closed, expected one that is open; make another one")

    async def _connect(self, api: Any, command: str) -> None:
        try:
            await self._reconnect(api)
        # Whatever the connection raises: MPREG's transports have exceptions of their own.
        except Exception as error:
            raise ConnectionError(f"{command}: no connection to {api.url}: {error}") from error

    async def _reconnect(self, api: Any) -> None:
        connecting = self._connecting.setdefault(id(api), asyncio.Lock())

        def dropped() -> bool:
            return self._connecting.get(id(api)) is not connecting

        async with connecting:
            transport = api._client._transport
            if api._connected and transport is not None and transport.connected:
                return
            if not dropped():
                with contextlib.suppress(Exception):
                    await api.disconnect()
                api._connected = False
                await api.connect()
            if dropped():
                await self._drop(api)
                raise ConnectionError("the client is closed")

    async def _call(self, api: Any, command: str, timeout_seconds: float, arguments: dict[str, Any]) -> dict[str, Any]:
        if command != CANCEL:
            self._check_open(command)
        await self._connect(api, command)
        if self._token is not None:
            arguments = {**arguments, "token": self._token}
        try:
            answer = await api.call(command, locs=self._locs, timeout=timeout_seconds, **arguments)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # MPREG's client cancels what waits for an answer when its connection breaks.
            raise ConnectionError(f"{command}: the connection to {api.url} broke") from None
        if not isinstance(answer, dict):
            raise QueueCommandError("internal", f"{command}: got {type(answer).__name__}, expected a table")
        if not answer.get("ok"):
            raise QueueCommandError(str(answer.get("error")), f"{command}: {answer.get('message')}")
        return answer

    async def _ask(self, operation: str, **arguments: Any) -> dict[str, Any]:
        given = {name: value for name, value in arguments.items() if value is not None}
        return await self._call(self._commands, f"mq.{operation}", self._timeout, given)

    # --- producing ----------------------------------------------------------------------------------------

    async def send(
        self,
        queue: str,
        topic: str,
        payload: Any,
        guarantee: DeliveryGuarantee = DeliveryGuarantee.AT_LEAST_ONCE,
        **options: Any,
    ) -> DeliveryResult:
        """Send a message; success means that it is in the server's log.

        Raises:
            QueueCommandError: the command was refused.
            ConnectionError: there is no connection, or it broke; the message may have arrived then.
            TimeoutError: there was no answer in time; the message may have arrived.
        """
        arguments = {
            "queue": queue,
            "topic": topic,
            "payload": payload,
            "guarantee": guarantee_of(guarantee).value,
            "options": options or None,
        }
        answer = await self._call(self._commands, "mq.send", self._timeout, arguments)
        return _result(answer)

    async def send_batch(
        self,
        queue: str,
        messages: Iterable[Mapping[str, Any]],
        guarantee: DeliveryGuarantee = DeliveryGuarantee.AT_LEAST_ONCE,
        **options: Any,
    ) -> list[DeliveryResult]:
        """Send many messages in one commit, tables with topic, payload and options of their own. Raises as
        :meth:`send`."""
        answer = await self._ask(
            "send_batch",
            queue=queue,
            messages=[dict(message) for message in batch_of(messages)],
            guarantee=guarantee_of(guarantee).value,
            options=options or None,
        )
        return [_result(result) for result in answer["results"]]

    # --- consuming ----------------------------------------------------------------------------------------

    async def receive(
        self,
        queue: str,
        subscriber: str,
        max_messages: int = 1,
        wait_seconds: float = 0.0,
        *,
        visibility_timeout_seconds: float | None = None,
        topic_pattern: str = "#",
    ) -> list[ReceivedMessage]:
        """Fetch and lease messages, waiting up to ``wait_seconds`` (at most 20) for the first; as many as one answer of
        MPREG carries. Raises as :meth:`send`."""
        arguments = {
            "queue": queue,
            "subscriber": subscriber,
            "max_messages": max_messages,
            "wait_seconds": wait_seconds,
            "visibility_timeout_seconds": visibility_timeout_seconds,
            "topic_pattern": topic_pattern,
            "receive_id": (receive_id := uuid.uuid4().hex),
        }
        api = self._idle.pop() if self._idle else _new_api(self._commands.url, like=self._commands)
        self._receiving[receive_id] = api, queue, subscriber
        reusable = False
        try:
            answer = await self._call(api, "mq.receive", self._timeout + wait_seconds, arguments)
            reusable = True
        except QueueCommandError:
            reusable = True
            raise
        except BaseException:
            # The server may go on with it, and lease messages that nobody gets; who closes the client tells it, too.
            if not self._closed:
                await self._cancel(queue, subscriber, receive_id)
            raise
        finally:
            del self._receiving[receive_id]
            if reusable and not self._closed and len(self._idle) < MAX_IDLE:
                self._idle.append(api)
            else:
                await self._drop(api)
        return [_received(message, queue, subscriber) for message in answer["messages"]]

    async def _cancel(self, queue: str, subscriber: str, receive_id: str) -> None:
        """Have the server end a receive; it is told a little later where that takes long."""
        task = self._cancelling.begin(self._tell_cancelled(queue, subscriber, receive_id))
        await asyncio.wait([task], timeout=CANCEL_SECONDS)

    async def _tell_cancelled(self, queue: str, subscriber: str, receive_id: str) -> None:
        # Whatever the connection raises, or the server says: the leases end by themselves.
        with contextlib.suppress(Exception):
            await self._ask("cancel", queue=queue, receive_id=receive_id, subscriber=subscriber)

    async def acknowledge(self, message: ReceivedMessage) -> bool:
        """Say that a message is done; whether that counted (L2). Raises as :meth:`send`."""
        answer = await self._ask("ack", queue=message.queue, message_id=message.id, subscriber=message.subscriber)
        return bool(answer["acknowledged"])

    async def negative_acknowledge(
        self, message: ReceivedMessage, reason: str = "negatively acknowledged", delay_seconds: float = 0.0
    ) -> bool:
        """Give a message back as a failed attempt; whether that counted. Raises as :meth:`send`."""
        answer = await self._ask(
            "nack",
            queue=message.queue,
            message_id=message.id,
            subscriber=message.subscriber,
            reason=reason,
            delay_seconds=delay_seconds,
        )
        return bool(answer["returned"])

    async def extend(self, message: ReceivedMessage, seconds: float) -> bool:
        """Keep a message for longer; whether that counted. Raises as :meth:`send`."""
        answer = await self._ask(
            "extend", queue=message.queue, message_id=message.id, subscriber=message.subscriber, seconds=seconds
        )
        return bool(answer["extended"])

    async def messages(
        self, queue: str, subscriber: str, max_messages: int = 10, **options: Any
    ) -> AsyncIterator[ReceivedMessage]:
        """Every message, as it comes, for ever: connections that break are made again.

        Raises:
            QueueCommandError: the server refuses, for another reason than that it has no queues just now.
            ConnectionError: the client was closed.
        """
        wait = FIRST_RETRY_SECONDS
        while True:
            try:
                fetched = await self.receive(queue, subscriber, max_messages, POLL_SECONDS, **options)
            except QueueCommandError as error:
                if error.kind != "unavailable":
                    raise
                fetched = None
            # Whatever the connection raises: MPREG's transports have exceptions of their own.
            except Exception:
                fetched = None
            if fetched is None:
                self._check_open("messages")
                await asyncio.sleep(wait)
                wait = min(wait * 2, LAST_RETRY_SECONDS)
                continue
            wait = FIRST_RETRY_SECONDS
            for message in fetched:
                yield message

    async def consume(
        self, queue: str, subscriber: str, callback: Callable[[ReceivedMessage], Any], **options: Any
    ) -> None:
        """Call a function or coroutine function with every message, and acknowledge it when that has come to its end;
        if it raises, the message is given back (L4). Runs until it is cancelled.

        Raises:
            QueueCommandError: as :meth:`messages`.
            ConnectionError: the client was closed; a message that was not settled by then comes again.
        """
        async for message in self.messages(queue, subscriber, **options):
            try:
                returned = callback(message)
                if inspect.isawaitable(returned):
                    await returned
            except Exception as error:
                await self._settle(partial(self.negative_acknowledge, message, error_text(error)))
            else:
                await self._settle(partial(self.acknowledge, message))

    async def _settle(self, settling: Callable[[], Awaitable[bool]]) -> None:
        """Settle a message, more than once if need be; when it does not get through, the lease ends by itself."""
        wait = FIRST_RETRY_SECONDS
        for _ in range(SETTLE_ATTEMPTS):
            try:
                await settling()
            except QueueCommandError as error:
                if error.kind != "unavailable":
                    raise
            # Whatever the connection raises, as in messages().
            except Exception:
                pass
            else:
                return
            self._check_open("consume")
            await asyncio.sleep(wait)
            wait *= 2

    # --- looking and managing -----------------------------------------------------------------------------

    async def create_queue(self, queue: str, **config: Any) -> bool:
        """Create a queue with these settings; False if it exists. Raises as :meth:`send`."""
        return bool((await self._ask("create_queue", queue=queue, config=config or None))["created"])

    async def delete_queue(self, queue: str) -> bool:
        """Delete a queue with all that is in it; False if there is none. Raises as :meth:`send`."""
        return bool((await self._ask("delete_queue", queue=queue))["deleted"])

    async def list_queues(self) -> list[str]:
        """The names of the queues that the token may list. Raises as :meth:`send`."""
        return list((await self._ask("list"))["queues"])

    async def statistics(self, queue: str) -> QueueStatistics:
        """Counts of a queue. Raises as :meth:`send`."""
        counts = (await self._ask("stats", queue=queue))["statistics"]
        known = attrs.fields_dict(QueueStatistics)
        return QueueStatistics(**{name: value for name, value in counts.items() if name in known})

    async def dead_letters(self, queue: str, limit: int = 100) -> list[dict[str, Any]]:
        """Dead letters, oldest first: tables with ``id``, ``payload``, ``failure_reason``, ``last_error``, ``attempts``
        and so on. Raises as :meth:`send`."""
        return list((await self._ask("dead_letters", queue=queue, limit=limit))["dead_letters"])

    async def redrive(
        self,
        queue: str,
        message_ids: Iterable[str] | None = None,
        *,
        limit: int | None = None,
        target_queue: str | None = None,
        dry_run: bool = False,
    ) -> list[str]:
        """Accept dead letters again; their new ids. Raises as :meth:`send`."""
        answer = await self._ask(
            "redrive",
            queue=queue,
            message_ids=_listed(message_ids),
            limit=limit,
            target_queue=target_queue,
            dry_run=dry_run,
        )
        return list(answer["message_ids"])

    async def purge(self, queue: str) -> int:
        """Remove every unfinished message; how many. Raises as :meth:`send`."""
        return int((await self._ask("purge", queue=queue))["purged"])

    async def purge_dead_letters(self, queue: str, message_ids: Iterable[str] | None = None) -> int:
        """Remove dead letters for good, those named or all; how many. Raises as :meth:`send`."""
        return int((await self._ask("purge_dead_letters", queue=queue, message_ids=_listed(message_ids)))["purged"])


def _listed(message_ids: Iterable[str] | None) -> list[str] | None:
    ids = dead_letter_ids(message_ids)
    return None if ids is None else list(ids)


def _new_api(url: str, like: Any = None) -> Any:
    """A client of MPREG's for a server; imports MPREG."""
    if like is None:
        from mpreg.client.client_api import MPREGClientAPI  # type: ignore[import-not-found]

        return MPREGClientAPI(url, full_log=False)
    return type(like)(
        url,
        full_log=False,
        auth_token=like.auth_token,
        api_key=like.api_key,
        transport_config=like.transport_config,
    )


def _result(answer: Mapping[str, Any]) -> DeliveryResult:
    message_id, duplicate_of, rejection = answer["message_id"], answer["duplicate_of"], answer["rejection"]
    return DeliveryResult(
        bool(answer["success"]),
        None if message_id is None else MessageId(message_id),
        error_message=answer["error_message"],
        rejection=None if rejection is None else RejectionReason(rejection),
        duplicate_of=None if duplicate_of is None else MessageId(duplicate_of),
    )


def _received(answer: Mapping[str, Any], queue: str, subscriber: str) -> ReceivedMessage:
    return ReceivedMessage(
        **{**answer, "guarantee": DeliveryGuarantee(answer["guarantee"]), "queue": queue, "subscriber": subscriber}
    )
