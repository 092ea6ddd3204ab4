"""A JetStream key-value bucket: compare-and-set of keys, and what changed since the last look.

The entries are those of NATS's own key-value store: ``nats kv get mpreg-mq-STREAM queue.orders`` shows one.
"""

from __future__ import annotations

import uuid

import attrs

from mpreg_mq.errors import EventLogError
from mpreg_mq.events.nats.engine import Engine, Outgoing, RefusedError

OPERATION = "KV-Operation"


@attrs.frozen
class Entry:
    """A key's latest value; None where it was removed. ``revision`` rises over the whole bucket."""

    key: str
    value: bytes | None
    revision: int


class Bucket:
    """One bucket over an engine's connection."""

    def __init__(self, engine: Engine) -> None:
        self.name = f"mpreg-mq-{engine.stream}"
        self._log_engine = engine
        self._engine = Engine(engine.client, engine.target, stream=f"KV_{self.name}")
        self._prefix = f"$KV.{self.name}."

    async def ensure(self) -> None:
        """Make the bucket where it is missing, with as many replicas as the log has.

        Raises:
            EventLogError: it cannot be made.
        """
        try:
            try:
                await self._engine.api_patiently(f"STREAM.INFO.{self._engine.stream}", {})
            except RefusedError as refused:
                if refused.code != 404:
                    raise
                log = await self._log_engine.api_patiently(f"STREAM.INFO.{self._log_engine.stream}", {})
                await self._engine.api_patiently(
                    f"STREAM.CREATE.{self._engine.stream}",
                    {
                        "name": self._engine.stream,
                        "subjects": [f"{self._prefix}>"],
                        "max_msgs_per_subject": 1,
                        "storage": log["config"]["storage"],
                        "num_replicas": log["config"]["num_replicas"],
                        "discard": "new",
                        "deny_delete": True,
                        "allow_rollup_hdrs": True,
                        "allow_direct": True,
                        "duplicate_window": 120_000_000_000,
                    },
                )
        except RefusedError as refused:
            raise EventLogError(f"cluster: bucket {self.name}: JetStream says: {refused}") from refused

    async def put(self, key: str, value: bytes, expected: int | None = None) -> int:
        """Write a key; its new revision.

        Args:
            key: letters, digits and ``-_=.``.
            value: what it is from now on.
            expected: the revision it must have now, 0 where it must not exist; None: whatever it is.

        Raises:
            MismatchError: it has another revision.
            UnansweredError: unknown whether it was written.
        """
        return await self._store(key, value, {}, expected)

    async def remove(self, key: str, expected: int | None = None) -> int:
        """Remove a key; raises as :meth:`put`."""
        return await self._store(key, b"", {OPERATION: "PURGE", "Nats-Rollup": "sub"}, expected)

    async def _store(self, key: str, value: bytes, headers: dict[str, str], expected: int | None) -> int:
        message = Outgoing(self._prefix + key, value, uuid.uuid4().hex, headers, expected)
        return await self._engine.store([message])

    async def changes(self, after_revision: int) -> list[Entry]:
        """The entries that changed above a revision, in the order of their changes; O(changes).

        Raises:
            UnansweredError: no answer.
        """
        entries: list[Entry] = []
        while True:
            start = entries[-1].revision if entries else after_revision
            request = {"seq": start + 1, "next_by_subj": f"{self._prefix}>", "batch": 500}
            found = await self._engine.direct(request)
            entries += (
                Entry(
                    message.subject.removeprefix(self._prefix),
                    None if message.headers.get(OPERATION) else message.payload,
                    message.sequence,
                )
                for message in found
            )
            if len(found) < 500:
                return entries
