"""The topic exchanges that routes work with: ours, and MPREG's where it can be imported."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from typing import Any

import pytest

from mpreg_mq.exchange import TopicExchange
from mpreg_mq.exchange.messages import Vocabulary

HAS_MPREG = importlib.util.find_spec("mpreg") is not None


def mpreg_exchange() -> Any:
    """A new exchange of MPREG's."""
    from mpreg.core.topic_exchange import TopicExchange as Theirs  # type: ignore[import-not-found]

    return Theirs(server_url="ws://127.0.0.1:1", cluster_id="here")


EXCHANGES = [
    pytest.param(TopicExchange, id="in-process"),
    pytest.param(
        mpreg_exchange,
        id="mpreg",
        marks=pytest.mark.skipif(not HAS_MPREG, reason="mpreg cannot be imported; make test-mpreg MPREG_SOURCE=dir"),
    ),
]
"""Factories of exchanges, for ``parametrize``."""

MakeExchange = Callable[[], Any]


def message(exchange: Any, topic: str, payload: Any = None, message_id: str = "m-1", **fields: Any) -> Any:
    """A message in the exchange's own class."""
    given = {"timestamp": time.time(), "publisher": "tester", "headers": {}, **fields}
    return Vocabulary.of(exchange).message(topic=topic, payload=payload, message_id=message_id, **given)


def subscription(exchange: Any, subscription_id: str, *patterns: str) -> Any:
    """A subscription in the exchange's own class."""
    words = Vocabulary.of(exchange)
    return words.subscription(
        subscription_id=subscription_id,
        patterns=tuple(words.pattern(pattern=pattern) for pattern in patterns),
        subscriber="tester",
        created_at=time.time(),
        get_backlog=False,
    )
