"""What the queues of a simulation log."""

from __future__ import annotations

import logging
from collections.abc import Callable

from mpreg_mq.errors import MessageQueueError


class Complaints(logging.Handler):
    """Errors that the queue logs and that no simulated fault explains; who comes back from its log is told on."""

    def __init__(self, problems: list[str], rebuilt: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._problems = problems
        self._rebuilt = rebuilt

    def emit(self, record: logging.LogRecord) -> None:
        """A line was logged."""
        if record.msg.startswith(("queue %s: rebuilding", "queue %s: closed without")):
            assert isinstance(record.args, tuple)
            # A journal that had stopped already should have been given it before.
            if "is stopped" not in str(record.args[1]):
                self._rebuilt(str(record.args[0]))
        if record.levelno < logging.ERROR:
            return
        error = record.exc_info[1] if record.exc_info else None
        if not isinstance(error, MessageQueueError):
            self._problems.append(f"logged: {record.getMessage()}: {error!r}")
