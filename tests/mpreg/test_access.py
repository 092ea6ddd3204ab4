"""Who may use the commands: denied by default, by rules and tokens that nothing shows."""

from __future__ import annotations

from typing import Any

import pytest

from mpreg_mq import ConfigurationError
from mpreg_mq.mpreg import AccessPolicy, AccessRule
from mpreg_mq.mpreg.access import GROUPS, OPERATIONS

ALICE = "alice-has-a-long-token"
BOB = "bob-has-another-token"


def test_what_no_rule_allows_is_denied() -> None:
    """Given no rules, then nobody may do anything."""
    assert not any(AccessPolicy().allows(operation, "q", token) for operation in OPERATIONS for token in (ALICE, None))


@pytest.mark.parametrize(
    ("operation", "queue", "token", "allowed"),
    [
        ("send", "orders", ALICE, True),
        ("send_batch", "orders.eu", ALICE, True),
        ("receive", "orders", ALICE, False),
        ("send", "payments", ALICE, False),
        ("send", "orders", BOB, False),
        ("receive", "orders", BOB, True),
        ("purge", "orders", BOB, False),
        ("stats", "public", None, True),
        ("stats", "public", ALICE, True),
        ("stats", "publicity", None, False),
        ("send", "orders", "", False),
        ("send", "orders", 7, False),
        ("send", "orders", ALICE + "x", False),
        ("explode", "orders", ALICE, False),
    ],
)
def test_a_rule_is_about_queues_operations_and_a_token(
    operation: str, queue: str, token: object, allowed: bool
) -> None:
    """Given rules for different people, then each may do what theirs say, on the queues they name."""
    policy = AccessPolicy(
        [
            AccessRule("orders*", "produce", token=ALICE),
            AccessRule("orders", ["consume", "list"], token=BOB),
            AccessRule("public", "inspect", token=None),
        ]
    )
    assert policy.allows(operation, queue, token) is allowed


def test_groups_are_all_operations() -> None:
    """Given the groups, then they have no operation twice, and '*' is all of them."""
    assert sum(map(len, GROUPS.values())) == len(OPERATIONS)
    assert AccessRule("*", "*", token=None).operations == OPERATIONS


def test_a_token_is_not_shown() -> None:
    """Given a rule, then neither it nor a policy shows the token or its digest."""
    rule = AccessRule("q", "*", token=ALICE)
    for shown in (repr(rule), str(rule), repr(AccessPolicy([rule])), repr(vars(type(rule)))):
        assert ALICE not in shown
    assert "a token" in repr(rule)
    assert "anybody" in repr(AccessRule("q", "*", token=None))


@pytest.mark.parametrize(
    ("queues", "operations", "token", "named"),
    [
        ("", "*", ALICE, "queues"),
        ("q", "explode", ALICE, "operations"),
        ("q", (), ALICE, "operations"),
        ("q", "*", "short", "token"),
        ("q", "*", 7, "token"),
    ],
)
def test_a_bad_rule_is_refused(queues: str, operations: Any, token: Any, named: str) -> None:
    """Given a bad rule, then it is refused by the name of what is bad, without the token."""
    with pytest.raises(ConfigurationError, match=named) as refused:
        AccessRule(queues, operations, token=token)
    assert "short" not in str(refused.value)


def test_rules_of_a_settings_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given tables, then a rule says in exactly one way whom it lets in."""
    monkeypatch.setenv("ORDERS_TOKEN", BOB)
    for table in (
        {"queues": "q", "operations": ["send"], "token": ALICE},
        {"queues": "q", "operations": "send", "token_environment": "ORDERS_TOKEN"},
        {"queues": "q", "operations": "*", "anybody": True},
    ):
        assert "send" in AccessRule.from_mapping(table).operations
    assert AccessRule.from_mapping(
        {"queues": "q", "operations": "send", "token_environment": "ORDERS_TOKEN"}
    ) == AccessRule("q", "send", token=BOB)
    monkeypatch.delenv("ORDERS_TOKEN")
    for bad, named in (
        ({"queues": "q", "operations": "send", "token_environment": "ORDERS_TOKEN"}, "not set"),
        ({"queues": "q", "operations": "send"}, "exactly one"),
        ({"queues": "q", "operations": "send", "token": ALICE, "anybody": True}, "exactly one"),
        ({"queues": "q", "operations": "send", "tokn": ALICE}, "unknown keys tokn"),
    ):
        with pytest.raises(ConfigurationError, match=named):
            AccessRule.from_mapping(bad)
