"""A whole simulation: one disk, one process after another on it, faults on the way, and a quiet end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from hashlib import blake2b
from random import Random
from typing import Any

import attrs

from mpreg_mq.actors.store import stream_of
from mpreg_mq.errors import EventLogError, MessageQueueError
from mpreg_mq.events.codec import encode
from mpreg_mq.events.log import RecordedEvent
from mpreg_mq.invariants import Violation
from mpreg_mq.model import Durability, QueuedMessage
from mpreg_mq.queue import MessageQueue
from mpreg_mq.testing.answers import NEVER, Answer, Answers, End, Fact, forgotten_deliveries
from mpreg_mq.testing.checks import check_what_is_left
from mpreg_mq.testing.clients import ClientHistory, Operation, Outcome
from mpreg_mq.testing.complaints import Complaints
from mpreg_mq.testing.disk import COMMIT_SECONDS, SimulatedDisk, Synchronous, Writing
from mpreg_mq.testing.loop import START
from mpreg_mq.testing.messages import value_of
from mpreg_mq.testing.neighbours import live_beside
from mpreg_mq.testing.process import PATTERNS, STORM_SECONDS, Process
from mpreg_mq.testing.retention import compact_now_and_then
from mpreg_mq.testing.scenario import (
    NEIGHBOUR_NAMES,
    NO_FAULTS,
    QUEUE_NAME,
    Scenario,
    seeded_configuration,
    seeded_manager,
)

SETTLE_SECONDS = 1800.0
"""What pending work gets, once the faults have stopped, to drain (I6)."""

STEPS_PER_MESSAGE = 100
"""Steps that a message may cost in one process; ten are usual. More means that something asks for turns for ever."""

SPARE_STEPS = 2000
BUSY_SHARE = 0.05
"""How often a loop that writes finds its log in use."""
CHECKPOINT_SHARE = 0.1
"""How often a commit that a power cut could take is followed by a checkpoint."""
MAX_STARTS = 20
"""How often in a row a process may fail to get its log open."""


class World:
    """Everything that a seed and a scenario determine."""

    def __init__(self, seed: int, scenario: Scenario) -> None:
        self.seed = seed
        self.scenario = scenario
        self.random = Random(f"{seed}/world")
        self.history = ClientHistory()
        given = scenario.configuration
        self.configuration = attrs.evolve(given or seeded_configuration(self.random), name=QUEUE_NAME)
        blocking = scenario.blocking_log
        self.blocking = self.random.random() < 0.7 if blocking is None else blocking
        self.disk_random = Random(f"{seed}/disk")
        # Drawn apart, so that what else a seed says does not depend on it.
        self.writing_random = Random(f"{seed}/writing")
        self.writing = self.writing_random.choice(tuple(Writing)) if scenario.writing is None else scenario.writing
        self.level_random = Random(f"{seed}/levels")
        level, mode = scenario.durability, scenario.synchronous
        if given is not None and given.durability is not None:
            level = given.durability
        level = self.level_random.choice(tuple(Durability)) if level is None else level
        # To a log that waits for no disk everything is written at once, whatever is asked for.
        self.durability = level if self.blocking else Durability.COMMITTED
        mode = self.level_random.choice(tuple(Synchronous)) if mode is None else mode
        self.manager_configuration = seeded_manager(scenario, level, self.level_random)
        self.neighbours = {
            f"{NEIGHBOUR_NAMES}{number}": self.level_random.choice(tuple(Durability))
            for number in range(scenario.neighbours)
        }
        self.disk = SimulatedDisk(
            self._latency, self._fault, self._busy, self.writing_random.randint, mode, self._checkpoint
        )
        self.answers = Answers(
            self.manager_configuration.buffered_milliseconds / 1000,
            NEVER if mode is Synchronous.FULL else 0,
        )
        self.faults = scenario.faults
        self._refusals = 0
        self.attempted: set[str] = set()
        self.lives: list[list[RecordedEvent]] = []
        """What queues in memory held when the processes ended that they lived in."""
        self.violations: list[Violation] = []
        self.crashes = 0
        self.power_cuts = 0
        self.shutdowns = 0
        self.disk_errors = 0
        self.seconds = 0.0
        self.steps = 0
        self.problems: list[str] = []
        self.refusal: str | None = None
        """Why a send was refused for what it is, the last of them."""
        self.next_message = 0
        self._beside = 0
        self.patterns = {f"push-{n}": self.random.choice(PATTERNS) for n in range(scenario.pushed)}
        self.pull_patterns = {f"pull-{n}": self.random.choice(PATTERNS) for n in range(scenario.pulling)}
        # Whoever subscribes in the quiet end takes everything, but for handlers of the scenario.
        everybody = ["#"] if self.patterns or self.pull_patterns else []
        self.last_patterns = [*everybody, *scenario.handlers]
        self.final: Process | None = None
        self.last_process: Process | None = None

    # --- the disk -----------------------------------------------------------------------------------------

    def _latency(self) -> float:
        random = self.disk_random
        if random.random() < self.faults.slow_disk:
            return random.random()
        return COMMIT_SECONDS * random.random()

    def _fault(self) -> None:
        random = self.disk_random
        if not self._refusals and random.random() < self.faults.full_disk:
            self._refusals = random.randint(1, 4)
        if self._refusals:
            self._refusals -= 1
            self.disk_errors += 1
            raise EventLogError("simulated: no space left on the disk")

    def _busy(self) -> bool:
        return self.writing_random.random() < BUSY_SHARE

    def _checkpoint(self) -> bool:
        done = self.level_random.random() < CHECKPOINT_SHARE
        if done:
            self.answers.safe_from = self.history.ordinal
        return done

    # --- what clients are told --------------------------------------------------------------------------------

    def answered_here(self, process: Process, operation: Operation, fact: Fact) -> None:
        """A client of the queue was told of a success, which the log has to hold."""
        self.answered(process, operation, QUEUE_NAME, self.durability, fact)

    def answered(
        self, process: Process, operation: Operation, queue_name: str, durability: Durability, fact: Fact
    ) -> None:
        """As :meth:`answered_here`, for any queue of the log."""
        level = durability if self.blocking else Durability.COMMITTED
        self.answers.add(Answer(operation, stream_of(queue_name), level, fact, process.number))

    def hash(self) -> str:
        """Digest of all events that were ever recorded and not lost with a power cut: equal for equal runs."""
        digest = blake2b(self.disk.hash().encode(), digest_size=16)
        for log in self.lives:
            for record in log:
                digest.update(encode(record.event).body)
        return digest.hexdigest() if self.lives else self.disk.hash()

    def _settle(self, process: Process, end: End, memory: list[list[RecordedEvent]]) -> None:
        """A process has ended: hold what it told its clients, and what its log can be read from, against the disk."""
        records = self.disk.records()
        self.lives += memory
        self.answers.settle_memory(records, [record for log in memory for record in log])
        self.answers.settle(records, process.number, end)
        everything = [record for log in (records, *self.lives) for record in log]
        self.answers.forgotten.update(forgotten_deliveries(everything, self.history))
        if self.scenario.retention:
            self.violations += check_what_is_left(self.disk, records)

    # --- messages -----------------------------------------------------------------------------------------

    def next_key(self) -> str:
        """What names the next message of a neighbour."""
        self._beside += 1
        return f"n{self._beside}"

    # --- running ------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Run to the quiet end."""
        handler = Complaints(self.problems, lambda name: self.answers.rebuilt(stream_of(name), self.history.ordinal))
        logger = logging.getLogger("mpreg_mq")
        level, propagate = logger.level, logger.propagate
        # What it learns from the log is there however the program around it logs.
        disabled = logging.root.manager.disable
        logging.disable(logging.NOTSET)
        logger.addHandler(handler)
        logger.propagate = False
        logger.setLevel(logging.WARNING)
        try:
            now = START
            for number in range(self.scenario.processes):
                now = self._run_process(number, now)
                if self.next_message >= self.scenario.messages:
                    break
            self._run_last(now)
            if self.refusal is not None and not any(op.outcome is Outcome.OK for op in self.history.of("send")):
                self.problems.append(f"no send was accepted; the last was refused: {self.refusal}")
        except MessageQueueError as error:
            self.problems.append(f"a process could not go on: {error!r}")
        finally:
            logging.disable(disabled)
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate

    def _next_start(self, now: float) -> float:
        if self.random.random() < self.faults.clock_jump:
            return now + self.random.choice((-5.0, -0.5, 3.0, 60.0))
        return now + self.random.random()

    def _start(self, number: int, now: float) -> Process:
        """A new process; one that does not get its log open tries again."""
        for attempt in range(1, MAX_STARTS + 1):
            try:
                process = Process(self, number, self._next_start(now), self.faults)
            except EventLogError:
                if attempt == MAX_STARTS:
                    raise
                now += 1.0
            else:
                break
        self.last_process = process
        return process

    def _run_process(self, number: int, now: float) -> float:
        random, faults = self.random, self.faults
        process = self._start(number, now)
        main = process.spawn(self._storm(process))
        for _ in range(60 + 2 * self.scenario.messages):
            process.loop.run(until=main.done, steps=random.randint(5, 120))
            self._count(process)
            if main.done():
                break
            if random.random() < faults.stall:
                process.loop.stall(random.choice((0.5, 3.0, 20.0)))
            if random.random() < faults.crash / 5:
                break
        if main.done():
            main.result()
        after = process.now
        if random.random() < faults.shutdown or not faults.crash:
            self._shut_down(process)
            return after
        self.crashes += 1
        memory = process.memory_logs()
        process.crash()
        end = End.CRASH
        if self.level_random.random() < faults.power_cut:
            self.power_cuts += 1
            end = End.POWER_CUT
            self.disk.cut_power()
        self.history.crash(after)
        self._settle(process, end, memory)
        if end is End.POWER_CUT and self.answers.safe_from != NEVER:
            # What a power cut has left it does not take the next time.
            self.answers.safe_from = self.history.ordinal
        return after

    def _shut_down(self, process: Process) -> None:
        self.shutdowns += 1
        for task in tuple(process.background):
            task.cancel()
        loop = process.loop
        begun = self.history.ordinal
        closing = loop.create_task(self._close(process))
        loop.run(until=closing.done, seconds=60.0)
        # What the journal has answered before it stopped is heard of before the loop ends.
        loop.run(seconds=0.0, steps=1000)
        self._count(process)
        memory = process.memory_logs()
        if not closing.done():
            self.problems.append(f"process {process.number}: shutdown did not end within a minute")
            process.crash()
        else:
            error = closing.exception()
            if error is not None and not isinstance(error, EventLogError):
                self.problems.append(f"process {process.number}: shutdown raised {error!r}")
            process.crash()
            if error is None:
                self.answers.closed(self.disk.records(), process.states(), begun)
        self.history.crash(process.now)
        self._settle(process, End.SHUTDOWN, memory)

    async def _close(self, process: Process) -> None:
        """Shut down; where nobody waits for the log, often right after an answer."""
        if self.durability is Durability.BUFFERED and process.queue is not None:
            self.next_message += 1
            await process.send("last-sender", self.next_message - 1)
        await process.manager.shutdown()

    def _count(self, process: Process) -> None:
        loop = process.loop
        self.steps += loop.steps
        loop.steps = 0
        self.seconds += loop.time() - process.counted
        process.counted = loop.time()
        for context in loop.errors:
            error = context.get("exception")
            if not isinstance(error, MessageQueueError):
                self.problems.append(f"process {process.number}: {context.get('message')}: {error!r}")
        loop.errors.clear()

    async def _storm(self, process: Process) -> None:
        """The work of one process, until its senders are done and some time has passed."""
        queue = await process.open()
        random, scenario = process.random, self.scenario
        begin = [self._subscribe(process, name, pattern) for name, pattern in self.patterns.items()]
        begin += [self._user_subscribe(process, pattern, handler) for pattern, handler in scenario.handlers.items()]
        for subscribing in begin:
            process.spawn(subscribing)
        for name, pattern in self.pull_patterns.items():
            process.spawn(process.pull(name, pattern))
        if scenario.admin:
            process.spawn(self._administer(process))
        for name, durability in self.neighbours.items():
            process.spawn(live_beside(process, name, durability))
        if scenario.retention:
            process.spawn(compact_now_and_then(process))
        await self._resume(queue)
        senders = [process.spawn(self._send(process, f"sender-{n}")) for n in range(scenario.senders)]
        await asyncio.wait(senders)
        for sender in senders:
            sender.result()
        await asyncio.sleep(random.choice((0.0, 1.0, 30.0)))

    async def _resume(self, queue: MessageQueue) -> None:
        while queue.paused:
            try:
                queue.resume_queue()
            except MessageQueueError:
                await asyncio.sleep(1.0)

    async def _subscribe(self, process: Process, name: str, pattern: str) -> None:
        queue, random = process.queue, process.random
        assert queue is not None
        await asyncio.sleep(random.choice((0.0, 0.0, random.random() * STORM_SECONDS / 10)))
        while True:
            try:
                subscription = queue.subscribe(name, pattern, process.handler(name))
                break
            except MessageQueueError:
                await asyncio.sleep(1.0)
        if self.scenario.admin and random.random() < 0.3:
            await asyncio.sleep(random.random() * STORM_SECONDS)
            try:
                queue.unsubscribe(subscription)
            except MessageQueueError:
                return
            await asyncio.sleep(random.random() * STORM_SECONDS / 4)
            await self._subscribe(process, name, random.choice(PATTERNS))

    async def _user_subscribe(self, process: Process, pattern: str, handler: Callable[[Any], Any]) -> None:
        assert process.queue is not None
        name = f"handler {pattern}"
        process.queue.subscribe(name, pattern, self._watched(process, name, handler))

    def _watched(self, process: Process, name: str, handler: Callable[[Any], Any]) -> Callable[[QueuedMessage], Any]:
        def watched(message: QueuedMessage) -> Any:
            operation = process.begin(name, message)
            try:
                returned = handler(message)
            except Exception as error:
                process.end(operation, Outcome.FAIL, repr(error))
                raise
            if not isinstance(returned, Awaitable):
                process.end(operation, Outcome.OK)
                return None

            async def finish() -> None:
                try:
                    await returned
                except asyncio.CancelledError:
                    process.end(operation, Outcome.UNKNOWN, "cancelled")
                    raise
                except Exception as error:
                    process.end(operation, Outcome.FAIL, repr(error))
                    raise
                process.end(operation, Outcome.OK)

            return process.working(finish())

        return watched

    async def _send(self, process: Process, sender: str) -> None:
        random = process.random
        while self.next_message < self.scenario.messages:
            number, self.next_message = self.next_message, self.next_message + 1
            await process.send(sender, number)
            if random.random() < 0.4:
                await asyncio.sleep(random.choice((0.0, 0.05, 1.0, 4.0)))

    async def _administer(self, process: Process) -> None:
        queue, random = process.queue, process.random
        assert queue is not None
        while True:
            await asyncio.sleep(random.random() * STORM_SECONDS / 3)
            try:
                chosen = random.random()
                if chosen < 0.3:
                    queue.pause_queue()
                    await asyncio.sleep(random.choice((0.0, 1.0, 8.0)))
                    queue.resume_queue()
                elif chosen < 0.35:
                    await queue.purge_queue()
                elif chosen < 0.4:
                    await queue.purge_dead_letters()
                elif chosen < 0.7:
                    await self.redrive(process)
            except MessageQueueError:
                continue

    async def redrive(self, process: Process) -> None:
        """Redrive some dead letters, as sends of messages that are others than those that died."""
        queue = process.queue
        assert queue is not None
        letters = queue.list_dead_letters()[: process.random.randint(1, 3)]
        operations = {}
        for letter in letters:
            value = f"{value_of(letter.message).partition('@')[0]}@{self.configuration.name}/{letter.id}"
            operations[str(letter.id)] = self.history.invoke(
                "admin", "send", value, process.now, guarantee=letter.message.delivery_guarantee
            )
        redriven = await queue.redrive_dead_letters([letter.id for letter in letters])
        for index, operation in enumerate(operations.values()):
            process.end(operation, Outcome.OK if index < len(redriven) else Outcome.UNKNOWN)
            if index < len(redriven) and process.alive:
                self.answered_here(process, operation, (str(redriven[index]), None))

    # --- the quiet end --------------------------------------------------------------------------------------

    def _run_last(self, now: float) -> None:
        """A process without faults, whose subscribers take everything: what is pending must drain (I6)."""
        self.faults = NO_FAULTS
        self._refusals = 0
        process = self.final = self._start(-1, now + 1.0)
        main = process.spawn(self._quiet(process))
        steps = SPARE_STEPS + STEPS_PER_MESSAGE * self.scenario.messages
        retention = self.manager_configuration.retention
        if retention is not None:
            steps += round(2 * SETTLE_SECONDS / retention.check_seconds)
        process.loop.run(until=main.done, steps=steps)
        self._count(process)
        if not main.done():
            self.problems.append(f"the quiet end takes more than {steps} steps")
            return
        main.result()
        self._settle(process, End.SHUTDOWN, process.memory_logs())

    async def _quiet(self, process: Process) -> None:
        queue = await process.open()
        await self._resume(queue)
        for name in self.patterns:
            queue.subscribe(name, "#", process.handler(name))
        for pattern, handler in self.scenario.handlers.items():
            await self._user_subscribe(process, pattern, handler)
        for name in self.pull_patterns:
            # It may have another pattern already.
            queue.subscribe(name, "#")
            process.spawn(process.pull(name, "#"))
        end = process.now + SETTLE_SECONDS
        while process.now < end:
            await asyncio.sleep(SETTLE_SECONDS / 20)
            statistics = queue.get_statistics()
            if not statistics.current_queue_size and not statistics.current_in_flight_count:
                break
        for task in tuple(process.background):
            if task is not asyncio.current_task():
                task.cancel()
        await asyncio.sleep(1.0)
