"""``mpreg-mq serve``."""

from __future__ import annotations

import asyncio
import logging
import sys

import click

from mpreg_mq.mpreg.plugin import MessageQueuePlugin
from mpreg_mq.mpreg.serving import serve

EPILOG = """\b
The settings are a TOML file with MPREG's table [mpreg] and the table [mpreg-mq]; see docs/mpreg.md.

\b
Examples:
  mpreg-mq serve --settings server.toml
  mpreg-mq serve --log sqlite:///queues.db
"""


@click.command(epilog=EPILOG)
@click.option(
    "--settings", type=click.Path(exists=True, dir_okay=False), help="A TOML file with [mpreg] and [mpreg-mq]."
)
@click.option("--log", help="Where events go, before what the settings say: an address like sqlite:///queues.db.")
def command(settings: str | None, log: str | None) -> None:
    """Run an MPREG server whose queues are these, until it is interrupted or terminated."""

    def ready(plugin: MessageQueuePlugin) -> None:
        # MPREG logs with loguru; what the queues have to say goes to stderr beside it.
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s | %(levelname)s | %(name)s - %(message)s"))
        logging.getLogger("mpreg_mq").addHandler(handler)
        click.echo(f"serving {plugin.host.node_id}, events go to {plugin.manager.log.location}")

    asyncio.run(serve(settings, log, ready))
