"""Queues on several nodes: one owner for each, failover, and requests that find their owner (needs the ``nats`` extra).

Consensus and replication are those of the NATS servers; here are leases, placement and forwarding.
"""

from __future__ import annotations

from mpreg_mq.cluster.configuration import ClusterConfiguration
from mpreg_mq.cluster.fabric import FabricTransport
from mpreg_mq.cluster.manager import ClusterQueueManager

__all__ = ["ClusterConfiguration", "ClusterQueueManager", "FabricTransport"]
