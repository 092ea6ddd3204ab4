"""Managers for common needs (MPREG's factories, and with measurable differences)."""

from __future__ import annotations

import os
import warnings
from os import PathLike
from typing import Any

from mpreg_mq.configuration import QueueManagerConfiguration
from mpreg_mq.events import EventLog
from mpreg_mq.manager import MessageQueueManager
from mpreg_mq.model import OverflowPolicy

LOG_VARIABLE = "MPREG_MQ_LOG"
"""Environment variable that names the log of factory-made managers."""

Log = str | PathLike[str] | EventLog | None

_warned = False


def create_standard_queue_manager(topic_exchange: Any = None, *, log: Log = None) -> MessageQueueManager:
    """Balanced defaults: queues of 10,000 that appear when first sent to, leases of 30 s (pull) and 300 s (push).

    Without ``log`` the environment's ``MPREG_MQ_LOG``, else memory.
    """
    return MessageQueueManager(QueueManagerConfiguration(), topic_exchange, log=_log(log))


def create_high_throughput_queue_manager(topic_exchange: Any = None, *, log: Log = None) -> MessageQueueManager:
    """For many messages of little value each.

    Against the standard manager: queues of 50,000 instead of 10,000 and up to 5,000 of them; when one is full its
    oldest message is dropped (logged and counted) so that senders are never refused; leases of 10 s (pull) and
    60 s (push) instead of 30 s and 300 s, so that lost work comes back sooner; 10,000 messages in flight to a
    subscriber instead of 1,000; one retry instead of three.

    Without ``log`` the environment's ``MPREG_MQ_LOG``, else memory.
    """
    config = QueueManagerConfiguration(
        default_max_queue_size=50_000,
        default_visibility_timeout_seconds=10.0,
        default_acknowledgment_timeout_seconds=60.0,
        max_queues=5000,
        default_overflow_policy=OverflowPolicy.DROP_OLDEST,
        default_max_in_flight=10_000,
        default_max_retries=1,
    )
    return MessageQueueManager(config, topic_exchange, log=_log(log))


def create_reliable_queue_manager(topic_exchange: Any = None, *, log: Log = None) -> MessageQueueManager:
    """For messages that must not be lost or done twice.

    Against the standard manager: queues must be created before use; leases of 60 s (pull) and 600 s (push) instead
    of 30 s and 300 s; five retries instead of three; deduplication on; a subscriber that fails 10 times in a row is
    left alone for 30 s (circuit breaker); a full queue makes senders wait instead of refusing them.

    Without ``log`` the environment's ``MPREG_MQ_LOG``, else memory: then it warns, once, that nothing survives the
    process.
    """
    global _warned
    config = QueueManagerConfiguration(
        default_visibility_timeout_seconds=60.0,
        default_acknowledgment_timeout_seconds=600.0,
        enable_auto_queue_creation=False,
        default_max_retries=5,
        default_enable_deduplication=True,
        default_circuit_breaker_failure_threshold=10,
        default_overflow_policy=OverflowPolicy.WAIT,
    )
    manager = MessageQueueManager(config, topic_exchange, log=_log(log))
    if manager.log.location == "memory:" and not _warned:
        _warned = True
        warnings.warn(
            "create_reliable_queue_manager: the log is in memory, so nothing survives this process; pass "
            f"log='sqlite:///orders.db' or set {LOG_VARIABLE}",
            RuntimeWarning,
            stacklevel=2,
        )
    return manager


def _log(log: Log) -> Log:
    return os.environ.get(LOG_VARIABLE) or None if log is None else log
