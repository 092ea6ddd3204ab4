"""From a batch of appends to what is added to a log file: rows, streams that are new, and where the log ends then."""

from __future__ import annotations

from collections.abc import Sequence

from mpreg_mq.events import types as e
from mpreg_mq.events.log import Append, version_conflict
from mpreg_mq.events.sqlite.file import LogFile
from mpreg_mq.events.sqlite.records import Block, Head, checksum
from mpreg_mq.events.sqlite.transactions import Addition, Row, Stream


def addition(file: LogFile, batch: Sequence[Append], found: Sequence[Block]) -> Addition:
    """What ``found``, the blocks of the batch, are in this file as it is now.

    Raises:
        VersionConflictError: an append does not fit.
    """
    versions = _fit(file, batch)
    known = file.streams
    added: dict[str, Stream] = {}
    position, sum_ = file.head
    rows: list[Row] = []
    for name, version, count, body in found:
        stream = known.get(name) or added.get(name)
        if stream is None:
            stream = added[name] = Stream(file.next_stream_id + len(added), name, versions[name], 0)
        position += count
        sum_ = checksum(sum_, position, version, count, name, body)
        rows.append((position, stream.id, version, count, sum_, body))
    return Addition(rows, list(added.values()), versions, Head(position, sum_))


def _fit(file: LogFile, batch: Sequence[Append]) -> dict[str, int]:
    """The versions after the batch of its streams, if every append fits."""
    known = file.streams
    versions: dict[str, int] = {}
    for append in batch:
        stream = append.stream
        version = versions.get(stream)
        if version is None:
            found = known.get(stream)
            version = 0 if found is None else found.version
        if append.expected_version != version:
            raise version_conflict(append, version)
        versions[stream] = version + len(append.events)
    return versions


def adds_messages(batch: Sequence[Append]) -> bool:
    """Whether anything in it makes the log larger for long, instead of finishing what is there."""
    return any(isinstance(event, e.MessageEnqueued) for append in batch for event in append.events)
