"""``mpreg-mq report``."""

from __future__ import annotations

from pathlib import Path

import click

from mpreg_mq.cli.options import MOMENT_HELP, log_argument, moment, progress, queue_option
from mpreg_mq.cli.output import Output, json_option
from mpreg_mq.events import EventLog
from mpreg_mq.replay.report import report


@click.command(
    epilog="\b\nExamples:\n  mpreg-mq report orders.db -o report.html\n"
    "  mpreg-mq report orders.db -o report.html --queue orders --message 12"
)
@log_argument
@click.option("-o", "--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="The file to write.")
@queue_option()
@click.option("-m", "--message", help="The message whose life is drawn [the slowest].")
@click.option("--until", help=f"Up to: {MOMENT_HELP}.")
@json_option
def command(
    log: EventLog, out: Path, queue: str | None, message: str | None, until: str | None, output: Output
) -> None:
    """Write one page about LOG that needs no network: depth, rates, latency, attempts, dead letters, slow messages."""
    end = moment("--until", until, log)
    with progress(output, log, "reading", 3) as advance:
        page = report(log, message=message, queue=queue, until=end, progress=advance)
    out.write_text(page, encoding="utf-8")
    if output.as_json:
        output.record({"file": str(out), "bytes": len(page.encode())})
    else:
        output.line(f"written to {out}")
