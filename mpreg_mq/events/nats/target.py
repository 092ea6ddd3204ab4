"""The address of a log on NATS: ``nats://host:4222/STREAM?replicas=3``."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit, urlunsplit

import attrs

from mpreg_mq._validation import Check, configured, describe, number, whole
from mpreg_mq.errors import ConfigurationError
from mpreg_mq.events.nats.subjects import valid_stream_name

SCHEME = "nats://"
DEFAULT_PORT = 4222
MAX_REPLICAS = 5
STORAGES = ("file", "memory")
_EXPECTED = "nats://host:4222/STREAM, or several hosts as nats://one:4222,two:4222/STREAM"


def _storage_problem(value: Any) -> str | None:
    return None if value in STORAGES else f"got {describe(value)}, expected {' or '.join(STORAGES)}"


def _stream_problem(value: Any) -> str | None:
    if isinstance(value, str) and valid_stream_name(value):
        return None
    return f"got {describe(value)}, expected 1 to 64 letters, digits, '_' and '-'"


def _servers_problem(value: Any) -> str | None:
    if isinstance(value, tuple) and value and all(isinstance(url, str) and url.startswith(SCHEME) for url in value):
        return None
    return f"got {describe(value)}, expected one or more URLs nats://host:4222"


_seconds: Check = number(0.05, 3600.0)


@attrs.frozen
class NatsTarget:
    """Where a log on NATS JetStream is, and how it is made where it is missing.

    Attributes:
        servers: URLs of servers of one cluster; the client goes to another when one fails.
        stream: the JetStream stream that holds the events.
        replicas: copies that the cluster keeps, for a stream that is made now; 1, 3 or 5.
        storage: ``"file"``, or ``"memory"`` for logs that may be lost with the servers.
        append_timeout_seconds: how long an append is tried before its outcome is called unknown.
        connect_timeout_seconds: how long opening the log may take.
        credentials: path of a NATS credentials file, or None.
        monitors: HTTP monitoring URLs of the servers, where the log finds out whether they sync always.
    """

    servers: tuple[str, ...] = attrs.field(validator=configured(_servers_problem))
    stream: str = attrs.field(validator=configured(_stream_problem))
    replicas: int = attrs.field(default=1, validator=configured(whole(1, MAX_REPLICAS)))
    storage: str = attrs.field(default="file", validator=configured(_storage_problem))
    append_timeout_seconds: float = attrs.field(default=15.0, validator=configured(_seconds))
    connect_timeout_seconds: float = attrs.field(default=10.0, validator=configured(_seconds))
    credentials: str | None = None
    monitors: tuple[str, ...] = ()

    @property
    def location(self) -> str:
        """The address without user names and passwords."""
        hosts = ",".join(urlsplit(url).netloc.rpartition("@")[2] for url in self.servers)
        return f"{SCHEME}{hosts}/{self.stream}"

    @classmethod
    def parse(cls, url: str) -> NatsTarget:
        """The target that an address names.

        Options follow ``?``: ``replicas``, ``storage``, ``append_timeout_seconds``, ``connect_timeout_seconds``,
        ``credentials`` and ``monitor``, which may name several URLs, separated by commas.

        Raises:
            ConfigurationError: the address is not one, an option is unknown or out of its range.
        """
        parts = urlsplit(url)
        hosts = [host for host in parts.netloc.split(",") if host]
        stream = unquote(parts.path.removeprefix("/"))
        if not url.startswith(SCHEME) or not hosts or not stream:
            raise ConfigurationError(f"open_log: got {describe(url)}, expected {_EXPECTED}")
        # User and password stand before the first host and hold for all of them.
        login, at, first = hosts[0].rpartition("@")
        names = [first, *(host.rpartition("@")[2] for host in hosts[1:])]
        servers = tuple(urlunsplit(("nats", login + at + _with_port(name, url), "", "", "")) for name in names)
        options = _options(parts.query, url)
        return cls(servers, stream, **options)


def _with_port(host: str, url: str) -> str:
    try:
        port = urlsplit(f"//{host}").port
    except ValueError as error:
        raise ConfigurationError(f"open_log: got {describe(url)}: {error}; expected {_EXPECTED}") from None
    return host if port is not None else f"{host}:{DEFAULT_PORT}"


def _options(query: str, url: str) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for name, text in parse_qsl(query, keep_blank_values=True):
        try:
            if name == "replicas":
                options[name] = int(text)
            elif name in ("append_timeout_seconds", "connect_timeout_seconds"):
                options[name] = float(text)
            elif name in ("storage", "credentials"):
                options[name] = text
            elif name == "monitor":
                options["monitors"] = tuple(part for part in text.split(",") if part)
            else:
                raise ConfigurationError(
                    f"open_log: unknown option {name!r} in {describe(url)}; expected replicas, storage, credentials, "
                    "monitor, append_timeout_seconds or connect_timeout_seconds"
                )
        except ConfigurationError:
            raise
        except ValueError:
            raise ConfigurationError(f"open_log: {name}: got {describe(text)}, expected a number") from None
    return options
