"""The command line ``mpreg-mq``; needs the ``cli`` extra (click and rich).

Each command is a module of its own, ``mpreg_mq/cli/<name>.py`` with a click command called ``command``, and is
imported when it is used. A new command is such a module and a line in :mod:`mpreg_mq.cli.commands`.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of the console script."""
    try:
        from mpreg_mq.cli.commands import root
    except ModuleNotFoundError as missing:
        if missing.name not in ("click", "rich"):
            raise
        print(f'mpreg-mq needs {missing.name}: pip install "mpreg-mq[cli]"', file=sys.stderr)
        sys.exit(2)
    root()
