"""Who may do what over RPC: MPREG lets every client run every command, so the commands ask for themselves.

What no rule allows is denied. A token is kept as its SHA-256 digest only, and compared in constant time.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import attrs

from mpreg_mq._validation import describe
from mpreg_mq.errors import ConfigurationError

GROUPS: dict[str, frozenset[str]] = {
    "produce": frozenset({"send", "send_batch"}),
    "consume": frozenset({"receive", "cancel", "ack", "nack", "extend"}),
    "inspect": frozenset({"list", "stats", "dead_letters"}),
    "manage": frozenset({"create_queue", "delete_queue", "redrive", "purge", "purge_dead_letters"}),
}
"""Operations that are usually allowed together."""

OPERATIONS = frozenset().union(*GROUPS.values())
"""Every operation; that of a command is its name without ``mq.``."""

MIN_TOKEN_LENGTH = 16


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def _operations(given: Iterable[str] | str) -> frozenset[str]:
    found: set[str] = set()
    if not isinstance(given, Iterable):
        raise ConfigurationError(f"AccessRule.operations: got {describe(given)}, expected a list of names")
    for name in (given,) if isinstance(given, str) else given:
        if name == "*":
            found |= OPERATIONS
        elif isinstance(name, str) and name in GROUPS:
            found |= GROUPS[name]
        elif isinstance(name, str) and name in OPERATIONS:
            found.add(name)
        else:
            raise ConfigurationError(
                f"AccessRule.operations: got {describe(name)}, expected '*', a group ({', '.join(GROUPS)}) "
                f"or an operation ({', '.join(sorted(OPERATIONS))})"
            )
    if not found:
        raise ConfigurationError("AccessRule.operations: got none, expected at least one")
    return frozenset(found)


def _token(token: Any) -> bytes | None:
    if token is None:
        return None
    if not isinstance(token, str) or len(token) < MIN_TOKEN_LENGTH:
        raise ConfigurationError(
            f"AccessRule.token: expected at least {MIN_TOKEN_LENGTH} characters, or None for everybody; "
            "make one with: python -c 'import secrets; print(secrets.token_urlsafe())'"
        )
    return _digest(token)


def _queue_pattern(_: Any, __: Any, value: Any) -> None:
    if not isinstance(value, str) or not value:
        raise ConfigurationError(f"AccessRule.queues: got {describe(value)}, expected a name or a pattern like 'a*'")


@attrs.frozen(repr=False)
class AccessRule:
    """Allows operations on the queues whose names match, to whoever knows the token.

    Args:
        queues: a queue name, in which ``*`` stands for any characters.
        operations: their names, ``"produce"``, ``"consume"``, ``"inspect"``, ``"manage"``, or ``"*"``.
        token: at least 16 characters; None lets in everybody who can connect to the server.

    Raises:
        ConfigurationError: an operation is unknown, or the token is too short.
    """

    queues: str = attrs.field(validator=_queue_pattern)
    operations: frozenset[str] = attrs.field(converter=_operations)
    _token_digest: bytes | None = attrs.field(kw_only=True, alias="token", converter=_token)

    @classmethod
    def from_mapping(cls, table: Mapping[str, Any]) -> AccessRule:
        """The rule of a settings file: ``queues``, ``operations``, and one of ``token``, ``token_environment`` (the
        name of the variable that holds it) or ``anybody = true``.

        Raises:
            ConfigurationError: a key is unknown or missing, or the variable is not set.
        """
        if not isinstance(table, Mapping):
            raise ConfigurationError(f"access rule: got {describe(table)}, expected a table with queues and operations")
        unknown = set(table) - {"queues", "operations", "token", "token_environment", "anybody"}
        if unknown:
            raise ConfigurationError(f"access rule: unknown keys {', '.join(sorted(unknown))}")
        token = table.get("token")
        variable = table.get("token_environment")
        anybody = table.get("anybody") is True
        if (token is not None) + (variable is not None) + anybody != 1:
            raise ConfigurationError(
                "access rule: expected exactly one of token, token_environment and anybody = true, "
                f"for queues {describe(table.get('queues'))}"
            )
        if variable is not None:
            token = os.environ.get(variable)
            if not token:
                raise ConfigurationError(f"access rule: the environment variable {describe(variable)} is not set")
        return cls(table.get("queues", ""), table.get("operations", ()), token=token)

    def allows(self, operation: str, queue_name: str, digest: bytes) -> bool:
        """Whether it allows this, to whoever has the token of this digest."""
        known = self._token_digest is None or hmac.compare_digest(self._token_digest, digest)
        return known and operation in self.operations and fnmatchcase(queue_name, self.queues)

    def __repr__(self) -> str:
        who = "anybody" if self._token_digest is None else "a token"
        return f"<AccessRule {self.queues!r} {', '.join(sorted(self.operations))} for {who}>"


def _rules(rules: Iterable[AccessRule]) -> tuple[AccessRule, ...]:
    return tuple(rules)


@attrs.frozen
class AccessPolicy:
    """Some rules; what none of them allows is denied."""

    rules: tuple[AccessRule, ...] = attrs.field(default=(), converter=_rules)

    def allows(self, operation: str, queue_name: str, token: object) -> bool:
        """Whether a rule allows an operation on a queue to whoever brings this token; O(rules)."""
        digest = _digest(token) if isinstance(token, str) else b""
        # Every rule is asked, so that the time tells nothing of which one it was.
        return sum(rule.allows(operation, queue_name, digest) for rule in self.rules) > 0
