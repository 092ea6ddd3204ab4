"""The commands of ``mpreg-mq``, in the order of its help."""

from __future__ import annotations

import click

from mpreg_mq._version import __version__
from mpreg_mq.cli.lazy import LazyGroup

COMMANDS = {
    "log": ("mpreg_mq.cli.log", "Look into an event log, and look after it."),
    "replay": ("mpreg_mq.cli.replay", "The queues as they were at any moment."),
    "trace": ("mpreg_mq.cli.trace", "The life of one message."),
    "why": ("mpreg_mq.cli.why", "Why a message is where it is."),
    "diff": ("mpreg_mq.cli.diff", "What changed between two moments, or two logs."),
    "verify": ("mpreg_mq.cli.verify", "Whether every promise was kept."),
    "report": ("mpreg_mq.cli.report", "A page about the log, with pictures."),
    "rerun": ("mpreg_mq.cli.rerun", "What today's code, or other settings, would decide otherwise."),
    "export-test": ("mpreg_mq.cli.export_test", "A pytest file that tells a message's story to the current code."),
    "stats": ("mpreg_mq.cli.stats", "The counts of each queue."),
    "top": ("mpreg_mq.cli.top", "The queues of a live log, refreshed."),
    "dlq": ("mpreg_mq.cli.dlq", "List, show, redrive and purge dead letters."),
    "fork": ("mpreg_mq.cli.fork", "A new log that is the old one up to a moment."),
    "serve": ("mpreg_mq.cli.serve", "Run an MPREG server with these queues."),
    "cluster": ("mpreg_mq.cli.cluster", "Queues on several nodes: status, moving, draining."),
    "completion": ("mpreg_mq.cli.completion", "Print the script for completion in a shell."),
}

EPILOG = """\b
Data goes to stdout, progress and messages to stderr. Exit status: 0 fine, 1 an error, 2 wrong usage, 3 a promise
was broken.

\b
Examples:
  mpreg-mq log info orders.db
  mpreg-mq log tail -f orders.db
"""


@click.group(cls=LazyGroup, lazy=COMMANDS, epilog=EPILOG)
@click.version_option(__version__, prog_name="mpreg-mq")
def root() -> None:
    """Find out what happened in a message queue, and run queues."""
