"""Queues with one fault each: the kit catches every one of them, by the rule that the documents name."""

from __future__ import annotations

from pathlib import Path

import pytest

from mpreg_mq.testing.scenario import SCENARIOS
from mpreg_mq.testing.simulation import simulate
from tests.support.mutants.mutant import Mutant, resolve
from tests.support.mutants.table import MUTANTS, table

MOST_SEEDS = 100
DOCUMENT = Path(__file__).parents[2] / "docs" / "testing.md"


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.fault)
def test_the_fault_is_caught(mutant: Mutant) -> None:
    """Given a queue with a fault, when seeds are simulated, then one of the first breaks the rule named for it.

    The same seed with the fault taken out breaks none.
    """
    for seed in range(MOST_SEEDS):
        with mutant.applied():
            violations = simulate(seed, SCENARIOS[mutant.scenario]).violations
        if mutant.rule in {
            getattr(violation, "rule", None) or getattr(violation, "kind", None) for violation in violations
        }:
            simulate(seed, SCENARIOS[mutant.scenario]).check()
            return
    pytest.fail(f"{mutant.fault}: {MOST_SEEDS} seeds of {mutant.scenario} do not break {mutant.rule}")


def test_there_are_enough_of_them() -> None:
    """Given the mutants, then there are at least thirty, in every part, and each has a name."""
    assert len(MUTANTS) >= 30
    assert len({mutant.fault for mutant in MUTANTS}) == len(MUTANTS)
    assert {"decider", "projections", "actors", "invariants", "store"} == {mutant.part for mutant in MUTANTS}


@pytest.mark.parametrize("target", sorted({mutant.target for mutant in MUTANTS}))
def test_what_a_mutant_changes_is_still_there(target: str) -> None:
    """Given the place of a fault, then it is there, is something that can be called, and comes back as it was."""
    _, _, found = resolve(target)
    assert callable(found)
    mutant = next(mutant for mutant in MUTANTS if mutant.target == target)
    with mutant.applied():
        assert resolve(target)[2] is not found
    assert resolve(target)[2] is found


def test_the_documents_list_them() -> None:
    """Given docs/testing.md, then its table is the one that ``python -m tests.support.mutants.table`` prints."""
    assert table() in DOCUMENT.read_text(encoding="utf-8")
