"""How often the long tests repeat: a few times at the desk, often in ``make test``, very often in ``make soak``.

``MPREG_MQ_TESTS`` is ``quick``, ``test`` (the default), ``ci``, where nobody waits for the result, or ``soak``.
"""

from __future__ import annotations

import os

LEVEL = os.environ.get("MPREG_MQ_TESTS", "test")
QUICK_SHARE = 20

if LEVEL not in ("quick", "test", "ci", "soak"):
    raise ValueError(f"MPREG_MQ_TESTS: got {LEVEL!r}, expected quick, test, ci or soak")


def repetitions(*, test: int, soak: int, ci: int | None = None) -> int:
    """How many cycles, seeds or examples to run; ``quick`` runs a twentieth of ``test``, at least one.

    ``ci`` is as many as ``test``, unless it says otherwise.
    """
    if LEVEL == "soak":
        return soak
    if LEVEL == "ci" and ci is not None:
        return ci
    return max(1, test // QUICK_SHARE) if LEVEL == "quick" else test
