"""The fixed pieces of work whose instructions are counted: ``python -m benchmarks.counted WORKLOAD SIZE``.

All stay in memory, on one thread and away from clocks, so that two runs take the same instructions.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Callable
from itertools import islice

from benchmarks.compare_mpreg import accepted
from benchmarks.contestants.life import beginning, lives
from benchmarks.harness.payloads import Payloads
from mpreg_mq import MessageQueue, QueueConfiguration, QueuedMessage
from mpreg_mq.events import CODEC, Event
from mpreg_mq.projections import QueueState


def some_events(count: int) -> list[Event]:
    """The first events of messages that are sent, delivered and acknowledged."""
    return list(islice(lives(Payloads.small().take(count // 3 + 1)), count))


def send_deliver_acknowledge(messages: int) -> None:
    """Send so many messages, one after the other, to a subscriber."""
    done = 0

    def count(message: QueuedMessage) -> None:
        nonlocal done
        done += 1

    async def work() -> None:
        async with MessageQueue(QueueConfiguration("bench", max_size=max(1, messages))) as queue:
            queue.subscribe("worker", "#", callback=count)
            for topic, payload in Payloads.small().take(messages):
                await accepted(queue.send_message(topic, payload))
            while done < messages:
                await asyncio.sleep(0)

    asyncio.run(work())


def fold_events(events: int) -> None:
    """Fold so many events into the state of a queue."""
    QueueState.replay([*beginning(), *some_events(events)])


def encode_decode_events(events: int) -> None:
    """Encode so many events, and decode them."""
    for event in some_events(events):
        encoded = CODEC.encode(event)
        CODEC.decode(encoded.type, encoded.schema, encoded.body)


WORKLOADS: dict[str, Callable[[int], None]] = {
    "send-deliver-acknowledge": send_deliver_acknowledge,
    "fold-events": fold_events,
    "encode-decode-events": encode_decode_events,
}


def main() -> None:
    """Do the work that the command line names."""
    name, size = sys.argv[1:]
    # When the collector runs depends on what was allocated before, down to what modules are cached.
    gc.disable()
    WORKLOADS[name](int(size))


if __name__ == "__main__":
    main()
