"""A process that writes a byte whenever a message is due, so that waiting for the moment costs the measured one little.

An event loop's own timers tick once a millisecond, which is several times what is to be measured.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time


def start(rate: float, count: int) -> subprocess.Popen[bytes]:
    """Start it: ``count`` bytes on its standard output, ``rate`` of them a second."""
    return subprocess.Popen([sys.executable, "-S", __file__, str(rate), str(count)], stdout=subprocess.PIPE)


def main(rate: float, count: int, output: int) -> None:
    """Write the bytes; several at once where it comes late."""
    begun, written = time.perf_counter(), 0
    while written < count:
        due = min(count, int((time.perf_counter() - begun) * rate) + 1)
        if due > written:
            os.write(output, bytes(due - written))
            written = due
        # Sleeping is what it is for: a process that does nothing but keep the time.
        time.sleep(max(0.0, begun + written / rate - time.perf_counter()))


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]), sys.stdout.fileno())
