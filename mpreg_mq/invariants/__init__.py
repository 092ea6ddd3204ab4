"""Checkers for the rules of docs/semantics.md over any history: live, from a file, or simulated."""

from __future__ import annotations

from mpreg_mq.invariants.checker import MAX_VIOLATIONS, InvariantChecker, check_history, recorded
from mpreg_mq.invariants.rule import Rule
from mpreg_mq.invariants.rules import ALL_RULES
from mpreg_mq.invariants.violation import Violation

__all__ = ["ALL_RULES", "MAX_VIOLATIONS", "InvariantChecker", "Rule", "Violation", "check_history", "recorded"]
