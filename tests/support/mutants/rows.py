"""Faulty deliveries in a row."""

from __future__ import annotations

from math import inf
from typing import Any

import attrs

from tests.support.mutants.mutant import Mutant

DELIVERING = "mpreg_mq.actors.delivering"


def _past_other_lanes(front: Any) -> Any:
    def mutated(self: Any) -> Any:
        found = front(self)
        return None if found is None else (*found[:2], (inf, 0))

    return mutated


def _past_what_is_not_stored(row_of_deliveries: Any) -> Any:
    def mutated(state: Any, context: Any) -> Any:
        return row_of_deliveries(state, attrs.evolve(context, durable_version=1 << 62))

    return mutated


def _without_the_last(fold: Any) -> Any:
    def mutated(state: Any, events: Any) -> None:
        fold(state, events[:-2] if len(events) > 2 else events)

    return mutated


def _forgetting_the_last(place_all: Any) -> Any:
    def mutated(self: Any) -> None:
        if len(self.unplaced) > 1:
            self.unplaced.popitem()
        place_all(self)

    return mutated


ROW_MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "a row goes past a message of another lane",
        "O2",
        "mpreg_mq.projections.lanes:Lanes.front",
        _past_other_lanes,
        "rows",
    ),
    Mutant(
        "a row goes past what is not stored",
        "unexpected",
        f"{DELIVERING}:row_of_deliveries",
        _past_what_is_not_stored,
        "rows",
    ),
    Mutant(
        "the last of a row is not folded in",
        "I4",
        f"{DELIVERING}:delivered_and_acknowledged_in_a_row",
        _without_the_last,
        "rows",
    ),
    Mutant(
        "an unplaced message is forgotten when they are placed",
        "O1",
        "mpreg_mq.projections.unfinished:Unfinished.place_all",
        _forgetting_the_last,
        "rows",
    ),
)
