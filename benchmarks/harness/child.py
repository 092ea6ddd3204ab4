"""The process of one entry: it prepares once, and runs a round for each line ``measure`` that it is given.

``python -m benchmarks.harness.child`` is started by :mod:`benchmarks.harness.processes`. Answers are JSON lines.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import sys
from pathlib import Path
from typing import Any, TextIO

from benchmarks.catalogue import row_named
from benchmarks.harness.model import Context, UnavailableError
from benchmarks.harness.payloads import Payloads

MEASURE = "measure"


def context_from(task: dict[str, Any]) -> Context:
    """The context that the runner wrote as JSON."""
    path = task["payloads"]
    return Context(
        directory=Path(task["directory"]),
        payloads=Payloads.small() if path is None else Payloads.from_file(Path(path)),
        seconds=task["seconds"],
        quick=task["quick"],
        address=task["address"],
        mpreg_source=task["mpreg_source"],
    )


async def serve(task: dict[str, Any], commands: TextIO, answer: Any) -> None:
    """Prepare the entry, answer ``ready``, and then each command with the values of a round."""
    entry = row_named(task["row"]).entry(task["entry"])
    contestant = entry.make(context_from(task))
    await contestant.prepare()
    answer({"ready": True})
    # On a thread, because clients have to answer their server's heartbeats meanwhile.
    while (await asyncio.to_thread(commands.readline)).strip() == MEASURE:
        gc.collect()
        answer({"values": dict(await contestant.measure())})
    await contestant.close()


def main() -> int:
    """Run until standard input ends."""
    # Some clients print; only answers may go where the runner reads.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def answer(what: dict[str, Any]) -> None:
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(what), file=answers, flush=True)

    try:
        asyncio.run(serve(json.loads(sys.stdin.readline()), sys.stdin, answer))
    except UnavailableError as error:
        answer({"skipped": str(error)})
    except Exception as error:
        answer({"failed": f"{type(error).__name__}: {error}"})
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main())
