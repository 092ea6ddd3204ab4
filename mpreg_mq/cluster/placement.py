"""Which node a queue belongs to: rendezvous hashing."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b


def wanted_owner(queue: str, nodes: Iterable[str]) -> str | None:
    """The node that should own a queue, the same for everybody who asks; None without nodes. O(nodes).

    When a node joins or leaves, only the queues that it gets or had change their owner, about one in ``len(nodes)``.
    """
    return max(nodes, key=lambda node: (_weight(queue, node), node), default=None)


def _weight(queue: str, node: str) -> bytes:
    return blake2b(f"{node}\0{queue}".encode(), digest_size=8).digest()
