"""The double of the host is like the recorded host, the recorded host is like the real one, and our manager has what
the host touches."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest

from mpreg_mq import MessageQueueManager
from mpreg_mq.mpreg.hosted_manager import HostedQueueManager
from tests.support.exchanges import HAS_MPREG
from tests.support.mpreg_contract import contract

RECORDED: dict[str, Any] = json.loads(
    (Path(__file__).parent / "recorded" / "contract.json").read_text(encoding="utf-8")
)


def test_the_double_is_like_the_recorded_host() -> None:
    """Given the double, then its functions take no parameter that the host's do not, and are awaited alike; its values
    have no field that the host's do not, and its enums the same values."""
    double = contract("tests.support.mpreg_double")
    for name, function in double["functions"].items():
        recorded = RECORDED["functions"][name]
        assert set(function["parameters"]) <= set(recorded["parameters"]), name
        assert function["coroutine"] == recorded["coroutine"], name
    for name, fields in double["fields"].items():
        assert set(fields) - {"extra"} <= set(RECORDED["fields"][name]), name
    for name, values in double["enums"].items():
        assert values.items() <= RECORDED["enums"][name].items(), name


@pytest.mark.skipif(not HAS_MPREG, reason="mpreg cannot be imported; make test-mpreg MPREG_SOURCE=dir")
def test_the_recorded_host_is_like_the_real_one() -> None:
    """Given a real MPREG, then it has all that was recorded: another release that lost something shows here."""
    real = contract("mpreg")
    for name, function in RECORDED["functions"].items():
        assert set(function["parameters"]) <= set(real["functions"][name]["parameters"]), name
        assert function["coroutine"] == real["functions"][name]["coroutine"], name
    for name, fields in RECORDED["fields"].items():
        assert set(fields) <= set(real["fields"][name]), name
    for name, values in RECORDED["enums"].items():
        assert values.items() <= real["enums"][name].items(), name


@pytest.mark.parametrize("manager", [MessageQueueManager, HostedQueueManager])
def test_a_manager_has_what_the_host_touches(manager: type) -> None:
    """Given what a real host touched of its queue manager, then ours has it, and it is awaited where the host awaits
    it and nowhere else."""
    assert len(RECORDED["touched"]) >= 8
    for name, kind in RECORDED["touched"].items():
        found = inspect.getattr_static(manager, name)
        assert inspect.iscoroutinefunction(found) == (kind == "coroutine function"), name
        assert isinstance(found, property) == (kind == "attribute"), name
