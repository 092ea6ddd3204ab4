"""All mutants, and the table of them in the documents."""

from __future__ import annotations

from tests.support.mutants.deciders import DECIDER_MUTANTS
from tests.support.mutants.mutant import Mutant
from tests.support.mutants.projections import PROJECTION_MUTANTS
from tests.support.mutants.rows import ROW_MUTANTS
from tests.support.mutants.storage import STORAGE_MUTANTS
from tests.support.mutants.stores import STORE_MUTANTS

MUTANTS: tuple[Mutant, ...] = (
    *DECIDER_MUTANTS,
    *ROW_MUTANTS,
    *PROJECTION_MUTANTS,
    *STORE_MUTANTS,
    *STORAGE_MUTANTS,
)


def table() -> str:
    """The table for docs/testing.md."""
    rows = [f"| {mutant.fault} | {mutant.part} | {mutant.rule} |" for mutant in MUTANTS]
    return "\n".join(["| fault | in | caught by |", "| --- | --- | --- |", *rows]) + "\n"


if __name__ == "__main__":
    print(table(), end="")
