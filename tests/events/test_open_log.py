"""How a log is named."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from mpreg_mq.errors import ConfigurationError, EventLogError
from mpreg_mq.events import MemoryEventLog, SQLiteEventLog, open_log, opening
from mpreg_mq.replay.source import log_info, open_history, open_to_write


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


OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("?synchronous=OFF", {"synchronous": "OFF"}),
    ("?writes_on_loop=true&loop_waits_seconds=0.5", {"writes_on_loop": True, "loop_waits_seconds": 0.5}),
    ("?reserve_bytes=0&writes_on_loop=False", {"reserve_bytes": 0, "writes_on_loop": False}),
    ("?", {}),
]


@pytest.mark.parametrize(("query", "options"), OPTIONS)
def test_an_address_has_the_options_of_a_log_after_a_question_mark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, query: str, options: dict[str, Any]
) -> None:
    """Given a URL with options, then the file is what stands before them, and the log is opened with them."""
    asked: list[dict[str, Any]] = []

    class Opened(SQLiteEventLog):
        def __init__(self, path: Any, **given: Any) -> None:
            asked.append(given)
            super().__init__(path, **given)

    monkeypatch.setattr(opening, "SQLiteEventLog", Opened)
    open_log(f"sqlite:///{tmp_path}/a.db{query}").close()
    assert [file.name for file in tmp_path.iterdir() if file.suffix == ".db"] == ["a.db"]
    assert asked == [{"read_only": False, **options}]


@pytest.mark.parametrize("text", ["true", "True", "false"])
@pytest.mark.parametrize("argument", [True, False])
def test_a_log_is_read_only_where_its_address_or_the_argument_says_so(
    tmp_path: Path, text: str, argument: bool
) -> None:
    """Given both ways to say so, then either is enough."""
    open_log(tmp_path / "a.db").close()
    log: Any = open_log(f"sqlite:///{tmp_path}/a.db?read_only={text}", read_only=argument)
    log.close()
    assert log.read_only is (argument or text != "false")


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ("synchronus=OFF", "unknown option 'synchronus' in .*expected synchronous, read_only, reserve_bytes"),
        ("synchronous=OFF&synchronous=FULL", "option 'synchronous' is twice"),
        ("synchronous=off", "synchronous: got 'off', expected FULL, NORMAL, OFF"),
        ("synchronous", "synchronous: got '', expected FULL"),
        ("writes_on_loop=1", "writes_on_loop: got '1', expected true or false"),
        ("reserve_bytes=-1", "reserve_bytes: got '-1', expected a whole number of bytes"),
        ("loop_waits_seconds=soon", "loop_waits_seconds: got 'soon', expected a number of seconds"),
        ("loop_waits_seconds=1", "loop_waits_seconds: got 1.0 without writes_on_loop=True"),
        ("loop_waits_seconds=nan&writes_on_loop=true", "loop_waits_seconds: got nan, expected 0 to 60 seconds"),
    ],
)
def test_bad_options_in_an_address_make_no_file(tmp_path: Path, query: str, problem: str) -> None:
    """Given an option that is unknown, twice or out of its range, then the error says so and there is no file."""
    with pytest.raises(ConfigurationError, match=problem):
        open_log(f"sqlite:///{tmp_path}/a.db?{query}")
    assert list(tmp_path.iterdir()) == []


def test_an_export_has_no_options(tmp_path: Path) -> None:
    """Given an export with an option of a log, then the error names it."""
    with pytest.raises(ConfigurationError, match=r"got synchronous for .*an export, which has no options"):
        open_log(f"sqlite:///{tmp_path}/a.jsonl?synchronous=OFF", read_only=True)


def test_a_path_may_hold_a_question_mark(tmp_path: Path) -> None:
    """Given a path that is no URL, then a question mark is part of it, also when the log is opened once more to be
    written."""
    open_log(f"{tmp_path}/a?synchronous=OFF").close()
    assert (tmp_path / "a?synchronous=OFF").is_file()
    history = open_history(tmp_path / "a?synchronous=OFF")
    again = open_to_write(history)
    assert log_info(again).size_bytes
    assert again.location == history.location
    again.close()
    history.close()


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
