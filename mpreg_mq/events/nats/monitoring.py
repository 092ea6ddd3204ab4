"""Whether the servers sync always: only their HTTP monitoring says so."""

from __future__ import annotations

import asyncio
import logging
import urllib.request

import msgspec

from mpreg_mq.events.nats.target import NatsTarget

logger = logging.getLogger("mpreg_mq")

MONITOR_SECONDS = 2.0

_ADVICE = (
    "set jetstream { sync_interval: always }, or accept that what was appended in the last two minutes may be lost "
    "when all replicas lose power at once"
)


class _Settings(msgspec.Struct):
    sync_always: bool = False


class _JetStream(msgspec.Struct):
    config: _Settings = msgspec.field(default_factory=_Settings)


class _Variables(msgspec.Struct):
    jetstream: _JetStream = msgspec.field(default_factory=_JetStream)


async def warn_unless_synced(target: NatsTarget) -> None:
    """Log a warning for each monitored server that does not sync always, and one where none is monitored."""
    if target.storage == "memory":
        return
    if not target.monitors:
        logger.warning(
            "event log %s: cannot find out whether its servers sync always; name their HTTP monitoring "
            "(?monitor=http://host:8222), and %s",
            target.location,
            _ADVICE,
        )
    for monitor in target.monitors:
        try:
            synced = await asyncio.to_thread(_syncs_always, monitor)
        except (OSError, ValueError) as error:
            logger.warning("event log %s: the monitoring at %s does not answer: %s", target.location, monitor, error)
            continue
        if not synced:
            logger.warning("event log %s: the server at %s does not sync always; %s", target.location, monitor, _ADVICE)


def _syncs_always(monitor: str) -> bool:
    if not monitor.startswith(("http://", "https://")):
        raise ValueError(f"monitor: got {monitor!r}, expected http://host:8222")
    with urllib.request.urlopen(f"{monitor.rstrip('/')}/varz", timeout=MONITOR_SECONDS) as answer:
        return msgspec.json.decode(answer.read(), type=_Variables).jetstream.config.sync_always
