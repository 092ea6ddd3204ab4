"""``QueueMachine``: a Hypothesis state machine that drives a real queue, for subclasses with handlers of their own.

    class Shop(QueueMachine):
        topics = st.just("order.paid")

        def begin(self):
            self.shipped = Counter()
            self.handle("order.#", self.ship)

        def ship(self, message): ...

        @invariant()
        def never_ships_twice(self): ...

    TestShop = Shop.TestCase

Time is virtual, the disk is simulated, and what it found shrinks to a short story.
"""

from __future__ import annotations

from collections.abc import Awaitable
from contextlib import ExitStack
from inspect import iscoroutine
from random import Random
from typing import Any, ClassVar, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, precondition, rule

from mpreg_mq.actors.store import DEFAULT_BUFFERED_MILLISECONDS
from mpreg_mq.configuration import QueueConfiguration
from mpreg_mq.errors import MessageQueueError
from mpreg_mq.events import types as e
from mpreg_mq.events.log import RecordedEvent
from mpreg_mq.invariants import check_history
from mpreg_mq.model import Callback, DeliveryGuarantee, Durability, QueuedMessage
from mpreg_mq.payload import encode_payload
from mpreg_mq.projections import QueueState
from mpreg_mq.queue import MessageQueue
from mpreg_mq.sending import send_command
from mpreg_mq.testing.crash import crash, running_actors
from mpreg_mq.testing.disk import SimulatedDisk
from mpreg_mq.testing.loop import SimulatedClock, SimulatedLoop
from mpreg_mq.testing.model import ModelMessage, QueueModel
from mpreg_mq.testing.seams import deterministic
from mpreg_mq.topics import matches

T = TypeVar("T")

_WORKERS: st.SearchStrategy[str] = st.runner().flatmap(lambda machine: st.sampled_from(machine.workers))
_has_workers = precondition(lambda machine: bool(machine.workers))

MOMENT_SECONDS = 0.01
"""What each step takes: enough for the simulated disk to have written it."""

MOST_STEPS = 40
"""Most callbacks that run before a crash: a send, its delivery and the acknowledgment take some fifteen."""

BUFFERED_SECONDS = DEFAULT_BUFFERED_MILLISECONDS / 1000
"""What a step of a ``BUFFERED`` queue takes as well, so that a crash loses only what was under way."""

MOST_MOMENTS = 10
"""In so many of them everything is in the log that the queue holds; there is a fault where it is not."""

MARGIN_SECONDS = 1e-6
"""So long before a lease ends it surely has not ended, by however rounded a clock."""


class QueueMachine(RuleBasedStateMachine):
    """Sends, fetches, settles, waits, restarts and crashes; after every step the queue is what the model says.

    Messages on topics that a handler of yours takes are left out of the exact model; they, like all, are held against
    every rule of docs/semantics.md at the end of each story.
    """

    configuration: ClassVar[QueueConfiguration] = QueueConfiguration(
        "q",
        max_retries=2,
        default_visibility_timeout_seconds=10.0,
        retry_backoff_seconds=1.0,
        retry_jitter=0.0,
    )
    """The queue's configuration. The exact model needs a FIFO queue without jitter (``retry_jitter=0.0``), without a
    circuit breaker, and with a ``max_size`` that is not reached."""
    topics: ClassVar[st.SearchStrategy[str]] = st.sampled_from(("a.x", "a.y", "b"))
    payloads: ClassVar[st.SearchStrategy[Any]] = st.integers(0, 99)
    workers: ClassVar[tuple[str, ...]] = ("w1", "w2")
    """Who fetches; without any there are only your handlers."""
    exact: ClassVar[bool] = True
    """Whether to compare with the model; switch it off for configurations that the model does not know."""

    messages: Bundle[str] = Bundle("messages")

    def begin(self) -> None:
        """Set up your state and call :meth:`handle`; called once, when the queue is new."""

    def handle(self, pattern: str, callback: Callback) -> None:
        """Subscribe a handler, now and after each restart."""
        self._handlers.append((pattern, callback))
        self._subscribe(pattern, callback)

    # --- running it ---------------------------------------------------------------------------------------

    def __init__(self) -> None:
        super().__init__()
        self._actors_before = running_actors()
        self._handlers: list[tuple[str, Callback]] = []
        self._working: list[Any] = []
        self._living: list[MessageQueue] = []
        self._random = Random(0)
        self.disk = SimulatedDisk()
        self.model = QueueModel(self.configuration)
        self.loop = SimulatedLoop()
        self.log = self.disk.open(self.loop)
        self.clock = SimulatedClock(self.loop)
        self.restarts = 0
        with ExitStack() as end:
            end.enter_context(deterministic(self._random))
            end.callback(self._crash)
            self.queue = self.loop.run_until_complete(self._open())
            # Hypothesis calls teardown for a machine that it has, and not where this raises.
            self._end = end.pop_all()

    @initialize()
    def set_up(self) -> None:
        """Let the subclass begin."""
        self.begin()
        self._settle()

    async def _open(self) -> MessageQueue:
        queue = MessageQueue(self.configuration, log=self.log, clock=self.clock)
        self._living = [queue]
        for name in self.workers:
            if not any(joined.subscriber_id == name for joined in queue.subscriptions.values()):
                queue.subscribe(name, "#", max_in_flight=1000)
        return queue

    def _subscribe(self, pattern: str, callback: Callback) -> None:
        def called(message: QueuedMessage) -> Any:
            returned = callback(message)
            if iscoroutine(returned):
                # One that has not begun when the process crashes must not begin.
                self._working.append(returned)
            return returned

        self.queue.subscribe(f"handler {pattern}", pattern, called)
        self._settle()

    def run(self, work: Awaitable[T]) -> T:
        """Do something with the queue, and let what follows from it happen."""
        result = self.loop.run_until_complete(work)
        self._settle()
        return result

    def _settle(self) -> None:
        buffered = self.configuration.durability is Durability.BUFFERED
        self.loop.advance(MOMENT_SECONDS + (BUFFERED_SECONDS if buffered else 0.0))
        if any(abs(moment - self.now) <= MARGIN_SECONDS for moment in self.model.moments()):
            # Who looks at the very moment sees it before or after what is due then.
            self.loop.advance(2 * MARGIN_SECONDS)
        self.model.advance(self.now)

    def _log_all(self) -> None:
        """What came due just now, and only then, is in the queue and on its way to the disk."""
        for _ in range(MOST_MOMENTS):
            if self._records()[-1].version == self.queue._actor.state.version:
                return
            self.loop.advance(MOMENT_SECONDS)

    @property
    def now(self) -> float:
        """The queue's time."""
        return self.clock.now()

    def _modelled(self, topic: str) -> bool:
        return self.exact and not any(matches(pattern, topic) for pattern, _ in self._handlers)

    # --- what may happen ----------------------------------------------------------------------------------

    @rule(target=messages, data=st.data())
    def send(self, data: st.DataObject) -> Any:
        """Somebody sends a message."""
        topic, payload, options = self._draw(data)
        now = self.now
        result = self.run(self.queue.send_message(topic, payload, _GUARANTEE, **options))
        if not result.success:
            return multiple()
        return self._accepted(str(result.message_id), topic, payload, options, now)

    def _draw(self, data: st.DataObject) -> tuple[str, Any, dict[str, Any]]:
        return data.draw(self.topics, "topic"), data.draw(self.payloads, "payload"), data.draw(_OPTIONS, "options")

    def _accepted(self, message_id: str, topic: str, payload: Any, options: dict[str, Any], at: float) -> str:
        if self._modelled(topic):
            ttl = options.get("message_ttl_seconds", self.configuration.message_ttl_seconds)
            self.model.accept(
                ModelMessage(
                    message_id,
                    topic,
                    payload,
                    self.configuration.attempts_for(options.get("max_retries")),
                    at + options.get("delay_seconds", 0.0),
                    float("inf") if ttl is None else at + ttl,
                    options.get("group_id"),
                )
            )
        return message_id

    @_has_workers
    @rule(worker=_WORKERS, count=st.integers(1, 3))
    def fetch(self, worker: str, count: int) -> None:
        """A worker fetches messages."""
        self.model.advance(self.now)
        expected = self.model.available(self.now)[:count]
        now = self.now
        got = self.run(self.queue.receive_messages(worker, count))
        modelled = [message for message in got if self.model.get(str(message.id)) is not None]
        if self.exact and len(modelled) == len(got) and not self._handlers:
            assert [(str(message.id), encode_payload(message.payload)) for message in got] == [
                # As bytes: what is no plain data comes back as that, and not a number is not itself.
                (message.id, encode_payload(message.payload))
                for message in expected
            ], "a worker is given what stands first"
            for given, message in zip(got, expected, strict=True):
                assert given.delivery_attempt == message.attempts + 1, "attempts count up (R1)"
        taken = [found for message in modelled if (found := self.model.get(str(message.id))) is not None]
        self.model.take(taken, worker, now, self.configuration.default_visibility_timeout_seconds)

    @_has_workers
    @rule(message=messages, worker=_WORKERS)
    def acknowledge(self, message: str, worker: str) -> None:
        """A worker acknowledges a message, whether it has it or not."""
        modelled = self.model.get(message)
        self.model.advance(self.now)
        expected = modelled is not None and self.model.acknowledges(modelled, worker)
        counted = self.run(self.queue.acknowledge_message(message, worker))
        if modelled is not None:
            assert counted is expected, "an acknowledgment counts from who has the message (L2)"

    @_has_workers
    @rule(message=messages, worker=_WORKERS, delay=st.sampled_from((0.0, 3.0)))
    def refuse(self, message: str, worker: str, delay: float) -> None:
        """A worker gives a message back."""
        modelled = self.model.get(message)
        now = self.now
        self.model.advance(now)
        counted = self.run(self.queue.negative_acknowledge(message, worker, "no", delay))
        if modelled is not None:
            holds = modelled.held and modelled.holder == worker and modelled.deadline > now
            assert counted is holds, "only who has a message can give it back (L3)"
            if holds:
                self.model.fail(modelled, now, delay)
                self.model.advance(self.now)

    @_has_workers
    @rule(message=messages, worker=_WORKERS, seconds=st.sampled_from((2.0, 30.0)))
    def extend(self, message: str, worker: str, seconds: float) -> None:
        """A worker asks for more time."""
        modelled = self.model.get(message)
        now = self.now
        self.model.advance(now)
        holds = modelled is not None and modelled.held and modelled.holder == worker
        if modelled is not None and holds:
            modelled.deadline = now + seconds
        counted = self.run(self.queue.extend_lease(message, worker, seconds))
        if modelled is not None:
            assert counted is holds, "only who has a message can keep it for longer (L3)"

    @rule(seconds=st.sampled_from((0.5, 5.0, 60.0)))
    def wait(self, seconds: float) -> None:
        """Time passes."""
        self.loop.advance(seconds)
        self._settle()

    @rule()
    def restart(self) -> None:
        """The queue is shut down, which ends leases, and opened again."""
        self.model.advance(self.now)
        for message in self.model.messages:
            if message.held:
                self.model.fail(message, self.now, 0.0)
        self._end_memory()
        self.run(self.queue.shutdown())
        self._come_back()

    @rule(target=messages, steps=st.integers(0, MOST_STEPS), sends=st.booleans(), data=st.data())
    def crash(self, steps: int, sends: bool, data: st.DataObject) -> Any:
        """The process ends after so many steps of its loop, anywhere within what it does: between a handler and its
        acknowledgment, or within a send that nobody got an answer to, and that was accepted or not.

        What workers have stays theirs until their leases run out.
        """
        if not sends:
            self._run_on(steps)
            self._end_memory()
            self._crash()
            self._come_back()
            return multiple()
        topic, payload, options = self._draw(data)
        before = self.log.last_position()
        sending = self.loop.create_task(self.queue.send_message(topic, payload, _GUARANTEE, **options))
        self._run_on(steps)
        answered = sending.done() and sending.result().success
        self._end_memory()
        self._crash()
        enqueued = self._logged_since(before, topic, payload, options)
        if self.configuration.durability in (None, Durability.COMMITTED):
            assert enqueued is not None or not answered, "what was accepted is in the log (I5)"
        accepted = enqueued is not None and self._accepted(enqueued.message_id, topic, payload, options, enqueued.at)
        self._come_back()
        return accepted or multiple()

    def _run_on(self, steps: int) -> None:
        """Run so many steps, while no lease of the model ends: nobody could tell whether that was logged before the
        crash."""
        ends = [message.deadline - MARGIN_SECONDS - self.now for message in self.model.messages if message.held]
        if not ends or min(ends) > 0:
            self.loop.run(steps=steps, seconds=min(ends, default=None))

    def _logged_since(
        self, position: int, topic: str, payload: Any, options: dict[str, Any]
    ) -> e.MessageEnqueued | None:
        """The acceptance of a message that was sent when the log was at ``position``; None where it was not accepted.

        A handler may send the same, which is the same to all that looks at it.
        """
        try:
            sent = send_command(self.configuration, topic, payload, _GUARANTEE, options)
        except MessageQueueError:
            return None
        for record in self.disk.records()[position:]:
            event = record.event
            if isinstance(event, e.MessageEnqueued) and (event.topic, event.payload, event.options) == (
                sent.topic,
                sent.payload,
                sent.options,
            ):
                return event
        return None

    def _crash(self) -> None:
        crash(self.loop, self.log, self._living, self._actors_before, self._working)
        self._living.clear()
        self._working.clear()

    @property
    def _in_memory(self) -> bool:
        return self.configuration.durability is Durability.MEMORY

    def _end_memory(self) -> None:
        """The log of a queue in memory, and all that it holds, ends with the process: check it before."""
        if self._in_memory:
            self._check_log()

    def _records(self) -> list[RecordedEvent]:
        """All that was logged; of a queue in memory, since its process began."""
        return list(self.queue._actor._store.log.read_all()) if self._in_memory else self.disk.records()

    def _check_log(self) -> list[RecordedEvent]:
        records = self._records()
        violations = check_history(records)
        assert not violations, "\n".join(str(violation) for violation in violations[:5])
        return records

    def _come_back(self) -> None:
        if self._in_memory:
            self.model.messages.clear()
        self.restarts += 1
        start = self.now
        self.loop = SimulatedLoop()
        self.log = self.disk.open(self.loop)
        self.clock = SimulatedClock(self.loop, start)
        self.queue = self.loop.run_until_complete(self._open())
        for pattern, callback in self._handlers:
            self._subscribe(pattern, callback)
        self._settle()

    @rule()
    def redrive(self) -> None:
        """All dead letters are sent again, as new messages at the end."""
        dead = {str(letter.id): letter for letter in self.queue.list_dead_letters()}
        now = self.now
        new = self.run(self.queue.redrive_dead_letters())
        for old_id, new_id in zip(dead, new, strict=False):
            old = self.model.get(old_id)
            if old is not None:
                ttl = dead[old_id].message.message_ttl_seconds
                delay = dead[old_id].message.delay_seconds
                self.model.accept(
                    ModelMessage(
                        str(new_id),
                        old.topic,
                        old.payload,
                        old.max_attempts,
                        now + delay,
                        float("inf") if ttl is None else now + ttl,
                        old.group_id,
                    )
                )
                self.model.messages.remove(old)
        self.model.advance(self.now)

    # --- what must hold -----------------------------------------------------------------------------------

    @invariant()
    def the_queue_is_what_the_model_says(self) -> None:
        """Pending, leased and dead are the same messages here and there."""
        known = {message.id for message in self.model.messages}
        pending = [str(message.id) for message in self.queue.pending_messages if str(message.id) in known]
        assert pending == self.model.in_state("pending"), "pending are those that the model has, in its order"
        leased = [message_id for message_id in self.queue.in_flight_messages if message_id in known]
        assert leased == self.model.in_state("held"), "leased are those that the model has, in its order"
        dead = {str(letter.id) for letter in self.queue.dead_letter_queue if str(letter.id) in known}
        assert dead == set(self.model.in_state("dead")), "dead letters are those that the model has"

    def teardown(self) -> None:
        """At the end of each story its log is checked by every rule, and compared with the live queue (I4)."""
        try:
            self._settle()
            self._log_all()
            records = self._check_log()
            folded = QueueState.replay(record.event for record in records)
            assert folded.describe() == self.queue._actor.state.describe(), "I4: the queue is the fold of its log"
        finally:
            self._end.close()


_GUARANTEE = DeliveryGuarantee.AT_LEAST_ONCE
_OPTIONS: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {},
    optional={
        "delay_seconds": st.sampled_from((1.0, 7.0)),
        "message_ttl_seconds": st.sampled_from((3.0, 25.0)),
        "max_retries": st.integers(0, 2),
        "group_id": st.sampled_from(("g", "h")),
    },
)
