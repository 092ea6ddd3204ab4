"""What the tests of replay look into."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mpreg_mq.events import EventLog
from mpreg_mq.replay import open_history
from tests.support.incident import incident


@pytest.fixture(scope="session")
def incident_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The incident's log in a file; read-only."""
    return incident(tmp_path_factory.mktemp("incident") / "orders.db")


@pytest.fixture
def log(incident_path: Path) -> Iterator[EventLog]:
    """The incident's log, opened for reading."""
    opened = open_history(incident_path)
    yield opened
    opened.close()
