"""The commands of an MPREG server's clients: ``mq.send``, ``mq.receive`` and so on, for whom the rules allow it.

A command never raises. It answers ``{"ok": True, ...}``, or ``{"ok": False, "error": <kind>, "message": <words>}``:
MPREG logs what is raised with the values of variables, and a token would be among them.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import attrs

from mpreg_mq._validation import describe
from mpreg_mq.configuration import QueueConfiguration
from mpreg_mq.errors import ConfigurationError, MessageQueueError, QueueNotFoundError
from mpreg_mq.manager import MessageQueueManager
from mpreg_mq.model import DeliveryResult
from mpreg_mq.mpreg.access import AccessPolicy
from mpreg_mq.mpreg.answers import Answer, dead_letter_answers
from mpreg_mq.mpreg.catalog import COMMANDS, Command
from mpreg_mq.mpreg.host import Host
from mpreg_mq.mpreg.receives import ClientReceives

logger = logging.getLogger("mpreg_mq")

NAMESPACE = "mq"

MAX_WAIT_SECONDS = 20.0
"""Longest that ``mq.receive`` waits: MPREG gives up a command after 30 seconds."""

MAX_LISTED = 1000
"""Most dead letters in one answer."""

SUBSCRIBER_PREFIX = "client:"
"""Subscribers over RPC have names of their own, so that none can settle what a callback of the server has."""


def _refusal(kind: str, text: str) -> Answer:
    return {"ok": False, "error": kind, "message": text}


class _DeniedError(Exception):
    """No rule allows it."""


class QueueCommands:
    """What the commands do, with one set of rules on one manager."""

    def __init__(self, manager: MessageQueueManager, policy: AccessPolicy) -> None:
        self._manager = manager
        self._policy = policy
        self._receives = ClientReceives(manager)

    async def run(self, command: Command, arguments: dict[str, Any]) -> Answer:
        """Run a command; whatever happens, an answer."""
        token = arguments.pop("token", None)
        operation = command.operation
        try:
            queue = arguments.get("queue")
            if "queue" in command.parameters:
                if not isinstance(queue, str):
                    return _refusal("invalid", f"queue: got {describe(queue)}, expected the name of a queue")
                self._require(operation, queue, token)
            verb: Callable[..., Awaitable[Answer]] = getattr(self, f"_{operation}")
            return {"ok": True, **await verb(token, **arguments)}
        except _DeniedError as denied:
            return _refusal("denied", str(denied))
        except QueueNotFoundError as error:
            return _refusal("not_found", str(error))
        except (MessageQueueError, TypeError, ValueError) as error:
            return _refusal("invalid", str(error))
        except Exception as error:
            # Without the traceback: it could show the values of variables.
            logger.error("mq.%s failed: %s", operation, type(error).__name__)
            return _refusal("internal", f"{type(error).__name__}; see the server's log")

    def _require(self, operation: str, queue_name: str, token: object) -> None:
        if not self._policy.allows(operation, queue_name, token):
            raise _DeniedError(f"no rule allows {operation} on queue {describe(queue_name)} with this token")

    def _require_creation(self, queue_name: str, token: object) -> None:
        """A send may create its queue, so it needs leave for that too."""
        if queue_name not in self._manager.list_queues():
            try:
                self._require("create_queue", queue_name, token)
            except _DeniedError:
                raise QueueNotFoundError(f"queue {describe(queue_name)} does not exist") from None

    # --- producing and consuming --------------------------------------------------------------------------

    async def _send(
        self, token: object, queue: str, topic: str, payload: Any, guarantee: str, options: Mapping[str, Any] | None
    ) -> Answer:
        self._require_creation(queue, token)
        given = _options(options)
        return _sent(await self._manager.send_message(queue, topic, payload, guarantee, **given))  # type: ignore[arg-type]

    async def _send_batch(
        self, token: object, queue: str, messages: list[Any], guarantee: str, options: Mapping[str, Any] | None
    ) -> Answer:
        self._require_creation(queue, token)
        if not isinstance(messages, list):
            raise TypeError(f"messages: got {describe(messages)}, expected a list of tables with topic and payload")
        results = await self._manager.send_messages(queue, messages, guarantee, **_options(options))  # type: ignore[arg-type]
        return {"results": [_sent(result) for result in results]}

    async def _receive(
        self,
        token: object,
        queue: str,
        subscriber: str,
        max_messages: int,
        wait_seconds: float,
        visibility_timeout_seconds: float | None,
        topic_pattern: str,
        receive_id: str | None,
    ) -> Answer:
        if not isinstance(wait_seconds, int | float):
            raise TypeError(f"wait_seconds: got {describe(wait_seconds)}, expected a number of seconds")
        messages = await self._receives.fetch(
            queue,
            _subscriber(subscriber),
            receive_id,
            max_messages,
            min(wait_seconds, MAX_WAIT_SECONDS),
            visibility_timeout_seconds=visibility_timeout_seconds,
            topic_pattern=topic_pattern,
        )
        return {"messages": messages}

    async def _cancel(self, token: object, queue: str, receive_id: str, subscriber: str) -> Answer:
        return {"cancelled": await self._receives.cancel(queue, _subscriber(subscriber), receive_id)}

    async def _ack(self, token: object, queue: str, message_id: str, subscriber: str) -> Answer:
        self._manager.queue(queue)
        done = await self._manager.acknowledge_message(queue, message_id, _subscriber(subscriber))
        return {"acknowledged": done}

    async def _nack(
        self, token: object, queue: str, message_id: str, subscriber: str, reason: str, delay_seconds: float
    ) -> Answer:
        self._manager.queue(queue)
        done = await self._manager.negative_acknowledge(
            queue, message_id, _subscriber(subscriber), reason, delay_seconds
        )
        return {"returned": done}

    async def _extend(self, token: object, queue: str, message_id: str, subscriber: str, seconds: float) -> Answer:
        self._manager.queue(queue)
        return {"extended": await self._manager.extend_lease(queue, message_id, _subscriber(subscriber), seconds)}

    # --- looking ------------------------------------------------------------------------------------------

    async def _list(self, token: object) -> Answer:
        names = self._manager.list_queues()
        return {"queues": [name for name in names if self._policy.allows("list", name, token)]}

    async def _stats(self, token: object, queue: str) -> Answer:
        return {"statistics": attrs.asdict(self._manager.queue(queue).get_statistics())}

    async def _dead_letters(self, token: object, queue: str, limit: int) -> Answer:
        letters = self._manager.queue(queue).list_dead_letters()
        if not isinstance(limit, int) or not 1 <= limit <= MAX_LISTED:
            raise ValueError(f"limit: got {describe(limit)}, expected a whole number from 1 to {MAX_LISTED}")
        return {"total": len(letters), "dead_letters": dead_letter_answers(letters[:limit])}

    # --- managing -----------------------------------------------------------------------------------------

    async def _create_queue(self, token: object, queue: str, config: Mapping[str, Any] | None) -> Answer:
        if config is None:
            return {"created": await self._manager.create_queue(queue)}
        if not isinstance(config, Mapping):
            raise TypeError(f"config: got {describe(config)}, expected a table of queue settings")
        unknown = set(config) - set(attrs.fields_dict(QueueConfiguration))
        if unknown:
            raise ConfigurationError(f"config: unknown settings {', '.join(sorted(map(str, unknown)))}")
        configuration = QueueConfiguration(**{**config, "name": config.get("name", queue)})
        return {"created": await self._manager.create_queue(queue, configuration)}

    async def _delete_queue(self, token: object, queue: str) -> Answer:
        return {"deleted": await self._manager.delete_queue(queue)}

    async def _redrive(
        self,
        token: object,
        queue: str,
        message_ids: list[str] | None,
        limit: int | None,
        target_queue: str | None,
        dry_run: bool,
    ) -> Answer:
        if target_queue is not None:
            if not isinstance(target_queue, str):
                raise TypeError(f"target_queue: got {describe(target_queue)}, expected the name of a queue")
            self._require("send", target_queue, token)
        redriven = await self._manager.redrive_dead_letters(
            queue, message_ids, limit=limit, target_queue=target_queue, dry_run=dry_run
        )
        return {"message_ids": [str(message_id) for message_id in redriven]}

    async def _purge(self, token: object, queue: str) -> Answer:
        return {"purged": await self._manager.purge_queue(queue)}

    async def _purge_dead_letters(self, token: object, queue: str, message_ids: list[str] | None) -> Answer:
        return {"purged": await self._manager.queue(queue).purge_dead_letters(message_ids)}


def _options(options: Any) -> dict[str, Any]:
    if options is None:
        return {}
    if not isinstance(options, Mapping) or not all(isinstance(key, str) for key in options):
        raise TypeError(f"options: got {describe(options)}, expected a table of send options")
    return dict(options)


def _subscriber(name: Any) -> str:
    if not isinstance(name, str) or not name:
        raise TypeError(f"subscriber: got {describe(name)}, expected a name")
    return SUBSCRIBER_PREFIX + name


def _sent(result: DeliveryResult) -> Answer:
    return {
        "success": result.success,
        "message_id": None if result.message_id is None else str(result.message_id),
        "rejection": None if result.rejection is None else result.rejection.value,
        "error_message": result.error_message,
        "duplicate_of": None if result.duplicate_of is None else str(result.duplicate_of),
    }


# --- offering them to a server ----------------------------------------------------------------------------


@attrs.define(eq=False)
class _Gate:
    """Between a server's commands, which stay for ever, and whoever answers them now."""

    commands: QueueCommands | None = None


def _handler(command: Command, gate: _Gate) -> Callable[..., Awaitable[Answer]]:
    signature = command.signature()

    async def handler(*positional: Any, **named: Any) -> Answer:
        try:
            bound = signature.bind(*positional, **named)
        except TypeError as error:
            return _refusal("invalid", f"{command.name}: {error}; expected {command.usage()}")
        bound.apply_defaults()
        if gate.commands is None:
            return _refusal("unavailable", "there are no queues on this server now")
        return await gate.commands.run(command, dict(bound.arguments))

    handler.__name__ = command.name.replace(".", "_")
    handler.__qualname__ = handler.__name__
    handler.__doc__ = command.summary
    handler.__signature__ = signature  # type: ignore[attr-defined]
    handler.__annotations__ = {name: one.annotation for name, one in signature.parameters.items()}
    handler.mpreg_mq_gate = gate  # type: ignore[attr-defined]
    return handler


def _gate_of(host: Host) -> _Gate | None:
    gate = getattr(host.command(COMMANDS[0].name), "mpreg_mq_gate", None)
    return gate if isinstance(gate, _Gate) else None


def offer_commands(host: Host, commands: QueueCommands) -> None:
    """Register the commands at a server, or bring those to life that an earlier plugin left there.

    Raises:
        ConfigurationError: somebody else has registered a command of that name.
    """
    gate = _gate_of(host)
    if gate is None:
        taken = [command.name for command in COMMANDS if host.command(command.name) is not None]
        if taken:
            raise ConfigurationError(f"MessageQueuePlugin: the server has commands {', '.join(taken)} already")
        gate = _Gate()
        for command in COMMANDS:
            host.register_command(
                command.name, _handler(command, gate), NAMESPACE, command.doc(host), command.examples(host)
            )
    gate.commands = commands


def retract_commands(host: Host) -> None:
    """Have the commands answer that there are no queues, where they are offered."""
    gate = _gate_of(host)
    if gate is not None:
        gate.commands = None
