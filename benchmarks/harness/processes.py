"""Starts the process of an entry and talks to it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from benchmarks.harness.child import MEASURE
from benchmarks.harness.machine import ROOT
from benchmarks.harness.model import UnavailableError

PREPARE_TIMEOUT_SECONDS = 300.0
ROUND_TIMEOUT_SECONDS = 120.0
CLOSE_TIMEOUT_SECONDS = 20.0


class ContestantError(Exception):
    """The process of an entry ended, took too long or said that it failed."""


class ContestantProcess:
    """One entry at work in a process of its own.

    Args:
        task: what :func:`benchmarks.harness.child.serve` needs to know.
        errors: the file that its standard error goes to.
    """

    def __init__(self, task: dict[str, Any], errors: Path) -> None:
        self._errors = errors
        self._name = f"{task['row']} {task['entry']}"
        with errors.open("ab") as sink:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.harness.child"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=sink,
                text=True,
                cwd=ROOT,
                env={**os.environ, "PYTHONHASHSEED": "0"},
            )
        self._tell(json.dumps(task))

    def ready(self) -> None:
        """Wait until it is prepared.

        Raises:
            UnavailableError: it cannot run on this machine.
            ContestantError: it ended, said so, or took more than ``PREPARE_TIMEOUT_SECONDS``.
        """
        self._answer(PREPARE_TIMEOUT_SECONDS)

    def measure(self) -> dict[str, float]:
        """The values of one round.

        Raises:
            ContestantError: it ended, said so, or took more than ``ROUND_TIMEOUT_SECONDS``.
        """
        self._tell(MEASURE)
        values: dict[str, float] = self._answer(ROUND_TIMEOUT_SECONDS)["values"]
        return values

    def close(self) -> None:
        """End the process; kill it where it takes more than ``CLOSE_TIMEOUT_SECONDS``."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(CLOSE_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._failed("ended") from None

    def _answer(self, timeout: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        late = threading.Event()

        def give_up() -> None:
            late.set()
            self._process.kill()

        timer = threading.Timer(timeout, give_up)
        timer.start()
        try:
            line = self._process.stdout.readline()
        finally:
            timer.cancel()
        if late.is_set():
            raise self._failed(f"gave no answer within {timeout:.0f} s")
        if not line:
            raise self._failed("ended")
        answer: dict[str, Any] = json.loads(line)
        if "skipped" in answer:
            raise UnavailableError(answer["skipped"])
        if "failed" in answer:
            raise ContestantError(answer["failed"])
        return answer

    def _failed(self, what: str) -> ContestantError:
        said = self._errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return ContestantError(f"the process of {self._name} {what}; it said: {said[-1] if said else 'nothing'}")
