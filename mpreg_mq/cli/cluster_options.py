"""What the commands of ``mpreg-mq cluster`` share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import click

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


def cluster_argument(command: F) -> F:
    """``CLUSTER``: the address of the log that the cluster shares."""
    return click.argument("cluster", metavar="CLUSTER")(command)


def timeout_option(command: F) -> F:
    """``--timeout``, in seconds."""
    return click.option(
        "--timeout",
        "seconds",
        default=30.0,
        show_default=True,
        type=click.FloatRange(0.1, 3600),
        help="Seconds to wait.",
    )(command)


def operate(cluster: str, act: Callable[[Any], Coroutine[Any, Any, T]]) -> T:
    """Run something with an operator that is connected to the cluster.

    Raises:
        click.ClickException: nats-py is missing.
    """
    operator = needs_nats()

    async def story() -> T:
        async with operator.connected(cluster) as connected:
            return await act(connected)

    return asyncio.run(story())


def needs_nats() -> Any:
    """The operator's class, which nats-py has to be there for.

    Raises:
        click.ClickException: it is missing.
    """
    try:
        from mpreg_mq.cluster.operator import ClusterOperator
    except ModuleNotFoundError as missing:
        if missing.name != "nats":
            raise
        raise click.ClickException('this needs nats-py: pip install "mpreg-mq[nats]"') from missing
    return ClusterOperator
