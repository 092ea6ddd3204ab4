"""The results of a run, kept as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs

from benchmarks.harness.model import Outcome
from benchmarks.harness.statistics import Summary


@attrs.frozen
class Results:
    """Outcomes, and on what they were measured."""

    machine: dict[str, str]
    versions: dict[str, str]
    settings: dict[str, Any]
    outcomes: tuple[Outcome, ...]

    def outcome(self, row: str, entry: str) -> Outcome | None:
        """What an entry gave, or None where it was not run."""
        return next((found for found in self.outcomes if (found.row, found.entry) == (row, entry)), None)

    def summary(self, row: str, entry: str, metric: str) -> Summary | None:
        """Median and spread of a metric, or None where there are no values."""
        outcome = self.outcome(row, entry)
        values = None if outcome is None else outcome.values.get(metric)
        return Summary.of(values) if values else None

    def write(self, path: Path) -> None:
        """As JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        body = {
            "machine": self.machine,
            "versions": self.versions,
            "settings": self.settings,
            "outcomes": [outcome.as_json() for outcome in self.outcomes],
        }
        path.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Results:
        """What :meth:`write` wrote.

        Raises:
            OSError: the file cannot be read.
            ValueError: it does not hold results.
        """
        try:
            body = json.loads(path.read_text(encoding="utf-8"))
            outcomes = tuple(_outcome(found) for found in body["outcomes"])
            return cls(body["machine"], body["versions"], body["settings"], outcomes)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: expected the results of a run, as --json writes them ({error!r})") from None


def _outcome(body: dict[str, Any]) -> Outcome:
    values = {metric: tuple(rounds) for metric, rounds in body.get("values", {}).items()}
    return Outcome(body["row"], body["entry"], values, body.get("skipped"), body.get("failed"))
