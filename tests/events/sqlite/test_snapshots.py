"""Snapshots in a file that is damaged: one that cannot be read stands in the way of no other (I4)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from mpreg_mq.events import Append, Snapshot, repair_log
from mpreg_mq.events.log import each_snapshot
from mpreg_mq.events.transfer import base_of
from tests.support.sqlite_logs import events, opened, run

STREAM = "queue:a"
PAGE_BYTES = 4096
BODIES = {version: bytes([0xB0 + version]) * (3 << 20) for version in (1, 2, 3)}
"""Of the base and the two newest, each larger than what a reader of records takes at once."""


@pytest.fixture
def path(path: Path) -> Path:
    """A closed log with a base and two newer snapshots."""
    with opened(path) as log:
        for version, body in BODIES.items():
            log.append([Append(STREAM, version - 1, events(version))])
            if version == 1:
                log.truncate(1, {STREAM: Snapshot(STREAM, 1, body)})
            else:
                log.save_snapshot(Snapshot(STREAM, version, body))
    return path


def flip_a_byte(path: Path, version: int) -> None:
    """As a bad sector would: SQLite takes it for what was written."""
    at = path.read_bytes().index(BODIES[version][: PAGE_BYTES - 4])
    _overwrite(path, at + 100, b"\0")


def lose_the_rest(path: Path, version: int) -> None:
    """Have a page of the body name no next one, so that SQLite itself cannot go on."""
    content = path.read_bytes()
    body = BODIES[version][: PAGE_BYTES - 4]
    page = next(at for at in range(0, len(content), PAGE_BYTES) if content[at + 4 : at + PAGE_BYTES] == body)
    _overwrite(path, page, b"\xff" * 4)


def _overwrite(path: Path, at: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(content)


@pytest.mark.parametrize("damage", [flip_a_byte, lose_the_rest])
@pytest.mark.parametrize("version", BODIES)
def test_a_damaged_snapshot_hides_no_other(
    path: Path, version: int, damage: Callable[[Path, int], None], caplog: pytest.LogCaptureFixture
) -> None:
    """Given damage to any one snapshot, whether SQLite notices or not, then the others are given, with a warning."""
    damage(path, version)
    with opened(path) as log:
        assert [one.version for one in log.snapshots(STREAM)] == [each for each in (3, 2, 1) if each != version]
        assert f"the snapshot of {STREAM} at version {version} is damaged" in caplog.text
        if version > 1:
            assert base_of(log, STREAM).body == BODIES[1]


@pytest.mark.parametrize("damage", [flip_a_byte, lose_the_rest])
def test_a_repair_keeps_the_snapshots_that_are_whole(path: Path, damage: Callable[[Path, int], None]) -> None:
    """Given a log with a damaged record and a damaged newest snapshot, then the repaired one has its base and goes on
    from there."""
    damage(path, 3)
    run(path, "UPDATE records SET body = zeroblob(5) WHERE position = 3")
    assert repair_log(path) is not None
    with opened(path) as log:
        assert [one.version for one in log.snapshots(STREAM)] == [2, 1]
        assert base_of(log, STREAM).body == BODIES[1]
        assert log.stream_version(STREAM) == 2


def test_a_snapshot_is_read_when_it_is_asked_for(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Given damage to all but the newest snapshot, then who needs no more than that one does not come to them."""
    for version in (1, 2):
        flip_a_byte(path, version)
    with opened(path) as log, caplog.at_level(logging.WARNING):
        assert next(each_snapshot(log, STREAM)).body == BODIES[3]
        assert not caplog.text
        assert list(each_snapshot(log, STREAM, 1)) == []
        assert "at version 1 is damaged" in caplog.text
        assert "at version 2" not in caplog.text
