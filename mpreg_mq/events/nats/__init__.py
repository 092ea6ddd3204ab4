"""The event log on NATS JetStream; importing it needs nats-py (``pip install "mpreg-mq[nats]"``)."""

from __future__ import annotations

from mpreg_mq.events.nats.frames import Head
from mpreg_mq.events.nats.log import NatsEventLog
from mpreg_mq.events.nats.target import NatsTarget

__all__ = ["Head", "NatsEventLog", "NatsTarget"]
