"""Projections: folds of a queue's events. They know no actors, no I/O and no clock."""

from mpreg_mq.projections.base import Projection
from mpreg_mq.projections.dead_letters import DeadEntry, DeadLetters
from mpreg_mq.projections.deduplication import DeduplicationWindow
from mpreg_mq.projections.histories import MessageHistories
from mpreg_mq.projections.message import Message, Slot
from mpreg_mq.projections.messages import Messages
from mpreg_mq.projections.queue_state import QueueState
from mpreg_mq.projections.statistics import Statistics
from mpreg_mq.projections.subscribers import Subscriber, Subscribers

__all__ = [
    "DeadEntry",
    "DeadLetters",
    "DeduplicationWindow",
    "Message",
    "MessageHistories",
    "Messages",
    "Projection",
    "QueueState",
    "Slot",
    "Statistics",
    "Subscriber",
    "Subscribers",
]
