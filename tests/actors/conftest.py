"""A log that can be written without waiting, its writer, and a journal on it; other modules have their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mpreg_mq.actors.journal import Journal
from tests.support.quick_logs import QuickLog, Writer

FOR_EVER = 3600.0


@pytest.fixture
def log() -> QuickLog:
    return QuickLog()


@pytest.fixture
def writer(log: QuickLog) -> Writer:
    return log.writer


@pytest.fixture
def journal(log: QuickLog, writer: Writer) -> Iterator[Journal]:
    journal = Journal.start(log, hold_seconds=FOR_EVER)
    yield journal
    if writer.doubtful:
        writer.end(len(writer.doubtful))
    journal.stop_and_close()
    assert writer.closed
