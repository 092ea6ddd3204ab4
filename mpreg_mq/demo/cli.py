"""The command line of the demo."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from mpreg_mq.configuration import QueueManagerConfiguration
from mpreg_mq.demo.orders import Advance, process_orders
from mpreg_mq.demo.scenes import SCENES
from mpreg_mq.demo.verify import Verification, verify
from mpreg_mq.demo.webhooks import Line, process_lines, read_lines
from mpreg_mq.errors import MessageQueueError
from mpreg_mq.manager import MessageQueueManager

DEFAULT_ORDERS = 1000

_EPILOG = """\b
Examples:
  mpreg-queue-demo
  mpreg-queue-demo --messages 20000 --log orders.db
  mpreg-queue-demo --input webhooks.jsonl --messages 5000 --json
"""


@click.command(epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--messages", type=click.IntRange(1), help=f"Orders [{DEFAULT_ORDERS}], or messages of --input [its lines]."
)
@click.option(
    "--log", "log_path", type=click.Path(dir_okay=False, path_type=Path), help="Keep the event log in this file."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
@click.option(
    "--input",
    "input_path",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help='Send these messages instead: JSON lines of {"topic", "payload"}.',
)
def demo(messages: int | None, log_path: Path | None, as_json: bool, input_path: Path | None) -> None:
    """Show every feature of mpreg-mq on a SQLite event log, then rebuild the log and compare.

    Exit status: 0 fine, 1 an error or a rebuilt state that differs, 2 usage.
    """
    try:
        lines = None if input_path is None else read_lines(input_path)
        with tempfile.TemporaryDirectory(prefix="mpreg-mq-demo-") as scratch:
            path = log_path or Path(scratch) / "demo.db"
            report, verification = asyncio.run(run(path, lines, messages, as_json))
    except (MessageQueueError, OSError) as error:
        click.echo(f"mpreg-queue-demo: {error}", err=True)
        sys.exit(1)
    if as_json:
        click.echo(json.dumps(report))
    else:
        show(report, verification)
    sys.exit(0 if report["ok"] else 1)


async def run(
    path: Path, lines: list[Line] | None, messages: int | None, quiet: bool
) -> tuple[dict[str, Any], Verification]:
    """Run orders and scenes, or the lines; the report, and what the comparison found."""
    location = f"sqlite:///{path}"
    manager = MessageQueueManager(QueueManagerConfiguration(), log=location)
    report: dict[str, Any] = {"log": str(path)}
    started = time.perf_counter()
    async with manager:
        if lines is None:
            total = messages or DEFAULT_ORDERS
            with progress("orders", total, quiet) as advance:
                report["orders"] = await process_orders(manager, total, advance)
            report["scenes"] = {title: await scene(manager) for title, scene in SCENES.items()}
        else:
            total = messages or len(lines)
            with progress("messages", total, quiet) as advance:
                report["input"] = await process_lines(manager, lines, total, advance)
        seconds = time.perf_counter() - started
        counts = manager.get_global_statistics()
    live = {name: queue._actor.state for name, queue in manager.queues.items()}
    report["seconds"] = round(seconds, 3)
    report["messages_sent"] = counts.total_messages_sent
    report["deliveries"] = counts.total_messages_received
    report["messages_per_second"] = round(counts.total_messages_sent / seconds)
    report["statistics"] = {name: attrs.asdict(state.report(state.last_at)) for name, state in live.items()}
    verification = verify(location, live)
    report["verification"] = {**attrs.asdict(verification), "ok": verification.ok}
    report["ok"] = verification.ok and report.get("input", {}).get("matches_naive", True)
    return report, verification


@contextmanager
def progress(what: str, total: int, quiet: bool) -> Iterator[Advance]:
    """A progress bar on stderr, or nothing where nobody would see it."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.advance(task, count)


def show(report: dict[str, Any], verification: Verification) -> None:
    """Print the report as tables."""
    console = Console()
    if "orders" in report:
        table = Table("what", "count", title="Order processing")
        for key, value in report["orders"].items():
            table.add_row(key.replace("_", " "), str(value))
        console.print(table)
        table = Table("scene", "what happened", title="Features")
        for title, outcome in report["scenes"].items():
            table.add_row(title, outcome)
        console.print(table)
    else:
        table = Table("pattern", "deliveries", title="Messages by topic pattern")
        for pattern, count in report["input"]["per_pattern"].items():
            table.add_row(pattern, str(count))
        console.print(table)
        console.print(f"Counts equal those of a naive matcher: {report['input']['matches_naive']}")
    names = ("messages_sent", "messages_received", "messages_acknowledged", "messages_failed", "messages_requeued")
    table = Table("queue", *(name.removeprefix("messages_") for name in names), title="Statistics")
    for queue, counts in report["statistics"].items():
        table.add_row(queue, *(str(counts[name]) for name in names))
    console.print(table)
    console.print(
        f"{report['messages_sent']} messages in {report['seconds']} s, {report['messages_per_second']} messages/s, "
        "on a SQLite log that is synchronised before a send returns"
    )
    console.print(f"Reopened the log: {verification.events} events of {verification.queues} queues folded anew.")
    if verification.ok:
        console.print("Every rebuilt state equals the live one, and no message is lost or counted twice (I2, I4).")
    for problem in verification.problems:
        console.print(f"[red]{problem}[/red]")
