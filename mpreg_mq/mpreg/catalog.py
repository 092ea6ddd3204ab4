"""The commands as MPREG's catalog shows them: their parameters, what they say of themselves, and an example each."""

from __future__ import annotations

import inspect
from typing import Any

import attrs

from mpreg_mq.mpreg.host import Host

REQUIRED = inspect.Parameter.empty

_QUEUE = "Name of the queue."
_SUBSCRIBER = "Who receives; acknowledgments count under the same name only."
_GUARANTEE = "fire_and_forget, at_least_once, broadcast or quorum."
_OPTIONS = "Send options: priority, delay_seconds, message_ttl_seconds, max_retries, headers, deduplication_id, ..."
_TOKEN = "What the access rules ask for."


@attrs.frozen
class Parameter:
    """A parameter of a command."""

    name: str
    type: Any
    doc: str
    default: Any = REQUIRED


@attrs.frozen
class Command:
    """A command of the ``mq`` namespace."""

    operation: str
    summary: str
    returns: str
    parameters_in_order: tuple[Parameter, ...]
    request: dict[str, Any]
    response: dict[str, Any]

    @property
    def name(self) -> str:
        """Its name among the server's commands."""
        return f"mq.{self.operation}"

    @property
    def parameters(self) -> frozenset[str]:
        """The names of its parameters."""
        return frozenset(parameter.name for parameter in self.parameters_in_order)

    def signature(self) -> inspect.Signature:
        """How it is called; the token comes last in every command."""
        return inspect.Signature(
            [
                inspect.Parameter(
                    one.name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=one.default, annotation=one.type
                )
                for one in (*self.parameters_in_order, Parameter("token", str | None, _TOKEN, None))
            ],
            return_annotation=dict,
        )

    def usage(self) -> str:
        """Its parameters in one line."""
        return ", ".join(
            one.name if one.default is REQUIRED else f"{one.name}={one.default!r}" for one in self.parameters_in_order
        )

    def doc(self, host: Host) -> Any:
        """What MPREG's catalog says of it."""
        spec = host.module("datastructures.rpc_spec")
        return spec.RpcDocSpec(
            summary=self.summary,
            description=f"{self.summary} Answers a table with ok, and error and message where ok is false.",
            param_docs=tuple(
                spec.RpcParamDoc(name=one.name, description=one.doc)
                for one in (*self.parameters_in_order, Parameter("token", str | None, _TOKEN, None))
            ),
            return_doc=self.returns,
        )

    def examples(self, host: Host) -> tuple[Any, ...]:
        """An example for MPREG's catalog."""
        spec = host.module("datastructures.rpc_spec")
        return (
            spec.RpcExampleSpec(
                name=self.operation, description=self.summary, request=self.request, response=self.response
            ),
        )


def _queue() -> Parameter:
    return Parameter("queue", str, _QUEUE)


_MESSAGE = {"id": "1-3f2a", "topic": "order.paid", "payload": {"id": 7}, "headers": {}, "delivery_attempt": 1}

COMMANDS: tuple[Command, ...] = (
    Command(
        "send",
        "Send a message to a queue.",
        "success, message_id, and rejection, error_message and duplicate_of where success is false.",
        (
            _queue(),
            Parameter("topic", str, "Levels split at dots."),
            Parameter("payload", Any, "Anything that JSON holds."),
            Parameter("guarantee", str, _GUARANTEE, "at_least_once"),
            Parameter("options", dict | None, _OPTIONS, None),
        ),
        {"queue": "orders", "topic": "order.paid", "payload": {"id": 7}, "options": {"priority": 5}},
        {"ok": True, "success": True, "message_id": "1-3f2a"},
    ),
    Command(
        "send_batch",
        "Send many messages to a queue in one commit.",
        "results: for each message what send answers.",
        (
            _queue(),
            Parameter("messages", list, "Tables with topic, payload and options of their own."),
            Parameter("guarantee", str, _GUARANTEE, "at_least_once"),
            Parameter("options", dict | None, _OPTIONS, None),
        ),
        {"queue": "orders", "messages": [{"topic": "order.paid", "payload": {"id": 7}}]},
        {"ok": True, "results": [{"success": True, "message_id": "1-3f2a"}]},
    ),
    Command(
        "receive",
        "Fetch messages and lease them; wait for the first one where there is none.",
        "messages: id, topic, payload, headers and so on of each; as many as one answer carries.",
        (
            _queue(),
            Parameter("subscriber", str, _SUBSCRIBER),
            Parameter("max_messages", int, "Most messages to fetch.", 1),
            Parameter("wait_seconds", float, "How long to wait, at most 20 s.", 0.0),
            Parameter("visibility_timeout_seconds", float | None, "How long the messages are leased.", None),
            Parameter("topic_pattern", str, "Which topics, when the subscriber is new.", "#"),
            Parameter("receive_id", str | None, "A new name for this call, by which it can be cancelled.", None),
        ),
        {"queue": "orders", "subscriber": "worker-1", "max_messages": 10, "wait_seconds": 20},
        {"ok": True, "messages": [_MESSAGE]},
    ),
    Command(
        "cancel",
        "End a receive that waits or is yet to come, or give back what one has fetched and nobody has seen.",
        "cancelled: whether there was anything to end.",
        (
            _queue(),
            Parameter("receive_id", str, "What the receive was given."),
            Parameter("subscriber", str, _SUBSCRIBER),
        ),
        {"queue": "orders", "receive_id": "a81bc81b", "subscriber": "worker-1"},
        {"ok": True, "cancelled": True},
    ),
    Command(
        "ack",
        "Acknowledge a message: it is done.",
        "acknowledged: whether that counted.",
        (_queue(), Parameter("message_id", str, "Its id."), Parameter("subscriber", str, _SUBSCRIBER)),
        {"queue": "orders", "message_id": "1-3f2a", "subscriber": "worker-1"},
        {"ok": True, "acknowledged": True},
    ),
    Command(
        "nack",
        "Give a message back: a failed attempt, to be tried again.",
        "returned: whether that counted.",
        (
            _queue(),
            Parameter("message_id", str, "Its id."),
            Parameter("subscriber", str, _SUBSCRIBER),
            Parameter("reason", str, "What went wrong.", "negatively acknowledged"),
            Parameter("delay_seconds", float, "Not before so many seconds.", 0.0),
        ),
        {"queue": "orders", "message_id": "1-3f2a", "subscriber": "worker-1", "reason": "disk full"},
        {"ok": True, "returned": True},
    ),
    Command(
        "extend",
        "Keep a message for longer.",
        "extended: whether that counted.",
        (
            _queue(),
            Parameter("message_id", str, "Its id."),
            Parameter("subscriber", str, _SUBSCRIBER),
            Parameter("seconds", float, "How long from now."),
        ),
        {"queue": "orders", "message_id": "1-3f2a", "subscriber": "worker-1", "seconds": 60},
        {"ok": True, "extended": True},
    ),
    Command(
        "create_queue",
        "Create a queue.",
        "created: false where it exists.",
        (_queue(), Parameter("config", dict | None, "Its settings; the server's defaults without.", None)),
        {"queue": "orders", "config": {"queue_type": "priority", "max_retries": 5}},
        {"ok": True, "created": True},
    ),
    Command(
        "delete_queue",
        "Delete a queue with all that is in it.",
        "deleted: false where there is none.",
        (_queue(),),
        {"queue": "orders"},
        {"ok": True, "deleted": True},
    ),
    Command(
        "list",
        "Name the queues that the token may list.",
        "queues: their names.",
        (),
        {},
        {"ok": True, "queues": ["orders"]},
    ),
    Command(
        "stats",
        "Count what happened in a queue.",
        "statistics: the counts by name.",
        (_queue(),),
        {"queue": "orders"},
        {"ok": True, "statistics": {"messages_sent": 12, "current_queue_size": 3}},
    ),
    Command(
        "dead_letters",
        "List the dead letters of a queue, oldest first.",
        "total, and dead_letters, as many as one answer carries: each with failure_reason, last_error and attempts, "
        "and payload_error instead of a payload that JSON cannot hold.",
        (_queue(), Parameter("limit", int, "Most to list.", 100)),
        {"queue": "orders", "limit": 10},
        {"ok": True, "total": 1, "dead_letters": [{**_MESSAGE, "failure_reason": "attempts are used up"}]},
    ),
    Command(
        "redrive",
        "Accept dead letters again, in their queue or in another.",
        "message_ids: the new ids, or with dry_run those that would be redriven.",
        (
            _queue(),
            Parameter("message_ids", list | None, "Which; all without.", None),
            Parameter("limit", int | None, "Most to redrive.", None),
            Parameter("target_queue", str | None, "Where to; needs leave to send there.", None),
            Parameter("dry_run", bool, "Only say which.", False),
        ),
        {"queue": "orders", "limit": 10},
        {"ok": True, "message_ids": ["2-3f2a"]},
    ),
    Command(
        "purge",
        "Remove every unfinished message of a queue.",
        "purged: how many.",
        (_queue(),),
        {"queue": "orders"},
        {"ok": True, "purged": 3},
    ),
    Command(
        "purge_dead_letters",
        "Remove dead letters of a queue for good.",
        "purged: how many.",
        (_queue(), Parameter("message_ids", list | None, "Which; all without.", None)),
        {"queue": "orders", "message_ids": ["1-3f2a"]},
        {"ok": True, "purged": 1},
    ),
)
"""Every command."""
