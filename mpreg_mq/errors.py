"""The exceptions of mpreg-mq: one root and a small family under it.

The façade answers with values (``DeliveryResult.success is False``, ``None``, ``False``) wherever MPREG's
queue does; these exceptions are what is raised at construction and below the façade. Each message says what
was given, what was expected and what to do.
"""

from __future__ import annotations


class MessageQueueError(Exception):
    """Root of every error that mpreg-mq raises on purpose."""


class ConfigurationError(MessageQueueError, ValueError):
    """A configuration names an unknown field, or a value that is out of its range."""


class InvalidOptionError(MessageQueueError, ValueError):
    """A send, receive or subscribe option is unknown or out of its range (S2)."""


class InvalidTopicError(MessageQueueError, ValueError):
    """A topic or topic pattern is malformed (G6)."""


class PayloadError(MessageQueueError, ValueError):
    """A payload cannot be encoded, or is larger than ``max_payload_bytes`` (S2)."""


class QueueNotFoundError(MessageQueueError, LookupError):
    """The named queue does not exist."""


class QueueClosedError(MessageQueueError):
    """The queue or its manager is closing or closed (C3)."""


class EventLogError(MessageQueueError):
    """The event log could not store or read events."""


class VersionConflictError(EventLogError):
    """An append expected another version of its stream than the log holds (optimistic concurrency)."""


class OwnershipLostError(EventLogError):
    """A stream has another owner, so that its events are no longer this node's to append."""


class UnknownEventError(EventLogError):
    """An event has a type or a schema version this release cannot read; a newer release wrote the log."""


class LogLockedError(EventLogError):
    """Another process has the log open for writing."""


class LogFullError(EventLogError):
    """There is no room for more events; reading goes on, and appending does when there is room again."""


class CorruptLogError(EventLogError):
    """Stored bytes are not what was written.

    ``position`` is that of the first event that cannot be read, or None where that is not known.
    """

    def __init__(self, message: str, position: int | None = None) -> None:
        super().__init__(message)
        self.position = position


class ProjectionError(MessageQueueError):
    """An event cannot be applied to the state it meets; it is never skipped."""
