"""How the plugin is set up: in code, or by the ``[mpreg-mq]`` table of MPREG's own settings file."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from mpreg_mq._validation import configured, describe, flag, seconds
from mpreg_mq.configuration import QueueConfiguration, QueueManagerConfiguration, RetentionPolicy
from mpreg_mq.errors import ConfigurationError
from mpreg_mq.mpreg.access import AccessPolicy, AccessRule

TABLE = "mpreg-mq"

_flag = configured(flag)


def _route(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not {"topic_pattern", "queue_name"} <= set(value):
        raise ConfigurationError(
            f"PluginConfiguration.routes: got {describe(value)}, expected tables with topic_pattern and queue_name"
        )
    return dict(value)


def _routes(values: Any) -> tuple[dict[str, Any], ...]:
    return tuple(_route(value) for value in values)


def _manager(value: Any) -> QueueManagerConfiguration:
    return QueueManagerConfiguration.coerce(value)


def _queues(values: Any) -> tuple[QueueConfiguration, ...]:
    return tuple(QueueConfiguration.coerce(value) for value in values)


@attrs.frozen
class PluginConfiguration:
    """What the plugin does on a server.

    ``queues`` and ``routes`` are made when it is registered, where they are not there yet; a route is the arguments of
    :meth:`~mpreg_mq.MessageQueueManager.route_topic_to_queue`. ``rpc`` says who may use the ``mq.*`` commands; None
    offers none. ``rpc_beyond_loopback`` is the word that lets them be offered where other machines can connect.
    ``advert_ttl_seconds`` is how long other servers believe in a queue of a server that they no longer hear of.
    ``acknowledgment_timeout_seconds`` is how long a message to another cluster waits for that one's answer.
    """

    manager: QueueManagerConfiguration = attrs.field(factory=QueueManagerConfiguration, converter=_manager)
    queues: tuple[QueueConfiguration, ...] = attrs.field(default=(), converter=_queues)
    routes: tuple[dict[str, Any], ...] = attrs.field(default=(), converter=_routes)
    rpc: AccessPolicy | None = attrs.field(
        default=None, validator=attrs.validators.optional(attrs.validators.instance_of(AccessPolicy))
    )
    rpc_beyond_loopback: bool = attrs.field(default=False, validator=_flag)
    advert_ttl_seconds: float = attrs.field(default=30.0, validator=configured(seconds(0.3)))
    acknowledgment_timeout_seconds: float = attrs.field(default=30.0, validator=configured(seconds(0.1)))

    @classmethod
    def from_mapping(cls, table: Mapping[str, Any]) -> tuple[PluginConfiguration, str | None]:
        """The configuration and the log's address that a ``[mpreg-mq]`` table holds.

        Keys: ``log``; the manager's own settings, ``retention`` as a table; ``advert_ttl_seconds`` and
        ``acknowledgment_timeout_seconds``; the lists ``queues`` and ``routes``; and the table ``rpc`` with the list
        ``rules`` and ``beyond_loopback``.

        Raises:
            ConfigurationError: a key is unknown, or a value is bad.
        """
        given = dict(table)
        log = given.pop("log", None)
        if log is not None and not isinstance(log, str):
            raise ConfigurationError(f"[{TABLE}] log: got {describe(log)}, expected an address like 'sqlite:///q.db'")
        rpc, beyond = _rpc(given.pop("rpc", None))
        own = {
            name: given.pop(name)
            for name in ("routes", "advert_ttl_seconds", "acknowledgment_timeout_seconds")
            if name in given
        }
        if "routes" in own:
            own["routes"] = _listed("routes", own["routes"])
        queues = tuple(_queue(entry) for entry in _listed("queues", given.pop("queues", ())))
        known = set(attrs.fields_dict(QueueManagerConfiguration))
        if set(given) - known:
            raise ConfigurationError(
                f"[{TABLE}]: unknown keys {', '.join(sorted(set(given) - known))}; expected log, queues, routes, rpc, "
                f"advert_ttl_seconds, acknowledgment_timeout_seconds, {', '.join(sorted(known))}"
            )
        if "retention" in given:
            given["retention"] = _retention(given["retention"])
        manager = QueueManagerConfiguration(**given)
        return cls(manager=manager, queues=queues, rpc=rpc, rpc_beyond_loopback=beyond, **own), log

    @classmethod
    def from_path(cls, path: str | Path) -> tuple[PluginConfiguration, str | None]:
        """See :meth:`from_mapping`, for the table in a TOML file; the defaults where it has none.

        Raises:
            ConfigurationError: the file is no TOML, or the table is bad.
            OSError: the file cannot be read.
        """
        try:
            content = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"{path} is not TOML: {error}") from error
        table = content.get(TABLE, {})
        if not isinstance(table, Mapping):
            raise ConfigurationError(f"{path}: got {describe(table)} for {TABLE!r}, expected a table [{TABLE}]")
        return cls.from_mapping(table)


def _listed(name: str, value: Any) -> Any:
    if not isinstance(value, list | tuple):
        raise ConfigurationError(f"[{TABLE}] {name}: got {describe(value)}, expected a list, as of [[{TABLE}.{name}]]")
    return value


def _queue(entry: Any) -> QueueConfiguration:
    if not isinstance(entry, Mapping):
        raise ConfigurationError(f"[{TABLE}] queues: got {describe(entry)}, expected tables [[{TABLE}.queues]]")
    unknown = set(entry) - set(attrs.fields_dict(QueueConfiguration))
    if unknown or "name" not in entry:
        what = f"unknown keys {', '.join(sorted(unknown))}" if unknown else "no name"
        raise ConfigurationError(f"[{TABLE}] queues: {what} in {describe(dict(entry))}")
    return QueueConfiguration(**entry)


def _retention(table: Any) -> RetentionPolicy:
    if not isinstance(table, Mapping) or set(table) - set(attrs.fields_dict(RetentionPolicy)):
        raise ConfigurationError(
            f"[{TABLE}.retention]: got {describe(table)}, expected a table with "
            f"{', '.join(attrs.fields_dict(RetentionPolicy))}"
        )
    return RetentionPolicy(**table)


def _rpc(table: Any) -> tuple[AccessPolicy | None, bool]:
    if table is None:
        return None, False
    if not isinstance(table, Mapping) or set(table) - {"rules", "beyond_loopback"}:
        raise ConfigurationError(f"[{TABLE}.rpc]: expected the keys rules and beyond_loopback only")
    return AccessPolicy(
        AccessRule.from_mapping(rule) for rule in _listed("rpc.rules", table.get("rules", ()))
    ), table.get("beyond_loopback", False)
