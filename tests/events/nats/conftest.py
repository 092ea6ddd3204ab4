"""Logs on a real JetStream server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from mpreg_mq.events import open_log
from tests.support.nats_servers import fresh_url


@pytest.fixture
def url() -> str:
    """The address of a log that is not there yet."""
    return fresh_url()


@pytest.fixture
def log(url: str) -> Iterator[Any]:
    """An empty log."""
    log = open_log(url)
    yield log
    log.close()
