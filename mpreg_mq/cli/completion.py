"""``mpreg-mq completion``: the script that a shell needs to complete commands and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command(epilog='\b\nExample:\n  eval "$(mpreg-mq completion bash)"')
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the script for completion in a shell: bash (4.4 or newer), zsh or fish."""
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(ctx.find_root().command, {}, "mpreg-mq", "_MPREG_MQ_COMPLETE").source())
