"""What the actor runtime costs: asks and tells a second, and memory and threads of many actors.

``python -m benchmarks.actor_runtime [--json] [--seconds N] [--actors N]``

An ask is sent, awaited (``LoopActor``) or waited for (``ThreadingActor``), and only then followed by the next. A
tell counts when it has been handled. Each rate is the median of several rounds, so that one disturbed round does
not decide it. The figure for memory is what the Python allocator and the operating system gave, by resident size
where the system tells it.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import platform
import resource
import statistics
import sys
import threading
import time
import tracemalloc
from collections.abc import Awaitable, Callable
from typing import Any

import attrs
import pykka

from mpreg_mq.actors.runtime import LoopActor

ROUNDS = 5
CHUNK = 1_000


class LoopEcho(LoopActor):
    """Answers with what it was sent."""

    def on_receive(self, message: Any) -> Any:
        return message


class ThreadEcho(pykka.ThreadingActor):
    """Answers with what it was sent."""

    use_daemon_thread = True

    def on_receive(self, message: Any) -> Any:
        return message


@attrs.frozen
class Figures:
    """The results; rates in operations a second, sizes in bytes."""

    python: str
    threading_asks_per_second: float
    threading_tells_per_second: float
    loop_asks_per_second: float
    loop_tells_per_second: float
    loop_tells_from_another_thread_per_second: float
    actors: int
    bytes_per_actor: float
    peak_resident_growth_bytes: int
    threads_added: int
    seconds_to_start: float
    seconds_to_stop: float


async def rate(seconds: float, chunk: Callable[[], Awaitable[None]]) -> float:
    """Operations a second of ``chunk``, which does ``CHUNK`` of them: the median of the rounds."""
    await chunk()
    rates = []
    for _ in range(ROUNDS):
        done, began = 0, time.perf_counter()
        while (spent := time.perf_counter() - began) < seconds / ROUNDS:
            await chunk()
            done += CHUNK
        rates.append(done / spent)
    return statistics.median(rates)


async def rates(actor: type[pykka.Actor], seconds: float) -> tuple[float, float]:
    """Sequential asks and tells a second of an actor class."""
    ref = actor.start()

    async def asks() -> None:
        for number in range(CHUNK):
            await ref.ask(number, block=False)

    async def tells() -> None:
        for number in range(CHUNK):
            ref.tell(number)
        await ref.ask("handled", block=False)

    result = await rate(seconds, asks), await rate(seconds, tells)
    ref.stop()
    return result


async def rate_from_another_thread(seconds: float) -> float:
    """Tells a second to a LoopActor from a thread that is not its loop's."""
    ref = LoopEcho.start()

    def send() -> None:
        for number in range(CHUNK):
            ref.tell(number)
        ref.ask("handled")

    async def tells() -> None:
        await asyncio.to_thread(send)

    result = await rate(seconds, tells)
    ref.stop()
    return result


def resident_peak() -> int:
    """The most memory the process has had resident so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


async def many_actors(count: int) -> tuple[float, int, int, float, float]:
    """Bytes an actor, growth of the resident peak, threads added, seconds to start and to stop them."""
    gc.collect()
    threads, peak = threading.active_count(), resident_peak()
    began = time.perf_counter()
    refs = [LoopEcho.start() for _ in range(count)]
    for ref in refs:
        ref.tell("hello")
    started = time.perf_counter() - began
    growth, added = resident_peak() - peak, threading.active_count() - threads
    began = time.perf_counter()
    for ref in refs:
        ref.stop()
    stopped = time.perf_counter() - began

    sample = min(count, 1_000)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    traced = [LoopEcho.start() for _ in range(sample)]
    used = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    for ref in traced:
        ref.stop()
    return used / sample, growth, added, started, stopped


async def measure(seconds: float, actors: int) -> Figures:
    """All figures; each rate takes about ``seconds``."""
    per_actor, growth, added, started, stopped = await many_actors(actors)
    threading_asks, threading_tells = await rates(ThreadEcho, seconds)
    loop_asks, loop_tells = await rates(LoopEcho, seconds)
    return Figures(
        python=platform.python_version(),
        threading_asks_per_second=threading_asks,
        threading_tells_per_second=threading_tells,
        loop_asks_per_second=loop_asks,
        loop_tells_per_second=loop_tells,
        loop_tells_from_another_thread_per_second=await rate_from_another_thread(seconds),
        actors=actors,
        bytes_per_actor=per_actor,
        peak_resident_growth_bytes=growth,
        threads_added=added,
        seconds_to_start=started,
        seconds_to_stop=stopped,
    )


def table(figures: Figures) -> str:
    """The figures as plain text."""
    rows = [
        ("", "asks/s", "tells/s"),
        (
            "pykka.ThreadingActor",
            f"{figures.threading_asks_per_second:,.0f}",
            f"{figures.threading_tells_per_second:,.0f}",
        ),
        ("LoopActor", f"{figures.loop_asks_per_second:,.0f}", f"{figures.loop_tells_per_second:,.0f}"),
        ("LoopActor, other thread", "", f"{figures.loop_tells_from_another_thread_per_second:,.0f}"),
    ]
    lines = [f"{name:<24}{asks:>14}{tells:>14}" for name, asks, tells in rows]
    lines += [
        "",
        f"{figures.actors:,} LoopActors: {figures.bytes_per_actor:,.0f} bytes each, "
        f"{figures.peak_resident_growth_bytes / 1e6:,.1f} MB resident, {figures.threads_added} threads, "
        f"started in {figures.seconds_to_start:.2f} s, stopped in {figures.seconds_to_stop:.2f} s",
        f"Python {figures.python}",
    ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="benchmarks.actor_runtime", description="Measure the actor runtime.")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--seconds", type=float, default=1.0, help="how long to measure each rate (default 1)")
    parser.add_argument("--actors", type=int, default=10_000, help="how many actors to create (default 10000)")
    options = parser.parse_args(arguments)
    figures = asyncio.run(measure(options.seconds, options.actors))
    print(json.dumps(attrs.asdict(figures)) if options.json else table(figures))


if __name__ == "__main__":
    main()
