"""MPREG's built-in queue and this one, measured by the same script through the same API.

``python -m benchmarks.compare_mpreg [--mpreg-source DIR] [--only NAME ...] [--json]``

Both sides keep their messages in memory. Each measurement runs in a process of its own, so that neither memory
nor state of one reaches the next. A side that cannot be imported is skipped, with the reason. Sizes differ where
MPREG's queue would take hours: it delivers one message every 100 ms, and looks through every deduplication key
that it holds on each send.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib
import json
import os
import platform
import random
import resource
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

OURS = "mpreg_mq"
MPREG = "mpreg"
SIDES = (MPREG, OURS)

SENDS_MEASURED = 2_000
SENDERS = 64
PRIORITIES = 100
IDLE_SECONDS = 3.0
DRAIN_TIMEOUT_SECONDS = 120.0
CHILD_TIMEOUT_SECONDS = 900.0
DEDUPLICATION_WINDOW_SECONDS = 86_400.0


@attrs.frozen
class Api:
    """The names of the queue API, from one side or the other."""

    queues: Any
    managers: Any

    @classmethod
    def load(cls, side: str, mpreg_source: str | None) -> Api:
        """Import a side.

        Raises:
            Exception: whatever its import raises; a source for another Python raises SyntaxError.
        """
        if side == OURS:
            package = importlib.import_module("mpreg_mq")
            return cls(package, package)
        if mpreg_source is not None:
            sys.path.insert(0, mpreg_source)
        # MPREG logs every message at debug level to stderr, which would be most of what is measured.
        importlib.import_module("loguru").logger.remove()
        return cls(
            importlib.import_module("mpreg.core.message_queue"),
            importlib.import_module("mpreg.core.message_queue_manager"),
        )

    def queue(self, **settings: Any) -> Any:
        """A queue named ``bench`` with these settings."""
        return self.queues.MessageQueue(self.queues.QueueConfiguration(name="bench", **settings))

    async def idle_queues(self, count: int) -> Any:
        """A manager with ``count`` queues."""
        manager = self.managers.MessageQueueManager(self.managers.QueueManagerConfiguration(max_queues=count))
        for number in range(count):
            if not await manager.create_queue(f"idle-{number}"):
                raise RuntimeError(f"queue {number} of {count} could not be created")
        return manager


class Drain:
    """A callback that tells when it was called for the last of ``expected`` messages."""

    def __init__(self, expected: int) -> None:
        self._left = expected
        self._done = asyncio.Event()

    def __call__(self, message: object) -> None:
        self._left -= 1
        if self._left == 0:
            self._done.set()

    async def wait(self) -> None:
        """Wait for the last message.

        Raises:
            TimeoutError: it did not come within ``DRAIN_TIMEOUT_SECONDS``.
        """
        await asyncio.wait_for(self._done.wait(), DRAIN_TIMEOUT_SECONDS)


async def accepted(sending: Awaitable[Any]) -> None:
    """Await a send and insist that it was accepted: a rejection is quick and would flatter."""
    result = await sending
    if not result.success:
        raise RuntimeError(f"a send was rejected: {result.error_message}")


async def delivered(api: Api, count: int) -> float:
    """Messages a second from the first send to the last delivery, one subscriber that acknowledges by returning."""
    queue = api.queue(max_size=count)
    drain = Drain(count)
    queue.subscribe("worker", "orders.*", callback=drain, auto_acknowledge=True)
    started = time.perf_counter()
    for number in range(count):
        await accepted(queue.send_message("orders.new", {"order": number}))
    await drain.wait()
    rate = count / (time.perf_counter() - started)
    await queue.shutdown()
    return rate


async def priority_sends(api: Api, pending: int) -> float:
    """Sends a second to a priority queue that holds ``pending`` messages and has no subscriber."""
    queue = api.queue(queue_type=api.queues.QueueType.PRIORITY, max_size=pending + SENDS_MEASURED)
    # Rising priorities are what a queue that inserts by walking from the front takes quickest; the order of the
    # fill makes no difference to what is measured.
    for number in range(pending):
        priority = number * PRIORITIES // pending
        await accepted(queue.send_message("orders.new", {"order": number}, priority=priority))
    chooser = random.Random(0)
    started = time.perf_counter()
    for number in range(SENDS_MEASURED):
        priority = chooser.randrange(PRIORITIES)
        await accepted(queue.send_message("orders.new", {"order": number}, priority=priority))
    rate = SENDS_MEASURED / (time.perf_counter() - started)
    await queue.shutdown()
    return rate


async def deduplicated_sends(api: Api, keys: int) -> float:
    """Fire-and-forget sends a second while ``keys`` deduplication keys are held."""
    queue = api.queue(enable_deduplication=True, deduplication_window_seconds=DEDUPLICATION_WINDOW_SECONDS)
    guarantee = api.queues.DeliveryGuarantee.FIRE_AND_FORGET
    for number in range(keys):
        await accepted(queue.send_message("orders.new", {"order": number}, guarantee))
    started = time.perf_counter()
    for number in range(keys, keys + SENDS_MEASURED):
        await accepted(queue.send_message("orders.new", {"order": number}, guarantee))
    rate = SENDS_MEASURED / (time.perf_counter() - started)
    await queue.shutdown()
    return rate


async def idle_cpu(api: Api, count: int) -> float:
    """Percent of one core that ``count`` queues use while nothing happens."""
    manager = await api.idle_queues(count)
    await asyncio.sleep(0.5)  # what creation left to do is not idling
    cpu, wall = time.process_time(), time.perf_counter()
    await asyncio.sleep(IDLE_SECONDS)
    share = 100.0 * (time.process_time() - cpu) / (time.perf_counter() - wall)
    await manager.shutdown()
    return share


async def idle_memory(api: Api, count: int) -> float:
    """MiB by which the process grows for ``count`` queues that hold nothing."""
    gc.collect()
    before = resident_bytes()
    manager = await api.idle_queues(count)
    await asyncio.sleep(0.5)  # background tasks have started and hold their frames
    gc.collect()
    growth = (resident_bytes() - before) / 2**20
    await manager.shutdown()
    return growth


async def concurrent(api: Api, count: int) -> float:
    """Messages a second sent, delivered and acknowledged, from ``SENDERS`` tasks that send at the same time."""
    queue = api.queue(max_size=count)
    drain = Drain(count)
    queue.subscribe("worker", "orders.*", callback=drain, auto_acknowledge=True)

    async def sender(share: int) -> None:
        for number in range(share):
            await accepted(queue.send_message("orders.new", {"order": number}))

    started = time.perf_counter()
    await asyncio.gather(*(sender(count // SENDERS) for _ in range(SENDERS)))
    await drain.wait()
    for _ in range(int(DRAIN_TIMEOUT_SECONDS * 1_000)):
        if queue.get_statistics().messages_acknowledged >= count:
            break
        await asyncio.sleep(0.001)
    else:
        raise RuntimeError(f"{count} messages were delivered and not all acknowledged")
    rate = count / (time.perf_counter() - started)
    await queue.shutdown()
    return rate


def resident_bytes() -> int:
    """Resident memory of this process; where there is no /proc, the highest it has been."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@attrs.frozen
class Measurement:
    """One line of the comparison: what is run, and at which size on which side."""

    name: str
    title: str
    unit: str
    run: Callable[[Api, int], Awaitable[float]]
    sizes: Mapping[str, int]
    higher_is_better: bool = True


def _priority(pending: int) -> Measurement:
    return Measurement(
        f"priority-{pending // 1000}k",
        f"send to a PRIORITY queue, {pending:,} pending",
        "sends/s",
        priority_sends,
        {MPREG: pending, OURS: pending},
    )


def _deduplication(label: str, keys: int, *sides: str) -> Measurement:
    return Measurement(
        f"deduplication-{label}",
        f"send with deduplication, {keys:,} keys held",
        "sends/s",
        deduplicated_sends,
        dict.fromkeys(sides, keys),
    )


MEASUREMENTS = (
    Measurement("delivered", "deliver to one subscriber", "messages/s", delivered, {MPREG: 30, OURS: 50_000}),
    _priority(1_000),
    _priority(8_000),
    _priority(64_000),
    _deduplication("1k", 1_000, MPREG, OURS),
    _deduplication("4k", 4_000, MPREG, OURS),
    _deduplication("100k", 100_000, OURS),
    _deduplication("1m", 1_000_000, OURS),
    Measurement(
        "idle-cpu",
        "CPU while 1,000 queues idle",
        "% of a core",
        idle_cpu,
        {MPREG: 1_000, OURS: 1_000},
        higher_is_better=False,
    ),
    Measurement(
        "idle-memory",
        "memory of 10,000 idle queues",
        "MiB",
        idle_memory,
        {MPREG: 10_000, OURS: 10_000},
        higher_is_better=False,
    ),
    Measurement(
        "concurrent",
        f"send, deliver, acknowledge; {SENDERS} senders",
        "messages/s",
        concurrent,
        {MPREG: SENDERS, OURS: 500 * SENDERS},
    ),
)
BY_NAME = {measurement.name: measurement for measurement in MEASUREMENTS}


@attrs.frozen
class Outcome:
    """What one measurement on one side gave: a value, or why there is none."""

    name: str
    side: str
    unit: str
    size: int
    value: float | None = None
    skipped: str | None = None
    failed: str | None = None


def measure(measurement: Measurement, side: str, mpreg_source: str | None) -> Outcome:
    """Measure in this process."""
    outcome = Outcome(measurement.name, side, measurement.unit, measurement.sizes[side])
    try:
        api = Api.load(side, mpreg_source)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        # Ours is always there, so that not finding it is a defect and no reason to skip.
        return attrs.evolve(outcome, skipped=reason) if side == MPREG else attrs.evolve(outcome, failed=reason)

    async def run() -> float:
        return await measurement.run(api, outcome.size)

    try:
        return attrs.evolve(outcome, value=asyncio.run(run()))
    except Exception as error:
        return attrs.evolve(outcome, failed=f"{type(error).__name__}: {error}")


def measure_apart(measurement: Measurement, side: str, mpreg_source: str | None) -> Outcome:
    """Measure in a new process."""
    command = [sys.executable, "-m", "benchmarks.compare_mpreg", "--one", measurement.name, side]
    if mpreg_source is not None:
        command += ["--mpreg-source", mpreg_source]
    outcome = Outcome(measurement.name, side, measurement.unit, measurement.sizes[side])
    try:
        child = subprocess.run(command, capture_output=True, text=True, timeout=CHILD_TIMEOUT_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return attrs.evolve(outcome, failed=f"not done after {CHILD_TIMEOUT_SECONDS:.0f} s")
    lines = child.stdout.splitlines()
    if child.returncode != 0 or not lines:
        errors = child.stderr.strip().splitlines() or ["no output"]
        return attrs.evolve(outcome, failed=f"exit status {child.returncode}: {errors[-1]}")
    return Outcome(**json.loads(lines[-1]))


def machine() -> dict[str, Any]:
    """On what the figures were measured."""
    return {"python": platform.python_version(), "platform": platform.platform(), "cpus": os.cpu_count()}


def cell(outcome: Outcome | None) -> str:
    """An outcome as the table shows it."""
    if outcome is None:
        return "-"
    if outcome.value is None:
        return "skipped" if outcome.failed is None else "FAILED"
    return f"{outcome.value:,.0f}" if outcome.value >= 100 else f"{outcome.value:,.1f}"


def times_better(measurement: Measurement, theirs: Outcome | None, ours: Outcome | None) -> str:
    """How many times better ours is; a dash where that cannot be said."""
    if theirs is None or ours is None or not theirs.value or not ours.value:
        return "-"
    ratio = ours.value / theirs.value if measurement.higher_is_better else theirs.value / ours.value
    return f"{ratio:,.1f}x"


def table(measurements: Sequence[Measurement], outcomes: Sequence[Outcome]) -> str:
    """The comparison as plain text, with the reason for each value that is missing."""
    found = {(outcome.name, outcome.side): outcome for outcome in outcomes}
    rows = [("", "unit", "MPREG", "mpreg-mq", "better")]
    for measurement in measurements:
        theirs, ours = (found.get((measurement.name, side)) for side in SIDES)
        better = times_better(measurement, theirs, ours)
        rows.append((measurement.title, measurement.unit, cell(theirs), cell(ours), better))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = [
        f"{row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  "
        + "  ".join(f"{text:>{width}}" for text, width in zip(row[2:], widths[2:], strict=True))
        for row in rows
    ]
    reasons = dict.fromkeys(f"{o.side} skipped: {o.skipped}" for o in outcomes if o.skipped is not None)
    failures = [f"{o.name} on {o.side} failed: {o.failed}" for o in outcomes if o.failed is not None]
    return "\n".join([*lines, *reasons, *failures])


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare_mpreg", description=__doc__.splitlines()[0])
    parser.add_argument("--mpreg-source", metavar="DIR", help="a checkout of MPREG; without it, an installed one")
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="NAME",
        help=f"measurements whose names begin so, out of: {', '.join(BY_NAME)}",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line instead of a table")
    parser.add_argument("--one", nargs=2, metavar=("NAME", "SIDE"), help="one measurement, in this very process")
    options = parser.parse_args(arguments)
    if options.mpreg_source is not None and not Path(options.mpreg_source, "mpreg").is_dir():
        parser.error(f"--mpreg-source: got {options.mpreg_source}, expected a directory that holds mpreg/")
    for name in options.only or ():
        if not any(known.startswith(name) for known in BY_NAME):
            parser.error(f"--only: got {name}, expected the beginning of one of {', '.join(BY_NAME)}")
    if options.one is not None:
        name, side = options.one
        if name not in BY_NAME or side not in BY_NAME[name].sizes:
            parser.error(f"--one: got {name} {side}, expected a measurement and a side that has it")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison; 1 when a measurement failed."""
    options = parse(arguments)
    if options.one is not None:
        name, side = options.one
        print(json.dumps(attrs.asdict(measure(BY_NAME[name], side, options.mpreg_source))))
        return 0
    chosen = [m for m in MEASUREMENTS if not options.only or any(m.name.startswith(name) for name in options.only)]
    outcomes: list[Outcome] = []
    for measurement in chosen:
        for side in measurement.sizes:
            if not options.json:
                print(f"... {measurement.name} on {side}", file=sys.stderr, flush=True)
            outcome = measure_apart(measurement, side, options.mpreg_source)
            outcomes.append(outcome)
            if options.json:
                print(json.dumps({**attrs.asdict(outcome), **machine()}), flush=True)
    if not options.json:
        print(", ".join(f"{name} {value}" for name, value in machine().items()))
        print(table(chosen, outcomes))
    return 1 if any(outcome.failed is not None for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
