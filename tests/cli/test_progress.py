"""The progress bar of long logs: drawn on a terminal by who reads, and gone when the command is done."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import pytest
from click.testing import CliRunner

from mpreg_mq.cli import options
from mpreg_mq.cli.commands import root
from mpreg_mq.cli.options import PROGRESS_FROM, REDRAW_SECONDS, progress
from mpreg_mq.events import EventLog
from mpreg_mq.replay import records
from tests.support.terminal import ERASE_LINE, HIDE_CURSOR, SHOW_CURSOR, Terminal


class Long:
    """As much of a log as the bar asks about."""

    def __init__(self, last: int) -> None:
        self._last = last

    def last_position(self) -> int:
        return self._last


def log_of(last: int) -> EventLog:
    return cast(EventLog, Long(last))


class Hands:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


def test_it_shows_how_far_reading_has_come() -> None:
    """Given a long log on a terminal, then each frame has what is done, the count, and the time that is left."""
    terminal, clock = Terminal(), Hands()
    with progress(terminal.output, log_of(100_000), "verifying", clock=clock) as advance:
        assert "verifying" in (frame := terminal.frame())
        assert "0/100000" in frame
        frames = []
        for position in (20_000, 40_000, 60_000):
            clock.now += 2.0
            advance(position)
            frames.append(terminal.frame())
    for count, frame in zip((20_000, 40_000, 60_000), frames, strict=True):
        assert f"{count}/100000" in frame
    assert "0:00:04" in frames[-1], "40,000 events are left, at 10,000 a second"


def test_it_is_not_drawn_more_often_than_can_be_seen() -> None:
    """Given reports that come fast, then the bar is drawn every tenth of a second."""
    terminal, clock = Terminal(), Hands()
    with progress(terminal.output, log_of(100_000), "replaying", clock=clock) as advance:
        terminal.frame()
        drawn = 0
        for step in range(1, 101):
            clock.now += 0.3 * REDRAW_SECONDS
            advance(step * 1000)
            drawn += bool(terminal.frame())
    assert drawn == 25


def test_passes_follow_each_other() -> None:
    """Given a command that reads a log twice, then positions that begin anew are the second pass."""
    terminal, clock = Terminal(), Hands()
    seen = []
    with progress(terminal.output, log_of(60_000), "reading", 2, clock=clock) as advance:
        terminal.frame()
        for position in (30_000, 60_000, 30_000, 60_000, 60_000):
            clock.now += 1.0
            advance(position)
            frame = terminal.frame()
            seen.append(next(word for word in frame.split() if word.endswith("/120000")))
    assert seen == ["30000/120000", "60000/120000", "90000/120000", "120000/120000", "120000/120000"]


@pytest.mark.parametrize("fails", [False, True], ids=["done", "failed"])
def test_it_goes_away(fails: bool) -> None:
    """Given the end of the command, or an error in it, then the bar is erased and the cursor is there again."""
    terminal = Terminal()
    failure = pytest.raises(ValueError, match="damaged") if fails else nullcontext()
    with failure, progress(terminal.output, log_of(PROGRESS_FROM), "reading", clock=Hands()) as advance:
        advance(PROGRESS_FROM)
        assert HIDE_CURSOR in terminal.written
        if fails:
            raise ValueError("the log is damaged")
    assert terminal.written.rindex(ERASE_LINE) > terminal.written.rindex("reading")
    assert terminal.written.rindex(SHOW_CURSOR) > terminal.written.rindex(HIDE_CURSOR)


@pytest.mark.parametrize(
    ("last", "shown"), [(PROGRESS_FROM - 1, True), (10 * PROGRESS_FROM, False)], ids=["short", "no terminal"]
)
def test_nothing_is_written_where_nobody_needs_it(last: int, shown: bool) -> None:
    """Given a short log, or no terminal, then nothing is written."""
    terminal = Terminal(shown=shown)
    with progress(terminal.output, log_of(last), "reading", clock=Hands()) as advance:
        advance(last)
    assert terminal.written == ""


def test_commands_tell_how_far_they_are(incident_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a log that counts as long, then replay and verify report every few events, and the end."""
    monkeypatch.setattr(options, "PROGRESS_FROM", 1)
    monkeypatch.setattr(records, "PROGRESS_EVERY", 50)
    reported: dict[str, list[int]] = {}
    real = options.progress

    def watched(output: Any, log: EventLog, what: str, passes: int = 1) -> Any:
        terminal = Terminal()
        context = real(terminal.output, log, what, passes)

        class Watching:
            def __enter__(self) -> Any:
                advance = context.__enter__()

                def told(position: int) -> None:
                    reported.setdefault(what, []).append(position)
                    advance(position)

                return told

            def __exit__(self, *raised: Any) -> Any:
                return context.__exit__(*raised)

        return Watching()

    for command in ("replay", "verify", "top"):
        monkeypatch.setattr(f"mpreg_mq.cli.{command}.progress", watched)
    for arguments in (("replay",), ("verify",), ("top", "--once")):
        result = CliRunner().invoke(root, [*arguments, str(incident_path)])
        assert result.exit_code == 0, result.output
    assert reported["verifying"] == [50, 100, 124]
    assert reported["replaying"][:3] == [50, 100, 124]
    assert reported["catching up"][:3] == [50, 100, 124]
