"""The demo: e-commerce order processing, a scene for each feature, or your own messages; and a check of its own log.

Installed as ``mpreg-queue-demo``; needs the ``demo`` extra (click and rich).
"""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of the console script."""
    try:
        from mpreg_mq.demo.cli import demo
    except ModuleNotFoundError as missing:
        if missing.name not in ("click", "rich"):
            raise
        print(f'mpreg-queue-demo needs {missing.name}: pip install "mpreg-mq[demo]"', file=sys.stderr)
        sys.exit(2)
    demo()
