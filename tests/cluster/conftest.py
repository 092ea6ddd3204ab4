"""The log that the nodes of a cluster share."""

from __future__ import annotations

import pytest

from tests.support.nats_servers import fresh_url


@pytest.fixture
def url() -> str:
    """The address of a log that is not there yet."""
    return fresh_url()
