"""The command that repeats simulations: ``python -m mpreg_mq.testing.simulate --seed 7``.

Import from :mod:`mpreg_mq.testing.simulation`, or ``from mpreg_mq.testing import simulate``; this module is only run.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

from mpreg_mq.testing.jepsen import jepsen_lines
from mpreg_mq.testing.scenario import SCENARIOS
from mpreg_mq.testing.simulation import simulate


def main(arguments: list[str] | None = None) -> int:
    """The command line; the exit code is 1 where a rule was broken."""
    parser = argparse.ArgumentParser(prog="python -m mpreg_mq.testing.simulate", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--count", type=int, default=1, help="how many seeds, one after another")
    parser.add_argument("--scenario", choices=sorted(SCENARIOS), default="everything")
    parser.add_argument("--log", action="store_true", help="print the log of the last seed")
    parser.add_argument("--history", type=Path, help="write the clients' history of the last seed in Jepsen's format")
    options = parser.parse_args(arguments)
    counts: Counter[str] = Counter()
    failed = 0
    for seed in range(options.seed, options.seed + options.count):
        simulation = simulate(seed, SCENARIOS[options.scenario])
        counts.update(simulation.counts)
        if simulation.violations:
            failed += 1
            print(f"seed {seed}: {len(simulation.violations)} violations")
            for violation in simulation.violations[:5]:
                print(violation)
            print(f"repeat: {simulation.command}")
    if options.log:
        for record in simulation.records:
            print(f"{record.position:5} {record.stream} {record.event}")
    if options.history is not None:
        options.history.write_text("\n".join(jepsen_lines(simulation.history)) + "\n", encoding="utf-8")
    print(", ".join(f"{name} {count}" for name, count in counts.items()))
    print(f"seeds {options.seed} to {seed}: {failed} broke a rule; log of the last: {simulation.log_hash}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
