"""Topic exchanges and the routes from their topics into queues."""

from mpreg_mq.exchange.in_process import TopicExchange
from mpreg_mq.exchange.messages import (
    Exchange,
    PublishedMessage,
    TopicNotification,
    TopicPattern,
    TopicSubscription,
)
from mpreg_mq.exchange.router import Announcements, TopicRouter

__all__ = [
    "Announcements",
    "Exchange",
    "PublishedMessage",
    "TopicExchange",
    "TopicNotification",
    "TopicPattern",
    "TopicRouter",
    "TopicSubscription",
]
