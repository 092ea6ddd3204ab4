"""The messages of a simulation: what is sent, and what clients call it."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from mpreg_mq._validation import describe
from mpreg_mq.configuration import QueueConfiguration
from mpreg_mq.errors import ConfigurationError
from mpreg_mq.events.types import MessageEnqueued
from mpreg_mq.model import DeliveryGuarantee, QueuedMessage
from mpreg_mq.payload import decode_payload
from mpreg_mq.testing.scenario import Scenario

TOPICS = ("a.x", "a.y", "b", "c.z")

NAME_HEADER = "simulated-message"
"""The header that names a message whose payload is the scenario's; others have their name as ``key`` in the payload."""

Made = tuple[str, str, Any, DeliveryGuarantee, dict[str, Any]]
"""Name, topic, payload, guarantee and options of a message."""


def make_message(scenario: Scenario, configuration: QueueConfiguration, number: int, random: Random) -> Made:
    """The n-th message of a scenario."""
    name = f"m{number}"
    topic, payload = random.choice(TOPICS), {"key": name}
    if scenario.payloads is not None:
        topic, payload = _of_scenario(scenario.payloads(random, number))
    guarantee = random.choice(scenario.guarantees)
    if random.random() < 0.05 and scenario.admin:
        guarantee = DeliveryGuarantee.FIRE_AND_FORGET
    options: dict[str, Any] = {}
    if random.random() < 0.2:
        options["delay_seconds"] = random.choice((0.5, 5.0, 20.0))
        if guarantee is DeliveryGuarantee.FIRE_AND_FORGET:
            # It has none (G1).
            del options["delay_seconds"]
    if random.random() < 0.15:
        options["message_ttl_seconds"] = random.choice((1.0, 6.0, 25.0))
    if random.random() < 0.3:
        options["priority"] = random.randint(0, 3)
    if scenario.groups and random.random() < 0.3:
        options["group_id"] = random.choice(("g", "h"))
    if random.random() < 0.2:
        options["max_retries"] = random.randint(0, 2)
    if random.random() < 0.2:
        options["acknowledgment_timeout_seconds"] = random.choice((1.0, 6.0))
    if guarantee is DeliveryGuarantee.QUORUM:
        options["required_acknowledgments"] = random.randint(1, 3)
    if configuration.enable_deduplication and random.random() < 0.5:
        # Keys are used again, so that some are met within their window and some after it.
        options["deduplication_id"] = f"d{random.choice((number, number, max(0, number - 6)))}"
    if scenario.plain and guarantee is DeliveryGuarantee.AT_LEAST_ONCE and random.random() < scenario.plain:
        options.clear()
    if scenario.payloads is not None:
        options["headers"] = {NAME_HEADER: name}
    return name, topic, payload, guarantee, options


def _of_scenario(made: Any) -> tuple[Any, Any]:
    if isinstance(made, tuple) and len(made) == 2:
        return made
    raise ConfigurationError(f"Scenario.payloads: got {describe(made)}, expected a topic and a payload")


def name_of(event: MessageEnqueued) -> str:
    """What clients call the message that was accepted with this event, or the one that it is again."""
    return _name(event.options.headers, lambda: decode_payload(event.payload))


def value_of(message: QueuedMessage) -> str:
    """What clients call a message: a redriven one is another than the one that died."""
    name = _name(message.headers, lambda: message.payload)
    return name if message.redriven_from is None else f"{name}@{message.redriven_from}"


def _name(headers: dict[str, str] | None, payload: Callable[[], Any]) -> str:
    name = (headers or {}).get(NAME_HEADER)
    return str(payload()["key"]) if name is None else name
