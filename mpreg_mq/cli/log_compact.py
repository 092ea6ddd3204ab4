"""``mpreg-mq log compact``."""

from __future__ import annotations

import re
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mpreg_mq.actors.retention import Compactor
from mpreg_mq.cli.output import Output, json_option
from mpreg_mq.configuration import RetentionPolicy
from mpreg_mq.errors import EventLogError
from mpreg_mq.events import open_log
from mpreg_mq.events.log import retaining
from mpreg_mq.replay.formats import plural
from mpreg_mq.replay.source import open_history

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


if TYPE_CHECKING:
    SpanType = click.ParamType[float]
else:
    # Generic only in releases of click that are newer than the oldest that will do.
    SpanType = click.ParamType


class Span(SpanType):
    """A span of time such as 90s, 15m, 12h or 30d."""

    name = "span"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds."""
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", str(value))
        if found is None:
            self.fail(f"got {value!r}, expected a number with a unit: 90s, 15m, 12h, 30d", param, ctx)
        return float(found[1]) * _UNITS[found[2]]


@click.command(
    epilog="\b\nExamples:\n  mpreg-mq log compact orders.db --keep-events 1000000\n"
    "  mpreg-mq log compact orders.db --keep-time 30d --archive archive/"
)
@click.argument("log", type=click.Path(dir_okay=False))
@click.option("--keep-events", type=click.IntRange(0), help="Keep at most so many events.")
@click.option("--keep-time", type=Span(), help="Keep events that are younger: 90s, 15m, 12h, 30d.")
@click.option("--keep-bytes", type=click.IntRange(0), help="Keep at most so many bytes, roughly.")
@click.option(
    "--archive",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep what goes in this directory [it is deleted].",
)
@json_option
def command(
    log: str,
    keep_events: int | None,
    keep_time: float | None,
    keep_bytes: int | None,
    archive: Path | None,
    output: Output,
) -> None:
    """Take the first events out of LOG; snapshots stand for them, so that no queue changes.

    No process may have LOG open. What goes into an archive can be looked into like a log.
    """
    if keep_events is None and keep_time is None and keep_bytes is None:
        raise click.UsageError("say what is to be kept: --keep-events, --keep-time or --keep-bytes")
    policy = RetentionPolicy(keep_time, keep_events, keep_bytes, archive, least_events=1)
    open_history(log).close()
    with closing(open_log(log)) as opened:
        kept = retaining(opened)
        if kept is None:
            raise EventLogError(f"{log}: this kind of log cannot be compacted")
        compactor = Compactor(kept, policy, time.time)
        for _ in compactor.steps():
            pass
    done = compactor.last
    if output.as_json:
        where = None if done is None or done.archive is None else str(done.archive)
        output.record({"events": 0 if done is None else done.events, "archive": where})
    elif done is None:
        output.line(f"{log}: nothing to compact")
    else:
        where = f" into {done.archive}" if done.archive is not None else ""
        output.line(f"{log}: {plural(done.events, 'event')} up to position {done.position:,} taken out{where}")
