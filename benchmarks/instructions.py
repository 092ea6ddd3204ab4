"""How many instructions a fixed piece of work takes: the same on a busy machine as on a quiet one.

``perf stat`` where the processor lets it count, or else valgrind, which takes thirty times as long as the work. What
starting the interpreter costs is measured too, and taken off.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.harness.machine import ROOT

WORKLOADS = {"send-deliver-acknowledge": 1_000, "fold-events": 3_000, "encode-decode-events": 3_000}
"""How much of each piece of work is counted; see :mod:`benchmarks.counted`."""

TIMEOUT_SECONDS = 600.0


def run_counted(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command under the same conditions each time."""
    # The order of sets and dicts of strings, and so the work, would change with the seed.
    environment = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1", "LC_ALL": "C"}
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment, timeout=TIMEOUT_SECONDS
    )


def from_perf(said: str) -> int | None:
    """The count in what ``perf stat -x ,`` said, or None."""
    found = re.search(r"^(\d+),[^,]*,instructions", said, re.MULTILINE)
    return int(found[1]) if found else None


def from_valgrind(said: str) -> int | None:
    """The count in what cachegrind said, or None."""
    found = re.search(r"I\s+refs:\s+([\d,]+)", said)
    return int(found[1].replace(",", "")) if found else None


class Counter:
    """A program that counts instructions; ``name`` says which."""

    def __init__(self, name: str) -> None:
        self.name = name

    def count(self, workload: str, size: int) -> int | None:
        """Instructions of a process that does so much of the work, or None where it cannot be counted."""
        work = [sys.executable, "-m", "benchmarks.counted", workload, str(size)]
        if self.name == "perf":
            return from_perf(run_counted(["perf", "stat", "-x", ",", "-e", "instructions:u", *work]).stderr)
        with tempfile.TemporaryDirectory() as scratch:
            # Without the caches, which take half of its time, it counts what callgrind counts.
            output = f"--cachegrind-out-file={Path(scratch) / 'out'}"
            command = ["valgrind", "--tool=cachegrind", "--cache-sim=no", output, *work]
            return from_valgrind(run_counted(command).stderr)

    def per_unit(self, workload: str, size: int) -> float | None:
        """Instructions for one unit of the work, without what the interpreter needs to start."""
        start, whole = self.count(workload, 0), self.count(workload, size)
        return None if start is None or whole is None else (whole - start) / size


def find_counter() -> Counter | None:
    """The first program that counts on this machine, or None."""
    perf = Counter("perf")
    if shutil.which("perf") and perf.count("fold-events", 0) is not None:
        return perf
    return Counter("valgrind") if shutil.which("valgrind") else None


def counted() -> tuple[str | None, dict[str, int]]:
    """Who counted, and instructions for one unit of each workload; nothing where nobody can."""
    counter = find_counter()
    if counter is None:
        return None, {}
    found = {name: counter.per_unit(name, size) for name, size in WORKLOADS.items()}
    return counter.name, {name: round(value) for name, value in found.items() if value is not None}
