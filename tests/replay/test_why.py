"""``why``, through the real queue: each situation is built by its own façade, and the log alone says what holds."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from mpreg_mq.clock import VirtualClock
from mpreg_mq.events import MemoryEventLog
from mpreg_mq.events import types as e
from mpreg_mq.model import CircuitState, DeliveryGuarantee
from mpreg_mq.queue import MessageQueue
from mpreg_mq.replay import BlockerKind, Explanation, Moment, Standing, why
from mpreg_mq.replay.subjects import MessageNotFoundError
from tests.support.running import Recorder, make_queue

BROADCAST, QUORUM = DeliveryGuarantee.BROADCAST, DeliveryGuarantee.QUORUM


class Bench:
    """A real queue on a virtual clock, and its log to ask."""

    def __init__(self, **settings: Any) -> None:
        self.clock = VirtualClock()
        self.log = MemoryEventLog()
        settings = {"retry_jitter": 0.0, "retry_backoff_seconds": 10.0, **settings}
        self.queue: MessageQueue = make_queue(self.clock, self.log, **settings)
        self.fail: str | None = None

    async def send(self, topic: str = "order.new", **options: Any) -> str:
        """An accepted message, after the queue had time to do what it wants with it."""
        result = await self.queue.send_message(topic, {"sku": 7}, **options)
        assert result.success, result.error_message
        assert result.message_id is not None
        await self.clock.settle()
        return result.message_id.id

    def subscribe(self, name: str, pattern: str = "#", **arguments: Any) -> str:
        """A subscriber by callback, which fails while ``fail`` says so."""

        def callback(message: object) -> None:
            if self.fail is not None:
                raise KeyError(self.fail)

        return self.queue.subscribe(name, pattern, callback, **arguments)

    async def wait(self, seconds: float) -> None:
        """Let time pass."""
        await self.clock.advance(seconds)

    def why(self, subject: str, **arguments: Any) -> Explanation:
        """What the log says at the clock's time."""
        return why(self.log, subject, at=Moment(time=self.clock.now()), **arguments)

    def moved(self, message_id: str) -> int:
        """Events about the message so far."""
        return sum(getattr(r.event, "message_id", None) == message_id for r in self.log.read_all())


def run(story: Any) -> None:
    """Run a test's story on a loop."""
    asyncio.run(story())


def kinds(explanation: Explanation) -> set[BlockerKind]:
    """The kinds of everything that stands in some way."""
    return {blocker.kind for blocker in explanation.blockers}


def test_no_subscriber_names_the_nearest_pattern() -> None:
    """Given patterns that do not match the topic, then the nearest is named with the reason; a match lets it go."""

    async def story() -> None:
        bench = Bench()
        bench.subscribe("a", "order.*")
        bench.subscribe("b", "invoice.#")
        message = await bench.send("order.eu.new")
        answer = bench.why(message)
        assert kinds(answer) == {BlockerKind.NO_SUBSCRIBER}
        assert answer.answer.startswith("pending: no subscriber matches order.eu.new; nearest pattern order.*")
        assert "order.# would match" in answer.answer
        bench.subscribe("c", "order.#")
        await bench.clock.settle()
        assert bench.why(message).standing is Standing.FINISHED

    run(story)


def test_a_subscriber_that_left_is_remembered() -> None:
    """Given who matched has unsubscribed, then it is named."""

    async def story() -> None:
        bench = Bench()
        bench.queue.unsubscribe(bench.subscribe("worker", "order.#"))
        message = await bench.send()
        assert "nobody is subscribed; worker (order.#) unsubscribed" in bench.why(message).answer

    run(story)


def test_delayed_until() -> None:
    """Given a delay, then it says until when; after that the message goes."""

    async def story() -> None:
        bench = Bench()
        bench.subscribe("worker")
        message = await bench.send(delay_seconds=60)
        answer = bench.why(message)
        assert kinds(answer) == {BlockerKind.DELAYED}
        assert "delayed until" in answer.answer
        assert "(in 1 m)" in answer.answer
        await bench.wait(60)
        assert bench.why(message).answer == "acknowledged by worker, attempt 1"

    run(story)


def test_backoff_until() -> None:
    """Given a failed attempt, then it says until when the next one waits, and what the last one said."""

    async def story() -> None:
        bench = Bench()
        bench.subscribe("worker")
        bench.fail = "sku"
        message = await bench.send()
        answer = bench.why(message)
        assert kinds(answer) == {BlockerKind.BACKOFF}
        assert "backoff until" in answer.answer
        assert "(in 10 s), after attempt 1 of 4 failed with KeyError: 'sku'" in answer.answer
        bench.fail = None
        await bench.wait(10)
        assert bench.why(message).answer == "acknowledged by worker, attempt 2"

    run(story)


def test_dead_with_attempts_and_last_error() -> None:
    """Given all attempts failed, then it is dead, with their number and what the last one said."""

    async def story() -> None:
        bench = Bench()
        bench.subscribe("worker")
        bench.fail = "sku"
        message = await bench.send()
        await bench.wait(200)
        answer = bench.why(message)
        assert answer.standing is Standing.FINISHED
        assert answer.answer == "dead: 4 attempts, last error KeyError: 'sku'"
        assert "its dead letter is in the dead letter queue; redrive it to try again" in answer.facts

    run(story)


def test_a_redriven_dead_letter_leads_to_the_new_message() -> None:
    """Given a dead letter that was redriven, then the explanation goes on with the message made from it."""

    async def story() -> None:
        bench = Bench(max_retries=0)
        bench.subscribe("worker")
        bench.fail = "sku"
        message = await bench.send()
        bench.fail = None
        (new,) = await bench.queue.redrive_dead_letters()
        await bench.clock.settle()
        answer = bench.why(message)
        assert answer.answer == "dead: 1 attempt, last error KeyError: 'sku'"
        assert answer.then is not None
        assert answer.then.subject == new.id
        assert answer.then.answer == "acknowledged by worker, attempt 1"

    run(story)


def test_leased_and_not_answered() -> None:
    """Given a subscriber that has the message, then it says who, until when; an acknowledgment ends it."""

    async def story() -> None:
        bench = Bench()
        bench.subscribe("worker", auto_acknowledge=False)
        message = await bench.send()
        answer = bench.why(message)
        assert kinds(answer) == {BlockerKind.LEASED}
        assert answer.answer.startswith("in flight: leased to worker (attempt 1), until")
        assert "(in 5 m)" in answer.answer
        await bench.queue.acknowledge_message(message, "worker")
        assert bench.why(message).standing is Standing.FINISHED

    run(story)


def test_held_back_by_its_group() -> None:
    """Given a message of the group in flight, then the next one is held back by it, and goes when it is settled."""

    async def story() -> None:
        bench = Bench()
        bench.subscribe("worker", auto_acknowledge=False)
        first = await bench.send(group_id="7")
        second = await bench.send(group_id="7")
        answer = bench.why(second)
        assert kinds(answer) == {BlockerKind.GROUP}
        assert answer.answer == f"held back: group 7 has {first} in flight"
        assert answer.common[0].message_ids == (first,)
        await bench.queue.acknowledge_message(first, "worker")
        await bench.clock.settle()
        assert kinds(bench.why(second)) == {BlockerKind.LEASED}

    run(story)


def test_the_breaker_is_open_since() -> None:
    """Given a subscriber whose breaker opened, then it says since when and until when; then the message probes it."""

    async def story() -> None:
        bench = Bench(circuit_breaker_failure_threshold=2, circuit_breaker_recovery_seconds=40, max_retries=0)
        bench.subscribe("worker-3")
        bench.fail = "sku"
        await bench.send()
        await bench.send()
        await bench.wait(1)
        message = await bench.send()
        answer = bench.why(message)
        assert kinds(answer) == {BlockerKind.CIRCUIT_OPEN}
        assert answer.answer.startswith("breaker of worker-3 open since")
        assert "after 2 failures in a row" in answer.answer
        assert "(in 39 s)" in answer.answer
        bench.fail = None
        await bench.wait(39)
        assert bench.why(message).answer == "acknowledged by worker-3, attempt 1"

    run(story)


def test_another_message_probes_the_breaker() -> None:
    """Given a half-open breaker with its probe out, then the others wait for the probe."""

    async def story() -> None:
        bench = Bench(circuit_breaker_failure_threshold=1, circuit_breaker_recovery_seconds=5, max_retries=0)
        bench.subscribe("worker", auto_acknowledge=False)
        bench.fail = "sku"
        await bench.send()
        bench.fail = None
        probe = await bench.send()
        message = await bench.send()
        await bench.wait(5)
        answer = bench.why(message)
        assert kinds(answer) == {BlockerKind.CIRCUIT_PROBING}
        assert answer.blockers[0].message_ids == (probe,)
        await bench.queue.acknowledge_message(probe, "worker")
        await bench.clock.settle()
        assert bench.queue._actor.state.subscribers.get("worker").circuit is CircuitState.CLOSED  # type: ignore[union-attr]
        assert kinds(bench.why(message)) == {BlockerKind.LEASED}

    run(story)


def test_everybody_is_busy() -> None:
    """Given a subscriber with all it may have in flight, then it says which; settling one lets the next go."""

    async def story() -> None:
        bench = Bench()
        bench.subscribe("worker", max_in_flight=1, auto_acknowledge=False)
        first = await bench.send()
        second = await bench.send()
        answer = bench.why(second)
        assert kinds(answer) == {BlockerKind.MAX_IN_FLIGHT}
        assert answer.answer == f"worker has 1 of at most 1 messages in flight: {first}"
        await bench.queue.acknowledge_message(first, "worker")
        await bench.clock.settle()
        assert kinds(bench.why(second)) == {BlockerKind.LEASED}

    run(story)


def test_waits_to_be_fetched() -> None:
    """Given a subscriber that pulls, then the message waits for it to ask, behind those that go first."""

    async def story() -> None:
        bench = Bench()
        bench.queue.subscribe("puller", "order.#")
        first = await bench.send()
        second = await bench.send()
        answer = bench.why(second)
        assert kinds(answer) == {BlockerKind.NOT_FETCHED}
        assert answer.answer == "waits to be fetched: puller pulls, and did not ask; 1 message before it"
        assert answer.blockers[0].message_ids == (first,)
        await bench.queue.receive_messages("puller", 2)
        assert kinds(bench.why(second)) == {BlockerKind.LEASED}

    run(story)


def test_paused() -> None:
    """Given a paused queue, then that is the reason, and resuming lets the message go."""

    async def story() -> None:
        bench = Bench()
        bench.subscribe("worker")
        bench.queue.pause_queue()
        message = await bench.send()
        await bench.wait(90)
        answer = bench.why(message)
        assert kinds(answer) == {BlockerKind.PAUSED}
        assert "(1 m 30 s ago)" in answer.answer
        bench.queue.resume_queue()
        await bench.clock.settle()
        assert bench.why(message).standing is Standing.FINISHED

    run(story)


def test_a_member_of_the_audience_is_away() -> None:
    """Given a member whose process ended, then its place waits until it subscribes again (G3)."""

    async def story() -> None:
        bench = Bench()
        bench.subscribe("here")
        bench.subscribe("gone", auto_acknowledge=False)
        message = await bench.send(delivery_guarantee=BROADCAST)
        await bench.queue.shutdown()
        bench.queue = make_queue(bench.clock, bench.log, retry_jitter=0.0, retry_backoff_seconds=10.0)
        answer = bench.why(message)
        assert kinds(answer) == {BlockerKind.MEMBER_AWAY}
        assert "gone is in its audience and away" in answer.answer
        assert "audience of 2: acknowledged by here" in answer.facts
        bench.subscribe("gone")
        await bench.clock.settle()
        assert bench.why(message).answer == "completed: acknowledged by here, gone"

    run(story)


def test_a_quorum_is_short() -> None:
    """Given everybody acknowledged and it is not enough, then it waits for newcomers (G4)."""

    async def story() -> None:
        bench = Bench()
        bench.subscribe("a")
        message = await bench.send(delivery_guarantee=QUORUM, required_acknowledgments=2)
        answer = bench.why(message)
        assert kinds(answer) == {BlockerKind.QUORUM_SHORT}
        assert "1 of 2 acknowledgments" in answer.answer
        bench.subscribe("b")
        await bench.clock.settle()
        assert bench.why(message).answer == "completed: acknowledged by a, b"

    run(story)


def test_past_its_time_to_live_but_leased_by_others() -> None:
    """Given a copy that is past its TTL while another member has the message, then it ends with that lease (T1)."""

    async def story() -> None:
        bench = Bench()
        bench.subscribe("slow", auto_acknowledge=False)
        bench.subscribe("sick")
        bench.fail = None

        def refuse(message: object) -> None:
            raise KeyError("sku")

        bench.queue.subscribe("refuser", "#", refuse)
        message = await bench.send(delivery_guarantee=BROADCAST, message_ttl_seconds=5)
        await bench.wait(30)
        answer = bench.why(message)
        assert kinds(answer) == {BlockerKind.LEASED, BlockerKind.TTL_PASSED}
        await bench.queue.negative_acknowledge(message, "slow")
        await bench.clock.settle()
        assert bench.why(message).answer == "expired: its time to live passed"

    run(story)


def test_a_duplicate_names_the_first_message_and_when_its_key_expires() -> None:
    """Given a refused duplicate, when asked for its position or its key, then both say whose it is."""

    async def story() -> None:
        bench = Bench(enable_deduplication=True, deduplication_window_seconds=60)
        bench.subscribe("worker")
        message = await bench.send(deduplication_id="k")
        await bench.wait(19)
        result = await bench.queue.send_message("order.new", 1, deduplication_id="k")
        assert not result.success
        position = bench.log.last_position()
        assert bench.why(f"@{position}").answer == f"duplicate of {message}, its key expires in 41 s"
        key = bench.why("k")
        assert key.standing is Standing.KEY
        assert key.answer.startswith(f"duplicate of {message}: its key expires in 41 s")
        await bench.wait(41)
        assert bench.why("k").answer == "the key is free: a send with it is accepted"
        assert (await bench.queue.send_message("order.new", 1, deduplication_id="k")).success

    run(story)


def test_a_refused_send_says_why() -> None:
    """Given a full queue, then the refused send says so."""

    async def story() -> None:
        bench = Bench(max_size=1)
        await bench.send()
        assert not (await bench.queue.send_message("order.new", 1)).success
        answer = bench.why(f"@{bench.log.last_position()}")
        assert answer.standing is Standing.REFUSED
        assert answer.answer.startswith("refused, capacity: Queue 'q' at maximum capacity")

    run(story)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("expire", "expired: its time to live passed"),
        ("purge", "purged, one of 1 message"),
        ("drop", "dropped: it was the oldest of a full queue"),
    ],
)
def test_other_ends(how: str, words: str) -> None:
    """Given a message that ended in another way, then it says how."""

    async def story() -> None:
        bench = Bench(max_size=1, overflow_policy="drop_oldest")
        message = await bench.send(message_ttl_seconds=5)
        if how == "expire":
            await bench.wait(5)
        elif how == "purge":
            await bench.queue.purge_queue()
        else:
            await bench.send()
        assert bench.why(message).answer == words

    run(story)


def test_fire_and_forget_is_over_at_once() -> None:
    """Given a fire-and-forget message, then it says whom it reached."""

    async def story() -> None:
        bench = Bench()
        bench.subscribe("worker")
        result = await bench.queue.send_message("order.new", 1, DeliveryGuarantee.FIRE_AND_FORGET)
        assert result.message_id is not None
        assert bench.why(result.message_id.id).answer == "fired on order.new at worker"

    run(story)


def test_nothing_holds_it_up() -> None:
    """Given a log that ends before the queue could act, then the message is ready, and it is said what comes next."""
    log = MemoryEventLog()

    async def story() -> None:
        queue = make_queue(VirtualClock(), log)
        queue.subscribe("worker", "#", Recorder())
        await queue.send_message("order.new", 1)

    run(story)
    accepted = next(r for r in log.read_all() if isinstance(r.event, e.MessageEnqueued))
    answer = why(log, accepted.event.message_id, at=Moment(position=accepted.position))  # type: ignore[attr-defined]
    assert answer.standing is Standing.READY
    assert "it goes to worker with the queue's next turn" in answer.answer


def test_ids_are_found_by_number_and_beginning_and_ambiguity_is_said() -> None:
    """Given messages 1 to 12, then 1 is the first one, and an unknown or ambiguous text is an error that says so."""

    async def story() -> None:
        bench = Bench()
        sent = [await bench.send() for _ in range(12)]
        assert bench.why("1").subject == sent[0]
        assert bench.why(sent[11][:4]).subject == sent[11]
        with pytest.raises(MessageNotFoundError, match="begins with 'nope'"):
            bench.why("nope")
        other = make_queue(bench.clock, bench.log)
        assert other is not None

    run(story)
