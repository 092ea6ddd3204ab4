"""Event-sourced actor queues for MPREG, and alone: four guarantees, three queue types, replayable logs."""

from mpreg_mq._version import __version__
from mpreg_mq.blocking import BlockingMessageQueueManager
from mpreg_mq.clock import Clock, SystemClock, VirtualClock
from mpreg_mq.configuration import QueueConfiguration, QueueManagerConfiguration, RetentionPolicy
from mpreg_mq.dead_letters import DeadLetterQueue
from mpreg_mq.errors import (
    ConfigurationError,
    CorruptLogError,
    EventLogError,
    InvalidOptionError,
    InvalidTopicError,
    LogFullError,
    LogLockedError,
    MessageQueueError,
    PayloadError,
    ProjectionError,
    QueueClosedError,
    QueueNotFoundError,
    UnknownEventError,
    VersionConflictError,
)
from mpreg_mq.events import EventLog, open_log
from mpreg_mq.exchange import TopicExchange
from mpreg_mq.factories import (
    create_high_throughput_queue_manager,
    create_reliable_queue_manager,
    create_standard_queue_manager,
)
from mpreg_mq.manager import MessageQueueManager
from mpreg_mq.model import (
    DeadLetter,
    DeliveryGuarantee,
    DeliveryResult,
    Durability,
    InFlightMessage,
    MessageId,
    MessageOptions,
    OverflowPolicy,
    QueuedMessage,
    QueueManagerStatistics,
    QueueMessageStatus,
    QueueStatistics,
    QueueSubscription,
    QueueType,
    RejectionReason,
    TopicRouteStatistics,
    TopicRouting,
)
from mpreg_mq.payload import UndecodablePayload
from mpreg_mq.queue import MessageQueue

__all__ = [
    "BlockingMessageQueueManager",
    "Clock",
    "ConfigurationError",
    "CorruptLogError",
    "DeadLetter",
    "DeadLetterQueue",
    "DeliveryGuarantee",
    "DeliveryResult",
    "Durability",
    "EventLog",
    "EventLogError",
    "InFlightMessage",
    "InvalidOptionError",
    "InvalidTopicError",
    "LogFullError",
    "LogLockedError",
    "MessageId",
    "MessageOptions",
    "MessageQueue",
    "MessageQueueError",
    "MessageQueueManager",
    "OverflowPolicy",
    "PayloadError",
    "ProjectionError",
    "QueueClosedError",
    "QueueConfiguration",
    "QueueManagerConfiguration",
    "QueueManagerStatistics",
    "QueueMessageStatus",
    "QueueNotFoundError",
    "QueueStatistics",
    "QueueSubscription",
    "QueueType",
    "QueuedMessage",
    "RejectionReason",
    "RetentionPolicy",
    "SystemClock",
    "TopicExchange",
    "TopicRouteStatistics",
    "TopicRouting",
    "UndecodablePayload",
    "UnknownEventError",
    "VersionConflictError",
    "VirtualClock",
    "__version__",
    "create_high_throughput_queue_manager",
    "create_reliable_queue_manager",
    "create_standard_queue_manager",
    "open_log",
]
