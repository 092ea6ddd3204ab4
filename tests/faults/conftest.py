"""Where the tests of faults keep their files."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory in memory where there is one: files are written many thousand times, and no test needs a disk."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as directory:
        yield Path(directory)


@pytest.fixture
def unlogged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is logged: pytest keeps what is, with the errors and all that they refer to, until the test ends."""
    monkeypatch.setattr(logging.getLogger("mpreg_mq"), "disabled", True)
