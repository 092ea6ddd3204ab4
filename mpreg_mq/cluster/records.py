"""What the cluster keeps in its key-value bucket: who is there, and who owns which queue."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from mpreg_mq.configuration import QueueConfiguration
from mpreg_mq.errors import CorruptLogError

R = TypeVar("R", bound=msgspec.Struct)


class NodeRecord(msgspec.Struct, frozen=True):
    """A node's lease: it lives as long as this is written again.

    ``incarnation`` is new with every start of the node, so that nobody takes a restarted node for the one before.
    ``draining`` nodes give their queues away; ``drain`` is an operator's wish that it does.
    """

    node: str
    incarnation: str
    owns_queues: bool
    lease_seconds: float
    draining: bool = False
    renewals: int = 0

    @property
    def member(self) -> str:
        """The node in this life of its process."""
        return f"{self.node}.{self.incarnation}"


class QueueRecord(msgspec.Struct, frozen=True):
    """Who owns a queue, as a :attr:`NodeRecord.member`; empty while it is on its way from one to the next.

    ``epoch`` is that of the last ownership, ``pinned`` the node an operator moved the queue to.
    """

    name: str
    configuration: QueueConfiguration
    owner: str = ""
    epoch: int = 0
    pinned: str = ""


class DrainRecord(msgspec.Struct, frozen=True):
    """An operator wants the node to own nothing."""

    node: str


_encode = msgspec.msgpack.Encoder().encode


def encode_record(record: msgspec.Struct) -> bytes:
    """A record as bytes."""
    return _encode(record)


def decode_record(kind: type[R], value: bytes, key: str) -> R:
    """A record from bytes.

    Raises:
        CorruptLogError: they are none.
    """
    try:
        return msgspec.msgpack.decode(value, type=kind)
    except (msgspec.MsgspecError, ValueError) as error:
        raise CorruptLogError(f"cluster: the entry {key!r} is not a {kind.__name__}: {error}; remove it") from error


def node_of(member: str) -> str:
    """The node id of a member."""
    return member.partition(".")[0]


def queue_key(name: str) -> str:
    """The key of a queue's record; a dot would divide it."""
    return f"queue.{name.replace('.', '=2E')}"


def node_key(node: str) -> str:
    """The key of a node's lease."""
    return f"node.{node}"


def drain_key(node: str) -> str:
    """The key of an operator's wish that a node owns nothing."""
    return f"drain.{node}"
