"""A process that tells whenever a message is due, so that waiting for the moment costs the measured one little.

An event loop's own timers tick once a millisecond, which is several times what is to be measured. What is told is the
moment itself: whoever is busy then and hears of it late must not begin to count late.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from array import array

TICK_BYTES = 8
"""A tick is the time of ``time.perf_counter``, whose beginning all processes share where it is the monotonic clock."""


def start(rate: float, count: int) -> subprocess.Popen[bytes]:
    """Start it: ``count`` ticks on its standard output, ``rate`` of them a second; see :func:`ticks_in`."""
    return subprocess.Popen([sys.executable, "-S", __file__, str(rate), str(count)], stdout=subprocess.PIPE)


def ticks_in(read: bytes) -> list[float]:
    """When the messages were due whose ticks these are."""
    ticks = array("d")
    ticks.frombytes(read)
    return ticks.tolist()


def main(rate: float, count: int, output: int) -> None:
    """Write the ticks; several at once where it comes late, which nobody else is to be blamed for."""
    begun, written = time.perf_counter(), 0
    while written < count:
        now = time.perf_counter()
        due = min(count, int((now - begun) * rate) + 1)
        if due > written:
            os.write(output, array("d", [now] * (due - written)).tobytes())
            written = due
        # Sleeping is what it is for: a process that does nothing but keep the time.
        time.sleep(max(0.0, begun + written / rate - time.perf_counter()))


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]), sys.stdout.fileno())
