"""What any random story on a queue is made of, for state machines that say what has to hold in it."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from mpreg_mq.actors import commands as c
from mpreg_mq.model import DeliveryGuarantee
from tests.support.given import Scenario

GUARANTEES = [DeliveryGuarantee.AT_LEAST_ONCE, DeliveryGuarantee.BROADCAST, DeliveryGuarantee.QUORUM]
TOPICS = ["a.x", "a.y", "b", "c"]
PATTERNS = ["#", "a.#", "a.x", "*.x", "b"]
NAMES = ["r", "s", "t"]

OUTCOMES = st.lists(st.sampled_from(["acknowledge", "fail", "fail", "fail later", "hang"]), min_size=1)


class Story(RuleBasedStateMachine):
    """Work, time and processes that end. A machine that is derived makes the queue ``q``, sends and subscribes."""

    q: Scenario

    @rule(outcomes=OUTCOMES)
    def work(self, outcomes: list[str]) -> None:
        """The queue delivers, and every holder of a lease does something with it."""
        self.q.dispatch()
        for number, (message, name) in enumerate(self.q.leases()):
            outcome = outcomes[number % len(outcomes)]
            if outcome == "acknowledge":
                self.q.acknowledge(message, name)
            elif outcome != "hang":
                self.q.fail(message, name, 0.0 if outcome == "fail" else None)

    @rule(most=st.integers(1, 4), seconds_each=st.sampled_from([0.0, 4.0]))
    def work_in_a_row(self, most: int, seconds_each: float) -> None:
        """The queue delivers what can be delivered in a row, and each is acknowledged at once."""
        self.q.deliver_row(most, seconds_each)

    @rule(name=st.sampled_from(NAMES), limit=st.integers(1, 4))
    def receive(self, name: str, limit: int) -> None:
        subscriber = self.q.state.subscribers.get(name)
        if subscriber is not None and subscriber.pull:
            self.q.receive(name, limit)

    @rule(seconds=st.sampled_from([0.5, 5.0, 30.0]))
    def wait(self, seconds: float) -> None:
        self.q.advance(seconds)

    @rule()
    def process_ends(self) -> None:
        for message, name in self.q.leases():
            self.q.when(c.EndLease(message, name, "process ended"))
        self.q.when(c.Detach())

    def can_join(self, name: str, *, pull: bool) -> bool:
        """Whether the queue would take this subscription: nobody pulls and is called at once."""
        present = self.q.state.subscribers.get(name)
        return present is None or not present.present or present.pull is pull
