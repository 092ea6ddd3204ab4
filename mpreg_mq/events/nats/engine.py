"""JetStream as the log needs it: store a few messages or none, read them in order, find the last one.

Coroutines of one event loop. What cannot be known (an answer that did not come) is told apart from what was refused.
"""

from __future__ import annotations

import asyncio
import json
import logging
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import nats
from nats.aio.client import Client
from nats.aio.msg import Msg

from mpreg_mq.errors import EventLogError
from mpreg_mq.events.nats.subjects import all_events_subject
from mpreg_mq.events.nats.target import NatsTarget

logger = logging.getLogger("mpreg_mq")

REQUEST_SECONDS = 2.0
"""How long one request waits for its answer before it is tried again."""

PING_SECONDS = 1
"""How often the client asks its server for a sign of life; after three without, it goes to another server."""

MAX_BATCH_MESSAGES = 1000
"""Most messages that JetStream takes in one atomic batch."""

HEADROOM_BYTES = 4096
"""Kept free in every message for its headers and subject."""

STREAM_METADATA = {"mpreg-mq-log": "1"}

# Refusals that say "not now": the same request may be answered otherwise in a moment.
_TRANSIENT_CODES = frozenset((500, 503, 429, 408))
# 10005: no peers for a new stream, such as just after the servers have started.
_TRANSIENT_ERRORS = frozenset((10005, 10158, 10176, 10077))
# Refusals that say "the subject's last message is another one", or "this message is there already".
_MISMATCHES = frozenset((10071, 10164, 10201))

STATUS = "Status"


class RefusedError(Exception):
    """JetStream refused a request for good."""

    def __init__(self, code: int, error_code: int, description: str) -> None:
        super().__init__(f"{description} ({error_code or code})")
        self.code = code
        self.error_code = error_code


class MismatchError(RefusedError):
    """The last message of a subject is not the one that was expected."""


class UnansweredError(Exception):
    """No answer, or one that says to try again; what was asked for may have happened."""


@attrs.frozen
class Outgoing:
    """A message to store. ``expected`` is the sequence of its subject's last message; None: not checked."""

    subject: str
    payload: bytes
    identifier: str
    headers: Mapping[str, str]
    expected: int | None = None

    def header(self) -> dict[str, str]:
        """All headers of the message."""
        headers = {**self.headers, "Nats-Msg-Id": self.identifier}
        if self.expected is not None:
            headers["Nats-Expected-Last-Subject-Sequence"] = str(self.expected)
        return headers


@attrs.frozen
class Stored:
    """A message as the stream holds it."""

    sequence: int
    subject: str
    headers: Mapping[str, str]
    payload: bytes


class Engine:
    """One connection, and one JetStream stream, which is the log's unless another is named."""

    def __init__(self, client: Client, target: NatsTarget, stream: str | None = None) -> None:
        self.client = client
        self.target = target
        self.stream = stream or target.stream

    @classmethod
    async def connect(cls, target: NatsTarget) -> Engine:
        """Connect to one of the servers.

        Raises:
            EventLogError: none of them answers in time, or they refuse the login.
        """

        async def note_error(error: Exception) -> None:
            logger.debug("event log %s: %s", target.location, error or type(error).__name__)

        options: dict[str, Any] = {}
        if target.credentials is not None:
            options["user_credentials"] = target.credentials
        client = Client()
        try:
            async with asyncio.timeout(target.connect_timeout_seconds):
                await client.connect(
                    servers=list(target.servers),
                    error_cb=note_error,
                    name=f"mpreg-mq {target.stream}",
                    connect_timeout=2,
                    # The first connection is to be made at once, later ones are tried until the log is closed.
                    max_reconnect_attempts=-1,
                    reconnect_time_wait=0.1,  # type: ignore[arg-type]
                    ping_interval=PING_SECONDS,
                    max_outstanding_pings=3,
                    **options,
                )
        except (TimeoutError, OSError, nats.errors.Error) as error:
            await _abandon(client)
            raise EventLogError(
                f"open {target.location}: no server answers within {target.connect_timeout_seconds:g} s "
                f"({type(error).__name__}: {error}); start nats-server with JetStream, or check the address and login"
            ) from error
        return cls(client, target)

    async def close(self) -> None:
        """Close the connection; what was sent is on its way."""
        await _abandon(self.client)

    @property
    def part_bytes(self) -> int:
        """Most bytes of events in one message."""
        return int(self.client.max_payload) - HEADROOM_BYTES

    # --- requests -----------------------------------------------------------------------------------------

    async def request(
        self, subject: str, payload: bytes, headers: dict[str, str] | None = None, seconds: float = REQUEST_SECONDS
    ) -> Msg:
        """One request and its answer.

        Raises:
            UnansweredError: there was none in time.
        """
        try:
            return await self.client.request(subject, payload, timeout=seconds, headers=headers)
        except (nats.errors.Error, TimeoutError, OSError) as error:
            raise UnansweredError(str(error) or type(error).__name__) from error

    async def api(self, verb: str, request: Mapping[str, Any]) -> dict[str, Any]:
        """One request to JetStream's API, and the answer.

        Raises:
            RefusedError: it was refused.
            UnansweredError: no answer.
        """
        answer = await self.request(f"$JS.API.{verb}", json.dumps(request).encode() if request else b"")
        return _checked(answer.data)

    async def api_patiently(self, verb: str, request: Mapping[str, Any]) -> dict[str, Any]:
        """As :meth:`api`, tried again while no answer comes; for requests that may be repeated.

        Raises:
            RefusedError: it was refused.
            EventLogError: no answer within the append timeout.
        """
        patience = Patience(self.target.append_timeout_seconds)
        while True:
            try:
                return await self.api(verb, request)
            except UnansweredError as error:
                if not await patience.wait():
                    raise EventLogError(
                        f"{self.target.location}: {verb} did not succeed within {patience.seconds:g} s ({error}); "
                        "see whether the servers run and have a quorum"
                    ) from error

    # --- the stream ---------------------------------------------------------------------------------------

    async def ensure_stream(self, *, make: bool) -> dict[str, Any]:
        """The information about the stream, which is made where it is missing and may be.

        Raises:
            EventLogError: it is another program's, or cannot be made.
        """
        target = self.target
        try:
            try:
                info = await self.api_patiently(f"STREAM.INFO.{self.stream}", {})
            except RefusedError as refused:
                if refused.code != 404 or not make:
                    raise
                info = await self.api_patiently(f"STREAM.CREATE.{self.stream}", self._configuration())
        except RefusedError as refused:
            raise EventLogError(f"open {target.location}: JetStream says: {refused}") from refused
        if not STREAM_METADATA.items() <= (info["config"].get("metadata") or {}).items():
            raise EventLogError(
                f"open {target.location}: found a stream of another program, expected an event log "
                f"(metadata {STREAM_METADATA}); give another stream name"
            )
        return info

    def _configuration(self) -> dict[str, Any]:
        return {
            "name": self.stream,
            "subjects": [all_events_subject(self.stream)],
            "storage": self.target.storage,
            "num_replicas": self.target.replicas,
            "retention": "limits",
            # A limit that an administrator sets must refuse new events, never drop old ones.
            "discard": "new",
            "deny_delete": True,
            "allow_direct": True,
            "allow_atomic": True,
            "duplicate_window": 120_000_000_000,
            "metadata": STREAM_METADATA,
        }

    # --- storing ------------------------------------------------------------------------------------------

    async def store(self, messages: Sequence[Outgoing]) -> int:
        """Store all of the messages, or none; the sequence of the last, those before have the ones before.

        Raises:
            MismatchError: the last message of a subject is another one than expected.
            RefusedError: refused for another reason.
            UnansweredError: unknown whether they are stored.
        """
        if len(messages) == 1:
            (message,) = messages
            answer = await self.request(message.subject, message.payload, message.header())
        else:
            answer = await self._store_batch(messages)
        return int(_checked(answer.data)["seq"])

    async def _store_batch(self, messages: Sequence[Outgoing]) -> Msg:
        if len(messages) > MAX_BATCH_MESSAGES:
            raise RefusedError(
                400, 10199, f"{len(messages)} messages in one append, at most {MAX_BATCH_MESSAGES}; append less at once"
            )
        batch = uuid.uuid4().hex
        try:
            for number, message in enumerate(messages[:-1], start=1):
                headers = {**message.header(), "Nats-Batch-Id": batch, "Nats-Batch-Sequence": str(number)}
                await self.client.publish(message.subject, message.payload, headers=headers)
        except (nats.errors.Error, OSError) as error:
            raise UnansweredError(str(error)) from error
        last = messages[-1]
        headers = {
            **last.header(),
            "Nats-Batch-Id": batch,
            "Nats-Batch-Sequence": str(len(messages)),
            "Nats-Batch-Commit": "1",
        }
        return await self.request(last.subject, last.payload, headers)

    # --- reading ------------------------------------------------------------------------------------------

    async def last(self, subject: str) -> Stored | None:
        """The last message of a subject, as the stream's leader has it."""
        return await self._find({"last_by_subj": subject})

    async def next(self, subject: str, sequence: int) -> Stored | None:
        """The first message of a subject (wildcards allowed) from ``sequence`` on, as the leader has it."""
        return await self._find({"next_by_subj": subject, "seq": max(1, sequence)})

    async def _find(self, request: dict[str, Any]) -> Stored | None:
        try:
            answer = await self.api_patiently(f"STREAM.MSG.GET.{self.stream}", request)
        except RefusedError as refused:
            if refused.code == 404:
                return None
            raise EventLogError(f"read {self.target.location}: JetStream says: {refused}") from refused
        return _stored(answer["message"])

    async def chunk(self, subject: str, sequence: int, up_to: int, max_bytes: int) -> list[Stored]:
        """Messages of a subject (wildcards allowed) from ``sequence`` to ``up_to``, about ``max_bytes`` of them.

        At least one, unless there is none. Any replica may answer, so one that lags behind is asked again, and in
        the end the leader is.

        Raises:
            EventLogError: no answer within the append timeout.
        """
        patience = Patience(self.target.append_timeout_seconds)
        while True:
            try:
                messages = await self._batch(subject, sequence, max_bytes)
                wanted = [message for message in messages if message.sequence <= up_to]
                if wanted or messages:
                    return wanted
                if not await patience.wait(at_most=3):
                    found = await self.next(subject, sequence)
                    return [] if found is None or found.sequence > up_to else [found]
            except UnansweredError as error:
                if not await patience.wait():
                    raise EventLogError(f"read {self.target.location}: {error}; see whether the servers run") from error

    async def _batch(self, subject: str, sequence: int, max_bytes: int) -> list[Stored]:
        request = {"seq": max(1, sequence), "next_by_subj": subject, "batch": 512, "max_bytes": max_bytes}
        return await self.direct(request)

    async def direct_patiently(self, request: Mapping[str, Any]) -> list[Stored]:
        """As :meth:`direct`, tried again while no answer comes.

        Raises:
            EventLogError: no answer within the append timeout.
        """
        patience = Patience(self.target.append_timeout_seconds)
        while True:
            try:
                return await self.direct(request)
            except UnansweredError as error:
                if not await patience.wait():
                    raise EventLogError(f"read {self.target.location}: {error}; see whether the servers run") from error

    async def direct(self, request: Mapping[str, Any]) -> list[Stored]:
        """The messages that a direct get of several answers.

        Raises:
            UnansweredError: they did not come, or not all.
        """
        client = self.client
        inbox = client.new_inbox()
        messages: list[Stored] = []
        try:
            subscription = await client.subscribe(inbox)
            try:
                await client.publish(f"$JS.API.DIRECT.GET.{self.stream}", json.dumps(request).encode(), reply=inbox)
                while True:
                    message = await subscription.next_msg(timeout=REQUEST_SECONDS)
                    headers = message.headers or {}
                    status = headers.get(STATUS)
                    if status in ("204", "404"):
                        return messages
                    if status is not None:
                        raise UnansweredError(f"status {status} {headers.get('Description', '')}")
                    messages.append(
                        Stored(int(headers["Nats-Sequence"]), headers["Nats-Subject"], headers, message.data)
                    )
            finally:
                await subscription.unsubscribe()
        except (nats.errors.Error, TimeoutError, OSError) as error:
            raise UnansweredError(str(error) or type(error).__name__) from error


class Patience:
    """How long and how often something is tried again: soon at first, then more seldom."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = asyncio.get_running_loop().time() + seconds
        self._wait = 0.02
        self._tries = 0

    async def wait(self, at_most: int | None = None) -> bool:
        """Wait before the next try; False when the time is up or it was tried ``at_most`` times."""
        self._tries += 1
        if at_most is not None and self._tries > at_most:
            return False
        if asyncio.get_running_loop().time() + self._wait > self._end:
            return False
        await asyncio.sleep(self._wait)
        self._wait = min(self._wait * 2, 0.5)
        return True


def _checked(data: bytes) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(data) if data else {}
    error = answer.get("error")
    if error is None:
        return answer
    code, error_code = int(error.get("code", 0)), int(error.get("err_code", 0))
    description = str(error.get("description", "no reason given"))
    if error_code in _MISMATCHES:
        raise MismatchError(code, error_code, description)
    if "maximum" in description and error_code == 10077:
        raise RefusedError(code, error_code, description)
    if code in _TRANSIENT_CODES or error_code in _TRANSIENT_ERRORS:
        raise UnansweredError(f"{description} ({error_code or code})")
    raise RefusedError(code, error_code, description)


def _stored(message: Mapping[str, Any]) -> Stored:
    """A message as STREAM.MSG.GET gives it: base64 in JSON."""
    from base64 import b64decode

    headers: dict[str, str] = {}
    for line in b64decode(message.get("hdrs") or "").decode().split("\r\n")[1:]:
        name, colon, value = line.partition(":")
        if colon:
            headers[name] = value.strip()
    return Stored(int(message["seq"]), str(message["subject"]), headers, b64decode(message.get("data") or ""))


async def _abandon(client: Client) -> None:
    try:
        await client.close()
    # Of a connection that was never made, older releases of nats-py close what is not there.
    except (Exception, asyncio.CancelledError) as error:
        logger.info("closing a connection to NATS: %r", error)
