"""``mpreg-mq top``."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping

import attrs
import click
from rich.live import Live
from rich.table import Table

from mpreg_mq.cli.options import progress, source_argument
from mpreg_mq.cli.output import Output, json_option
from mpreg_mq.cli.remote import Server
from mpreg_mq.cli.tables import table
from mpreg_mq.events import EventLog
from mpreg_mq.replay.following import Follower
from mpreg_mq.replay.formats import format_seconds
from mpreg_mq.replay.statistics import QueueFigures, all_figures

COLUMNS = (
    "queue", "pending", "oldest", "leased", "dead", "sent/s", "done/s", "failed/s", "subscribers", "open breakers", "",
)  # fmt: skip


@click.command(
    epilog="\b\nExamples:\n  mpreg-mq top orders.db\n  mpreg-mq top orders.db --once\n  mpreg-mq top ws://127.0.0.1:9000"
)
@source_argument
@click.option(
    "-i", "--interval", type=click.FloatRange(0.1), default=1.0, show_default=True, help="Seconds between looks."
)
@click.option("--once", is_flag=True, help="Look once.")
@json_option
def command(source: EventLog | Server, interval: float, once: bool, output: Output) -> None:
    """The queues of a live log or of a server (ws://host:port), busiest first, refreshed until Ctrl-C.

    With --json there is a line for each queue and look.
    """
    watch(source, output, interval=interval, once=once)


@attrs.frozen
class Clock:
    """The time that is shown, the time that passes, and how to wait for it."""

    now: Callable[[], float] = time.time
    passed: Callable[[], float] = time.monotonic
    sleep: Callable[[float], object] = time.sleep


SYSTEM_CLOCK = Clock()


def watch(
    source: EventLog | Server, output: Output, *, interval: float, once: bool = False, clock: Clock = SYSTEM_CLOCK
) -> None:
    """Show the queues every ``interval`` seconds until Ctrl-C, or once; on a terminal, on a screen of their own."""
    look = _Look(source, output, clock)
    seen = look()
    if once:
        _show(seen, output)
        return
    with contextlib.suppress(KeyboardInterrupt):
        if output.as_json or not output.data.is_terminal:
            while True:
                _show(seen, output)
                seen = look(seen, interval)
        with Live(_table(seen), console=output.data, screen=True, auto_refresh=False) as live:
            while True:
                seen = look(seen, interval)
                live.update(_table(seen), refresh=True)


class _Look:
    """Looks at a log or a server again and again."""

    def __init__(self, source: EventLog | Server, output: Output, clock: Clock) -> None:
        self._source = source
        self._clock = clock
        self._follower: Follower | None = None
        if not isinstance(source, Server):
            self._follower = Follower(source)
            with progress(output, source, "catching up") as advance:
                self._follower.catch_up(advance)

    def __call__(self, before: dict[str, QueueFigures] | None = None, interval: float = 0.0) -> dict[str, QueueFigures]:
        """The figures after ``interval`` seconds, with the rates in between."""
        clock = self._clock
        started = clock.passed()
        if interval:
            clock.sleep(interval)
        if isinstance(self._source, Server):
            return self._source.figures(None, before, clock.passed() - started)
        assert self._follower is not None
        self._follower.catch_up()
        return all_figures(self._follower.states, clock.now(), before, clock.passed() - started)


def _show(queues: Mapping[str, QueueFigures], output: Output) -> None:
    if output.as_json:
        for figures in queues.values():
            output.record(attrs.asdict(figures))
    else:
        output.table(_table(queues))


def _table(queues: Mapping[str, QueueFigures]) -> Table:
    ordered = sorted(queues.values(), key=lambda q: (-q.sent_per_second, -q.pending, q.queue))
    return table(COLUMNS, [_row(figures) for figures in ordered], right=COLUMNS[1:-1])


def _row(figures: QueueFigures) -> tuple[str, ...]:
    oldest = figures.oldest_pending_seconds
    return (
        figures.queue,
        f"{figures.pending:,}",
        "" if oldest is None else format_seconds(oldest),
        f"{figures.leased:,}",
        f"{figures.dead_letters:,}",
        f"{figures.sent_per_second:,.0f}",
        f"{figures.acknowledged_per_second:,.0f}",
        f"{figures.failed_attempts_per_second:,.0f}",
        "" if figures.subscribers is None else str(figures.subscribers),
        str(figures.open_circuits or ""),
        "paused" if figures.paused else "",
    )
