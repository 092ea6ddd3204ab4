"""How a log is named."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from mpreg_mq.errors import ConfigurationError, EventLogError
from mpreg_mq.events import MemoryEventLog, SQLiteEventLog, open_log


def test_memory_is_a_new_log_each_time() -> None:
    """Given ``memory:``, then each call gives an empty log of its own, whose location is that."""
    first, second = open_log("memory:"), open_log("memory:")
    assert isinstance(first, MemoryEventLog)
    assert first is not second
    assert first.location == "memory:"


@pytest.mark.parametrize(
    ("target", "file"),
    [
        ("sqlite:///orders.db", "orders.db"),
        ("sqlite:///data/orders.db", "data/orders.db"),
        ("orders.db", "orders.db"),
        ("./data/orders.db", "data/orders.db"),
        ("memory", "memory"),
        (Path("data") / "orders.db", "data/orders.db"),
        (Path("redis:orders"), "redis:orders"),
    ],
)
def test_relative_paths_are_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str | Path, file: str
) -> None:
    """Given a relative path, as a URL, as text or as a Path, then the file is in the working directory."""
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    log = open_log(target)
    log.close()
    assert isinstance(log, SQLiteEventLog)
    assert (tmp_path / file).is_file()
    assert log.location == f"sqlite:///{tmp_path / file}"


def test_absolute_paths_have_four_slashes_or_no_scheme(tmp_path: Path) -> None:
    """Given an absolute path, as a URL, as text or as a PathLike, then it is that file."""

    class BytesPath(os.PathLike[bytes]):
        def __fspath__(self) -> bytes:
            return os.fsencode(tmp_path / "d.db")

    targets: list[Any] = [f"sqlite:///{tmp_path}/a.db", f"{tmp_path}/b.db", tmp_path / "c.db", BytesPath()]
    for target in targets:
        open_log(target).close()
    assert targets[0].startswith("sqlite:////")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.db", "b.db", "c.db", "d.db"]


def test_a_log_is_given_back_as_it_is() -> None:
    """Given an object that appends and reads streams, then it is the log, whatever its class."""

    class Own:
        def append(self, batch: object) -> None: ...

        def read_stream(self, stream: str, after_version: int = 0) -> None: ...

    own: Any = Own()
    assert open_log(own) is own
    memory = MemoryEventLog()
    assert open_log(memory) is memory


@pytest.mark.parametrize(
    "target",
    [
        "",
        "sqlite:///",
        "sqlite://",
        "sqlite:",
        "sqlite:orders.db",
        "sqlite://orders.db",
        "redis://host/0",
        "memory://",
        None,
        5,
        [],
        b"a.db",
    ],
)
def test_other_names_are_refused_with_what_is_known(target: Any) -> None:
    """Given nothing, an unknown scheme or an object that is no log, then the error lists what is known."""
    with pytest.raises(
        ConfigurationError, match=r"got .*memory:.*sqlite:///relative\.db.*sqlite:////absolute"
    ) as raised:
        open_log(target)
    assert repr(target) in str(raised.value)


@pytest.mark.parametrize("target", [":memory:", "sqlite:///:memory:"])
def test_sqlites_own_name_for_memory_makes_no_file(target: str) -> None:
    """Given SQLite's name for a database in memory, then the error names ours."""
    with pytest.raises(ConfigurationError, match="a log in memory is 'memory:'"):
        open_log(target)


def test_a_log_that_cannot_be_opened_says_why(tmp_path: Path) -> None:
    """Given a path in a missing directory, then it is the log's own error."""
    with pytest.raises(EventLogError, match="no directory"):
        open_log(tmp_path / "missing" / "orders.db")
