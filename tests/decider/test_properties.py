"""Rules with a "for all": random stories on the pure decider, judged by their events alone."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, initialize, invariant, multiple, rule

from mpreg_mq.actors import commands as c
from mpreg_mq.actors.decider import decide_dispatch
from mpreg_mq.events import types as e
from mpreg_mq.model import DeliveryGuarantee, MessageOptions, OverflowPolicy, QueueType
from mpreg_mq.projections import MessageHistories, QueueState
from mpreg_mq.topics import matches
from tests.support.given import Scenario
from tests.support.stories import GUARANTEES, NAMES, PATTERNS, TOPICS, Story

WINDOW = 20.0


class QueueStory(Story):
    """Anything that can be asked of a queue, in any order; the rules are checked after every step."""

    messages: Bundle[str] = Bundle("messages")
    subscriptions: Bundle[str] = Bundle("subscriptions")

    @initialize(
        queue_type=st.sampled_from(QueueType),
        policy=st.sampled_from([OverflowPolicy.REJECT, OverflowPolicy.DROP_OLDEST]),
        max_size=st.sampled_from([3, 100]),
        threshold=st.sampled_from([None, 2]),
        dead_letters=st.booleans(),
        max_retries=st.integers(0, 2),
        first=st.lists(st.tuples(st.sampled_from(GUARANTEES), st.sampled_from([None, "g"])), min_size=2, max_size=6),
    )
    def create(
        self,
        queue_type: QueueType,
        policy: OverflowPolicy,
        max_size: int,
        threshold: int | None,
        dead_letters: bool,
        max_retries: int,
        first: list[tuple[DeliveryGuarantee, str | None]],
    ) -> None:
        self.queue_type = queue_type
        self.q = Scenario(
            queue_type=queue_type,
            overflow_policy=policy,
            max_size=max_size,
            circuit_breaker_failure_threshold=threshold,
            circuit_breaker_recovery_seconds=15,
            enable_dead_letter_queue=dead_letters,
            enable_deduplication=True,
            deduplication_window_seconds=WINDOW,
            default_acknowledgment_timeout_seconds=10,
            default_visibility_timeout_seconds=8,
            max_retries=max_retries,
        )
        self.max_attempts = max_retries + 1
        self.keys: list[tuple[str, float, str]] = []
        self.count = 0
        # From the start somebody takes everything, so that short stories have deliveries in them.
        self.q.subscribe("r", "#", max_in_flight=2)
        self.q.subscribe("s", "a.#", max_in_flight=2)
        for guarantee, group in first:
            self.q.when(c.Send("a.x", b"\xa1p", guarantee, MessageOptions(group_id=group)))

    @rule(
        target=messages,
        topic=st.sampled_from(TOPICS),
        guarantee=st.sampled_from(GUARANTEES),
        priority=st.sampled_from([None, 1, 9]),
        delay=st.sampled_from([None, None, 0.0, 7.0]),
        ttl=st.sampled_from([None, None, 12.0]),
        group=st.sampled_from([None, None, "g", "h"]),
        required=st.sampled_from([None, 2]),
        key=st.sampled_from(["k1", "k2", None, None]),
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
        key: str | None,
    ) -> Any:
        self.count += 1
        key = key or f"unique-{self.count}"
        options = MessageOptions(
            priority=priority,
            delay_seconds=delay,
            message_ttl_seconds=ttl,
            group_id=group,
            required_acknowledgments=required,
        )
        result = self.q.when(c.Send(topic, b"\xa1p", guarantee, options, key)).reply
        holders = [holder for held, at, holder in self.keys if held == key and self.q.now < at + WINDOW]
        if holders:
            assert result.duplicate_of.id == holders[-1], "U1: the naive list of all keys disagrees"
        if not result.success:
            return multiple()
        assert not holders
        self.keys.append((key, self.q.now, result.message_id.id))
        return result.message_id.id

    @rule(target=subscriptions, name=st.sampled_from(NAMES), pattern=st.sampled_from(PATTERNS), pull=st.booleans())
    def subscribe(self, name: str, pattern: str, pull: bool) -> Any:
        if not self.can_join(name, pull=pull):
            return multiple()
        return self.q.subscribe(name, pattern, pull=pull, max_in_flight=2)

    @rule(subscription=subscriptions)
    def unsubscribe(self, subscription: str) -> None:
        self.q.when(c.Unsubscribe(subscription))

    @rule(message=messages, name=st.sampled_from(NAMES))
    def acknowledge(self, message: str, name: str) -> None:
        was_delivered = any(
            event.message_id == message and event.subscriber_id == name
            for event in self.q.events_of(e.MessageDelivered)
        )
        counted = self.q.when(c.Acknowledge(message, name)).reply
        assert not counted or was_delivered, "L2: a stranger's acknowledgment counted"

    @rule(message=messages, name=st.sampled_from(NAMES), delay=st.sampled_from([None, 0.0, 3.0]))
    def fail(self, message: str, name: str, delay: float | None) -> None:
        self.q.when(c.NegativeAcknowledge(message, name, "boom", delay))

    @rule(seconds=st.sampled_from([1.0, 13.0]))
    def oversleep(self, seconds: float) -> None:
        """Time passes and the queue delivers before it looks at its deadlines."""
        self.q.now += seconds
        while (decision := decide_dispatch(self.q.state, self.q.context)).events:
            self.q.record(decision)

    @rule(message=messages, name=st.sampled_from(NAMES))
    def extend(self, message: str, name: str) -> None:
        self.q.when(c.ExtendLease(message, name, 20.0))

    @rule()
    def dispatch(self) -> None:
        self.q.dispatch()

    @rule(command=st.sampled_from([c.Pause(), c.Resume(), c.Redrive(), c.PurgeDeadLetters()]))
    def administer(self, command: Any) -> None:
        self.q.when(command)

    @rule()
    def purge(self) -> None:
        self.q.when(c.Purge())

    @invariant()
    def i2_accepted_is_finished_pending_or_leased(self) -> None:
        accepted = {event.message_id for event in self.q.events_of(e.MessageEnqueued)}
        state = self.q.state.messages
        pending = {message.id for message in state.pending()}
        leased = {message.id for message in state.leased()}
        finished = Counter(self._finished())
        assert set(finished.values()) <= {1}
        assert not pending & leased
        assert accepted - finished.keys() == pending | leased

    def _finished(self) -> list[str]:
        ended: list[str] = []
        for event in self.q.history:
            if isinstance(
                event,
                e.MessageCompleted | e.MessageDeadLettered | e.MessageFailed | e.MessageExpired | e.MessageDropped,
            ) or (isinstance(event, e.MessageAcknowledged) and event.completes):
                ended.append(event.message_id)
            elif isinstance(event, e.MessagesPurged):
                ended += event.message_ids
        return ended

    @invariant()
    def the_history_keeps_the_rules(self) -> None:
        leases: set[tuple[str, str]] = set()
        attempts: Counter[tuple[str, str | None]] = Counter()
        enqueued: dict[str, e.MessageEnqueued] = {}
        first: dict[str, float] = {}
        open_group: dict[str, str] = {}
        finished: set[str] = set()
        for event in self.q.history:
            if isinstance(event, e.MessageEnqueued):
                enqueued[event.message_id] = event
            elif isinstance(event, e.MessageDelivered):
                sent = enqueued[event.message_id]
                pair = (event.message_id, event.subscriber_id)
                assert event.message_id not in finished, "I3: delivered after its end"
                assert pair not in leases, "L1: two live leases"
                alone = sent.guarantee is DeliveryGuarantee.AT_LEAST_ONCE
                assert not alone or not any(held == event.message_id for held, _ in leases), "G2: two at a time"
                leases.add(pair)
                counted = (event.message_id, None if alone else event.subscriber_id)
                attempts[counted] += 1
                assert attempts[counted] == event.attempt <= self.max_attempts, "R1: attempts"
                assert event.at >= sent.at + (sent.options.delay_seconds or 0.0), "O3: too early"
                ttl = sent.options.message_ttl_seconds
                assert ttl is None or event.at < sent.at + ttl, "T1: too late"
                first.setdefault(event.message_id, event.at)
                group = sent.options.group_id
                if group is not None:
                    assert open_group.setdefault(group, event.message_id) == event.message_id, "O1: group"
            elif isinstance(event, e.MessageAcknowledged | e.DeliveryFailed | e.LeaseExpired | e.AudienceMemberLeft):
                leases.discard((event.message_id, event.subscriber_id))
                if isinstance(event, e.AudienceMemberLeft):
                    # Who leaves an audience and comes back is a new member.
                    attempts.pop((event.message_id, event.subscriber_id), None)
            ended = self._ends(event)
            finished.update(ended)
            for message_id in ended:
                leases = {pair for pair in leases if pair[0] != message_id}
                group = enqueued[message_id].options.group_id
                if group is not None and open_group.get(group) == message_id:
                    del open_group[group]

    @staticmethod
    def _ends(event: e.Event) -> tuple[str, ...]:
        if isinstance(event, e.MessagesPurged):
            return event.message_ids
        if isinstance(
            event, e.MessageCompleted | e.MessageDeadLettered | e.MessageFailed | e.MessageExpired | e.MessageDropped
        ) or (isinstance(event, e.MessageAcknowledged) and event.completes):
            return (event.message_id,)
        return ()

    @invariant()
    def deliveries_go_to_those_who_match(self) -> None:
        present: defaultdict[str, set[str]] = defaultdict(set)
        topics: dict[str, str] = {}
        audiences: defaultdict[str, set[str]] = defaultdict(set)
        for event in self.q.history:
            if isinstance(event, e.SubscriberJoined):
                present[event.subscriber_id].add(event.topic_pattern + "/" + event.subscription_id)
            elif isinstance(event, e.SubscriberLeft):
                mine = present[event.subscriber_id]
                mine -= {entry for entry in mine if entry.endswith("/" + event.subscription_id)}
            elif isinstance(event, e.MessageEnqueued):
                topics[event.message_id] = event.topic
            elif isinstance(event, e.AudienceFixed):
                for name in event.subscriber_ids:
                    assert self._matches(present[name], topics[event.message_id]), "G3: the audience matches"
                audiences[event.message_id] |= set(event.subscriber_ids)
            elif isinstance(event, e.MessageDelivered):
                member = event.subscriber_id in audiences[event.message_id]
                assert member or self._matches(present[event.subscriber_id], topics[event.message_id]), "G6"

    @staticmethod
    def _matches(entries: set[str], topic: str) -> bool:
        return any(matches(entry.split("/")[0], topic) for entry in entries)

    def teardown(self) -> None:
        if not hasattr(self, "q"):
            return
        cut = len(self.q.history) // 2
        state = QueueState.replay(self.q.history[:cut])
        for event in self.q.history[cut:]:
            state.apply(event)
        assert state.describe() == self.q.state.describe(), "I4: a prefix and the rest fold to the same"
        MessageHistories.replay(self.q.history).check()


TestQueueStory = QueueStory.TestCase
TestQueueStory.settings = settings(stateful_step_count=40, deadline=None)
