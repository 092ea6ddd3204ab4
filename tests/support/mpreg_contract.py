"""The contract between an MPREG server and the plugin, read from the classes of a host: the real one or its double.

``python -m tests.support.mpreg_contract`` prints that of the real one, and what it touches of a queue manager when two
servers run with a recording stand-in; that is what ``tests/mpreg/recorded/contract.json`` holds.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
from dataclasses import fields, is_dataclass
from typing import Any

MEMBERS: dict[str, tuple[str, ...]] = {
    "server:MPREGServer": (
        "attach_queue_manager",
        "register_command",
        "server",
        "shutdown_async",
        "_announce_fabric_node",
        "_announce_fabric_subscription",
        "_forward_pubsub_publish",
        "_handle_fabric_message",
        "_remove_fabric_subscription",
        "_send_notification_to_client",
    ),
    "fabric.queue_federation:FabricQueueFederationManager": (
        "advertise_existing_queues",
        "handle_fabric_message",
        "send_message_globally",
        "subscribe_globally",
        "_discover_queue_cluster",
        "_queue_matches_pattern",
        "_send_request",
    ),
    "fabric.queue_messages:QueueFederationRequest": ("from_dict", "to_dict"),
    "fabric.queue_messages:QueueFederationAck": ("to_dict",),
    "fabric.queue_messages:QueueFederationSubscription": ("from_dict", "to_dict"),
    "fabric.queue_messages:QueueMessageOptions": ("to_dict",),
    "client.client_api:MPREGClientAPI": ("call", "connect", "disconnect"),
}
"""The functions that the plugin and its client call, by class."""

FIELDS = (
    "core.config:MPREGSettings",
    "fabric.catalog:QueueEndpoint",
    "fabric.catalog:QueueKey",
    "fabric.catalog_delta:RoutingCatalogDelta",
    "fabric.message:MessageHeaders",
    "fabric.message:UnifiedMessage",
    "fabric.queue_federation:FabricQueueInFlight",
    "fabric.queue_messages:QueueFederationAck",
    "fabric.queue_messages:QueueFederationRequest",
    "fabric.queue_messages:QueueFederationSubscription",
    "fabric.queue_messages:QueueMessageOptions",
    "datastructures.rpc_spec:RpcDocSpec",
    "datastructures.rpc_spec:RpcExampleSpec",
    "datastructures.rpc_spec:RpcParamDoc",
)
"""The values that are made or read, by class."""

ENUMS = (
    "fabric.message:DeliveryGuarantee",
    "fabric.message:MessageType",
    "fabric.catalog:QueueHealth",
    "fabric.queue_messages:QueueFederationKind",
    "fabric.queue_messages:QueueDeliveryGuarantee",
)

PLACES = {"core.config": "server"}
"""Where the double has what the host has elsewhere."""


def _class(root: str, name: str) -> Any:
    module, _, cls = name.partition(":")
    if root != "mpreg":
        module = PLACES.get(module, module)
    return getattr(importlib.import_module(f"{root}.{module}"), cls)


def contract(root: str) -> dict[str, Any]:
    """Parameters of functions, names of fields, and values of enums, of the host in this package."""
    functions = {}
    for name, members in MEMBERS.items():
        cls = _class(root, name)
        for member in members:
            function = getattr(cls, member)
            functions[f"{name}.{member}"] = {
                "parameters": [p for p in inspect.signature(function).parameters if p not in ("self", "cls")],
                "coroutine": inspect.iscoroutinefunction(function),
            }
    values = {}
    for name in FIELDS:
        cls = _class(root, name)
        assert is_dataclass(cls)
        values[name] = [field.name for field in fields(cls)]
    return {
        "functions": functions,
        "fields": values,
        "enums": {name: {one.name: one.value for one in _class(root, name)} for name in ENUMS},
    }


class Recorder:
    """A queue manager that notes what is touched of it, and whether that is awaited."""

    def __init__(self, manager: Any) -> None:
        self._manager = manager
        self.touched: dict[str, str] = {}

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._manager, name)
        if inspect.iscoroutinefunction(found):
            self.touched[name] = "coroutine function"
        else:
            self.touched[name] = "function" if callable(found) else "attribute"
        return found


async def touched() -> dict[str, str]:
    """What two real servers touch of a queue manager, with MPREG's own federation and monitoring."""
    from mpreg.core.message_queue import DeliveryGuarantee  # type: ignore[import-not-found]

    from mpreg_mq import MessageQueueManager
    from tests.support.mpreg_servers import eventually, free_port, mpreg_server

    port = free_port()
    async with (
        mpreg_server("a", port=port) as a,
        mpreg_server("b", connect=f"ws://127.0.0.1:{port}", monitoring_enabled=True, monitoring_port=free_port()) as b,
    ):
        recorders = [Recorder(MessageQueueManager()), Recorder(MessageQueueManager())]
        for server, recorder in zip((a, b), recorders, strict=True):
            server.attach_queue_manager(recorder)
            server._fabric_router.message_queue = recorder
        tasks = [asyncio.create_task(server.server()) for server in (a, b)]
        await asyncio.sleep(1.5)
        await b._fabric_queue_federation.create_queue("jobs")
        await b._fabric_queue_federation.advertise_existing_queues()
        catalog = a._fabric_control_plane.index.catalog.queues
        await eventually(lambda: any(entry.queue_name == "jobs" for entry in catalog.entries()))
        got: list[Any] = []
        await b._fabric_queue_federation.subscribe_globally("w", "jobs", "#", callback=got.append)
        await a._fabric_queue_federation.subscribe_globally("w", "jobs", "#", callback=got.append)
        await a._fabric_queue_federation.send_message_globally(
            "jobs", "t", 1, delivery_guarantee=DeliveryGuarantee.AT_LEAST_ONCE
        )
        await eventually(lambda: bool(got))
        b._build_status_message()
        await b._unified_monitor.queue_monitor.get_system_metrics()
        for server in (b, a):
            await server.shutdown_async()
        for task in tasks:
            await task
    return {name: kind for recorder in recorders for name, kind in sorted(recorder.touched.items())}


if __name__ == "__main__":
    print(json.dumps({**contract("mpreg"), "touched": asyncio.run(touched())}, indent=1, sort_keys=True))
