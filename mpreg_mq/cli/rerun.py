"""``mpreg-mq rerun``."""

from __future__ import annotations

import json
from typing import Any

import click

from mpreg_mq.cli.lazy import BROKEN
from mpreg_mq.cli.options import MOMENT_HELP, log_argument, moment, progress, queue_option
from mpreg_mq.cli.output import Output, json_option
from mpreg_mq.cli.tables import table
from mpreg_mq.errors import ConfigurationError
from mpreg_mq.events import EventLog
from mpreg_mq.replay.formats import format_time, plural
from mpreg_mq.replay.rerun import Difference, Rerun, rerun
from mpreg_mq.replay.wording import event_fields, in_words

DEFAULT_SHOWN = 20


@click.command(
    epilog="\b\nExamples:\n  mpreg-mq rerun orders.db\n  mpreg-mq rerun orders.db --set max_retries=1\n"
    "  mpreg-mq rerun orders.db -q orders --set message_ttl_seconds=60 --set queue_type=priority"
)
@log_argument
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="Decide with another setting; repeatable.")
@queue_option()
@click.option("--until", help=f"Up to: {MOMENT_HELP}.")
@click.option("-n", "--limit", type=click.IntRange(0), default=DEFAULT_SHOWN, show_default=True, help="Most to print.")
@json_option
def command(
    log: EventLog, settings: tuple[str, ...], queue: str | None, until: str | None, limit: int, output: Output
) -> None:
    """Decide again what LOG records, with today's code or other settings, and tell each decision that differs.

    Every decision is made from the state that the queue had then. Exit status 3 where today's code decides otherwise
    with the settings that the queue had.
    """
    changes = dict(map(_setting, settings))
    end = moment("--until", until, log)
    try:
        with progress(output, log, "deciding") as advance:
            result = rerun(log, changes=changes, queue=queue, until=end, progress=advance)
    except ConfigurationError as error:
        raise click.BadParameter(str(error), param_hint="--set") from None
    if output.as_json:
        for difference in result.differences:
            output.record(_fields(difference))
        output.record(_summary(result))
    else:
        _show(result, limit, output)
    if result.count and not changes:
        click.get_current_context().exit(BROKEN)


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise click.BadParameter(f"got {text!r}, expected NAME=VALUE, such as max_retries=1", param_hint="--set")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, {"None": None, "True": True, "False": False}.get(value, value)


def _fields(difference: Difference) -> dict[str, Any]:
    return {
        "kind": "difference",
        "queue": difference.queue,
        "position": difference.position,
        "time": format_time(difference.at),
        "message_ids": difference.message_ids,
        "recorded": [{"type": type(event).__name__, **event_fields(event)} for event in difference.recorded],
        "decided": [{"type": type(event).__name__, **event_fields(event)} for event in difference.decided],
    }


def _summary(result: Rerun) -> dict[str, Any]:
    return {
        "kind": "summary",
        "decisions": result.decisions,
        "differences": result.count,
        "followed": result.followed,
        "taken_as_given": dict(result.given),
    }


def _show(result: Rerun, limit: int, output: Output) -> None:
    output.line(f"{plural(result.decisions, 'decision')} made again, {result.count:,} differ")
    if result.given:
        given = ", ".join(f"{count:,} {name}" for name, count in result.given.most_common())
        output.note(f"taken as given, because the log does not say what led to them: {given}")
    if result.followed:
        output.note(
            f"{plural(result.followed, 'decision')} about messages that had gone another way before: not compared"
        )
    if not result.count:
        return
    output.table(
        table(("what became what", "count"), [(k, f"{n:,}") for k, n in result.by_kind.items()], right=("count",))
    )
    for difference in result.differences[:limit]:
        output.line(f"\n{difference.queue} at position {difference.position}, {format_time(difference.at)}")
        for sign, events in (("-", difference.recorded), ("+", difference.decided)):
            for event in events:
                output.line(f"  {sign} {in_words(event)}")
            if not events:
                output.line(f"  {sign} nothing")
    if result.count > limit:
        output.note(f"{plural(result.count - limit, 'more difference')}: raise --limit, or use --json")
