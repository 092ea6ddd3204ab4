"""``mpreg-mq log repair``."""

from __future__ import annotations

from pathlib import Path

import attrs
import click

from mpreg_mq.cli.lazy import ERROR
from mpreg_mq.cli.output import Output, json_option
from mpreg_mq.errors import EventLogError
from mpreg_mq.events import repair_log
from mpreg_mq.replay.formats import plural, printable
from mpreg_mq.replay.source import named_file


@click.command(epilog="\b\nExample:\n  mpreg-mq log repair orders.db")
@click.argument("log", type=click.Path())
@json_option
def command(log: str, output: Output) -> None:
    """Cut the damaged file LOG before its first damaged event; the damaged file is kept beside it.

    No process may have LOG open. A log that is whole is not touched, nor a file of which nothing says that it is a log:
    an export or an archive is none. Exit status 0 also where events were lost, which the output counts; 1 where what
    stands for compacted events is damaged, which no repair mends.
    """
    path = named_file(log)
    if path is None:
        raise EventLogError(f"repair {log}: this is no file, expected a log in SQLite; give its path")
    if not path.exists():
        raise EventLogError(f"repair {path}: there is no such file; give the path of an event log")
    done = repair_log(path)
    if output.as_json:
        fields = {} if done is None else attrs.asdict(done, value_serializer=lambda _, __, value: _plain(value))
        output.record({"repaired": done is not None, **fields})
    elif done is None:
        output.line(f"{log} is whole: nothing to repair")
    else:
        lost = f"{plural(done.known_last - done.kept_events, 'event')} lost that are known to have been there"
        if not done.known_last:
            lost = "nothing of it can be read: how many events are lost is not known"
        output.line(f"{log}: {plural(done.kept_events, 'event')} kept, cut at position {done.cut_at:,}")
        output.line(f"  {lost}; {done.reason}")
        output.line(f"  the damaged file is {done.backup}")
    if done is not None and done.lost_bases:
        output.note(
            f"mpreg-mq: {', '.join(map(printable, done.lost_bases))}: the snapshot in place of compacted events is "
            "damaged as well, which no repair mends; restore the log from a copy, or from its archives"
        )
        click.get_current_context().exit(ERROR)


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Path) else value
