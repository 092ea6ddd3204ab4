"""How often the long tests repeat: a few times at the desk, often in ``make test``, very often in ``make soak``.

``MPREG_MQ_TESTS`` is ``quick``, ``test`` (the default) or ``soak``.
"""

from __future__ import annotations

import os

LEVEL = os.environ.get("MPREG_MQ_TESTS", "test")
QUICK_SHARE = 20

if LEVEL not in ("quick", "test", "soak"):
    raise ValueError(f"MPREG_MQ_TESTS: got {LEVEL!r}, expected quick, test or soak")


def repetitions(*, test: int, soak: int) -> int:
    """How many cycles, seeds or examples to run; ``quick`` runs a twentieth of ``test``, at least one."""
    if LEVEL == "soak":
        return soak
    return test if LEVEL == "test" else max(1, test // QUICK_SHARE)
