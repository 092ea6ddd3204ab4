"""``top``: what is on the screen while the queues change, on a terminal and elsewhere, until Ctrl-C."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from mpreg_mq.cli.top import Clock, watch
from mpreg_mq.errors import MessageQueueError
from mpreg_mq.events import Append, MemoryEventLog
from tests.support.history import History
from tests.support.terminal import FIRST_SCREEN, HIDE_CURSOR, OTHER_SCREEN, SHOW_CURSOR, Terminal, VirtualClock


class Live:
    """A log that another process writes: ``happen`` is called at each wait, and Ctrl-C comes at the last one."""

    def __init__(self, terminal: Terminal, waits: int, happen: Callable[[int], None] | None = None) -> None:
        self.log = MemoryEventLog()
        self.history = History()
        self.terminal = terminal
        self.frames: list[str] = []
        self._waits = waits
        self._happen = happen
        self.time = VirtualClock(1000.0, self._sleeping)
        self.write(self.history.joined("a", "t"))

    def write(self, history: History) -> None:
        """Append what the history has got meanwhile."""
        version = self.log.stream_version("queue:q")
        self.log.append([Append("queue:q", version, history.events[version:])])

    def _sleeping(self, number: int) -> None:
        self.frames.append(self.terminal.frame())
        if self._happen is not None:
            self.history.at(self.time.now)
            self._happen(number)
            self.write(self.history)
        if number == self._waits:
            raise KeyboardInterrupt

    def watch(self, interval: float = 2.0) -> None:
        """Look until Ctrl-C."""
        watch(self.log, self.terminal.output, interval=interval, clock=self.time.clock)


def row(frame: str) -> list[str]:
    """The cells of the queue's line."""
    (line,) = [line for line in frame.splitlines() if line.strip(" │|").startswith("q ")]
    return line.replace("│", " ").replace("|", " ").split()


def sending(live: Live, counts: list[int]) -> Callable[[int], None]:
    """At each wait so many messages are sent."""

    def happen(number: int) -> None:
        for message in range(counts[number - 1]):
            live.history.sent(f"{number}{message}-r")

    return happen


def test_each_look_shows_the_queue_as_it_is_then() -> None:
    """Given a log that grows, when top looks every two seconds, then each frame has the state and the rates since."""
    terminal = Terminal()
    live = Live(terminal, waits=4)
    live._happen = sending(live, [6, 0, 10, 0])
    live.watch()
    assert live.time.slept == [2.0] * 4
    # Name, pending, age of the oldest, leased, dead, sent, done and failed a second, subscribers.
    assert [row(frame) for frame in live.frames] == [
        ["q", "0", "0", "0", "0", "0", "0", "1"],
        ["q", "6", "0", "ms", "0", "0", "3", "0", "0", "1"],
        ["q", "6", "2", "s", "0", "0", "0", "0", "0", "1"],
        ["q", "16", "4", "s", "0", "0", "5", "0", "0", "1"],
    ]


def test_it_has_a_screen_of_its_own_and_gives_it_back() -> None:
    """Given a terminal, then top draws on the other screen, and Ctrl-C brings the first one and the cursor back."""
    terminal = Terminal()
    Live(terminal, waits=2).watch()
    assert terminal.written.startswith(OTHER_SCREEN)
    assert HIDE_CURSOR in terminal.written
    assert terminal.written.rindex(FIRST_SCREEN) > terminal.written.rindex("q")
    assert terminal.written.rindex(SHOW_CURSOR) > terminal.written.rindex(HIDE_CURSOR)
    assert terminal.written.count(OTHER_SCREEN) == terminal.written.count(FIRST_SCREEN) == 1


def test_an_error_gives_the_screen_back_too() -> None:
    """Given a log that ends while top looks at it, then the error comes out, and the first screen is back."""
    terminal = Terminal()
    live = Live(terminal, waits=9)
    live._happen = lambda number: live.log.close()
    with pytest.raises(MessageQueueError, match="closed"):
        live.watch()
    assert terminal.written.rindex(FIRST_SCREEN) > terminal.written.rindex(OTHER_SCREEN)
    assert terminal.written.rindex(SHOW_CURSOR) > terminal.written.rindex(HIDE_CURSOR)


def test_elsewhere_each_look_is_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    """Given no terminal, then there is a table for each look, without codes, until Ctrl-C."""
    live = Live(Terminal(shown=False), waits=3)
    live._happen = sending(live, [2, 2, 0])
    live.watch(interval=1.0)
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert [line.split()[1] for line in printed.splitlines() if line.strip().startswith("q ")] == ["0", "2", "4"]


def test_as_json_each_look_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Given --json, even on a terminal, then there is a line for each queue and look."""
    live = Live(Terminal(as_json=True), waits=3)
    live._happen = sending(live, [1, 3, 0])
    live.watch(interval=0.5)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["queue"], line["pending"], line["sent_per_second"]) for line in lines] == [
        ("q", 0, 0.0),
        ("q", 1, 2.0),
        ("q", 4, 6.0),
    ]


def test_once_does_not_wait(capsys: pytest.CaptureFixture[str]) -> None:
    """Given --once, then top looks once, sleeps never and leaves the screen alone."""
    terminal = Terminal(shown=False)
    live = Live(terminal, waits=1)
    watch(live.log, terminal.output, interval=1.0, once=True, clock=live.time.clock)
    assert live.time.slept == []
    assert "q" in capsys.readouterr().out


def test_by_default_time_is_the_machine_s() -> None:
    """Given no clock, then top looks at the time of day, measures with the one that never runs back, and sleeps."""
    clock = Clock()
    assert clock.now() > 1_700_000_000
    assert clock.passed() <= clock.passed()
    clock.sleep(0.0)
