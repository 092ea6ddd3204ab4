"""From the name of a log to the log."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl

from mpreg_mq._validation import describe
from mpreg_mq.errors import ConfigurationError
from mpreg_mq.events.jsonlines import SUFFIXES, JSONLinesEventLog
from mpreg_mq.events.log import EventLog
from mpreg_mq.events.memory import MemoryEventLog
from mpreg_mq.events.sqlite import SQLiteEventLog

_KNOWN = (
    "'memory:', 'sqlite:///relative.db', 'sqlite:////absolute/path.db?synchronous=NORMAL', 'nats://host:4222/STREAM', "
    "a path of a file, or an EventLog object"
)
_SQLITE = "sqlite:///"
_NATS = "nats://"
# Two letters at least: one is a Windows drive.
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")


def open_log(target: str | os.PathLike[str] | EventLog, *, read_only: bool = False) -> EventLog:
    """Open the log that ``target`` names, or give back the log that it is.

    ``"memory:"`` is a new log in memory. ``"sqlite:///orders.db"`` is a file in the working directory and
    ``"sqlite:////var/orders.db"`` one at an absolute path, as SQLAlchemy has it; what follows the third slash
    is the path as it stands, up to a question mark. After that come arguments of
    :class:`~mpreg_mq.events.sqlite.SQLiteEventLog`, such as ``?synchronous=NORMAL&writes_on_loop=true``: those two,
    ``read_only``, ``reserve_bytes`` and ``loop_waits_seconds``.

    Any other text without a scheme, and any ``PathLike``, is the path of an SQLite file, or of an export where its name
    ends in ``.jsonl`` or ``.jsonl.gz``; that can only be opened ``read_only``.

    ``"nats://host:4222/STREAM"`` is a JetStream stream, which needs the ``nats`` extra; its options are those of
    :class:`~mpreg_mq.events.nats.NatsTarget`, such as ``?replicas=3``.

    A log that is opened ``read_only`` must exist, is never changed, and may be in use by another process. A log
    object is given back as it is, whether it is read-only or not.

    Raises:
        ConfigurationError: the target is empty, of a scheme or type that is not known, or cannot be opened this way; an
            option is unknown, given twice or out of its range.
        EventLogError: the log cannot be opened.
    """
    if isinstance(target, os.PathLike):
        return _open_file(os.fsdecode(target), read_only)
    if not isinstance(target, str):
        return _checked(target)
    if target == MemoryEventLog.location:
        if read_only:
            raise ConfigurationError("open_log: got 'memory:' read-only, which is always empty; name a file")
        return MemoryEventLog()
    if target.startswith(_NATS):
        return _open_nats(target, read_only)
    is_url = target.startswith(_SQLITE)
    path, query = sqlite_url(target) if is_url else (target, "")
    # SQLAlchemy's and SQLite's own name for a database in memory would become a file of that name.
    if path == ":memory:":
        raise ConfigurationError(f"open_log: got {describe(target)}; a log in memory is {MemoryEventLog.location!r}")
    if not path or (not is_url and _SCHEME.match(path)):
        raise ConfigurationError(
            f"open_log: got {describe(target)}, expected {_KNOWN}; "
            "give a file whose name holds a colon as a pathlib.Path"
        )
    options = _sqlite_options(query, target)
    return _open_file(path, options.pop("read_only", False) or read_only, **options)


def sqlite_url(url: str) -> tuple[str, str]:
    """The path and the options in an address ``sqlite:///path?options``."""
    path, _, query = url.removeprefix(_SQLITE).partition("?")
    return path, query


def _sqlite_options(query: str, url: str) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for name, text in parse_qsl(query, keep_blank_values=True):
        read = _OPTIONS.get(name)
        if read is None:
            raise ConfigurationError(
                f"open_log: unknown option {name!r} in {describe(url)}; expected {', '.join(_OPTIONS)}; "
                "give a file whose name holds a question mark as a path, without sqlite:///"
            )
        if name in options:
            raise ConfigurationError(f"open_log: option {name!r} is twice in {describe(url)}; give it once")
        try:
            options[name] = read(text)
        except ValueError as error:
            raise ConfigurationError(f"open_log: {name}: got {describe(text)}, expected {error}") from None
    return options


def _flag(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError("true or false")
    return text.lower() == "true"


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise ValueError("a whole number of bytes")
    return int(text)


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError("a number of seconds") from None


_OPTIONS: dict[str, Callable[[str], Any]] = {
    "synchronous": str,
    "read_only": _flag,
    "reserve_bytes": _whole,
    "writes_on_loop": _flag,
    "loop_waits_seconds": _seconds,
}
"""How the options of an SQLite log are read from its address; which values make sense the log says."""


def _open_file(path: str, read_only: bool, **options: Any) -> EventLog:
    if not path.endswith(SUFFIXES):
        return SQLiteEventLog(path, read_only=read_only, **options)
    if options:
        raise ConfigurationError(
            f"open_log: got {', '.join(options)} for {describe(path)}, an export, which has no options"
        )
    if not read_only:
        raise ConfigurationError(
            f"open_log: got {describe(path)}, an export, which can only be read; "
            "open it with read_only=True, or import it into a log"
        )
    return JSONLinesEventLog(path)


def _open_nats(url: str, read_only: bool) -> EventLog:
    try:
        from mpreg_mq.events.nats import NatsEventLog, NatsTarget
    except ModuleNotFoundError as missing:
        if missing.name != "nats":
            raise
        raise ConfigurationError(
            f'open_log: got {describe(url)}, which needs nats-py: pip install "mpreg-mq[nats]"'
        ) from missing
    return NatsEventLog(NatsTarget.parse(url), read_only=read_only)


def _checked(target: Any) -> EventLog:
    if callable(getattr(target, "append", None)) and callable(getattr(target, "read_stream", None)):
        log: EventLog = target
        return log
    raise ConfigurationError(f"open_log: got {describe(target)}, expected {_KNOWN}")
