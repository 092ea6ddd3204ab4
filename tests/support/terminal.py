"""A terminal that is none: what is written to it is kept, and a clock that stands still unless it is told to go on."""

from __future__ import annotations

import re
from collections.abc import Callable
from io import StringIO

from rich.console import Console

from mpreg_mq.cli.output import Output
from mpreg_mq.cli.top import Clock

OTHER_SCREEN = "\x1b[?1049h"
FIRST_SCREEN = "\x1b[?1049l"
HIDE_CURSOR = "\x1b[?25l"
SHOW_CURSOR = "\x1b[?25h"
ERASE_LINE = "\x1b[2K"

_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """Both streams of a command, shown on a terminal of 140 columns unless ``shown`` is false."""

    def __init__(self, *, shown: bool = True, as_json: bool = False) -> None:
        self._file = StringIO()
        self._taken = 0
        self.output = Output(as_json)
        self.output.data = self.output.notes = Console(
            file=self._file, force_terminal=shown, width=140, height=20, color_system=None, highlight=False
        )

    @property
    def written(self) -> str:
        """All that was written, with the codes that move and hide the cursor."""
        return self._file.getvalue()

    def frame(self) -> str:
        """What was written since the last time this was asked, without such codes."""
        text = self.written[self._taken :]
        self._taken = len(self.written)
        return _CODES.sub("", text)


class VirtualClock:
    """Time that passes only by sleeping, and what ``on_sleep`` makes happen meanwhile."""

    def __init__(self, now: float, on_sleep: Callable[[int], None]) -> None:
        self.now = now
        self.slept: list[float] = []
        self._on_sleep = on_sleep

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept.append(seconds)
        self._on_sleep(len(self.slept))

    @property
    def clock(self) -> Clock:
        """The clock that ``top`` takes."""
        return Clock(lambda: self.now, lambda: self.now - 900.0, self.sleep)
