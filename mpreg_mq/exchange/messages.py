"""What passes through a topic exchange: the fields of MPREG's models of the same purpose."""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Protocol

import attrs

from mpreg_mq._validation import describe
from mpreg_mq.errors import ConfigurationError


@attrs.frozen
class PublishedMessage:
    """A message on a topic (MPREG: ``PubSubMessage``). ``timestamp`` is seconds since the epoch."""

    topic: str
    payload: Any
    timestamp: float
    message_id: str
    publisher: str
    headers: dict[str, Any] = attrs.field(factory=dict)


@attrs.frozen
class TopicPattern:
    """A pattern of a subscription."""

    pattern: str
    exact_match: bool = False


@attrs.frozen
class TopicSubscription:
    """Who wants which topics (MPREG: ``PubSubSubscription``)."""

    subscription_id: str
    patterns: tuple[TopicPattern, ...]
    subscriber: str
    created_at: float
    get_backlog: bool = False
    backlog_seconds: int = 300


@attrs.frozen
class TopicNotification:
    """A message for one subscription (MPREG: ``PubSubNotification``)."""

    message: Any
    subscription_id: str


Listener = Callable[[Any], Coroutine[Any, Any, None] | None]
"""What an internal subscription is called with: one notification."""


class Backlog(Protocol):
    """What an exchange remembers."""

    def get_backlog(self, topic_pattern: str, max_age_seconds: int) -> list[Any]:
        """The messages on matching topics that are not older, oldest first."""


class Exchange(Protocol):
    """The part of a topic exchange that routes need; MPREG's ``TopicExchange`` has it."""

    @property
    def backlog(self) -> Backlog:
        """What it remembers."""

    def add_internal_subscription(self, subscription: Any, callback: Listener) -> None:
        """Call ``callback`` with a notification for each message that matches."""

    def remove_subscription(self, subscription_id: str) -> bool:
        """End a subscription; whether there was one."""

    def publish_message(self, message: Any) -> Iterable[Any]:
        """Hand a message to everybody it concerns; the notifications."""


@attrs.frozen
class Vocabulary:
    """The classes that an exchange takes its messages and subscriptions in."""

    message: Callable[..., Any] = PublishedMessage
    subscription: Callable[..., Any] = TopicSubscription
    pattern: Callable[..., Any] = TopicPattern

    @classmethod
    def of(cls, exchange: object) -> Vocabulary:
        """The vocabulary of an exchange: the model classes that its module works with, or else this module's.

        MPREG's exchange checks that a message is of MPREG's own class.
        """
        module = sys.modules.get(type(exchange).__module__)
        message = getattr(module, "PubSubMessage", None)
        subscription = getattr(module, "PubSubSubscription", None)
        if message is None or subscription is None:
            return cls()
        # A pydantic model takes the fields of a nested one as a dict.
        return cls(message, subscription, dict)


def is_exchange(candidate: object) -> bool:
    """Whether routes can subscribe to it; some objects can only publish."""
    return callable(getattr(candidate, "add_internal_subscription", None))


def check_publishes(candidate: object) -> None:
    """Check that it is nothing else than an exchange, such as the address of a log; None is none.

    Raises:
        ConfigurationError: nothing can be published on it.
    """
    if candidate is not None and not callable(getattr(candidate, "publish_message", None)):
        raise ConfigurationError(
            f"topic_exchange: got {describe(candidate)}, expected an object with publish_message, such as MPREG's "
            "TopicExchange, or None; give a log as log="
        )
