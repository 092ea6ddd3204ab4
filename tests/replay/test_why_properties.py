"""``why`` for any story: what it gives as the blocker is one, and a message without a blocker moves."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule

from mpreg_mq.actors import commands as c
from mpreg_mq.model import DeliveryGuarantee, MessageOptions, QueueType
from mpreg_mq.projections import QueueState
from mpreg_mq.replay import Blocker, Explanation, Standing, explain
from mpreg_mq.replay.sightings import Sightings
from mpreg_mq.replay.wording import message_ids
from tests.support.effort import repetitions
from tests.support.given import Scenario
from tests.support.stories import GUARANTEES, NAMES, PATTERNS, TOPICS, Story

MAX_REMOVALS = 60


def fold(scenario: Scenario) -> tuple[QueueState, Sightings]:
    """A state of its own to explain, as ``why`` makes it from a log."""
    state = QueueState.replay(scenario.history)
    state.messages.promote(scenario.now)
    return state, Sightings.replay(scenario.history)


def ask(scenario: Scenario, message_id: str) -> Explanation:
    state, seen = fold(scenario)
    return explain(state, message_id, scenario.now, seen)


def moves(scenario: Scenario, message_id: str) -> bool:
    """Let the queue do what it can at this moment; whether it did anything about the message."""
    before = len(scenario.history)
    scenario.dispatch()
    return any(message_id in message_ids(event) for event in scenario.history[before:])


class Remover:
    """Removes a blocker in the way that its kind says, and nothing else."""

    def __init__(self, scenario: Scenario, message_id: str) -> None:
        self.q = scenario
        self.message_id = message_id

    def remove(self, blocker: Blocker) -> None:
        getattr(self, blocker.kind.value)(blocker)

    def paused(self, blocker: Blocker) -> None:
        self.q.when(c.Resume())

    def wait(self, blocker: Blocker) -> None:
        assert blocker.until is not None
        assert blocker.until > self.q.now, "what time removes lies ahead"
        self.q.now = blocker.until

    delayed = backoff = circuit_open = quorum_short = wait

    def settle(self, blocker: Blocker) -> None:
        """Acknowledge what has to be settled, or fail where this message itself is what is leased."""
        for other in blocker.message_ids:
            message = self.q.state.messages.get(other)
            assert message is not None, "what has to be settled is unfinished"
            for slot in list(message.slots()):
                if slot.lease is not None and blocker.subscriber_id in (None, slot.lease.subscriber_id):
                    assert self.q.acknowledge(other, slot.lease.subscriber_id)

    leased = max_in_flight = circuit_probing = ttl_passed = settle

    def group(self, blocker: Blocker) -> None:
        (head,) = blocker.message_ids
        # The head is finished from outside, as an operator would who gives it up.
        assert self.q.state.messages.get(head) is not None
        self.q.given(_purged(self.q, head))

    def no_subscriber(self, blocker: Blocker) -> None:
        message = self.q.state.messages.get(self.message_id)
        assert message is not None
        self.q.subscribe(f"new-{len(self.q.history)}", message.topic)

    def member_away(self, blocker: Blocker) -> None:
        assert blocker.subscriber_id is not None
        self.q.subscribe(blocker.subscriber_id, "nothing.matches")

    def not_fetched(self, blocker: Blocker) -> None:
        assert blocker.subscriber_id is not None
        taken = self.q.receive(blocker.subscriber_id, len(blocker.message_ids) + 1)
        assert taken, "who did not ask gets something when it asks"


def _purged(scenario: Scenario, message_id: str) -> Any:
    from mpreg_mq.events import types as e

    return e.MessagesPurged(scenario.now, (message_id,))


class WhyStory(Story):
    """Random stories; after each step that matters every unfinished message is explained."""

    @initialize(
        queue_type=st.sampled_from(QueueType),
        threshold=st.sampled_from([None, 1, 2]),
        max_retries=st.integers(0, 2),
        first=st.lists(st.tuples(st.sampled_from(GUARANTEES), st.sampled_from([None, "g"])), min_size=1, max_size=5),
    )
    def create(
        self,
        queue_type: QueueType,
        threshold: int | None,
        max_retries: int,
        first: list[tuple[DeliveryGuarantee, str | None]],
    ) -> None:
        self.q = Scenario(
            queue_type=queue_type,
            circuit_breaker_failure_threshold=threshold,
            circuit_breaker_recovery_seconds=15,
            default_acknowledgment_timeout_seconds=10,
            default_visibility_timeout_seconds=8,
            max_retries=max_retries,
        )
        self.q.subscribe("r", "#", max_in_flight=1)
        for guarantee, group in first:
            self.q.when(c.Send("a.x", b"\xa1p", guarantee, MessageOptions(group_id=group)))

    @rule(
        topic=st.sampled_from(TOPICS),
        guarantee=st.sampled_from(GUARANTEES),
        priority=st.sampled_from([None, 9]),
        delay=st.sampled_from([None, None, 7.0]),
        ttl=st.sampled_from([None, None, 12.0]),
        group=st.sampled_from([None, "g"]),
        required=st.sampled_from([None, 2]),
    )
    def send(
        self,
        topic: str,
        guarantee: DeliveryGuarantee,
        priority: int | None,
        delay: float | None,
        ttl: float | None,
        group: str | None,
        required: int | None,
    ) -> None:
        options = MessageOptions(
            priority=priority,
            delay_seconds=delay,
            message_ttl_seconds=ttl,
            group_id=group,
            required_acknowledgments=required,
        )
        self.q.when(c.Send(topic, b"\xa1p", guarantee, options))

    @rule(name=st.sampled_from(NAMES), pattern=st.sampled_from(PATTERNS), pull=st.booleans(), most=st.integers(1, 2))
    def subscribe(self, name: str, pattern: str, pull: bool, most: int) -> None:
        if self.can_join(name, pull=pull):
            self.q.subscribe(name, pattern, pull=pull, max_in_flight=most)

    @rule(name=st.sampled_from(NAMES))
    def unsubscribe(self, name: str) -> None:
        subscriber = self.q.state.subscribers.get(name)
        if subscriber is not None:
            for subscription in list(subscriber.subscriptions):
                self.q.when(c.Unsubscribe(subscription))

    @rule(command=st.sampled_from([c.Pause(), c.Resume()]))
    def administer(self, command: Any) -> None:
        self.q.when(command)

    @rule()
    def ready_means_that_it_moves_now(self) -> None:
        """A message is ready if, and only if, the queue does something about it at this very moment."""
        for message in list(self.q.state.messages):
            answer = ask(self.q, message.id)
            assert answer.standing in (Standing.READY, Standing.WAITING)
            copy = self.q.copy()
            assert moves(copy, message.id) is (answer.standing is Standing.READY), answer
            if answer.standing is Standing.WAITING:
                assert answer.blockers, "who waits has a reason"
                assert answer.common or all(way.blockers for way in answer.ways)

    @rule(choice=st.randoms(use_true_random=False))
    def removing_the_blockers_lets_it_move(self, choice: Any) -> None:
        """Remove what stands in one way, again where that brought something else about, and the message moves."""
        for message in list(self.q.state.messages):
            copy = self.q.copy()
            if moves(copy, message.id):
                continue
            self._remove_until_it_moves(copy, message.id, choice)

    @staticmethod
    def _remove_until_it_moves(copy: Scenario, message_id: str, choice: Any) -> None:
        before: list[Blocker] = []
        for _ in range(MAX_REMOVALS):
            answer = ask(copy, message_id)
            assert answer.standing is Standing.WAITING, answer
            blocker = answer.common[0] if answer.common else choice.choice(answer.ways).blockers[0]
            # Later it may come back: a lease that removed it can run out while time removes another one.
            assert blocker not in before[-1:], "a blocker that was removed is gone"
            before.append(blocker)
            start = len(copy.history)
            Remover(copy, message_id).remove(blocker)
            if any(message_id in message_ids(event) for event in copy.history[start:]) or moves(copy, message_id):
                return
        raise AssertionError(f"{message_id} does not move after removing {before}")


TestWhyStory = WhyStory.TestCase
TestWhyStory.settings = settings(max_examples=repetitions(test=100, soak=3000), stateful_step_count=25, deadline=None)
