"""The façades take the same arguments for the same verb; where one does not, that is listed here with its reason."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from inspect import Parameter
from typing import Any

import pytest

from mpreg_mq import BlockingMessageQueueManager, MessageQueue, MessageQueueManager
from mpreg_mq.mpreg import QueueClient

Shape = list[tuple[str, Any, Any]]
"""Name, kind and default of each parameter."""

OF_A_QUEUE = {
    "send_message": "send_message",
    "send_messages": "send_messages",
    "subscribe": "subscribe_to_queue",
    "unsubscribe": "unsubscribe_from_queue",
    "receive_messages": "receive_messages",
    "acknowledge_message": "acknowledge_message",
    "negative_acknowledge": "negative_acknowledge",
    "extend_lease": "extend_lease",
    "list_dead_letters": "list_dead_letters",
    "redrive_dead_letters": "redrive_dead_letters",
    "purge_dead_letters": "purge_dead_letters",
    "purge_queue": "purge_queue",
    "pause_queue": "pause_queue",
    "resume_queue": "resume_queue",
    "get_statistics": "get_queue_statistics",
}
"""The verbs of a queue, and what the manager calls them."""

OF_A_CLIENT = {
    "send": "send_message",
    "send_batch": "send_messages",
    "receive": "receive_messages",
    "acknowledge": "acknowledge_message",
    "negative_acknowledge": "negative_acknowledge",
    "extend": "extend_lease",
    "create_queue": "create_queue",
    "delete_queue": "delete_queue",
    "list_queues": "list_queues",
    "statistics": "get_queue_statistics",
    "redrive": "redrive_dead_letters",
    "purge": "purge_queue",
    "purge_dead_letters": "purge_dead_letters",
}
"""The verbs of MPREG's clients, and what the manager calls them."""

ON_THE_WIRE = {"queue": "queue_name", "subscriber": "subscriber_id", "guarantee": "delivery_guarantee"}
"""A client's arguments have the names that the mq.* commands have."""


def shape(verb: Callable[..., Any], renamed: dict[str, str] | None = None) -> Shape:
    """The parameters of a method but for ``self`` and the types."""
    names = renamed or {}
    parameters = list(inspect.signature(verb).parameters.values())
    assert parameters[0].name == "self"
    return [(names.get(one.name, one.name), one.kind, one.default) for one in parameters[1:]]


def public_verbs(facade: type[Any]) -> set[str]:
    """Names of the methods that users call."""
    return {name for name, _ in inspect.getmembers(facade, inspect.isfunction) if not name.startswith("_")}


def without(parameters: Shape, *names: str) -> Shape:
    """The other parameters; fails where there is no such one."""
    missing = set(names) - {name for name, _, _ in parameters}
    assert not missing, f"{missing} are no difference any more"
    return [one for one in parameters if one[0] not in names]


@pytest.mark.parametrize(("of_queue", "of_manager"), OF_A_QUEUE.items())
def test_a_manager_takes_what_a_queue_takes_after_its_name(of_queue: str, of_manager: str) -> None:
    """For every verb of a queue, the manager's has the queue's name before the same arguments."""
    theirs = shape(getattr(MessageQueue, of_queue))
    if of_queue == "redrive_dead_letters":
        # The other queue is named, not given, like every queue that a manager is asked about.
        theirs = shape(MessageQueue.redrive_dead_letters, {"target": "target_queue"})
    named = ("queue_name", Parameter.POSITIONAL_OR_KEYWORD, Parameter.empty)
    assert shape(getattr(MessageQueueManager, of_manager)) == [named, *theirs]


@pytest.mark.parametrize("verb", sorted(public_verbs(MessageQueueManager) & public_verbs(BlockingMessageQueueManager)))
def test_a_blocking_manager_takes_what_a_manager_takes(verb: str) -> None:
    """For every verb that both have, the arguments are the same."""
    ours, theirs = shape(getattr(BlockingMessageQueueManager, verb)), shape(getattr(MessageQueueManager, verb))
    if verb == "subscribe_to_queue":
        # There is no loop of the program's own, so its callbacks run on threads unless it says otherwise.
        assert ("blocking", Parameter.KEYWORD_ONLY, True) in ours
        assert ("blocking", Parameter.KEYWORD_ONLY, False) in theirs
        ours, theirs = without(ours, "blocking"), without(theirs, "blocking")
    assert ours == theirs


def test_a_cluster_takes_what_a_manager_takes() -> None:
    """For every verb that both have, the arguments are the same."""
    pytest.importorskip("nats", reason="nats-py is not installed (pip install 'mpreg-mq[nats]')")
    from mpreg_mq.cluster import ClusterQueueManager

    for verb in sorted(public_verbs(MessageQueueManager) & public_verbs(ClusterQueueManager)):
        theirs = shape(getattr(MessageQueueManager, verb))
        if verb == "redrive_dead_letters":
            # One commit on one node: another queue may have another owner, and a dry run would ask it for its room.
            theirs = without(theirs, "target_queue", "dry_run")
        assert shape(getattr(ClusterQueueManager, verb)) == theirs, verb


@pytest.mark.parametrize(("of_client", "of_manager"), OF_A_CLIENT.items())
def test_a_client_takes_what_a_manager_takes(of_client: str, of_manager: str) -> None:
    """For every verb of a client, the arguments are those of the manager under the names of the commands."""
    ours, theirs = shape(getattr(QueueClient, of_client), ON_THE_WIRE), shape(getattr(MessageQueueManager, of_manager))
    if of_client in ("acknowledge", "negative_acknowledge", "extend"):
        # A received message knows its queue, its id and who fetched it.
        theirs = without(theirs, "queue_name", "message_id", "subscriber_id")
        ours = without(ours, "message")
    if of_client == "extend":
        ours = [("seconds_from_now", kind, default) for _, kind, default in ours]
    if of_client == "create_queue":
        # A configuration is sent setting by setting, and the queue is what every command calls it.
        ours, theirs = without(ours, "config"), without(theirs, "config")
        theirs = [("queue_name", kind, default) for _, kind, default in theirs]
    if of_client == "delete_queue":
        theirs = [("queue_name", kind, default) for _, kind, default in theirs]
    assert ours == theirs
