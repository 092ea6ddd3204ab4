"""``mpreg-mq verify``."""

from __future__ import annotations

import click

from mpreg_mq.cli.lazy import BROKEN, ERROR
from mpreg_mq.cli.options import log_argument, progress
from mpreg_mq.cli.output import Output, json_option
from mpreg_mq.events import EventLog
from mpreg_mq.invariants import Violation
from mpreg_mq.replay.formats import format_time, plural, printable
from mpreg_mq.replay.verify import Verification, verify
from mpreg_mq.replay.wording import in_words, record_fields

DEFAULT_SHOWN = 20


@click.command(epilog="\b\nExamples:\n  mpreg-mq verify orders.db\n  mpreg-mq verify orders.db --json")
@log_argument
@click.option("-n", "--limit", type=click.IntRange(0), default=DEFAULT_SHOWN, show_default=True, help="Most to print.")
@json_option
def command(log: EventLog, limit: int, output: Output) -> None:
    """Check every promise that LOG can show, its checksums, and that its queues can be folded.

    Each violation names the rule, the position, the message, and the events that cannot all be right. Exit status 3
    where a promise was broken, 1 where the log is damaged.
    """
    with progress(output, log, "verifying") as advance:
        found = verify(log, progress=advance)
    if output.as_json:
        for violation in found.violations:
            output.record(
                {
                    "kind": "violation",
                    "rule": violation.rule,
                    "position": violation.position,
                    "stream": violation.stream,
                    "message_id": violation.message_id,
                    "sentence": violation.sentence,
                    "evidence": [record_fields(record) for record in violation.evidence],
                }
            )
        output.record(
            {
                "kind": "summary",
                "ok": found.ok,
                "events": found.events,
                "queues": found.queues,
                "rules": found.rules,
                "violations": len(found.violations),
                "stopped": found.stopped,
            }
        )
    else:
        _show(found, limit, output)
    if found.stopped is not None:
        output.note(f"mpreg-mq: {found.stopped}")
        click.get_current_context().exit(ERROR)
    if found.violations:
        click.get_current_context().exit(BROKEN)


def _show(found: Verification, limit: int, output: Output) -> None:
    for violation in found.violations[:limit]:
        _show_violation(violation, output)
    if len(found.violations) > limit:
        output.note(f"{plural(len(found.violations) - limit, 'more violation')}: raise --limit, or use --json")
    verdict = "every promise kept" if found.ok else plural(len(found.violations), "violation")
    output.line(
        f"{plural(found.events, 'event')} of {plural(found.queues, 'queue')}, "
        f"{plural(len(found.rules), 'rule')} ({' '.join(found.rules)}): {verdict}"
    )


def _show_violation(violation: Violation, output: Output) -> None:
    message = f", message {violation.message_id}" if violation.message_id else ""
    output.line(f"{violation.rule} broken at position {violation.position} of {violation.stream}{message}")
    output.line(f"  {printable(violation.sentence)}")
    for record in violation.evidence:
        output.line(f"  {record.position:>7}  {format_time(record.event.at)}  {in_words(record.event)}")
    output.line()
