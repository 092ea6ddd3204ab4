"""How a node takes part in a cluster."""

from __future__ import annotations

import os
import re
import secrets
import socket
from typing import Any

import attrs

from mpreg_mq._validation import configured, describe, flag, number

_NODE_ID = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")


def _node_id_problem(value: Any) -> str | None:
    if isinstance(value, str) and _NODE_ID.match(value):
        return None
    return f"got {describe(value)}, expected 1 to 64 letters, digits, '_' and '-'"


def _some_node_id() -> str:
    host = re.sub(r"[^A-Za-z0-9_-]", "-", socket.gethostname())[:40]
    return f"{host}-{os.getpid()}-{secrets.token_hex(2)}"


@attrs.frozen
class ClusterConfiguration:
    """One node's part in a cluster.

    Attributes:
        node_id: its name, the same after a restart where you want its queues to come back to it. Two processes must
            not use one name at a time; the earlier one then leaves.
        lease_seconds: a node that was not seen to renew its lease for so long has lost its queues to the others. The
            same for all nodes of a cluster. Short means quick failover, and needless ones when the servers elect a
            leader, which takes them a few seconds; events are safe either way.
        request_timeout_seconds: how long a send, receive or acknowledgment looks for the owner of its queue.
        owns_queues: with False the node is a client: it sends and receives, and owns nothing.
    """

    node_id: str = attrs.field(factory=_some_node_id, validator=configured(_node_id_problem))
    lease_seconds: float = attrs.field(default=5.0, validator=configured(number(0.2, 3600.0)))
    request_timeout_seconds: float = attrs.field(default=30.0, validator=configured(number(0.1, 3600.0)))
    owns_queues: bool = attrs.field(default=True, validator=configured(flag))

    @property
    def look_seconds(self) -> float:
        """How often the node renews its lease and looks at those of the others."""
        return min(self.lease_seconds / 4, 1.0)
