"""From the name of a log to the log."""

from __future__ import annotations

import os
import re
from typing import Any

from mpreg_mq._validation import describe
from mpreg_mq.errors import ConfigurationError
from mpreg_mq.events.log import EventLog
from mpreg_mq.events.memory import MemoryEventLog
from mpreg_mq.events.sqlite import SQLiteEventLog

_KNOWN = "'memory:', 'sqlite:///relative.db', 'sqlite:////absolute/path.db', a path of a file, or an EventLog object"
_SQLITE = "sqlite:///"
# Two letters at least: one is a Windows drive.
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")


def open_log(target: str | os.PathLike[str] | EventLog) -> EventLog:
    """Open the log that ``target`` names, or give back the log that it is.

    ``"memory:"`` is a new log in memory. ``"sqlite:///orders.db"`` is a file in the working directory and
    ``"sqlite:////var/orders.db"`` one at an absolute path, as SQLAlchemy has it; what follows the third slash
    is the path as it stands. Any other text without a scheme, and any ``PathLike``, is the path of an SQLite file.

    Raises:
        ConfigurationError: the target is empty, or of a scheme or type that is not known.
        EventLogError: the log cannot be opened.
    """
    if isinstance(target, os.PathLike):
        return SQLiteEventLog(os.fsdecode(target))
    if not isinstance(target, str):
        return _checked(target)
    if target == MemoryEventLog.location:
        return MemoryEventLog()
    is_url = target.startswith(_SQLITE)
    path = target.removeprefix(_SQLITE)
    # SQLAlchemy's and SQLite's own name for a database in memory would become a file of that name.
    if path == ":memory:":
        raise ConfigurationError(f"open_log: got {describe(target)}; a log in memory is {MemoryEventLog.location!r}")
    if not path or (not is_url and _SCHEME.match(path)):
        raise ConfigurationError(
            f"open_log: got {describe(target)}, expected {_KNOWN}; "
            "give a file whose name holds a colon as a pathlib.Path"
        )
    return SQLiteEventLog(path)


def _checked(target: Any) -> EventLog:
    if callable(getattr(target, "append", None)) and callable(getattr(target, "read_stream", None)):
        log: EventLog = target
        return log
    raise ConfigurationError(f"open_log: got {describe(target)}, expected {_KNOWN}")
